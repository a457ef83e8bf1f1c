//! The upkeep of topics, in the background until stopped: asks Kafka whether it answers and whether the topics
//! exist, makes those that do not, and hands the result to whoever wants to know. It never gives up, and it never
//! relies on the broker's auto-creation.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{Producer, ThreadedProducer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::client::{ConnectionContext, QuietContext};
use crate::rebootstrap::Rebootstrap;
use service::parse;
use service::suspension::SuspensionDetector;

/// How long one question to the broker may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
const PAUSE_WHEN_WELL: Duration = Duration::from_secs(1);
const PAUSE_WHEN_NOT: Duration = Duration::from_millis(200);

/// What the last question to Kafka showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KafkaReadiness {
    /// Nothing has been asked yet.
    Unknown,
    /// Kafka answers and every topic exists.
    Ready,
    /// Kafka does not answer, or refuses us; why.
    Unavailable(String),
    /// Kafka answers, but a topic is not there and could not be made yet; which and why.
    TopicMissing(String),
}

impl KafkaReadiness {
    /// Whether Kafka answers and the topics exist.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn ready(&self) -> Result<(), String> {
        match self {
            Self::Ready => Ok(()),
            Self::Unknown => Err("kafka has not been asked yet".into()),
            Self::Unavailable(why) => Err(format!("kafka does not answer: {why}")),
            Self::TopicMissing(why) => Err(why.clone()),
        }
    }

    /// One line if this is another state than `last`. The words may differ from one question to the next; the state is
    /// the same.
    pub fn log_change_from(&self, last: &Self) {
        if std::mem::discriminant(self) == std::mem::discriminant(last) {
            return;
        }
        match self {
            Self::Ready if *last == Self::Unknown => tracing::info!("kafka answers"),
            Self::Ready => tracing::info!("kafka is back"),
            Self::Unavailable(why) => tracing::warn!(reason = why, "kafka is away"),
            Self::TopicMissing(why) => tracing::warn!(reason = why, "topic is missing"),
            Self::Unknown => {}
        }
    }
}

/// The replication factor of a topic is left to the broker (`default.replication.factor`).
pub const BROKER_DEFAULT: i32 = -1;

/// The parser of KAFKA_PARTITIONS: as many as librdkafka takes.
///
/// # Errors
/// Not such a number.
pub fn partitions(text: &str) -> Result<i32, String> {
    parse::number(1..=100_000)(text)
}

/// The parser of KAFKA_REPLICATION_FACTOR.
///
/// # Errors
/// Not such a number.
pub fn replication_factor(text: &str) -> Result<i32, String> {
    parse::number(1..=1000)(text)
}

/// A topic that must exist.
#[derive(Debug, Clone)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// Partitions, when it is made.
    pub partitions: i32,
    /// Replication factor, when it is made; [`BROKER_DEFAULT`] leaves it to the broker.
    pub replication_factor: i32,
    /// For a dead-letter topic: the topics whose records it must be able to hold with their extra headers. It is
    /// then made to keep its records for ever.
    pub dead_letters_of: Vec<String>,
}

impl TopicSpec {
    /// Whether it is a dead-letter topic.
    pub fn is_dead_letter_topic(&self) -> bool {
        !self.dead_letters_of.is_empty()
    }
}

/// The default of `max.message.bytes`, for brokers that do not tell theirs.
const USUAL_MESSAGE_BYTES: u64 = 1_048_588;
/// Room for the headers that say why a record is a dead letter.
const HEADER_BYTES: u64 = 64 * 1024;

/// Asks and makes until `stop`; the state goes to the returned receiver.
///
/// # Errors
/// librdkafka refuses the configuration.
pub fn maintain_topics(
    config: &ClientConfig,
    topics: Vec<TopicSpec>,
    stop: CancellationToken,
) -> Result<watch::Receiver<KafkaReadiness>, KafkaError> {
    let mut lasting = config.clone();
    let bootstrap = Rebootstrap::enable(&mut lasting);
    let asker = lasting.create_with_context(ConnectionContext::new(Arc::clone(&bootstrap)))?;
    let mut upkeep =
        Upkeep { asker: Arc::new(asker), bootstrap, config: config.clone(), maker: None, topics };
    let (sender, receiver) = watch::channel(KafkaReadiness::Unknown);
    tokio::spawn(async move {
        let standstill = SuspensionDetector::start();
        while !stop.is_cancelled() {
            let state = upkeep.look_and_make().await;
            let pause = if state == KafkaReadiness::Ready { PAUSE_WHEN_WELL } else { PAUSE_WHEN_NOT };
            let ours = matches!(state, KafkaReadiness::Unavailable(_)) && standstill.recently_resumed();
            sender.send_if_modified(|last| {
                // It is not Kafka that was away then. The next question tells.
                let changed = !ours && *last != state;
                if changed {
                    *last = state;
                }
                changed
            });
            tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(pause) => {} }
        }
    });
    Ok(receiver)
}

