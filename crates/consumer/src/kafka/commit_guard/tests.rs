//! The promises of the commit guard in every order of the threads that use it.

use std::cell::{Cell, RefCell};

use rdkafka::mocking::MockCluster;
use tokio::runtime::Runtime;

use super::*;
use crate::kafka::rebalance::GroupMember;
use crate::partition::workers::Workers;
use crate::partition::workers::tests::context;

const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A group member with the broker at `bootstrap`, or without a broker if that is empty.
fn member(bootstrap: &str, workers: Arc<Workers>) -> BaseConsumer<GroupMember> {
    let mut config = ClientConfig::new();
    config.set("group.id", "g").set("bootstrap.servers", bootstrap);
    let guard = CommitGuard::new(&config).unwrap();
    let member = GroupMember::new(workers, guard, Rebootstrap::enable(&mut config));
    config.create_with_context(member).unwrap()
}

/// Simulates the threads that work on one partition. Steps during a commit run inside that commit.
/// The broker is simulated too, so that no offsets are left for a real one.
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
                READER if self.consumer.context().commit_guard().committed.try_lock().is_err() => {
                    self.reader_waits.set(true);
                }
                READER => self.release(),
                _ => self.finish(),
            }
        }
    }

    fn commit(&self) {
        let result = self.consumer.context().commit_guard().commit(self.consumer, || {
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
        let result = self.consumer.context().commit_guard().commit(self.consumer, || {
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
    let context = runtime.block_on(context());
    let workers = || Workers::new(Arc::clone(&context), runtime.handle().clone());
    let consumer = member("", Arc::new(workers()));
    for order in devservers::interleavings(&[commits * 2, 2, finishes]) {
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
    let workers = Workers::new(runtime.block_on(context()), runtime.handle().clone());
    let consumer = member("", Arc::new(workers));
    let guard = consumer.context().commit_guard();
    assert!(guard.commit(&consumer, TopicPartitionList::new).is_ok());
    guard.reset_topic.set(Arc::from("t")).unwrap();
    assert!(guard.commit(&consumer, TopicPartitionList::new).is_err());
}

#[test]
fn partition_lost_during_the_check_is_not_committed() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 1, 1).unwrap();
    let runtime = Runtime::new().unwrap();
    let workers = || Workers::new(runtime.block_on(context()), runtime.handle().clone());
    let consumer = member(&cluster.bootstrap_servers(), Arc::new(workers()));
    let (workers, lost): (Workers, TopicPartition) = (workers(), (Arc::from("t"), 0));
    workers.start(vec![lost.clone()]);
    let progress = Arc::clone(&workers.views()[0].progress);
    progress.begin(0..3);
    let guard = consumer.context().commit_guard();
    let committed = || {
        let mut list = TopicPartitionList::new();
        list.add_partition("t", 0);
        guard.observer.committed_offsets(list, COMMITTED_TIMEOUT).unwrap().elements()[0].offset()
    };
    progress.finish(0..1);
    guard.commit(&consumer, || workers.take_uncommitted()).unwrap();
    assert_eq!(committed(), Offset::Offset(1));

    progress.finish(1..2);
    cluster.broker_round_trip_time(1, Duration::from_millis(500)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Loses the partition during the check.
            runtime.block_on(async { tokio::time::sleep(Duration::from_millis(100)).await });
            workers.abort(&[lost]);
        });
        guard.commit(&consumer, || workers.take_uncommitted()).unwrap();
    });
    assert_eq!(committed(), Offset::Offset(1));
}
