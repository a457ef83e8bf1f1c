//! One client of librdkafka, which can be replaced while requests use it. Sending never blocks: librdkafka's own
//! threads do the work and tell the outcome.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::delivery::{Record, SendError, Stored, not_stored};
use super::signals::{Break, Signals, Trouble};
use super::verdict::{Refusal, is_disowned, judge};

/// How long a client that had a fatal error may take to hear of what it has in flight.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long the question whether a broker answers may take. It is asked when a connection broke.
const PROBE_LIMIT: Duration = Duration::from_millis(500);

/// librdkafka's client with a thread that hands over what it tells.
pub type Client = ThreadedProducer<Context>;

/// A client that can be replaced.
pub struct Sender {
    /// Its clients' configuration.
    pub config: ClientConfig,
    client: RwLock<Option<Arc<Client>>>,
    replacements: AtomicU64,
    /// What its clients tell.
    pub signals: Arc<Signals>,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").field("signals", &self.signals).finish_non_exhaustive()
    }
}

impl Sender {
    /// Makes the first client.
    ///
    /// # Errors
    /// librdkafka refuses the configuration.
    pub fn new(config: ClientConfig) -> Result<Self, KafkaError> {
        let signals = Arc::new(Signals::default());
        let client = make(&config, &signals)?;
        Ok(Self {
            config,
            client: RwLock::new(Some(Arc::new(client))),
            replacements: AtomicU64::new(0),
            signals,
        })
    }

