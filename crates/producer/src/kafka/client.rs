//! One librdkafka client that can be replaced while requests use it, and its properties. Sending
//! never blocks: librdkafka's own threads deliver the records and report the outcomes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use kafka::KafkaProperties;
use kafka::context::Rebootstrap;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Header, Message, OwnedHeaders, ToBytes};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use crate::kafka::client_health::{ClientHealth, ClientStatus, ErrorClass};
use crate::kafka::delivery::{
    AttemptError, DeliveryError, DeliveryFailure, DeliveryReport, Position, Record, SendMark, classify,
    is_producer_rejected,
};
use crate::kafka::delivery_tracker::{DeliveryTracker, PendingRecord, RecordCopy};

/// Time in which a client that had a fatal error may still receive delivery reports.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout of the metadata request that checks the broker after an error.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// Share of the client's queue for records of batches, in bytes. It is half of the queue, so that
/// single events always find room.
const BATCH_QUEUE_BYTES: usize = 32 * 1024 * 1024;

/// librdkafka's client, with a thread that runs the callbacks of [`Context`].
pub type Client = ThreadedProducer<Context>;

/// A client that can be replaced.
pub struct ReplaceableClient {
    pub config: ClientConfig,
    pub health: Arc<ClientHealth>,
    bootstrap: Arc<Rebootstrap>,
    /// `None` after the shutdown.
    client: RwLock<Option<Arc<Client>>>,
    replacements: AtomicU64,
    /// A client was replaced, and no client has worked since.
    failing: AtomicBool,
}

impl std::fmt::Debug for ReplaceableClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplaceableClient").field("health", &self.health).finish_non_exhaustive()
    }
}

impl ReplaceableClient {
    /// Creates the first client.
    ///
    /// # Errors
    /// librdkafka rejects the configuration.
    pub fn new(mut config: ClientConfig) -> Result<Self, KafkaError> {
        let (health, bootstrap) = (Arc::new(ClientHealth::default()), Rebootstrap::enable(&mut config));
        let client = create(&config, &health, &bootstrap)?;
        Ok(Self {
            config,
            health,
            bootstrap,
            client: RwLock::new(Some(Arc::new(client))),
            replacements: AtomicU64::new(0),
            failing: AtomicBool::new(false),
        })
    }

    /// The current client. `None` after the shutdown.
    pub fn current(&self) -> Option<Arc<Client>> {
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the current client by `client` and returns it.
    pub fn swap(&self, client: Option<Client>) -> Option<Arc<Client>> {
        let mut current = self.client.write().unwrap_or_else(PoisonError::into_inner);
        self.replacements.fetch_add(1, Ordering::AcqRel);
        std::mem::replace(&mut *current, client.map(Arc::new))
    }

    /// The fatal error of the current client. librdkafka reports a fatal error under the code of
    /// its cause, so the client itself has to be checked.
    pub fn fatal_error(&self) -> Option<String> {
        match self.health.status() {
            ClientStatus::Fatal(error) => Some(error),
            _ => self.current()?.client().fatal_error().map(|(_, error)| error),
        }
    }

    /// Replaces a client that had a fatal error. If no client works in between, only the first
    /// replacement is logged as a warning.
    pub fn replace(&self, error: &str) {
        if !self.failing.swap(true, Ordering::AcqRel) || self.health.has_recent_ack() {
            tracing::warn!(reason = error, "kafka client had a fatal error, replacing it");
        } else {
            tracing::debug!(reason = error, "kafka client had a fatal error again, replacing it");
        }
        match create(&self.config, &self.health, &self.bootstrap) {
            Ok(client) => {
                let old = self.swap(Some(client));
                self.health.record_replacement(error);
                // Records in flight may still be acknowledged. The drop purges the others.
                tokio::task::spawn_blocking(move || old.map(|old| old.flush(FLUSH_TIMEOUT)));
            }
            Err(error) => tracing::error!(error = %error, "kafka client cannot be created"),
        }
    }

    /// Records that the current client works.
    pub fn record_recovery(&self) {
        if self.failing.swap(false, Ordering::AcqRel) {
            tracing::info!("kafka client works again");
        }
    }

    /// Adds the bootstrap servers to a client that lost every broker. It must be called regularly.
    pub fn rebootstrap_if_needed(&self) {
        if let Some(client) = self.current() {
            self.bootstrap.restore_brokers(client.client());
        }
    }

    /// Checks with a metadata request that a broker answers.
    pub async fn probe(&self, topic: &Arc<str>) -> bool {
        let Some(client) = self.current() else { return false };
        self.rebootstrap_if_needed();
        let topic = Arc::clone(topic);
        let fetch = move || client.client().fetch_metadata(Some(&topic), PROBE_TIMEOUT).is_ok();
        // fetch_metadata blocks its thread for up to PROBE_TIMEOUT.
        tokio::task::spawn_blocking(fetch).await.unwrap_or(false)
    }

    /// Permits for the share of the queue that records of batches may use, one per byte. `None`
    /// after the shutdown. Each client has its own semaphore, because a replaced client may never
    /// return the permits of its records.
    pub fn batch_queue_permits(&self) -> Option<Arc<Semaphore>> {
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner);
        client.as_ref().map(|client| Arc::clone(&client.client().context().batch_queue_permits))
    }