/// Who asks and makes.
struct Upkeep {
    /// Has a thread that hands over what librdkafka tells; an administrator's client keeps that to itself.
    asker: Arc<ThreadedProducer<ConnectionContext>>,
    bootstrap: Arc<Rebootstrap>,
    config: ClientConfig,
    /// There while missing topics are made.
    maker: Option<AdminClient<QuietContext>>,
    topics: Vec<TopicSpec>,
}

/// Tells of each change of state, for a process that knows Kafka's state from here alone. Ends with the upkeep.
pub async fn log_changes(mut states: watch::Receiver<KafkaReadiness>) {
    let mut last = KafkaReadiness::Unknown;
    loop {
        let state = states.borrow_and_update().clone();
        state.log_change_from(&last);
        last = state;
        if states.changed().await.is_err() {
            return;
        }
    }
}

impl Upkeep {
    async fn look_and_make(&mut self) -> KafkaReadiness {
        self.bootstrap.restore_brokers(self.asker.client());
        for topic in &self.topics {
            match exists(&self.asker, &topic.name).await {
                Ok(true) => {}
                Ok(false) => match make(&mut self.maker, &self.config, topic).await {
                    Ok(()) => tracing::info!(topic = topic.name, "topic created"),
                    Err(why) => {
                        // It may have lost sight of every broker.
                        self.maker = None;
                        return KafkaReadiness::TopicMissing(format!(
                            "topic {} cannot be made: {why}",
                            topic.name
                        ));
                    }
                },
                Err(error) => {
                    let why = self.asker.context().last_failure();
                    return KafkaReadiness::Unavailable(why.unwrap_or_else(|| error.to_string()));
                }
            }
        }
        self.maker = None;
        self.asker.context().clear_last_failure();
        KafkaReadiness::Ready
    }
}

async fn exists(asker: &Arc<ThreadedProducer<ConnectionContext>>, topic: &str) -> Result<bool, KafkaError> {
    let (asker, topic) = (Arc::clone(asker), topic.to_owned());
    let ask = move || {
        let metadata = asker.client().fetch_metadata(Some(&topic), ANSWER_LIMIT)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        Ok(found.is_some_and(|found| found.error().is_none() && !found.partitions().is_empty()))
    };
    // fetch_metadata blocks its thread for up to ANSWER_LIMIT.
    tokio::task::spawn_blocking(ask).await.unwrap_or(Err(KafkaError::Canceled))
}

async fn make(
    maker: &mut Option<AdminClient<QuietContext>>,
    config: &ClientConfig,
    topic: &TopicSpec,
) -> Result<(), String> {
    let admin = match maker {
        Some(admin) => admin,
        None => maker.insert(config.create_with_context(QuietContext).map_err(|error| error.to_string())?),
    };
    let bytes;
    let mut new =
        NewTopic::new(&topic.name, topic.partitions, TopicReplication::Fixed(topic.replication_factor));
    if topic.is_dead_letter_topic() {
        bytes = (max_message_bytes(admin, &topic.dead_letters_of).await + HEADER_BYTES).to_string();
        new = new.set("retention.ms", "-1").set("max.message.bytes", &bytes);
    }
    let options =
        AdminOptions::new().request_timeout(Some(ANSWER_LIMIT)).operation_timeout(Some(ANSWER_LIMIT));
    let results = admin.create_topics([&new], &options).await.map_err(|error| error.to_string())?;
    match results.into_iter().next() {
        Some(Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
        Some(Err((_, code))) => Err(code.to_string()),
        None => Err("the broker did not say".into()),
    }
}

/// The largest record that any of these topics takes.
async fn max_message_bytes(admin: &AdminClient<QuietContext>, topics: &[String]) -> u64 {
    let options = AdminOptions::new().request_timeout(Some(ANSWER_LIMIT));
    let topics: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
    let answer = admin.describe_configs(&topics, &options).await.unwrap_or_default();
    let told = |resource: &ConfigResource| resource.get("max.message.bytes")?.value.as_ref()?.parse().ok();
    let limit = |resource| Result::ok(resource).as_ref().and_then(told).unwrap_or(USUAL_MESSAGE_BYTES);
    answer.into_iter().map(limit).max().unwrap_or(USUAL_MESSAGE_BYTES)
}
