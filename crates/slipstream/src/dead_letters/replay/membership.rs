//! The membership in the group that has the replayed offsets. The group has a single member, so
//! that only one replay runs at a time. Kafka rejects a commit after the membership ended.

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

/// Time after which Kafka removes a killed member; the minimum of a broker with default settings.
const SESSION_TIMEOUT: Duration = Duration::from_secs(6);
/// Maximum wait for the end of another membership; that member may have been killed.
const OTHER_MEMBER_TIMEOUT: Duration = Duration::from_secs(2 * SESSION_TIMEOUT.as_secs());
/// Pause between two requests.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Maximum time to join the group; a broker with default settings waits 3 s for further members.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum time for a commit, and for leaving the group.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// The state of the membership.
#[derive(Debug, Clone, PartialEq, Eq)]
enum MembershipState {
    Joining,
    /// The member has this number of partitions.
    Assigned(usize),
    /// Another member joined, or the membership ended.
    Ended,
}

/// The membership.
pub struct Membership {
    /// The client that reads the topic.
    pub consumer: Arc<StreamConsumer<Context>>,
    state: watch::Receiver<MembershipState>,
    topic: String,
    group: String,
    broker: String,
}

/// Client context that tracks the membership.
pub struct Context {
    state: watch::Sender<MembershipState>,
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
        self.state.send_replace(match rebalance {
            Rebalance::Assign(list) => MembershipState::Assigned(list.count()),
            Rebalance::Revoke(_) | Rebalance::Error(_) => MembershipState::Ended,
        });
    }
}

/// Waits until the group has no members.
async fn wait_until_empty(cluster: &Cluster, group: &str) -> Result<(), BoxError> {
    let started = Instant::now();
    while !cluster.group().await?.members.is_empty() {
        if started.elapsed() > OTHER_MEMBER_TIMEOUT {
            return Err(another_replay(group));
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    Ok(())
}

/// Whether the error means that the membership ended.
fn is_membership_lost(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{FencedInstanceId, IllegalGeneration, RebalanceInProgress, UnknownMemberId};
    matches!(
        error.rdkafka_error_code(),
        Some(UnknownMemberId | IllegalGeneration | RebalanceInProgress | FencedInstanceId)
    )
}

fn another_replay(group: &str) -> BoxError {
    format!("another replay is running in group {group}: wait for its end, or use another group with --group")
        .into()
}

impl Membership {
    /// Joins the group of `config` once it is empty, to get all `partitions` partitions of `topic`.
    pub async fn join(
        cluster: &Cluster,
        config: &consumer::Config,
        topic: &str,
        partitions: usize,
    ) -> Result<Self, BoxError> {
        let (group, broker) = (&config.group_id, &config.kafka_broker);
        wait_until_empty(cluster, group).await?;
        let mut membership = Self::without_group(config, topic)?;
        let consumer = Arc::clone(&membership.consumer);
        consumer.subscribe(&[topic])?;
        let joined = async {
            loop {
                tokio::select! {
                    // First, so that no record is read before the assignment is known.
                    biased;
                    _ = membership.state.changed() => return Ok(()),
                    record = consumer.recv() => match record {
                        Err(error) if !is_transient(&error) => return Err(BoxError::from(error)),
                        _ => {}
                    },
                }
            }
        };
        let timeout = || format!("joining group {group} timed out at kafka {broker} (KAFKA_BROKER)").into();
        tokio::time::timeout(JOIN_TIMEOUT, joined).await.unwrap_or_else(|_| Err(timeout()))?;
        if *membership.state.borrow() == MembershipState::Assigned(partitions) {
            return Ok(membership);
        }
        membership.leave().await;
        Err(another_replay(group))
    }

    /// A client for a dry run, which does not join the group.
    pub fn without_group(config: &consumer::Config, topic: &str) -> Result<Self, BoxError> {
        let (sender, state) = watch::channel(MembershipState::Joining);
        let consumer = client(config).create_with_context(Context { state: sender })?;
        Ok(Self {
            consumer: Arc::new(consumer),
            state,
            topic: topic.to_owned(),
            group: config.group_id.clone(),
            broker: config.kafka_broker.clone(),
        })
    }

    /// Reads these partitions, each from its offset on, without the group.
    pub fn assign(&self, offsets: impl Iterator<Item = (i32, i64)>) -> Result<(), BoxError> {
        Ok(self.consumer.assign(&self.offsets(offsets)?)?)
    }

    fn offsets(&self, offsets: impl Iterator<Item = (i32, i64)>) -> Result<TopicPartitionList, KafkaError> {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            list.add_partition_offset(&self.topic, partition, Offset::Offset(offset))?;
        }
        Ok(list)
    }

    /// Waits for the end of the membership. Records in flight can then not be committed.
    pub async fn ended(&mut self) -> BoxError {
        // The sender has the lifetime of the consumer.
        _ = self.state.wait_for(|state| *state == MembershipState::Ended).await;
        let group = &self.group;
        format!("group {group} has another member: the last records may be sent again, which changes nothing")
            .into()
    }

    /// Commits the offset of each partition.
    pub async fn commit(&self, offsets: &[(i32, i64)]) -> Result<(), BoxError> {
        let list = self.offsets(offsets.iter().copied())?;
        // A coordinator that was just elected is not ready; after the end of the membership, a
        // retry cannot succeed.
        let commit = async {
            loop {
                let (consumer, list) = (Arc::clone(&self.consumer), list.clone());
                let once = tokio::task::spawn_blocking(move || consumer.commit(&list, CommitMode::Sync));
                match once.await? {
                    Err(error) if !is_permanent(&error) && !is_membership_lost(&error) => {
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                    outcome => return outcome.map_err(BoxError::from),
                }
            }
        };
        let why = match tokio::time::timeout(COMMIT_TIMEOUT, commit).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("kafka does not answer at {} (KAFKA_BROKER)", self.broker),
        };
        Err(format!(
            "replayed offsets cannot be committed in group {}: {why}; the records may be replayed again, which changes nothing",
            self.group
        )
        .into())
    }

    /// Leaves the group, so that the next run does not wait for the session timeout.
    pub async fn leave(self) {
        // Without a leave request, Kafka removes the member after the session timeout.
        _ = tokio::time::timeout(COMMIT_TIMEOUT, tokio::task::spawn_blocking(move || drop(self.consumer)))
            .await;
    }
}

fn client(config: &consumer::Config) -> rdkafka::ClientConfig {
    let session_timeout = SESSION_TIMEOUT.as_millis().to_string();
    let properties = [
        ("group.id", config.group_id.as_str()),
        // Only acknowledged records are committed, explicitly.
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        // A new group starts at the first dead letter that Kafka still has; so does the group of a
        // recreated topic.
        ("auto.offset.reset", "earliest"),
        // One member has all partitions, or none.
        ("partition.assignment.strategy", "range"),
        ("session.timeout.ms", session_timeout.as_str()),
        ("heartbeat.interval.ms", "2000"),
        ("enable.partition.eof", "true"),
        // An EOF event comes after this wait.
        ("fetch.wait.max.ms", "100"),
        // Memory: maximum size of the records that wait for a poll, all partitions together.
        ("queued.max.messages.kbytes", "16384"),
    ];
    client_config(&config.kafka_broker, "slipstream-replay", &properties, &config.properties)
}