    /// The mark to take before a record is sent, for [`ReplaceableClient::classify`].
    pub fn mark(&self) -> SendMark {
        SendMark { at: self.health.elapsed(), replacements: self.replacements.load(Ordering::Acquire) }
    }

    /// Classifies a failed delivery of a record that was sent after `mark`.
    pub fn classify(&self, failure: DeliveryFailure, mark: SendMark) -> AttemptError {
        // A broker that rejects a producer's next epoch rejects everything that the client sends
        // from then on. librdkafka does not stop sending, so this counts as a fatal error.
        if is_producer_rejected(failure.code)
            && self.replacements.load(Ordering::Acquire) == mark.replacements
        {
            self.health.record_error(ErrorClass::Fatal, &failure.code.to_string());
        }
        classify(failure, self.health.may_have_disconnected_since(mark.at))
    }

    /// Sends the record and waits for its delivery report until `deadline`.
    pub async fn send(
        &self,
        topic: &str,
        record: Record<'_>,
        deadline: Instant,
    ) -> Result<Position, AttemptError> {
        let mark = self.mark();
        let (sender, report) = oneshot::channel();
        self.enqueue(topic, record, ReportReceiver::Single(sender)).map_err(|rejected| rejected.0)?;
        self.report(report, mark, deadline).await
    }

    /// Sends a dead letter, which has no key, and waits for its delivery report until `deadline`.
    pub async fn send_dead_letter(
        &self,
        topic: &str,
        (value, timestamp_ms, headers): (&[u8], i64, OwnedHeaders),
        deadline: Instant,
    ) -> Result<Position, AttemptError> {
        let mark = self.mark();
        let (sender, report) = oneshot::channel();
        let receiver = Box::new(ReportReceiver::Single(sender));
        let base = BaseRecord::<(), _, _>::with_opaque_to(topic, receiver);
        let base = base.payload(value).timestamp(timestamp_ms).headers(headers);
        self.hand_over(base).map_err(|rejected| rejected.0)?;
        self.report(report, mark, deadline).await
    }

    async fn report(
        &self,
        report: oneshot::Receiver<DeliveryReport>,
        mark: SendMark,
        deadline: Instant,
    ) -> Result<Position, AttemptError> {
        match tokio::time::timeout_at(deadline, report).await {
            Ok(Ok(Ok(position))) => Ok(position),
            Ok(Ok(Err(failure))) => Err(self.classify(failure, mark)),
            Ok(Err(_)) => Err(DeliveryError::Unknown("the kafka client ended".into()).into()),
            Err(_) => Err(DeliveryError::no_report().into()),
        }
    }

