//! Commits the offsets of finished records: twice a second, at a rebalance, and at the stop.
//!
//! One commit runs at a time. An older offset can therefore never overtake a newer one, nor arrive
//! after its partition was released.
//!
//! Kafka deletes a group's offsets of a topic together with the topic. A recreated topic has the
//! same name and starts at offset 0. A client that missed the deletion stays at its old position
//! and skips records that were never read. A commit at that position would hide this for good. So
//! each commit first reads the committed offsets back. If Kafka no longer has them, all commits
//! fail from then on, and the reader replaces the client by one that starts at the beginning.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use ::kafka::ConnectionContext;
use ::kafka::context::Rebootstrap;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::tasks::Supervisor;
use service::tasks::lock;

use crate::kafka::record::{TopicPartition, topic_partitions};
use crate::partition::workers::Workers;

const COMMIT_INTERVAL: Duration = Duration::from_millis(500);
/// Timeout for reading the committed offsets.
const COMMITTED_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum polls of the observer client per call. A client has fewer events in a second.
const MAX_POLLS: usize = 100;

/// Offsets that were collected but not committed, with the cause.
pub type CommitFailure = (TopicPartitionList, KafkaError);

/// Commits offsets: one commit at a time, and none after the group's offsets were reset.
pub struct OffsetCommitter {
    /// Reads committed offsets. It joins no group, because the coordinator connection of a group
    /// member answers nothing else while the member joins.
    observer: BaseConsumer<ConnectionContext>,
    rebootstrap: Arc<Rebootstrap>,
    /// Partitions on which this client has committed.
    committed: Mutex<HashSet<TopicPartition>>,
    /// The topic whose committed offsets Kafka no longer has.
    reset_topic: OnceLock<Arc<str>>,
}

impl OffsetCommitter {
    /// Creates the observer client with the properties of `config`.
    ///
    /// # Errors
    /// librdkafka rejects the configuration.
    pub fn new(config: &ClientConfig) -> KafkaResult<Self> {
        let mut config = config.clone();
        let rebootstrap = Rebootstrap::enable(&mut config);
        let observer = config.create_with_context(ConnectionContext::new(Arc::clone(&rebootstrap)))?;
        Ok(Self { observer, rebootstrap, committed: Mutex::default(), reset_topic: OnceLock::new() })
    }

    /// Commits what `collect_offsets` returns, and returns the same offsets. Blocks until the
    /// broker replies: at most the session timeout of 10 s, if the coordinator is unavailable.
    ///
    /// The offsets are collected after the check, directly before the commit. Otherwise they could
    /// contain a partition that was lost meanwhile. Kafka rejects such a commit, and librdkafka
    /// then leaves the group that it is just rejoining. The member that it was about to become
    /// stays in the group, and the group waits for it until its session expires.
    ///
    /// # Errors
    /// At least one offset is not committed. Contains the collected offsets and the cause.
    pub fn commit<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        collect_offsets: impl FnOnce() -> TopicPartitionList,
    ) -> Result<TopicPartitionList, CommitFailure> {
        let mut committed = lock(&self.committed);
        // Also without offsets to commit: a recreated topic may end before the client's position.
        self.check_for_reset(&committed).map_err(|error| (TopicPartitionList::new(), error))?;
        let offsets = collect_offsets();
        if offsets.count() == 0 {
            return Ok(offsets);
        }
        if consumer.assignment_lost() {
            return Err((offsets, KafkaError::ConsumerCommit(RDKafkaErrorCode::AssignmentLost)));
        }
        consumer.commit(&offsets, CommitMode::Sync).map_err(|error| (offsets.clone(), error))?;
        committed.extend(topic_partitions(&offsets));
        Ok(offsets)
    }

    /// Handles the events of the observer client and keeps it connected. Call it about once a
    /// second.
    pub fn poll_observer(&self) {
        // A poll handles one event and does not report whether there are more.
        for _ in 0..MAX_POLLS {
            _ = self.observer.poll(Duration::ZERO);
        }
        self.rebootstrap.restore_brokers(self.observer.client());
    }

    /// The topic whose committed offsets Kafka no longer has. Once set, every commit fails.
    pub fn reset_topic(&self) -> Option<&Arc<str>> {
        self.reset_topic.get()
    }

    fn check_for_reset(&self, committed: &HashSet<TopicPartition>) -> KafkaResult<()> {
        const RESET: KafkaError = KafkaError::ConsumerCommit(RDKafkaErrorCode::UnknownTopicOrPartition);
        // Another member may have committed there since, so the first observation is final.
        if self.reset_topic.get().is_some() {
            return Err(RESET);
        }
        if committed.is_empty() {
            return Ok(());
        }
        let mut list = TopicPartitionList::with_capacity(committed.len());
        for (topic, partition) in committed {
            list.add_partition(topic, *partition);
        }
        let stored = self.observer.committed_offsets(list, COMMITTED_TIMEOUT)?;
        let reset = stored
            .elements()
            .into_iter()
            .find(|element| element.offset() == Offset::Invalid && element.error().is_ok());
        match reset.map(|element| Arc::from(element.topic())) {
            None => Ok(()),
            Some(topic) => {
                _ = self.reset_topic.set(topic);
                Err(RESET)
            }
        }
    }
}

