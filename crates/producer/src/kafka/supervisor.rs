//! Supervision of the Kafka client: probes the broker after an error until it answers, and
//! replaces a client that had a fatal error. No error therefore requires a restart.

use std::sync::Arc;
use std::time::Duration;

use service::backoff::Backoff;
use service::suspension::SuspensionDetector;
use tokio_util::sync::CancellationToken;

use super::client::ReplaceableClient;
use super::client_health::ClientStatus;

/// Time in which a new client learns that the broker rejects it. librdkafka requests a producer id
/// every half second.
const INIT_TIMEOUT: Duration = Duration::from_millis(600);
const PROBE_INTERVAL: Duration = Duration::from_millis(50);

/// Supervises the client until `shutdown`.
pub async fn supervise(client: Arc<ReplaceableClient>, topic: Arc<str>, shutdown: CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
    let (mut statuses, standstill) = (client.health.subscribe(), SuspensionDetector::start());
    while shutdown
        .run_until_cancelled(statuses.wait_for(|status| *status != ClientStatus::Healthy))
        .await
        .is_some()
    {
        let mut pause = PROBE_INTERVAL;
        if let Some(error) = client.fatal_error() {
            if client.health.has_recent_ack() {
                backoff.reset();
            }
            client.replace(&error);
            // The new client counts as ready only after this time.
            pause = INIT_TIMEOUT + backoff.next_delay();
        } else {
            let (error_count, probed_at) = (client.health.error_count(), client.health.elapsed());
            // Metadata may be slow while records are acknowledged, which is an answer too.
            if client.probe(&topic).await || client.health.acked_since(probed_at) {
                client.health.record_answer(error_count);
                if client.health.status() == ClientStatus::Healthy {
                    client.record_recovery();
                }
            } else if !standstill.recently_resumed() {
                client.health.record_no_answer();
            }
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}
