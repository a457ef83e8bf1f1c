//! The dead-letter topics of a deployment.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use kafka::BoxError;
use kafka::cluster::Cluster;

/// The topics of a deployment.
pub struct Deployment {
    /// The consumer's configuration.
    pub config: consumer::Config,
    /// The existing dead-letter topics with their partitions.
    pub dead_letter_topics: BTreeMap<String, Vec<i32>>,
    /// All topics, with their numbers of partitions.
    pub topics: BTreeMap<String, usize>,
}

impl Deployment {
    /// Reads the topics.
    ///
    /// # Errors
    /// A dead-letter topic is missing, or Kafka is unavailable.
    pub async fn load(config: consumer::Config) -> Result<Self, BoxError> {
        let group = &config.group_id;
        let cluster = Cluster::new(&config.kafka_broker, &config.properties, "slipstream-check", group)?;
        let found = cluster.topics().await?;
        let mut dead_letter_topics = BTreeMap::new();
        for spec in config.topic_specs().into_iter().filter(|spec| spec.is_dead_letter_topic()) {
            let topic = found.get(&spec.name).ok_or_else(|| {
                format!(
                    "topic {} does not exist: start the consumer, which creates it, or set KAFKA_TOPIC and \
                     DEAD_LETTER_TOPIC as for the consumer",
                    spec.name
                )
            })?;
            dead_letter_topics.insert(spec.name, topic.partition_ids());
        }
        let topics = found.into_iter().map(|(name, topic)| (name, topic.partitions.len())).collect();
        Ok(Self { config, dead_letter_topics, topics })
    }
}

/// The current time in epoch milliseconds.
///
/// # Errors
/// The clock is before 1970.
pub fn now_ms() -> Result<i64, BoxError> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}