    /// Hands the record to librdkafka, which copies it. Never waits. An error returns `receiver`.
    pub fn enqueue(
        &self,
        topic: &str,
        record: Record<'_>,
        receiver: ReportReceiver,
    ) -> Result<(), Box<(DeliveryError, ReportReceiver)>> {
        let mut headers = OwnedHeaders::new_with_capacity(2)
            .insert(Header { key: "content-type", value: Some("application/json") });
        if let Some(traceparent) = record.traceparent {
            headers = headers.insert(Header { key: "traceparent", value: Some(traceparent) });
        }
        let base = BaseRecord::with_opaque_to(topic, Box::new(receiver))
            .key(record.key)
            .payload(record.value)
            .timestamp(record.timestamp_ms)
            .headers(headers);
        self.hand_over(base)
    }

    /// Hands a record to librdkafka.
    fn hand_over<K: ToBytes + ?Sized>(
        &self,
        base: BaseRecord<'_, K, [u8], Box<ReportReceiver>>,
    ) -> Result<(), Box<(DeliveryError, ReportReceiver)>> {
        // The lock is held for this call only. A replacement waits for nothing else under it.
        let current = self.client.read().unwrap_or_else(PoisonError::into_inner);
        let Some(client) = current.as_ref() else {
            return Err(Box::new((DeliveryError::shutting_down(), *base.delivery_opaque)));
        };
        client
            .send(base)
            .map_err(|(error, base)| Box::new((self.enqueue_error(&error), *base.delivery_opaque)))
    }

    fn enqueue_error(&self, error: &KafkaError) -> DeliveryError {
        match error {
            KafkaError::MessageProduction(Code::QueueFull) => DeliveryError::queue_full(),
            KafkaError::MessageProduction(Code::MessageSizeTooLarge) => DeliveryError::TooLarge,
            error => {
                if error.rdkafka_error_code() == Some(Code::Fatal) {
                    self.health.record_error(ErrorClass::Fatal, "the client had a fatal error");
                }
                DeliveryError::not_stored(
                    "kafka_refused",
                    format!("the kafka client rejected the event: {error}"),
                )
            }
        }
    }
}

/// The receiver of a record's delivery report.
#[derive(Debug)]
pub enum ReportReceiver {
    /// A request of one event.
    Single(oneshot::Sender<DeliveryReport>),
    /// A batch request.
    Batch(PendingRecord),
}

/// Whether librdkafka is certain that no attempt stored a failed record. It also remembers attempts
/// on connections that did not break, for example when the broker reported missing replicas.
#[expect(unsafe_code, reason = "rdkafka does not expose librdkafka's status of a message")]
fn never_stored(message: &BorrowedMessage<'_>) -> bool {
    // SAFETY: the borrow keeps the message alive, and the call only reads a field of it.
    let status = unsafe { rdkafka::bindings::rd_kafka_message_status(message.ptr()) };
    status == rdkafka::bindings::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED
}

fn create(
    config: &ClientConfig,
    health: &Arc<ClientHealth>,
    bootstrap: &Arc<Rebootstrap>,
) -> Result<Client, KafkaError> {
    let (health, bootstrap) = (Arc::clone(health), Arc::clone(bootstrap));
    let batch_queue_permits = Arc::new(Semaphore::new(BATCH_QUEUE_BYTES));
    Client::from_config_and_context(config, Context { health, bootstrap, batch_queue_permits })
}

/// librdkafka's callbacks. They run on its own threads.
pub struct Context {
    health: Arc<ClientHealth>,
    bootstrap: Arc<Rebootstrap>,
    batch_queue_permits: Arc<Semaphore>,
}

