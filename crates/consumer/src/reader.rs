//! The loop that reads: poll, hand the record to its partition's lane, commit what is finished. One thread of its
//! own, so that a rebalance may wait for a batch, and polling goes on whatever the lanes do.
//!
//! At least once: an offset is committed only when every record below it is finished; after a crash the records
//! above it are read again. After a clean stop everything finished is committed, so nothing is read twice.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::TopicPartitionList;
use service::backoff::Backoff;
use service::topics::KafkaState;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::lag;
use crate::lanes::{Given, Lanes, Place};
use crate::rebalance::{Member, places};
use crate::record::Record;

/// How long a poll waits for a record, and so for how long a stop or a due commit may go unseen.
const POLL_LIMIT: Duration = Duration::from_millis(100);
/// The same while a partition is paused and may be resumed any moment.
const POLL_LIMIT_PAUSED: Duration = Duration::from_millis(5);
const COMMIT_INTERVAL: Duration = Duration::from_millis(500);
/// How long a batch in hand may take after the stop.
pub const GRACE: Duration = Duration::from_secs(8);
/// For how long the last commit is repeated; with the above and the leaving of the group the whole stays below 10 s.
const LAST_COMMIT_LIMIT: Duration = Duration::from_millis(700);
/// How long topics that are missing may take to be made before the group is joined without them.
const TOPICS_LIMIT: Duration = Duration::from_secs(2);

/// A client that worked for this long is replaced at once.
const LASTING: Duration = Duration::from_secs(60);

/// Why a client was given up.
enum End {
    Stopped,
    Failed(String),
}

/// The reader.
pub struct Reader {
    /// The client's properties.
    pub client: ClientConfig,
    /// Topics to read.
    pub topics: Vec<String>,
    /// Where records go.
    pub lanes: Arc<Lanes>,
    /// Whether Kafka answers.
    pub kafka: watch::Receiver<KafkaState>,
    /// Where the lanes run.
    pub runtime: Handle,
    /// Says when to stop.
    pub stop: CancellationToken,
}

