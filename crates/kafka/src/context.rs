//! Contexts of librdkafka clients: the handlers of its log lines, errors and statistics.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rdkafka::ClientConfig;
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{DeliveryResult, ProducerContext};
use serde::Deserialize;
use service::tasks::lock;

/// A context that logs the lines of librdkafka at debug.
///
/// Slipstream itself logs each change of state once, at a higher level.
#[derive(Debug, Clone, Copy, Default)]
pub struct QuietContext;

impl ClientContext for QuietContext {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", error = %error, reason, "client error");
    }
}

impl ConsumerContext for QuietContext {}

/// A context for a long-lived client: it keeps the last connection failure and passes on the
/// statistics that [`Rebootstrap`] needs.
///
/// A request that times out does not contain the cause, for example a rejected password. The
/// connection failure does. The client must be polled, because librdkafka calls the context only
/// then.
#[derive(Debug)]
pub struct ConnectionContext {
    last_failure: Mutex<Option<String>>,
    bootstrap: Arc<Rebootstrap>,
}

impl ConnectionContext {
    /// A context without a failure.
    pub fn new(bootstrap: Arc<Rebootstrap>) -> Self {
        Self { last_failure: Mutex::default(), bootstrap }
    }

    /// The last connection failure since [`ConnectionContext::clear_last_failure`].
    pub fn last_failure(&self) -> Option<String> {
        lock(&self.last_failure).clone()
    }

    /// Removes the last failure. Call it when a connection works.
    pub fn clear_last_failure(&self) {
        *lock(&self.last_failure) = None;
    }
}

impl ClientContext for ConnectionContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        QuietContext.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // AllBrokersDown follows the failure of each broker and does not contain a cause.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *lock(&self.last_failure) = Some(without_duration(reason).to_owned());
        }
        QuietContext.error(error, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.bootstrap.on_statistics(statistics);
    }
}

impl ConsumerContext for ConnectionContext {}

impl ProducerContext for ConnectionContext {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// An error text of librdkafka without the duration of the connection.
pub(crate) fn without_duration(reason: &str) -> &str {
    reason.split_once(" (after ").map_or(reason, |(cause, _)| cause)
}

/// Logs a line of librdkafka at debug, with the target `librdkafka`.
pub fn log_line(facility: &str, message: &str) {
    tracing::debug!(target: "librdkafka", facility, detail = message, "client line");
}

/// Works around librdkafka #5301: a client whose metadata became empty never re-bootstraps
/// (<https://github.com/confluentinc/librdkafka/issues/5301>).
///
/// librdkafka keeps only the brokers of the last metadata response. A single broker that was
/// suspended fences itself when it resumes, and for a moment its metadata contains no broker. When
/// the last connection closes, librdkafka schedules a re-bootstrap. The end of the same metadata
/// response cancels it. librdkafka then treats the re-bootstrap as in progress permanently, and a
/// client without brokers has no request that would start another one.
#[derive(Debug)]
pub struct Rebootstrap {
    servers: CString,
    is_without_brokers: AtomicBool,
}

/// The used part of librdkafka's statistics.
#[derive(Deserialize)]
struct Statistics {
    brokers: HashMap<String, Broker>,
}

#[derive(Deserialize)]
struct Broker {
    source: String,
}

impl Rebootstrap {
    /// Enables statistics once a second in `config`.
    ///
    /// The context of the client must pass them to [`Rebootstrap::on_statistics`], and the client
    /// must be polled.
    pub fn enable(config: &mut ClientConfig) -> Arc<Self> {
        config.set("statistics.interval.ms", "1000");
        let servers = config.get("bootstrap.servers").and_then(|servers| CString::new(servers).ok());
        Arc::new(Self { servers: servers.unwrap_or_default(), is_without_brokers: AtomicBool::new(false) })
    }

    /// Reads the statistics of the client, in JSON
    /// (<https://github.com/confluentinc/librdkafka/blob/v2.12.1/STATISTICS.md>).
    pub fn on_statistics(&self, statistics: &[u8]) {
        let Ok(Statistics { brokers }) = serde_json::from_slice(statistics) else { return };
        // Brokers of other sources are internal and stand for a role.
        let is_real = |broker: &Broker| broker.source == "learned" || broker.source == "configured";
        self.is_without_brokers.store(!brokers.values().any(is_real), Ordering::Relaxed);
    }

