//! Sends single records to the topic, and supervises the Kafka client.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kafka::topics::{KafkaReadiness, topic_maintenance};
use rdkafka::error::KafkaError;
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{Producer, PurgeConfig};
use service::tasks::Supervisor;
use service::time::Backoff;
use service::time::SuspensionDetector;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::kafka::client::{self, Client, ReplaceableClient, client_config};
use crate::kafka::client_health::{ACK_FRESHNESS, ClientStatus, kafka_state};
use crate::kafka::delivery::{AttemptError, DeliveryError, Position, Record};

/// Sends records for any number of concurrent requests.
#[derive(Debug)]
pub struct Publisher {
    pub(super) topic: Arc<str>,
    pub(super) delivery_timeout: Duration,
    pub(super) client: Arc<ReplaceableClient>,
    /// A client whose batches hold one record, created at its first use. A broker rejects a whole
    /// batch for its size. Only a record that was alone in its batch is certainly too large.
    single_record_client: OnceLock<ReplaceableClient>,
    topic_state: watch::Receiver<KafkaReadiness>,
}

impl Publisher {
    /// Creates the client. Starts its supervision, the creation of the topic, and the log of state
    /// changes, which all run until `shutdown`. `tasks` has to be stopped before. Kafka may be
    /// unavailable.
    ///
    /// # Errors
    /// librdkafka rejects the configuration; the text is its message.
    pub fn connect(
        config: &Config,
        tasks: &Supervisor,
        shutdown: &CancellationToken,
    ) -> Result<Self, String> {
        let message = |error: KafkaError| error.to_string();
        let client_config = client_config(
            &config.kafka_broker,
            &config.kafka_properties,
            config.max_record_bytes(),
            config.delivery_timeout,
        );
        let client = Arc::new(ReplaceableClient::new(client_config).map_err(message)?);
        let admin_config =
            kafka::client_config(&config.kafka_broker, client::CLIENT_ID, &[], &config.kafka_properties);
        let (topic_state, maintenance) =
            topic_maintenance(&admin_config, config.topics(), shutdown.clone()).map_err(message)?;
        let publisher = Self {
            topic: config.topic.name.as_str().into(),
            delivery_timeout: config.delivery_timeout,
            client,
            single_record_client: OnceLock::new(),
            topic_state,
        };
        let (client, topic) = (Arc::clone(&publisher.client), Arc::clone(&publisher.topic));
        let log = log_state_changes(Arc::clone(&client), publisher.topic_state.clone());
        tasks.spawn("kafka client supervision", supervise(client, topic, shutdown.clone()));
        // One task, because the log ends with the maintenance. The failure is then the cause.
        tasks.spawn("topic maintenance", async {
            tokio::join!(maintenance, log);
        });
        Ok(publisher)
    }

    /// Checks that records of KAFKA_TOPIC can be sent now. The topic of a source may be missing.
    ///
    /// # Errors
    /// The cause, as text.
    pub fn ready(&self) -> Result<(), String> {
        self.ready_for(&self.topic)
    }

    /// Checks that records of every topic can be sent now.
    ///
    /// # Errors
    /// The cause, as text. It names every topic that is missing.
    pub fn ready_for_all(&self) -> Result<(), String> {
        self.state()?.ready()
    }

    /// Checks that records can be sent to `topic` now. Another topic may be missing.
    ///
    /// # Errors
    /// The cause, as text.
    pub fn ready_for(&self, topic: &str) -> Result<(), String> {
        self.state()?.of_topic(topic).ready()
    }

    fn state(&self) -> Result<KafkaReadiness, String> {
        match self.client.health.status() {
            ClientStatus::Fatal(error) | ClientStatus::Replaced(error) => {
                Err(format!("the kafka client is being replaced after a fatal error: {error}"))
            }
            ClientStatus::Healthy | ClientStatus::Suspected | ClientStatus::Unreachable(_) => {
                Ok(kafka_state(&self.client.health, &self.topic_state.borrow()))
            }
        }
    }

    /// Sends a record to KAFKA_TOPIC, as [`Publisher::send_to`].
    ///
    /// # Errors
    /// See there.
    #[cfg(test)]
    pub async fn send(&self, record: Record<'_>) -> Result<Position, DeliveryError> {
        self.send_to(&self.topic, record).await
    }

    /// Sends a record and waits for its delivery report, at most for the delivery timeout.
    ///
    /// # Errors
    /// The record is not known to be stored. The error states whether it may be.
    pub async fn send_to(&self, topic: &str, record: Record<'_>) -> Result<Position, DeliveryError> {
        self.check_ready(topic)?;
        let deadline = Instant::now() + self.delivery_timeout;
        match self.client.send(topic, record, deadline).await {
            Ok(position) => return Ok(position),
            Err(AttemptError::Final(error)) => return Err(error),
            Err(AttemptError::BatchTooLarge) => {}
        }
        self.check_ready(topic)?;
        let outcome = self.single_record_client()?.send(topic, record, deadline).await;
        outcome.map_err(|error| match error {
            AttemptError::BatchTooLarge => DeliveryError::TooLarge,
            AttemptError::Final(error) => error,
        })
    }