/// A request for the final commit. The channel carries whether it succeeded.
type FinalCommit = SyncSender<bool>;

/// Handle of the thread that commits twice a second. It runs beside the reader because only a
/// synchronous commit reports its result (rdkafka reports no result of an asynchronous one), and
/// polling must not wait for a commit.
pub struct CommitThread {
    requests: SyncSender<FinalCommit>,
    thread: JoinHandle<()>,
}

impl CommitThread {
    /// Starts the thread. `tasks` has to allow its end before [`CommitThread::stop`].
    ///
    /// # Errors
    /// The thread cannot be created.
    pub fn start<C: ConsumerContext + 'static>(
        tasks: &Supervisor,
        consumer: Arc<BaseConsumer<C>>,
        committer: Arc<OffsetCommitter>,
        workers: Arc<Workers>,
    ) -> std::io::Result<Self> {
        let (requests, received) = sync_channel(1);
        let run = move || commit_until_stop(&consumer, &committer, &workers, &received);
        let thread = tasks.spawn_thread("committer", run)?;
        Ok(Self { requests, thread })
    }

    /// Requests a commit of what closed workers finished. The receiver gets whether it succeeded.
    /// `None` if the thread has ended, which is a bug.
    pub fn request_final_commit(&self) -> Option<Receiver<bool>> {
        let (result, receiver) = sync_channel(1);
        match self.requests.try_send(result) {
            Err(TrySendError::Disconnected(_)) => None,
            Ok(()) | Err(TrySendError::Full(_)) => Some(receiver),
        }
    }

    /// Stops the thread after its current commit.
    pub fn stop(self) {
        drop(self.requests);
        _ = self.thread.join();
    }
}

