//! The loop that reads: poll, and hand the record to its partition's lane. One thread of its own, so that a rebalance
//! may wait for a batch, and polling goes on whatever the lanes do.
//!
//! At least once: an offset is committed only when every record below it is finished; after a crash the records
//! above it are read again. After a clean stop everything finished is committed, so nothing is read twice.

use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use kafka::rebootstrap::Rebootstrap;
use kafka::topics::KafkaReadiness;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::TopicPartitionList;
use service::backoff::Backoff;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::kafka::committer::{Committer, Gate};
use crate::kafka::lag::Follower;
use crate::kafka::rebalance::{Member, places};
use crate::kafka::record::Record;
use crate::partition::workers::{Given, Lanes, Place};

/// How long a poll waits for a record, and so for how long a stop or a due commit may go unseen.
const POLL_LIMIT: Duration = Duration::from_millis(100);
/// The same while a partition is paused and may be resumed any moment.
const POLL_LIMIT_PAUSED: Duration = Duration::from_millis(5);
/// How often the reader looks whether each lane still runs, and keeps its clients.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How long a batch in hand may take after the stop.
pub const GRACE: Duration = Duration::from_secs(8);
/// By when the last commit must be confirmed; with the leaving of the group the whole stays below 10 s.
const STOP_LIMIT: Duration = Duration::from_millis(8800);
/// How long the last commit may take if Kafka is known to be away.
const LAST_COMMIT_LIMIT_AWAY: Duration = Duration::from_millis(500);
/// How long topics that are missing may take to be made before the group is joined without them.
const TOPICS_LIMIT: Duration = Duration::from_secs(2);

/// A client that worked for this long is replaced at once.
const LASTING: Duration = Duration::from_secs(60);

/// Why a client was given up.
enum End {
    Stopped,
    Failed(String),
    /// The committer's thread ended, which is a fault of this program: nothing goes on.
    CommitterEnded,
    /// Kafka no longer knows what the group committed for this topic.
    Forgotten(Arc<str>),
}

fn lane_ended((topic, partition): &Place) -> End {
    End::Failed(format!("lane of {topic}/{partition} ended by itself"))
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
    pub kafka: watch::Receiver<KafkaReadiness>,
    /// Where the lanes run.
    pub runtime: Handle,
    /// Says when to stop.
    pub stop: CancellationToken,
}

