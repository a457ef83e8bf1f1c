//! Topic maintenance: creates missing topics in the background and watches the readiness of Kafka.
//!
//! It never gives up, and it does not rely on the broker's auto-creation of topics.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{Producer, ThreadedProducer};
use service::parse;
use service::time::SuspensionDetector;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::context::{ConnectionContext, QuietContext, Rebootstrap};

/// Timeout of one request to the broker.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
const READY_CHECK_INTERVAL: Duration = Duration::from_secs(1);
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// Replication factor that selects the broker's `default.replication.factor`.
pub const BROKER_DEFAULT: i32 = -1;
/// Kafka's default of `max.message.bytes`, for a broker that does not report its value.
const DEFAULT_MAX_MESSAGE_BYTES: u64 = 1_048_588;
/// Additional size of a dead letter: the headers with reason and origin.
const DEAD_LETTER_HEADER_BYTES: u64 = 64 * 1024;

/// The readiness of Kafka, from the last check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KafkaReadiness {
    /// There was no check yet.
    Unknown,
    /// Kafka responds and all topics exist.
    Ready,
    /// Kafka does not respond or rejects the connection, with the reason.
    Unavailable(String),
    /// These topics are missing and cannot be created yet.
    TopicMissing(Vec<MissingTopic>),
}

/// A topic that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingTopic {
    /// Name of the topic.
    pub name: String,
    /// Why it cannot be created.
    pub reason: String,
}

impl KafkaReadiness {
    /// Whether Kafka responds and all topics exist.
    ///
    /// # Errors
    /// The reason why not.
    pub fn ready(&self) -> Result<(), String> {
        match self {
            Self::Ready => Ok(()),
            Self::Unknown => Err("kafka has not been checked yet".into()),
            Self::Unavailable(reason) => Err(format!("kafka does not answer: {reason}")),
            Self::TopicMissing(missing) => {
                let reasons = missing
                    .iter()
                    .map(|MissingTopic { name, reason }| format!("topic {name} cannot be created: {reason}"));
                Err(reasons.collect::<Vec<_>>().join("; "))
            }
        }
    }

    /// The readiness for records of `topic`. Another topic may be missing.
    #[must_use]
    pub fn of_topic(&self, topic: &str) -> Self {
        match self {
            Self::TopicMissing(missing) => match missing.iter().find(|missing| missing.name == topic) {
                Some(own) => Self::TopicMissing(vec![own.clone()]),
                None => Self::Ready,
            },
            other => other.clone(),
        }
    }

    /// Logs one line if the state differs from `previous`. A change of only the reason is not
    /// logged.
    pub fn log_change_from(&self, previous: &Self) {
        if std::mem::discriminant(self) == std::mem::discriminant(previous) {
            return;
        }
        match self {
            Self::Ready if *previous == Self::Unknown => tracing::info!("kafka is available"),
            Self::Ready => tracing::info!("kafka is available again"),
            Self::Unavailable(reason) => tracing::warn!(reason, "kafka is unavailable"),
            Self::TopicMissing(_) => {
                let reason = self.ready().err();
                tracing::warn!(reason, "topic is missing");
            }
            Self::Unknown => {}
        }
    }
}

/// Logs each change of readiness. Ends with the topic maintenance.
///
/// For a process that has no other source of Kafka's readiness.
pub async fn log_changes(mut readiness: watch::Receiver<KafkaReadiness>) {
    let mut previous = KafkaReadiness::Unknown;
    loop {
        let current = readiness.borrow_and_update().clone();
        current.log_change_from(&previous);
        previous = current;
        if readiness.changed().await.is_err() {
            return;
        }
    }
}

/// Parses KAFKA_PARTITIONS.
///
/// # Errors
/// `text` is no number from 1 to 100,000, librdkafka's maximum.
pub fn partitions(text: &str) -> Result<i32, String> {
    parse::number(1..=100_000)(text)
}

/// Parses KAFKA_REPLICATION_FACTOR.
///
/// # Errors
/// `text` is no number from 1 to 1000.
pub fn replication_factor(text: &str) -> Result<i32, String> {
    parse::number(1..=1000)(text)
}

/// A topic that must exist. Partitions and replication factor apply only when it is created.
#[derive(Debug, Clone)]
pub struct TopicSpec {
    /// Name of the topic.
    pub name: String,
    /// Number of partitions.
    pub partitions: i32,
    /// Replication factor, or [`BROKER_DEFAULT`].
    pub replication_factor: i32,
    /// For a dead-letter topic: its source topics.
    ///
    /// It is created without expiry of records, and with a `max.message.bytes` that fits every
    /// record of the source topics with additional headers.
    pub dead_letters_of: Vec<String>,
}

impl TopicSpec {
    /// Whether the topic is a dead-letter topic.
    pub fn is_dead_letter_topic(&self) -> bool {
        !self.dead_letters_of.is_empty()
    }
}

