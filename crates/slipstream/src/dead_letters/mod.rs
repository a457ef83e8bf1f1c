//! `slipstream dead-letters`: lists, shows and replays dead letters, and dead-letters a stuck
//! record. Only `replay` writes records; `add` sends a request to the consumer, which writes one.

mod add;
mod dead_letter;
mod list;
mod options;
mod replay;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

pub use add::Settings;
use kafka::BoxError;
use kafka::cluster::Cluster;
pub use options::{Command, Options};
use service::ConfigErrors;

/// Runs the subcommand.
///
/// # Errors
/// A wrong configuration, a missing topic, or an error of Kafka.
pub async fn run(
    command: Command,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<ExitCode, BoxError> {
    let read = |environment| consumer::Config::from_environment(environment);
    match command {
        Command::Add(options) => add::add(options, environment).await,
        Command::List(options) => {
            let config = read(environment)?;
            let group = options.group.clone().unwrap_or_else(|| replay_group(&config));
            list::list(options, group, Deployment::load(config).await?).await
        }
        Command::Show(options) => list::show(options, Deployment::load(read(environment)?).await?).await,
        Command::Replay(options) => {
            let config = read(environment)?;
            let group = options.group.clone().unwrap_or_else(|| replay_group(&config));
            if group == config.group_id {
                let problem = format!("{group} is the consumer's own group (KAFKA_GROUP_ID)");
                return Err(ConfigErrors(vec![("--group".to_owned(), problem)]).into());
            }
            replay::replay(options, group, Deployment::load(config).await?).await
        }
    }
}

/// The default group of replays.
fn replay_group(config: &consumer::Config) -> String {
    format!("{}.dead-letters", config.group_id)
}

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
