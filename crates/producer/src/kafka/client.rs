//! One client of librdkafka, which can be replaced while requests use it. Sending never blocks: librdkafka's own
//! threads do the work and tell the outcome.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use kafka::rebootstrap::Bootstrap;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use super::client_health::{Break, Signals, Trouble};
use super::delivery::{NO_ACKNOWLEDGEMENT, Record, SendError, Stored, not_stored};
use super::delivery_error::{Refusal, is_disowned, judge};
use super::delivery_tracker::{Copied, Tally, Ticket};

/// How long a client that had a fatal error may take to hear of what it has in flight.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long the question whether a broker answers may take. It is asked when a connection broke.
const PROBE_LIMIT: Duration = Duration::from_millis(500);

/// What the records of batches may take of a client's queue, in bytes: half of it, so that single events find room.
const ROOM_BYTES: usize = 32 * 1024 * 1024;

/// librdkafka's client with a thread that hands over what it tells.
pub type Client = ThreadedProducer<Context>;

/// A client that can be replaced.
pub struct Sender {
    /// Its clients' configuration.
    pub config: ClientConfig,
    bootstrap: Arc<Bootstrap>,
    client: RwLock<Option<Arc<Client>>>,
    replacements: AtomicU64,
    /// Whether clients are being replaced, one after another maybe, and none has worked yet.
    failing: AtomicBool,
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
    pub fn new(mut config: ClientConfig) -> Result<Self, KafkaError> {
        let (signals, bootstrap) = (Arc::new(Signals::default()), Bootstrap::of(&mut config));
        let client = make(&config, &signals, &bootstrap)?;
        Ok(Self {
            config,
            bootstrap,
            client: RwLock::new(Some(Arc::new(client))),
            replacements: AtomicU64::new(0),
            failing: AtomicBool::new(false),
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

    /// Puts a new client in the place of one that cannot go on. Of a series of which no client works, the first is
    /// told.
    pub fn replace(&self, why: &str) {
        if !self.failing.swap(true, Ordering::AcqRel) || self.signals.confirmed_lately() {
            tracing::warn!(reason = why, "kafka client had a fatal error, replacing it");
        } else {
            tracing::debug!(reason = why, "kafka client had a fatal error again, replacing it");
        }
        match make(&self.config, &self.signals, &self.bootstrap) {
            Ok(client) => {
                let old = self.put(Some(client));
                self.signals.replaced(why);
                // What is in flight may still be acknowledged; the rest is given up when the client is dropped.
                tokio::task::spawn_blocking(move || old.map(|old| old.flush(LAST_WORDS)));
            }
            Err(error) => tracing::error!(error = %error, "kafka client cannot be made"),
        }
    }

    /// The present client works.
    pub fn works(&self) {
        if self.failing.swap(false, Ordering::AcqRel) {
            tracing::info!("kafka client works again");
        }
    }

    /// To be called now and then: the client does not stay without a broker.
    pub fn keep(&self) {
        if let Some(client) = self.client() {
            self.bootstrap.again(client.client());
        }
    }

    /// Asks whether a broker answers.
    pub async fn answers(&self, topic: &Arc<str>) -> bool {
        let Some(client) = self.client() else { return false };
        self.keep();
        let topic = Arc::clone(topic);
        let ask = move || client.client().fetch_metadata(Some(&topic), PROBE_LIMIT).is_ok();
        // fetch_metadata blocks its thread for up to PROBE_LIMIT.
        tokio::task::spawn_blocking(ask).await.unwrap_or(false)
    }

    /// What the records of batches may take of the present client's queue; `None` after the end. A client that is
    /// replaced takes its share with it, so that nothing that it never tells of is missed.
    pub fn room(&self) -> Option<Arc<Semaphore>> {
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner);
        client.as_ref().map(|client| Arc::clone(&client.client().context().room))
    }

    /// To be taken before a record is sent, for [`Sender::judge`].
    pub fn mark(&self) -> Sent {
        Sent { at: self.signals.now(), replacements: self.replacements.load(Ordering::Acquire) }
    }

    /// The verdict on a delivery that failed.
    pub fn judge(&self, code: Code, never_stored: bool, sent: Sent) -> Refusal {
        // Brokers that do not take a producer's next epoch refuse all that it sends from then on, and librdkafka goes
        // on sending.
        if is_disowned(code) && self.replacements.load(Ordering::Acquire) == sent.replacements {
            self.signals.broke(Break::Fatal, &code.to_string());
        }
        judge(code, never_stored, self.signals.broke_since(sent.at))
    }

    /// Hands the record over and waits for the outcome until `deadline`.
    pub async fn send(&self, topic: &str, record: Record<'_>, deadline: Instant) -> Result<Stored, Refusal> {
        let (sent, (waiting, delivery)) = (self.mark(), oneshot::channel());
        self.enqueue(topic, record, Waiting::One(waiting)).map_err(|refused| refused.0)?;
        match tokio::time::timeout_at(deadline, delivery).await {
            Ok(Ok(Ok(stored))) => Ok(stored),
            Ok(Ok(Err((code, never_stored)))) => Err(self.judge(code, never_stored, sent)),
            Ok(Err(_)) => Err(SendError::Unknown("the kafka client ended".into()).into()),
            Err(_) => Err(SendError::Unknown(NO_ACKNOWLEDGEMENT.into()).into()),
        }
    }

    /// Hands the record to librdkafka, which copies it; never waits. What waits for the outcome is given back with a
    /// refusal.
    pub fn enqueue(
        &self,
        topic: &str,
        record: Record<'_>,
        waiting: Waiting,
    ) -> Result<(), Box<(SendError, Waiting)>> {
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
            let stopping = not_stored("stopping", "the producer is stopping");
            return Err(Box::new((stopping, *base.delivery_opaque)));
        };
        client.send(base).map_err(|(error, base)| Box::new((self.refusal(&error), *base.delivery_opaque)))
    }

    /// Why librdkafka did not take a record.
    fn refusal(&self, error: &KafkaError) -> SendError {
        match error {
            KafkaError::MessageProduction(Code::QueueFull) => {
                not_stored("queue_full", "too many events wait for kafka")
            }
            KafkaError::MessageProduction(Code::MessageSizeTooLarge) => SendError::TooLarge,
            error => {
                if error.rdkafka_error_code() == Some(Code::Fatal) {
                    self.signals.broke(Break::Fatal, "the client had a fatal error");
                }
                not_stored("kafka_refused", format!("the kafka client refused the event: {error}"))
            }
        }
    }
}

/// The moment before a record was sent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    at: Duration,
    replacements: u64,
}