impl Reader {
    /// Reads until told to stop. A client that fails for good is replaced.
    pub fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        while self.wait_for_kafka() {
            let started = Instant::now();
            match self.session() {
                End::Stopped => return,
                End::Failed(reason) => {
                    tracing::error!(reason, "consumer client failed, making a new one");
                    if started.elapsed() > LASTING {
                        backoff.reset();
                    }
                    let delay = backoff.next_delay();
                    self.runtime.block_on(async {
                        tokio::select! { () = tokio::time::sleep(delay) => {}, () = self.stop.cancelled() => {} }
                    });
                }
            }
        }
    }

    /// Joining a group before its broker answers, or before the topics exist, only delays the joining. False: stop.
    fn wait_for_kafka(&mut self) -> bool {
        let (kafka, stop) = (&mut self.kafka, &self.stop);
        self.runtime.block_on(async {
            let wait = async {
                _ = kafka
                    .wait_for(|state| matches!(state, KafkaState::Ready | KafkaState::TopicMissing(_)))
                    .await;
                _ = tokio::time::timeout(TOPICS_LIMIT, kafka.wait_for(|state| *state == KafkaState::Ready))
                    .await;
            };
            tokio::select! { () = wait => !stop.is_cancelled(), () = stop.cancelled() => false }
        })
    }

    /// One client's life.
    fn session(&self) -> End {
        let member = Member::new(Arc::clone(&self.lanes));
        let consumer: BaseConsumer<Member> = match self.client.create_with_context(member) {
            Ok(consumer) => consumer,
            Err(error) => return End::Failed(error.to_string()),
        };
        let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        if let Err(error) = consumer.subscribe(&topics) {
            return End::Failed(error.to_string());
        }
        let end = std::thread::scope(|scope| {
            let (alive, ended) = channel();
            scope.spawn(|| lag::follow(&consumer, &self.lanes, ended));
            let end = self.read(&consumer);
            drop(alive);
            match end {
                End::Stopped => self.finish(&consumer),
                End::Failed(_) => self.lanes.lose(&self.lanes.places()),
            }
            end
        });
        self.leave(consumer);
        end
    }

    /// Leaves the group by dropping the client. While Kafka is away that waits for an answer that does not come: a
    /// thread of its own waits then, and ends with the process.
    fn leave(&self, consumer: BaseConsumer<Member>) {
        if *self.kafka.borrow() == KafkaState::Ready {
            return drop(consumer);
        }
        let dropping = std::thread::Builder::new().name("leaver".into()).spawn(move || drop(consumer));
        if let Err(error) = dropping {
            tracing::warn!(error = %error, "no thread to leave the group in");
        }
    }

    fn read(&self, consumer: &BaseConsumer<Member>) -> End {
        let mut committed_at = Instant::now();
        while !self.stop.is_cancelled() {
            let limit = if self.lanes.any_paused() { POLL_LIMIT_PAUSED } else { POLL_LIMIT };
            match consumer.poll(limit) {
                Some(Ok(message)) => {
                    match self.lanes.give(message.topic(), message.partition(), Record::copy_of(&message)) {
                        Given::Taken | Given::NotOurs => {}
                        Given::Full(place) => self.pause(consumer, &place),
                        Given::LaneEnded(place) => {
                            return End::Failed(format!("lane {place:?} ended by itself"));
                        }
                    }
                }
                Some(Err(KafkaError::MessageConsumptionFatal(code))) => return End::Failed(code.to_string()),
                Some(Err(error)) => self.lanes.note(&error),
                None => {}
            }
            if self.lanes.any_paused() {
                self.resume(consumer);
            }
            if committed_at.elapsed() >= COMMIT_INTERVAL {
                committed_at = Instant::now();
                if let Some(place) = self.lanes.ended() {
                    return End::Failed(format!("lane {place:?} ended by itself"));
                }
                consumer.context().commit(consumer, &self.lanes.unsent());
            }
        }
        End::Stopped
    }

    fn pause(&self, consumer: &BaseConsumer<Member>, place: &Place) {
        let mut list = TopicPartitionList::new();
        list.add_partition(&place.0, place.1);
        match consumer.pause(&list) {
            Ok(()) => self.lanes.paused(place),
            Err(error) => tracing::warn!(error = %error, "partition cannot be paused"),
        }
    }

    fn resume(&self, consumer: &BaseConsumer<Member>) {
        let list = self.lanes.resumable();
        if list.count() > 0
            && let Err(error) = consumer.resume(&list)
        {
            tracing::warn!(error = %error, "partitions cannot be resumed");
            places(&list).iter().for_each(|place| self.lanes.paused(place));
        }
    }

    /// The clean stop: lanes finish what they have in hand, and it is committed.
    fn finish(&self, consumer: &BaseConsumer<Member>) {
        let finished = self.lanes.close(GRACE);
        let deadline = Instant::now() + LAST_COMMIT_LIMIT;
        while finished.count() > 0 {
            // A group in the middle of a rebalance refuses commits for a moment. A connection that is half open makes
            // this wait for longer than the limit; then the reader is left behind.
            match consumer.commit(&finished, self.last_commit_mode()) {
                Ok(()) => return,
                Err(error) if Instant::now() >= deadline => {
                    tracing::warn!(error = %error, "the last commit failed: some records may be read again");
                    return;
                }
                // Serves the rebalance: a record that comes now is not begun, and is read again by whoever is next.
                Err(_) => _ = consumer.poll(Duration::from_millis(50)),
            }
        }
    }

    /// While Kafka is away nobody could confirm the commit: it is sent all the same, in case Kafka is just back.
    fn last_commit_mode(&self) -> CommitMode {
        if *self.kafka.borrow() == KafkaState::Ready { CommitMode::Sync } else { CommitMode::Async }
    }
}