    /// Sends a dead letter without a key, and waits for its delivery report.
    ///
    /// # Errors
    /// It is not known to be stored.
    pub async fn send_dead_letter(
        &self,
        topic: &str,
        (value, timestamp_ms, headers): (&[u8], i64, OwnedHeaders),
    ) -> Result<Position, DeliveryError> {
        self.check_ready(topic)?;
        let deadline = Instant::now() + self.delivery_timeout;
        let letter = (value, timestamp_ms, headers.clone());
        match self.client.send_dead_letter(topic, letter, deadline).await {
            Ok(position) => return Ok(position),
            Err(AttemptError::Final(error)) => return Err(error),
            Err(AttemptError::BatchTooLarge) => {}
        }
        let alone = self.single_record_client()?;
        let outcome = alone.send_dead_letter(topic, (value, timestamp_ms, headers), deadline).await;
        outcome.map_err(|error| match error {
            AttemptError::BatchTooLarge => DeliveryError::TooLarge,
            AttemptError::Final(error) => error,
        })
    }

    pub(super) fn check_ready(&self, topic: &str) -> Result<(), DeliveryError> {
        self.ready_for(topic).map_err(|cause| DeliveryError::not_stored("kafka_away", cause))
    }

    pub(super) fn single_record_client(&self) -> Result<&ReplaceableClient, DeliveryError> {
        if let Some(client) = self.single_record_client.get() {
            if let Some(error) = client.fatal_error() {
                client.replace(&error);
            }
            client.rebootstrap_if_needed();
            return Ok(client);
        }
        let mut config = self.client.config.clone();
        config.set("batch.num.messages", "1");
        let client = ReplaceableClient::new(config).map_err(|error| {
            DeliveryError::not_stored(
                "kafka_refused",
                format!("the kafka client for single records cannot be created: {error}"),
            )
        })?;
        Ok(self.single_record_client.get_or_init(|| client))
    }

    /// The client that a record was sent with: the one for single records, if it was `alone`.
    pub(super) fn client_of(&self, alone: bool) -> &ReplaceableClient {
        let single = if alone { self.single_record_client.get() } else { None };
        single.unwrap_or(&*self.client)
    }

    /// Number of records that were sent and have no delivery report yet.
    pub fn queued_records(&self) -> i64 {
        self.both_clients()
            .filter_map(ReplaceableClient::current)
            .map(|client| i64::from(client.in_flight_count()))
            .sum()
    }

    /// Purges every record that has no delivery report yet. Each waiting request learns at once
    /// whether its record may be stored.
    pub async fn purge(&self) {
        for client in self.current_clients() {
            let purge = move || client.purge(PurgeConfig::default().queue().inflight());
            // The call blocks its thread until librdkafka's own threads have finished the purge.
            _ = tokio::task::spawn_blocking(purge).await;
        }
    }

    /// Closes the clients. Records can no longer be sent.
    pub async fn close(&self) {
        let clients = self.current_clients();
        for client in self.both_clients() {
            client.swap(None);
        }
        _ = tokio::task::spawn_blocking(move || drop(clients)).await;
    }

    fn both_clients(&self) -> impl Iterator<Item = &ReplaceableClient> {
        std::iter::once(&*self.client).chain(self.single_record_client.get())
    }

    fn current_clients(&self) -> Vec<Arc<Client>> {
        self.both_clients().filter_map(ReplaceableClient::current).collect()
    }
}

/// Time in which a new client learns that the broker rejects it. librdkafka requests a producer id
/// every half second.
const INIT_TIMEOUT: Duration = Duration::from_millis(600);
const PROBE_INTERVAL: Duration = Duration::from_millis(50);

/// Supervises the client until `shutdown`.
async fn supervise(client: Arc<ReplaceableClient>, topic: Arc<str>, shutdown: CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
    let (mut statuses, suspension) = (client.health.subscribe(), SuspensionDetector::start());
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
            } else if !suspension.recently_resumed() {
                client.health.record_no_answer();
            }
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// Logs each change of state. Ends when the topic check ends.
async fn log_state_changes(
    client: Arc<ReplaceableClient>,
    mut topic_states: watch::Receiver<KafkaReadiness>,
) {
    let (mut statuses, mut last) = (client.health.subscribe(), KafkaReadiness::Unknown);
    loop {
        let topic_state = topic_states.borrow_and_update().clone();
        let state = kafka_state(&client.health, &topic_state);
        state.log_change_from(&last);
        // The state relies on a recent acknowledgement, which proves nothing after ACK_FRESHNESS.
        let relies_on_ack = state == KafkaReadiness::Ready && topic_state != KafkaReadiness::Ready;
        last = state;
        tokio::select! {
            // The client owns the sending side, so this never fails.
            _ = statuses.changed() => {}
            changed = topic_states.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(ACK_FRESHNESS), if relies_on_ack => {}
        }
    }
}