impl ClientContext for Context {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.health.record_log(facility);
        kafka::log_line(facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let class = match error.rdkafka_error_code() {
            Some(Code::AllBrokersDown) => ErrorClass::AllBrokers,
            Some(Code::Fatal) => ErrorClass::Client,
            // Positive codes belong to the Kafka protocol: a broker answered.
            Some(code) if code as i32 > 0 => ErrorClass::Client,
            _ => ErrorClass::Connection,
        };
        tracing::debug!(target: "librdkafka", error = %error, reason, "client error");
        self.health.record_error(class, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.bootstrap.on_statistics(statistics);
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<ReportReceiver>;

    fn delivery(&self, result: &DeliveryResult<'_>, receiver: Self::DeliveryOpaque) {
        let report = match result {
            Ok(message) => {
                self.health.record_ack();
                match message.offset() {
                    offset @ 0.. => Ok(Position { partition: message.partition(), offset }),
                    // librdkafka reports a duplicate as success without an offset: the broker has a
                    // later record of this client. On a recreated topic that proves nothing.
                    _ => Err(DeliveryFailure { code: Code::DuplicateSequenceNumber, never_stored: false }),
                }
            }
            Err((error, message)) => Err(DeliveryFailure {
                code: error.rdkafka_error_code().unwrap_or(Code::Unknown),
                never_stored: never_stored(message),
            }),
        };
        match *receiver {
            // The request may have ended at its deadline.
            ReportReceiver::Single(sender) => _ = sender.send(report),
            ReportReceiver::Batch(record) => {
                DeliveryTracker::record_report(record, report, || {
                    result.as_ref().err().and_then(|(_, message)| copy(message))
                });
            }
        }
    }
}

fn copy(message: &BorrowedMessage<'_>) -> Option<RecordCopy> {
    Some(RecordCopy {
        topic: message.topic().to_owned(),
        key: std::str::from_utf8(message.key()?).ok()?.to_owned(),
        value: message.payload()?.to_vec(),
    })
}

/// `client.id` of every Kafka client of the producer.
pub const CLIENT_ID: &str = "slipstream-producer";

/// Headroom in `message.max.bytes` for the envelope around a payload.
const ENVELOPE_BYTES: usize = 64 * 1024;
/// librdkafka's default of `message.max.bytes`. The property is never set below it.
const MIN_MESSAGE_MAX_BYTES: usize = 1_000_000;

/// Properties that KAFKA_PROPERTIES may override.
fn defaults(max_payload_bytes: usize) -> Vec<(&'static str, String)> {
    let message_bytes = (max_payload_bytes + ENVELOPE_BYTES).max(MIN_MESSAGE_MAX_BYTES);
    vec![
        // A record never waits for others. Batches form anyway: five requests may be in flight,
        // and the records that arrive meanwhile share the next request.
        ("linger.ms", "0".into()),
        // Every consumer can read uncompressed records. The Python client needs an extra package
        // for each codec.
        ("compression.type", "none".into()),
        // The queue is bounded, so memory is. A full queue is a 503.
        ("queue.buffering.max.messages", "50000".into()),
        ("queue.buffering.max.kbytes", "65536".into()),
        ("message.max.bytes", message_bytes.to_string()),
    ]
}

/// Properties that a guarantee depends on. KAFKA_PROPERTIES cannot override them.
fn fixed(delivery_timeout: Duration) -> Vec<(&'static str, String)> {
    vec![
        // G1: an acknowledged record is on every in-sync replica, once and in order.
        ("acks", "all".into()),
        ("enable.idempotence", "true".into()),
        // The Python client's partitioner: old and new events of an id share a partition.
        ("partitioner", "murmur2_random".into()),
        // After a 504 the record does not stay in memory.
        ("message.timeout.ms", delivery_timeout.as_millis().to_string()),
    ]
}

/// Configuration of the client that sends records.
pub fn client_config(
    brokers: &str,
    properties: &KafkaProperties,
    max_payload_bytes: usize,
    delivery_timeout: Duration,
) -> ClientConfig {
    let defaults = defaults(max_payload_bytes);
    let defaults: Vec<(&str, &str)> = defaults.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let mut client = kafka::client_config(brokers, CLIENT_ID, &defaults, properties);
    for (key, value) in fixed(delivery_timeout) {
        client.set(key, value);
    }
    client
}
