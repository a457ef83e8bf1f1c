//! `slipstream dead-letters`: what could not be stored, listed, shown, and sent once more. Only `replay` writes anything;
//! `add` has the consumer do it.

mod add;
mod filter;
mod list;
mod options;
mod replay;
mod show;
mod text;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use service::ConfigErrors;

pub use add::Settings;
use kafka::BoxError;
use kafka::cluster::Cluster;
pub use options::{Command, Options};

/// A deployment, as far as its dead letters go.
pub struct Deployment {
    /// The consumer's configuration.
    pub config: consumer::Config,
    /// Asks Kafka.
    pub cluster: Cluster,
    /// Each dead-letter topic with its partitions; they exist.
    pub letters: BTreeMap<String, Vec<i32>>,
    /// Every topic that there is, with its number of partitions.
    pub topics: BTreeMap<String, usize>,
}

/// Does what `command` says. The exit code is 0 if it is done as far as filters and limits allow.
///
/// # Errors
/// A wrong configuration, no such topic, or Kafka does not answer.
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
            list::list(options, group, Deployment::of(config).await?).await
        }
        Command::Show(options) => show::show(options, Deployment::of(read(environment)?).await?).await,
        Command::Replay(options) => {
            let config = read(environment)?;
            let group = options.group.clone().unwrap_or_else(|| replay_group(&config));
            if group == config.group_id {
                let problem = format!("{group} is the consumer's own group, KAFKA_GROUP_ID");
                return Err(ConfigErrors(vec![("--group".to_owned(), problem)]).into());
            }
            replay::replay(options, group, Deployment::of(config).await?).await
        }
    }
}

/// The group that keeps what was replayed, unless the command line names another.
fn replay_group(config: &consumer::Config) -> String {
    format!("{}.dead-letters", config.group_id)
}

impl Deployment {
    async fn of(config: consumer::Config) -> Result<Self, BoxError> {
        let cluster =
            Cluster::new(&config.kafka_broker, &config.properties, "slipstream-check", &config.group_id)?;
        let found = cluster.topics().await?;
        let mut letters = BTreeMap::new();
        for spec in config.topic_specs().into_iter().filter(|spec| spec.is_dead_letter_topic()) {
            let topic = found.get(&spec.name).ok_or_else(|| {
                format!(
                    "topic {} does not exist: the consumer makes it, or KAFKA_TOPIC and DEAD_LETTER_TOPIC are not the \
                     consumer's",
                    spec.name
                )
            })?;
            letters.insert(spec.name, topic.partition_ids());
        }
        let topics = found.into_iter().map(|(name, topic)| (name, topic.partition_ids().len())).collect();
        Ok(Self { config, cluster, letters, topics })
    }
}

fn now_ms() -> Result<i64, BoxError> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}
