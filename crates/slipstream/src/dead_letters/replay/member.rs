//! The only member of the group that keeps what was replayed: while it is, nobody else can replay in that group, and once it
//! no longer is, Kafka takes no commit from it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka::{QuietContext, client_config};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::watch;

use kafka::BoxError;
use kafka::cluster::Cluster;
use kafka::requests::is_permanent;
use kafka::topic_reader::is_transient;

/// When Kafka takes a member that was killed for dead; a broker allows no less, unless it is told to.
const SESSION: Duration = Duration::from_secs(6);
/// How long to wait until a member of the group has gone, which may have been killed.
const OTHERS_LIMIT: Duration = Duration::from_secs(2 * SESSION.as_secs());
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a group may take to let us in; a broker waits 3 s for others, unless it is told otherwise.
const JOIN_LIMIT: Duration = Duration::from_secs(60);
/// How long a commit, and leaving, may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Where we stand in the group.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    Joining,
    /// So many partitions are ours.
    Has(usize),
    /// Somebody else came.
    Replaced,
}

/// A membership of the group.
pub struct Member {
    /// Reads the topic.
    pub consumer: Arc<StreamConsumer<Context>>,
    standing: watch::Receiver<Standing>,
    topic: String,
    group: String,
    /// Kafka's bootstrap servers.
    pub broker: String,
}

/// Hears what becomes of the membership.
pub struct Context {
    standing: watch::Sender<Standing>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        QuietContext.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        QuietContext.error(error, reason);
    }
}

impl ConsumerContext for Context {
    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        self.standing.send_replace(match rebalance {
            Rebalance::Assign(list) => Standing::Has(list.count()),
            Rebalance::Revoke(_) | Rebalance::Error(_) => Standing::Replaced,
        });
    }
}

/// Waits until nobody else is in the group.
///
/// # Errors
/// Somebody stays, or Kafka does not say.
pub async fn alone(cluster: &Cluster, group: &str) -> Result<(), BoxError> {
    let began = Instant::now();
    loop {
        if cluster.group().await?.members.is_empty() {
            return Ok(());
        }
        if began.elapsed() > OTHERS_LIMIT {
            return Err(refusal(group));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether the membership has ended.
fn is_over(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    let code = error.rdkafka_error_code();
    matches!(
        code,
        Some(
            Code::UnknownMemberId
                | Code::IllegalGeneration
                | Code::RebalanceInProgress
                | Code::FencedInstanceId
        )
    )
}

fn refusal(group: &str) -> BoxError {
    format!(
        "another replay is at work in group {group}: wait for its end, or name another group with --group"
    )
    .into()
}

impl Member {
    /// Joins `group`, for the `partitions` partitions of `topic`.
    ///
    /// # Errors
    /// Somebody else is there, or Kafka does not let us in.
    pub async fn join(
        config: &consumer::Config,
        group: &str,
        topic: &str,
        partitions: usize,
    ) -> Result<Self, BoxError> {
        let (sender, mut standing) = watch::channel(Standing::Joining);
        let consumer: StreamConsumer<Context> =
            client(config, group).create_with_context(Context { standing: sender })?;
        consumer.subscribe(&[topic])?;
        let joined = async {
            loop {
                tokio::select! {
                    // First: so no record is taken before it is known that the partitions are ours.
                    biased;
                    _ = standing.changed() => return Ok(()),
                    record = consumer.recv() => match record {
                        Err(error) if !is_transient(&error) => return Err(BoxError::from(error)),
                        _ => {}
                    },
                }
            }
        };
        let broker = &config.kafka_broker;
        let late = || format!("kafka at {broker} (KAFKA_BROKER) lets nobody into group {group}").into();
        tokio::time::timeout(JOIN_LIMIT, joined).await.unwrap_or_else(|_| Err(late()))?;
        let member = Self {
            consumer: Arc::new(consumer),
            standing,
            topic: topic.to_owned(),
            group: group.to_owned(),
            broker: broker.clone(),
        };
        if *member.standing.borrow() == Standing::Has(partitions) {
            return Ok(member);
        }
        member.leave().await;
        Err(refusal(group))
    }

    /// Comes back when somebody else has come; what was under way then cannot be committed.
    pub async fn replaced(&mut self) -> BoxError {
        // The sender lives as long as the consumer.
        _ = self.standing.wait_for(|standing| *standing == Standing::Replaced).await;
        let group = &self.group;
        format!("group {group} was given to another member: what was sent last may be sent again, which changes nothing").into()
    }

    /// Commits offsets with their notes.
    ///
    /// # Errors
    /// Kafka did not take them.
    pub async fn commit(&self, offsets: Vec<(i32, (i64, String))>) -> Result<(), BoxError> {
        let mut list = TopicPartitionList::new();
        for (partition, (offset, note)) in offsets {
            let mut element = list.add_partition(&self.topic, partition);
            element.set_offset(Offset::Offset(offset))?;
            element.set_metadata(note);
        }
        // A coordinator that was just chosen knows nothing yet; for a member that is none any more it is too late.
        let commit = async {
            loop {
                let (consumer, list) = (Arc::clone(&self.consumer), list.clone());
                let once = tokio::task::spawn_blocking(move || consumer.commit(&list, CommitMode::Sync));
                match once.await? {
                    Err(error) if !is_permanent(&error) && !is_over(&error) => {
                        tokio::time::sleep(PAUSE).await;
                    }
                    outcome => return outcome.map_err(BoxError::from),
                }
            }
        };
        let why = match tokio::time::timeout(LIMIT, commit).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("kafka does not answer at {} (KAFKA_BROKER)", self.broker),
        };
        Err(format!(
            "what was replayed cannot be committed in group {}: {why}; it may be replayed again, which changes nothing",
            self.group
        )
        .into())
    }

    /// Leaves the group, so that the next run need not wait.
    pub async fn leave(self) {
        // What cannot be told to Kafka, it finds out by itself.
        _ = tokio::time::timeout(LIMIT, tokio::task::spawn_blocking(move || drop(self.consumer))).await;
    }
}

fn client(config: &consumer::Config, group: &str) -> rdkafka::ClientConfig {
    let session = SESSION.as_millis().to_string();
    let properties = [
        ("group.id", group),
        // Only what is acknowledged is committed, by hand.
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        // A new group begins with the first dead letter that Kafka still has; so does one whose topic was made anew.
        ("auto.offset.reset", "earliest"),
        // One member has all of them, or none.
        ("partition.assignment.strategy", "range"),
        ("session.timeout.ms", session.as_str()),
        ("heartbeat.interval.ms", "2000"),
        ("enable.partition.eof", "true"),
        // The end of a partition is told after this wait.
        ("fetch.wait.max.ms", "100"),
        // Memory: what waits to be polled, all partitions together.
        ("queued.max.messages.kbytes", "16384"),
    ];
    client_config(&config.kafka_broker, "slipstream-replay", &properties, &config.properties)
}