/// Who waits for an outcome.
#[derive(Debug)]
pub enum Waiting {
    /// A request of one event.
    One(oneshot::Sender<Delivery>),
    /// A request of many.
    Batch(Ticket),
}

/// What librdkafka itself knows of a record that failed: it remembers an earlier attempt that may have been stored,
/// also where no connection broke (the broker answered that replicas were missing, say).
#[expect(unsafe_code, reason = "rdkafka does not pass on the status that librdkafka keeps of a message")]
fn never_stored(message: &BorrowedMessage<'_>) -> bool {
    // SAFETY: the message is alive for as long as it is borrowed, and the call only reads a field of it.
    let status = unsafe { rdkafka::bindings::rd_kafka_message_status(message.ptr()) };
    status == rdkafka::bindings::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED
}

fn make(
    config: &ClientConfig,
    signals: &Arc<Signals>,
    bootstrap: &Arc<Bootstrap>,
) -> Result<Client, KafkaError> {
    let (signals, bootstrap) = (Arc::clone(signals), Arc::clone(bootstrap));
    let context = Context { signals, bootstrap, room: Arc::new(Semaphore::new(ROOM_BYTES)) };
    Client::from_config_and_context(config, context)
}

/// The outcome; of a failure also whether the record certainly never reached a broker's log.
pub type Delivery = Result<Stored, (Code, bool)>;

/// What librdkafka tells, on its own threads.
pub struct Context {
    signals: Arc<Signals>,
    bootstrap: Arc<Bootstrap>,
    room: Arc<Semaphore>,
}

impl ClientContext for Context {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.signals.log(facility);
        kafka::log_line(facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let what = match error.rdkafka_error_code() {
            Some(Code::AllBrokersDown) => Break::AllBrokers,
            Some(Code::Fatal) => Break::Client,
            // The codes of the protocol: a broker answered.
            Some(code) if code as i32 > 0 => Break::Client,
            _ => Break::Connection,
        };
        tracing::debug!(target: "librdkafka", error = %error, reason, "client error");
        self.signals.broke(what, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.bootstrap.told(statistics);
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<Waiting>;

    fn delivery(&self, result: &DeliveryResult<'_>, waiting: Self::DeliveryOpaque) {
        let delivery = match result {
            Ok(message) => {
                self.signals.confirmed();
                match message.offset() {
                    offset @ 0.. => Ok(Stored { partition: message.partition(), offset }),
                    // What librdkafka makes of a broker that knows a later record of this client. On a topic that was
                    // made anew that proves nothing.
                    _ => Err((Code::DuplicateSequenceNumber, false)),
                }
            }
            Err((error, message)) => {
                Err((error.rdkafka_error_code().unwrap_or(Code::Unknown), never_stored(message)))
            }
        };
        match *waiting {
            // The request may have met its deadline.
            Waiting::One(waiting) => _ = waiting.send(delivery),
            Waiting::Batch(ticket) => {
                Tally::delivered(ticket, delivery, || {
                    result.as_ref().err().and_then(|(_, message)| copy(message))
                });
            }
        }
    }
}

fn copy(message: &BorrowedMessage<'_>) -> Option<Copied> {
    Some(Copied {
        key: std::str::from_utf8(message.key()?).ok()?.to_owned(),
        value: message.payload()?.to_vec(),
    })
}