    /// The present client; `None` after the end.
    pub fn client(&self) -> Option<Arc<Client>> {
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another client, or none, in the place of the present one, which is returned.
    pub fn put(&self, client: Option<Client>) -> Option<Arc<Client>> {
        let mut slot = self.client.write().unwrap_or_else(PoisonError::into_inner);
        self.replacements.fetch_add(1, Ordering::AcqRel);
        std::mem::replace(&mut *slot, client.map(Arc::new))
    }

    /// Why the client cannot go on, if it cannot. librdkafka reports a fatal error under the code of its cause, so it
    /// has to be asked.
    pub fn fatal(&self) -> Option<String> {
        match self.signals.trouble() {
            Trouble::Fatal(why) => Some(why),
            _ => self.client()?.client().fatal_error().map(|(_, why)| why),
        }
    }

    /// Puts a new client in the place of one that cannot go on.
    pub fn replace(&self, why: &str) {
        tracing::warn!(reason = why, "kafka client had a fatal error, replacing it");
        match make(&self.config, &self.signals) {
            Ok(client) => {
                let old = self.put(Some(client));
                self.signals.replaced(why);
                // What is in flight may still be acknowledged; the rest is given up when the client is dropped.
                tokio::task::spawn_blocking(move || old.map(|old| old.flush(LAST_WORDS)));
            }
            Err(error) => tracing::error!(error = %error, "kafka client cannot be made"),
        }
    }

    /// Asks whether a broker answers.
    pub async fn answers(&self, topic: &Arc<str>) -> bool {
        let Some(client) = self.client() else { return false };
        let topic = Arc::clone(topic);
        let ask = move || client.client().fetch_metadata(Some(&topic), PROBE_LIMIT).is_ok();
        // fetch_metadata blocks its thread for up to PROBE_LIMIT.
        tokio::task::spawn_blocking(ask).await.unwrap_or(false)
    }

    /// Hands the record over and waits for the outcome until `deadline`.
    pub async fn send(&self, topic: &str, record: Record<'_>, deadline: Instant) -> Result<Stored, Refusal> {
        let (sent_at, replacements) = (self.signals.now(), self.replacements.load(Ordering::Acquire));
        let delivery = self.enqueue(topic, record)?;
        match tokio::time::timeout_at(deadline, delivery).await {
            Ok(Ok(Ok(stored))) => Ok(stored),
            Ok(Ok(Err((code, never_stored)))) => {
                // Brokers that do not take a producer's next epoch refuse all that it sends from then on, and
                // librdkafka goes on sending.
                if is_disowned(code) && self.replacements.load(Ordering::Acquire) == replacements {
                    self.signals.broke(Break::Fatal, &code.to_string());
                }
                Err(judge(code, !never_stored || self.signals.broke_since(sent_at)))
            }
            Ok(Err(_)) => Err(SendError::Unknown("the kafka client ended".into()).into()),
            Err(_) => Err(SendError::Unknown("kafka did not acknowledge the event in time".into()).into()),
        }
    }

    /// Hands the record to librdkafka, which copies it; never waits.
    fn enqueue(&self, topic: &str, record: Record<'_>) -> Result<oneshot::Receiver<Delivery>, SendError> {
        let (waiting, delivery) = oneshot::channel();
        let mut headers = OwnedHeaders::new_with_capacity(2)
            .insert(Header { key: "content-type", value: Some("application/json") });
        if let Some(traceparent) = record.traceparent {
            headers = headers.insert(Header { key: "traceparent", value: Some(traceparent) });
        }
        let base = BaseRecord::with_opaque_to(topic, Box::new(waiting))
            .key(record.key)
            .payload(record.value)
            .timestamp(record.timestamp_ms)
            .headers(headers);
        // Held for this call only; whoever replaces the client waits for nothing else while holding it.
        let slot = self.client.read().unwrap_or_else(PoisonError::into_inner);
        let Some(client) = slot.as_ref() else {
            return Err(not_stored("stopping", "the producer is stopping"));
        };
        match client.send(base) {
            Ok(()) => Ok(delivery),
            Err((KafkaError::MessageProduction(Code::QueueFull), _)) => {
                Err(not_stored("queue_full", "too many events wait for kafka"))
            }
            Err((KafkaError::MessageProduction(Code::MessageSizeTooLarge), _)) => Err(SendError::TooLarge),
            Err((error, _)) => {
                if error.rdkafka_error_code() == Some(Code::Fatal) {
                    self.signals.broke(Break::Fatal, "the client had a fatal error");
                }
                Err(not_stored("kafka_refused", format!("the kafka client refused the event: {error}")))
            }
        }
    }
}

/// What librdkafka itself knows of a record that failed: it remembers an earlier attempt that may have been stored,
/// also where no connection broke (the broker answered that replicas were missing, say).
#[expect(unsafe_code, reason = "rdkafka does not pass on the status that librdkafka keeps of a message")]
fn never_stored(message: &BorrowedMessage<'_>) -> bool {
    // SAFETY: the message is alive for as long as it is borrowed, and the call only reads a field of it.
    let status = unsafe { rdkafka::bindings::rd_kafka_message_status(message.ptr()) };
    status == rdkafka::bindings::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED
}

fn make(config: &ClientConfig, signals: &Arc<Signals>) -> Result<Client, KafkaError> {
    Client::from_config_and_context(config, Context(Arc::clone(signals)))
}

/// The outcome; of a failure also whether the record certainly never reached a broker's log.
type Delivery = Result<Stored, (Code, bool)>;

/// What librdkafka tells, on its own threads.
pub struct Context(Arc<Signals>);

impl ClientContext for Context {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(facility);
        service::kafka::log_line(facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let what = match error.rdkafka_error_code() {
            Some(Code::AllBrokersDown) => Break::AllBrokers,
            _ => Break::Connection,
        };
        tracing::debug!(target: "librdkafka", error = %error, reason, "client error");
        self.0.broke(what, reason);
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<oneshot::Sender<Delivery>>;

    fn delivery(&self, result: &DeliveryResult<'_>, waiting: Self::DeliveryOpaque) {
        let delivery = match result {
            Ok(message) => {
                self.0.confirmed();
                let offset = message.offset();
                Ok(Stored { partition: message.partition(), offset: (offset >= 0).then_some(offset) })
            }
            Err((error, message)) => {
                Err((error.rdkafka_error_code().unwrap_or(Code::Unknown), never_stored(message)))
            }
        };
        // The request may have met its deadline.
        _ = waiting.send(delivery);
    }
}
