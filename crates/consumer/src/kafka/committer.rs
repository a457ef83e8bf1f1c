//! Commits what the lanes have finished. In a thread of its own beside the reader, because only a commit that waits
//! for its answer tells whether it succeeded (rdkafka reports nothing of an asynchronous one), and polling must not
//! wait for it.
//!
//! A [`Committer`] is the only one that commits, and one commit at a time: an older watermark can never overtake a
//! newer one, nor arrive after its partition was given away.
//!
//! Kafka forgets a group's offsets of a topic that is deleted. A topic that is made anew has the same name and starts
//! again at offset 0, but a client that did not see it happen goes on at its old position, past records that nobody
//! has read. So before each commit, which would hide that for good, the [`Gate`] looks whether Kafka still knows what
//! was committed; if not, the client is to be replaced by one that starts at the beginning.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::kafka::rebalance::{Member, places};
use crate::partition::workers::{Lanes, Place};
use kafka::ConnectionContext;
use kafka::rebootstrap::Rebootstrap;
use service::lock::lock;

const INTERVAL: Duration = Duration::from_millis(500);
/// How long the broker may take to tell what is committed.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// More than a client has to tell in a second.
const MOST_NEWS: usize = 100;

/// Offsets that were found and are not committed, and why.
pub type Failed = (TopicPartitionList, KafkaError);

/// Lets one commit pass at a time.
pub struct Gate {
    /// Looks on: a client that joins no group. The member's own connection to the coordinator answers nothing else while
    /// the group is being joined.
    witness: BaseConsumer<ConnectionContext>,
    bootstrap: Arc<Rebootstrap>,
    /// Where this client has committed.
    committed: Mutex<HashSet<Place>>,
    forgotten: OnceLock<Arc<str>>,
}

impl Gate {
    /// A gate that looks through a client of `config`.
    ///
    /// # Errors
    /// librdkafka refuses the configuration.
    pub fn new(config: &ClientConfig) -> KafkaResult<Self> {
        let mut config = config.clone();
        let bootstrap = Rebootstrap::enable(&mut config);
        let witness = config.create_with_context(ConnectionContext::new(Arc::clone(&bootstrap)))?;
        Ok(Self { witness, bootstrap, committed: Mutex::default(), forgotten: OnceLock::new() })
    }

    /// Commits the offsets that `offsets` finds once no other commit is under way, and returns them. Waits for the answer: at the worst
    /// the session's 10 s, while the group's coordinator is away.
    ///
    /// They are found last of all, so that nothing of a partition is sent that was lost meanwhile: Kafka refuses that, and
    /// librdkafka then leaves the group that it is joining again. The member that it was about to be stays behind in the
    /// group, which waits for it until its session is over.
    ///
    /// # Errors
    /// They are not committed, all or some of them; which were found, and why.
    pub fn commit(
        &self,
        consumer: &BaseConsumer<Member>,
        offsets: impl FnOnce() -> TopicPartitionList,
    ) -> Result<TopicPartitionList, Failed> {
        let mut committed = lock(&self.committed);
        // Also where there is nothing to commit: a topic that was made anew may be shorter than our position.
        self.look(&committed).map_err(|error| (TopicPartitionList::new(), error))?;
        let offsets = offsets();
        if offsets.count() == 0 {
            return Ok(offsets);
        }
        if consumer.assignment_lost() {
            return Err((offsets, KafkaError::ConsumerCommit(RDKafkaErrorCode::AssignmentLost)));
        }
        consumer.commit(&offsets, CommitMode::Sync).map_err(|error| (offsets.clone(), error))?;
        committed.extend(places(&offsets));
        Ok(offsets)
    }

    /// To be called once a second or so: hears what the client through which it looks has to tell, and keeps it alive.
    pub fn keep(&self) {
        // It tells one thing at a time, and of most of them a poll says nothing.
        for _ in 0..MOST_NEWS {
            _ = self.witness.poll(Duration::ZERO);
        }
        self.bootstrap.restore_brokers(self.witness.client());
    }

    /// The topic whose committed offsets Kafka has forgotten, once that was seen: no commit passes any more.
    pub fn forgotten(&self) -> Option<&Arc<str>> {
        self.forgotten.get()
    }

    fn look(&self, committed: &HashSet<Place>) -> KafkaResult<()> {
        const FORGOTTEN: KafkaError = KafkaError::ConsumerCommit(RDKafkaErrorCode::UnknownTopicOrPartition);
        // Another member may have committed there since.
        if self.forgotten.get().is_some() {
            return Err(FORGOTTEN);
        }
        if committed.is_empty() {
            return Ok(());
        }
        let mut asked = TopicPartitionList::with_capacity(committed.len());
        for (topic, partition) in committed {
            asked.add_partition(topic, *partition);
        }
        let known = self.witness.committed_offsets(asked, ANSWER_LIMIT)?;
        let forgotten =
            known.elements().into_iter().find(|at| at.offset() == Offset::Invalid && at.error().is_ok());
        match forgotten.map(|at| Arc::from(at.topic())) {
            None => Ok(()),
            Some(topic) => {
                _ = self.forgotten.set(topic);
                Err(FORGOTTEN)
            }
        }
    }
}

/// A last commit, and who wants to know how it went.
type Order = SyncSender<bool>;

/// The committing thread. It ends when this is dropped.
pub struct Committer {
    orders: SyncSender<Order>,
    thread: JoinHandle<()>,
}

impl Committer {
    /// Commits what `lanes` have finished, twice a second.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(consumer: Arc<BaseConsumer<Member>>, lanes: Arc<Lanes>) -> std::io::Result<Self> {
        let (orders, ordered) = sync_channel(1);
        let name = "committer".to_owned();
        let thread =
            std::thread::Builder::new().name(name).spawn(move || run(&consumer, &lanes, &ordered))?;
        Ok(Self { orders, thread })
    }

    /// Commits what closed lanes finished as soon as no other commit is under way; the answer says whether it
    /// succeeded.
    pub fn order_last(&self) -> Receiver<bool> {
        let (answer, answered) = sync_channel(1);
        // Without a thread the answer's sender is dropped, which tells as much.
        _ = self.orders.try_send(answer);
        answered
    }

    /// Whether the thread ended, which is a fault of this program.
    pub fn ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends the thread; waits for its commit under way.
    pub fn end(self) {
        drop(self.orders);
        _ = self.thread.join();
    }
}

fn run(consumer: &BaseConsumer<Member>, lanes: &Lanes, orders: &Receiver<Order>) {
    let gate = consumer.context().gate();
    loop {
        match orders.recv_timeout(INTERVAL) {
            Err(RecvTimeoutError::Timeout) => match gate.commit(consumer, || lanes.unsent()) {
                Ok(committed) => lanes.confirm(&committed),
                Err((offsets, error)) => {
                    tracing::debug!(error = %error, "commit failed, it is tried again");
                    lanes.send_again(&offsets);
                }
            },
            Ok(answer) => {
                let result = gate.commit(consumer, || lanes.left());
                if let Err((_, error)) = &result {
                    tracing::debug!(error = %error, "ordered commit failed");
                }
                _ = answer.send(result.is_ok());
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests;