    /// Adds the bootstrap servers to `client` if it has no broker. Call it about once a second.
    #[expect(unsafe_code, reason = "rdkafka has no binding for this call")]
    pub fn restore_brokers<C: ClientContext>(&self, client: &Client<C>) {
        if self.is_without_brokers.swap(false, Ordering::Relaxed) {
            tracing::debug!("kafka client lost all brokers, adding its bootstrap servers");
            // SAFETY: the client is alive while it is borrowed. The text ends with NUL and is
            // copied. The call is thread-safe.
            unsafe { rdkafka::bindings::rd_kafka_brokers_add(client.native_ptr(), self.servers.as_ptr()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Result, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::atomic::AtomicU32;
    use std::thread;
    use std::time::{Duration, Instant};

    use rdkafka::producer::{Producer, ThreadedProducer};

    use super::*;
    use crate::{KafkaProperties, client_config};

    #[test]
    fn the_last_failure_is_kept_until_it_is_cleared() {
        let context = ConnectionContext::new(Rebootstrap::enable(&mut ClientConfig::new()));
        let cause = "sasl_ssl://k:9092/bootstrap: SASL authentication error: Authentication failed";
        let error = |code| KafkaError::Global(code);
        context.error(
            error(RDKafkaErrorCode::Authentication),
            &format!("{cause} (after 301ms in state AUTH_REQ)"),
        );
        context.error(error(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        assert_eq!(context.last_failure().as_deref(), Some(cause));
        context.clear_last_failure();
        assert_eq!(context.last_failure(), None);
    }

    const TOPIC: &str = "t";
    const PARTITIONS: u32 = 6;
    /// Without the workaround, the client never reconnected after round 15.
    const ROUNDS: u32 = 40;

    /// Responds to metadata requests of version 0 until the client disconnects.
    fn serve(mut client: TcpStream, port: u16, responses: &AtomicU32) -> Result<()> {
        loop {
            let mut length = [0; 4];
            client.read_exact(&mut length)?;
            let mut request = vec![0; u32::from_be_bytes(length) as usize];
            client.read_exact(&mut request)?;
            assert_eq!(request[..4], [0, 3, 0, 0], "metadata, version 0");
            let includes_itself = responses.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
            let response = [&request[4..8], &metadata(port, includes_itself)].concat();
            client.write_all(&u32::try_from(response.len()).unwrap().to_be_bytes())?;
            client.write_all(&response)?;
        }
    }

    fn metadata(port: u16, includes_itself: bool) -> Vec<u8> {
        let text = |text: &str| [&u16::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat();
        let (one, leader_not_available, no_broker) = ([0, 0, 0, 1], [0, 5], [255; 4]);
        let mut response = u32::from(includes_itself).to_be_bytes().to_vec();
        if includes_itself {
            response.extend([&one, &*text("127.0.0.1"), &u32::from(port).to_be_bytes()].concat());
        }
        response.extend([&one, [0, 0].as_slice(), &text(TOPIC), &PARTITIONS.to_be_bytes()].concat());
        for partition in 0..PARTITIONS {
            response.extend([leader_not_available.as_slice(), &partition.to_be_bytes(), &no_broker].concat());
            let (replicas, in_sync) = ([one, one], [one, one]);
            response.extend([replicas, in_sync].concat().concat());
        }
        response
    }

    #[test]
    fn g6_client_recovers_when_metadata_of_the_only_broker_is_empty() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let responses = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&responses);
        // The threads end with the test process.
        thread::spawn(move || {
            for client in listener.incoming() {
                let count = Arc::clone(&count);
                thread::spawn(move || serve(client.unwrap(), port, &count));
            }
        });
        let old = [("api.version.request", "false"), ("broker.version.fallback", "0.9.0.1")];
        let mut config = client_config(&format!("127.0.0.1:{port}"), "c", &old, &KafkaProperties::default());
        let bootstrap = Rebootstrap::enable(&mut config);
        let client: ThreadedProducer<ConnectionContext> =
            config.create_with_context(ConnectionContext::new(Arc::clone(&bootstrap))).unwrap();
        for round in 0..ROUNDS {
            let (before, start) = (responses.load(Ordering::Relaxed), Instant::now());
            while responses.load(Ordering::Relaxed) == before {
                assert!(
                    start.elapsed() < Duration::from_secs(4),
                    "no request reached the broker in round {round}"
                );
                bootstrap.restore_brokers(client.client());
                _ = client.client().fetch_metadata(Some(TOPIC), Duration::from_millis(200));
            }
        }
    }
}