impl Reader {
    /// Reads until told to stop. A client that fails for good is replaced, and one whose topic was deleted.
    pub fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        while self.wait_for_kafka() {
            let started = Instant::now();
            match self.session() {
                End::Stopped | End::CommitterEnded => return,
                End::Forgotten(topic) => {
                    tracing::warn!(
                        topic = &*topic,
                        "Kafka no longer knows the offsets that the group committed, the topic was deleted: it is \
                         read from its beginning"
                    );
                }
                End::Failed(reason) => {
                    tracing::error!(reason, "consumer client failed, making a new one");
                    self.lanes.failed(reason);
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
                    .wait_for(|state| {
                        matches!(state, KafkaReadiness::Ready | KafkaReadiness::TopicMissing(_))
                    })
                    .await;
                _ = tokio::time::timeout(
                    TOPICS_LIMIT,
                    kafka.wait_for(|state| *state == KafkaReadiness::Ready),
                )
                .await;
            };
            tokio::select! { () = wait => !stop.is_cancelled(), () = stop.cancelled() => false }
        })
    }

    /// One client's life.
    fn session(&self) -> End {
        let client = match Client::start(self) {
            Ok(client) => client,
            Err(reason) => return End::Failed(reason),
        };
        let end = self.read(&client);
        match &end {
            End::Stopped => self.finish(&client),
            End::CommitterEnded => self.give_up(&client),
            End::Failed(_) => self.lanes.lose(&self.lanes.places()),
            End::Forgotten(topic) => {
                self.lanes.lose(&self.lanes.places());
                self.lanes.forget(topic);
            }
        }
        self.leave(client);
        end
    }

    /// Offsets without a record that the client passed, as those of control records, count as done.
    fn pass(&self, consumer: &BaseConsumer<Member>) {
        match consumer.position() {
            Ok(positions) => self.lanes.pass(&positions),
            Err(error) => tracing::debug!(error = %error, "the client does not tell its positions"),
        }
    }

    fn read(&self, client: &Client) -> End {
        let consumer = &*client.consumer;
        let mut looked_at = Instant::now();
        while !self.stop.is_cancelled() {
            let limit = if self.lanes.any_paused() { POLL_LIMIT_PAUSED } else { POLL_LIMIT };
            match consumer.poll(limit) {
                Some(Ok(message)) => {
                    match self.lanes.give(message.topic(), message.partition(), Record::copy_of(&message)) {
                        Given::Taken | Given::NotOurs => {}
                        Given::Full(place) => self.pause(consumer, &place),
                        Given::LaneEnded(place) => return lane_ended(&place),
                    }
                }
                Some(Err(KafkaError::MessageConsumptionFatal(code))) => return End::Failed(code.to_string()),
                Some(Err(error)) => self.lanes.note(&error),
                None => {}
            }
            if self.lanes.any_paused() {
                self.resume(consumer);
            }
            if looked_at.elapsed() >= LOOK_INTERVAL {
                looked_at = Instant::now();
                consumer.context().keep(consumer);
                self.pass(consumer);
                if client.committer.ended() {
                    return End::CommitterEnded;
                }
                if let Some(place) = self.lanes.ended() {
                    return lane_ended(&place);
                }
                if let Some(topic) = consumer.context().gate().forgotten() {
                    return End::Forgotten(Arc::clone(topic));
                }
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
    fn finish(&self, client: &Client) {
        let deadline = Instant::now() + STOP_LIMIT;
        self.lanes.close(GRACE);
        let limit = if self.kafka_answers() {
            deadline.saturating_duration_since(Instant::now())
        } else {
            LAST_COMMIT_LIMIT_AWAY
        };
        let deadline = Instant::now() + limit;
        let mut answer = client.committer.order_last();
        // What Kafka has forgotten cannot be committed.
        let forgotten = || client.consumer.context().gate().forgotten().is_some();
        while Instant::now() < deadline && !forgotten() {
            match answer.try_recv() {
                Ok(true) => return,
                // A group in the middle of a rebalance refuses commits for a moment.
                Ok(false) | Err(TryRecvError::Disconnected) => {
                    answer = client.committer.order_last();
                }
                Err(TryRecvError::Empty) => {}
            }
            // Only so that a rebalance goes on: a record that comes now is read again by whoever is next.
            _ = client.consumer.poll(Duration::from_millis(10));
        }
        tracing::warn!("the last commit was not confirmed: some records may be read again");
    }

    /// The committer ended by itself: no more records are taken, and what is finished is committed from here.
    fn give_up(&self, client: &Client) {
        tracing::error!("committer ended unexpectedly, the process stops");
        self.lanes.breaks("the committer ended unexpectedly".into());
        self.lanes.close(GRACE);
        let gate = client.consumer.context().gate();
        if let Err((_, error)) = gate.commit(&client.consumer, || self.lanes.left()) {
            tracing::warn!(error = %error, "the last commit failed: some records may be read again");
        }
    }

    /// Leaves the group by dropping the client. While Kafka is away that waits for answers that do not come: a
    /// thread of its own waits then, and ends with the process.
    fn leave(&self, client: Client) {
        if self.kafka_answers() {
            return client.end();
        }
        let leaving = std::thread::Builder::new().name("leaver".into()).spawn(move || client.end());
        if let Err(error) = leaving {
            tracing::warn!(error = %error, "no thread to leave the group in");
        }
    }

    fn kafka_answers(&self) -> bool {
        *self.kafka.borrow() == KafkaReadiness::Ready
    }
}

/// A group member and the threads that work beside its reader.
struct Client {
    consumer: Arc<BaseConsumer<Member>>,
    committer: Committer,
    follower: Follower,
}

impl Client {
    fn start(reader: &Reader) -> Result<Self, String> {
        let said = |error: KafkaError| error.to_string();
        let gate = Gate::new(&reader.client).map_err(said)?;
        let mut config = reader.client.clone();
        let member = Member::new(Arc::clone(&reader.lanes), gate, Rebootstrap::enable(&mut config));
        let consumer: BaseConsumer<Member> = config.create_with_context(member).map_err(said)?;
        let topics: Vec<&str> = reader.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(said)?;
        let consumer = Arc::new(consumer);
        let thread = |error: std::io::Error| format!("no thread: {error}");
        let committer = Committer::start(Arc::clone(&consumer), Arc::clone(&reader.lanes)).map_err(thread)?;
        let follower = Follower::start(Arc::clone(&consumer), Arc::clone(&reader.lanes)).map_err(thread)?;
        Ok(Self { consumer, committer, follower })
    }

    /// Ends the threads, then leaves the group.
    fn end(self) {
        self.committer.end();
        self.follower.end();
        drop(self.consumer);
    }
}