fn commit_until_stop<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    committer: &OffsetCommitter,
    workers: &Workers,
    requests: &Receiver<FinalCommit>,
) {
    loop {
        match requests.recv_timeout(COMMIT_INTERVAL) {
            Err(RecvTimeoutError::Timeout) => match committer.commit(consumer, || workers.take_uncommitted())
            {
                Ok(committed) => workers.set_committed(&committed),
                Err((offsets, error)) => {
                    tracing::debug!(error = %error, "commit failed, it will be retried");
                    workers.mark_uncommitted(&offsets);
                }
            },
            Ok(result) => {
                let committed = committer.commit(consumer, || workers.final_offsets());
                if let Err((_, error)) = &committed {
                    tracing::debug!(error = %error, "final commit failed");
                }
                _ = result.send(committed.is_ok());
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use rdkafka::mocking::MockCluster;
    use tokio::runtime::Runtime;

    use super::*;
    use crate::kafka::reader::GroupMember;
    use crate::partition::workers::{Workers, unreachable_context};

    const STOP_TIMEOUT: Duration = Duration::from_secs(10);

    /// A group member with the broker at `bootstrap`, or without a broker if that is empty.
    fn member(bootstrap: &str, workers: Arc<Workers>) -> BaseConsumer<GroupMember> {
        let mut config = ClientConfig::new();
        config.set("group.id", "g").set("bootstrap.servers", bootstrap);
        let committer = Arc::new(OffsetCommitter::new(&config).unwrap());
        let rebootstrap = Rebootstrap::enable(&mut config);
        config.create_with_context(GroupMember { workers, committer, rebootstrap }).unwrap()
    }

    /// Simulates the threads that work on one partition. Steps during a commit run inside that
    /// commit. The broker is simulated too, so that no offsets are left for a real one.
    struct Simulation<'a> {
        consumer: &'a BaseConsumer<GroupMember>,
        workers: &'a Workers,
        revoked: TopicPartition,
        /// Collects the offsets that the committer commits.
        offsets: fn(&Workers) -> TopicPartitionList,
        /// The thread of each step.
        order: &'a [usize],
        /// Index of the next step.
        next: Cell<usize>,
        /// Offsets that the reader has to commit after the worker stopped.
        stopped: RefCell<Option<TopicPartitionList>>,
        /// Whether the reader waits for the current commit.
        reader_waits: Cell<bool>,
        committed: Cell<Option<Offset>>,
        released: Cell<bool>,
    }

    const COMMITTER: usize = 0;
    const READER: usize = 1;

    impl Simulation<'_> {
        /// Runs steps until the committer's commit returns, or to the end.
        fn run(&self, committing: bool) {
            while let Some(thread) = self.order.get(self.next.get()) {
                self.next.update(|next| next + 1);
                match *thread {
                    COMMITTER if committing => return,
                    COMMITTER => self.commit(),
                    READER if self.stopped.borrow().is_none() => {
                        let stopped = self.workers.stop(std::slice::from_ref(&self.revoked), STOP_TIMEOUT);
                        self.stopped.replace(Some(stopped));
                    }
                    READER if self.consumer.context().committer.committed.try_lock().is_err() => {
                        self.reader_waits.set(true);
                    }
                    READER => self.release(),
                    _ => self.finish(),
                }
            }
        }

        fn commit(&self) {
            let result = self.consumer.context().committer.commit(self.consumer, || {
                let offsets = (self.offsets)(self.workers);
                self.run(true);
                self.receive(&offsets);
                TopicPartitionList::new()
            });
            assert!(result.is_ok());
            if self.reader_waits.take() {
                self.release();
            }
        }

        fn release(&self) {
            let finished = self.stopped.take().unwrap_or_default();
            let result = self.consumer.context().committer.commit(self.consumer, || {
                self.receive(&finished);
                TopicPartitionList::new()
            });
            assert!(result.is_ok());
            self.released.set(true);
        }

        /// The worker finishes its next record, unless it has stopped.
        fn finish(&self) {
            if let Some(partition) = self.workers.views().first() {
                let next = partition.progress.committable().unwrap_or_default();
                partition.progress.finish([next.unsigned_abs()].into_iter());
            }
        }

        fn receive(&self, offsets: &TopicPartitionList) {
            for offset in offsets.elements().iter().map(|element| element.offset()) {
                assert!(!self.released.get(), "committed after the partition was released: {:?}", self.order);
                let earlier = self.committed.replace(Some(offset)).and_then(|offset| offset.to_raw());
                assert!(earlier <= offset.to_raw(), "an older offset overtook a newer one: {:?}", self.order);
            }
        }
    }

    /// Simulates every order of the committer's `commits`, the two steps of a revocation, and the
    /// records that the worker finishes.
    fn simulate(
        commits: usize,
        finishes: usize,
        offsets: fn(&Workers) -> TopicPartitionList,
        before: fn(&Workers),
    ) {
        let runtime = Runtime::new().unwrap();
        let context = unreachable_context();
        let workers = || Workers::new(Arc::clone(&context), runtime.handle().clone());
        let consumer = member("", Arc::new(workers()));
        for order in testkit::interleavings(&[commits * 2, 2, finishes]) {
            let (workers, revoked): (Workers, TopicPartition) = (workers(), (Arc::from("t"), 3));
            workers.start(vec![revoked.clone()]);
            let partition = workers.views().remove(0);
            partition.progress.begin(0..3);
            before(&workers);
            let simulation = Simulation {
                consumer: &consumer,
                workers: &workers,
                revoked,
                offsets,
                order: &order,
                next: Cell::default(),
                stopped: RefCell::default(),
                reader_waits: Cell::default(),
                committed: Cell::default(),
                released: Cell::default(),
            };
            simulation.run(false);
            assert!(simulation.released.get());
            let finished = partition.progress.committable().map(Offset::Offset);
            assert_eq!(simulation.committed.get(), finished, "finished records are committed: {order:?}");
        }
    }

    #[test]
    fn no_commit_overtakes_a_newer_one_or_follows_the_release_in_any_order() {
        simulate(2, 3, Workers::take_uncommitted, |_| ());
    }

    #[test]
    fn no_final_commit_follows_the_release_in_any_order() {
        simulate(2, 0, Workers::final_offsets, |workers| {
            workers.views()[0].progress.finish(0..2);
            workers.close(STOP_TIMEOUT);
        });
    }

    #[test]
    fn commits_fail_once_the_offsets_were_reset() {
        let runtime = Runtime::new().unwrap();
        let workers = Workers::new(unreachable_context(), runtime.handle().clone());
        let consumer = member("", Arc::new(workers));
        let committer = &consumer.context().committer;
        assert!(committer.commit(&consumer, TopicPartitionList::new).is_ok());
        committer.reset_topic.set(Arc::from("t")).unwrap();
        assert!(committer.commit(&consumer, TopicPartitionList::new).is_err());
    }

    #[test]
    fn partition_lost_during_the_check_is_not_committed() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 1, 1).unwrap();
        let runtime = Runtime::new().unwrap();
        let workers = || Workers::new(unreachable_context(), runtime.handle().clone());
        let consumer = member(&cluster.bootstrap_servers(), Arc::new(workers()));
        let (workers, lost): (Workers, TopicPartition) = (workers(), (Arc::from("t"), 0));
        workers.start(vec![lost.clone()]);
        let progress = Arc::clone(&workers.views()[0].progress);
        progress.begin(0..3);
        let committer = &consumer.context().committer;
        let committed = || {
            let mut list = TopicPartitionList::new();
            list.add_partition("t", 0);
            committer.observer.committed_offsets(list, COMMITTED_TIMEOUT).unwrap().elements()[0].offset()
        };
        progress.finish(0..1);
        committer.commit(&consumer, || workers.take_uncommitted()).unwrap();
        assert_eq!(committed(), Offset::Offset(1));

        progress.finish(1..2);
        cluster.broker_round_trip_time(1, Duration::from_millis(500)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Loses the partition during the check.
                runtime.block_on(async { tokio::time::sleep(Duration::from_millis(100)).await });
                workers.abort(&[lost]);
            });
            committer.commit(&consumer, || workers.take_uncommitted()).unwrap();
        });
        assert_eq!(committed(), Offset::Offset(1));
    }
}