/// A task that maintains `topics` until `stop`, and the readiness that it updates.
///
/// # Errors
/// librdkafka rejects the configuration.
pub fn topic_maintenance(
    config: &ClientConfig,
    topics: Vec<TopicSpec>,
    stop: CancellationToken,
) -> Result<(watch::Receiver<KafkaReadiness>, impl Future<Output = ()> + Send + use<>), KafkaError> {
    let mut watched = config.clone();
    let bootstrap = Rebootstrap::enable(&mut watched);
    let context = ConnectionContext::new(Arc::clone(&bootstrap));
    let metadata_client = Arc::new(watched.create_with_context(context)?);
    let maintenance =
        TopicMaintenance { metadata_client, bootstrap, config: config.clone(), admin_client: None, topics };
    let (sender, receiver) = watch::channel(KafkaReadiness::Unknown);
    Ok((receiver, maintenance.run(sender, stop)))
}

struct TopicMaintenance {
    /// A producer, because its thread polls the client and so calls the context. An admin client
    /// does not call a context.
    metadata_client: Arc<ThreadedProducer<ConnectionContext>>,
    bootstrap: Arc<Rebootstrap>,
    config: ClientConfig,
    /// Exists while topics are missing.
    admin_client: Option<AdminClient<QuietContext>>,
    topics: Vec<TopicSpec>,
}

impl TopicMaintenance {
    async fn run(mut self, sender: watch::Sender<KafkaReadiness>, stop: CancellationToken) {
        let suspension = SuspensionDetector::start();
        while !stop.is_cancelled() {
            let readiness = self.check_and_create().await;
            let interval =
                if readiness == KafkaReadiness::Ready { READY_CHECK_INTERVAL } else { RETRY_INTERVAL };
            // After a suspension, a timeout does not mean that Kafka is unavailable. The next check
            // decides.
            let is_unreliable =
                matches!(readiness, KafkaReadiness::Unavailable(_)) && suspension.recently_resumed();
            sender.send_if_modified(|current| {
                let changed = !is_unreliable && *current != readiness;
                if changed {
                    *current = readiness;
                }
                changed
            });
            tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(interval) => {} }
        }
    }

    async fn check_and_create(&mut self) -> KafkaReadiness {
        self.bootstrap.restore_brokers(self.metadata_client.client());
        let mut missing = Vec::new();
        for topic in &self.topics {
            match exists(&self.metadata_client, &topic.name).await {
                Ok(true) => {}
                Ok(false) => match create(&mut self.admin_client, &self.config, topic).await {
                    Ok(()) => tracing::info!(topic = topic.name, "topic created"),
                    Err(reason) => {
                        // The admin client may have lost all brokers. The next attempt uses a new
                        // one.
                        self.admin_client = None;
                        missing.push(MissingTopic { name: topic.name.clone(), reason });
                    }
                },
                Err(error) => {
                    let failure = self.metadata_client.context().last_failure();
                    return KafkaReadiness::Unavailable(failure.unwrap_or_else(|| error.to_string()));
                }
            }
        }
        if !missing.is_empty() {
            return KafkaReadiness::TopicMissing(missing);
        }
        self.admin_client = None;
        self.metadata_client.context().clear_last_failure();
        KafkaReadiness::Ready
    }
}

async fn exists(client: &Arc<ThreadedProducer<ConnectionContext>>, topic: &str) -> Result<bool, KafkaError> {
    let (client, topic) = (Arc::clone(client), topic.to_owned());
    let request = move || {
        let metadata = client.client().fetch_metadata(Some(&topic), REQUEST_TIMEOUT)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        Ok(found.is_some_and(|found| found.error().is_none() && !found.partitions().is_empty()))
    };
    // fetch_metadata blocks its thread for up to REQUEST_TIMEOUT.
    tokio::task::spawn_blocking(request).await.unwrap_or(Err(KafkaError::Canceled))
}

/// Creates `topic`. Success also means that it exists already.
async fn create(
    client: &mut Option<AdminClient<QuietContext>>,
    config: &ClientConfig,
    topic: &TopicSpec,
) -> Result<(), String> {
    let admin = match client {
        Some(admin) => admin,
        None => client.insert(config.create_with_context(QuietContext).map_err(|error| error.to_string())?),
    };
    let max_bytes;
    let mut new_topic =
        NewTopic::new(&topic.name, topic.partitions, TopicReplication::Fixed(topic.replication_factor));
    if topic.is_dead_letter_topic() {
        let source_bytes = max_message_bytes(admin, &topic.dead_letters_of).await;
        max_bytes = (source_bytes + DEAD_LETTER_HEADER_BYTES).to_string();
        new_topic = new_topic.set("retention.ms", "-1").set("max.message.bytes", &max_bytes);
    }
    let options =
        AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT)).operation_timeout(Some(REQUEST_TIMEOUT));
    let results = admin.create_topics([&new_topic], &options).await.map_err(|error| error.to_string())?;
    match results.into_iter().next() {
        Some(Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
        Some(Err((_, code))) => Err(code.to_string()),
        None => Err("the broker returned no result".into()),
    }
}

/// The largest `max.message.bytes` of `topics`.
async fn max_message_bytes(admin: &AdminClient<QuietContext>, topics: &[String]) -> u64 {
    let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
    let topics: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
    let resources = admin.describe_configs(&topics, &options).await.unwrap_or_default();
    let reported =
        |resource: &ConfigResource| resource.get("max.message.bytes")?.value.as_ref()?.parse().ok();
    let bytes =
        |resource| Result::ok(resource).as_ref().and_then(reported).unwrap_or(DEFAULT_MAX_MESSAGE_BYTES);
    resources.into_iter().map(bytes).max().unwrap_or(DEFAULT_MAX_MESSAGE_BYTES)
}
