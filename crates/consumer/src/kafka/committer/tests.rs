//! What the gate promises, in every order of the threads that pass it.

use std::cell::{Cell, RefCell};

use rdkafka::mocking::MockCluster;
use tokio::runtime::Runtime;

use super::*;
use crate::partition::workers::tests::work;

const GRACE: Duration = Duration::from_secs(10);

/// A member whose broker is at `bootstrap`; nowhere if that is empty.
fn member(bootstrap: &str, lanes: Arc<Lanes>) -> BaseConsumer<Member> {
    let mut config = ClientConfig::new();
    config.set("group.id", "g").set("bootstrap.servers", bootstrap);
    let gate = Gate::new(&config).unwrap();
    let member = Member::new(lanes, gate, Rebootstrap::enable(&mut config));
    config.create_with_context(member).unwrap()
}

/// The threads at one partition. What comes while a commit is under way is played inside it; the offsets go to a broker
/// that is played, too, so that none is left for a real one.
struct Play<'a> {
    consumer: &'a BaseConsumer<Member>,
    lanes: &'a Lanes,
    place: Place,
    /// What the committer commits.
    offsets: fn(&Lanes) -> TopicPartitionList,
    /// Whose turn it is, one after another, and the next of them.
    order: &'a [usize],
    next: Cell<usize>,
    /// What the reader is to commit, once the lane has ended.
    ended: RefCell<Option<TopicPartitionList>>,
    /// Whether the reader waits for the commit that is under way.
    waits: Cell<bool>,
    at_broker: Cell<Option<Offset>>,
    given_away: Cell<bool>,
}

const COMMITTER: usize = 0;
const READER: usize = 1;

impl Play<'_> {
    /// Plays until the committer's commit is answered, or to the end.
    fn go_on(&self, committing: bool) {
        while let Some(thread) = self.order.get(self.next.get()) {
            self.next.update(|next| next + 1);
            match *thread {
                COMMITTER if committing => return,
                COMMITTER => self.commit(),
                READER if self.ended.borrow().is_none() => {
                    let ended = self.lanes.end(std::slice::from_ref(&self.place), GRACE);
                    self.ended.replace(Some(ended));
                }
                READER if self.consumer.context().gate().committed.try_lock().is_err() => {
                    self.waits.set(true);
                }
                READER => self.give_away(),
                _ => self.finish(),
            }
        }
    }

    fn commit(&self) {
        let passed = self.consumer.context().gate().commit(self.consumer, || {
            let offsets = (self.offsets)(self.lanes);
            self.go_on(true);
            self.arrive(&offsets);
            TopicPartitionList::new()
        });
        assert!(passed.is_ok());
        if self.waits.take() {
            self.give_away();
        }
    }

    fn give_away(&self) {
        let finished = self.ended.take().unwrap_or_default();
        let passed = self.consumer.context().gate().commit(self.consumer, || {
            self.arrive(&finished);
            TopicPartitionList::new()
        });
        assert!(passed.is_ok());
        self.given_away.set(true);
    }

    /// The lane finishes its next record, unless it has ended.
    fn finish(&self) {
        if let Some(lane) = self.lanes.list().first() {
            let next = lane.progress.watermark().unwrap_or_default();
            lane.progress.finish([next.unsigned_abs()].into_iter());
        }
    }

    fn arrive(&self, offsets: &TopicPartitionList) {
        for offset in offsets.elements().iter().map(|element| element.offset()) {
            assert!(!self.given_away.get(), "committed after the partition was given away: {:?}", self.order);
            let earlier = self.at_broker.replace(Some(offset)).and_then(|offset| offset.to_raw());
            assert!(earlier <= offset.to_raw(), "an older watermark overtook a newer one: {:?}", self.order);
        }
    }
}

/// Plays every order of the committer's `commits`, the two steps of giving the partition away, and what the lane does.
fn play(commits: usize, finishes: usize, offsets: fn(&Lanes) -> TopicPartitionList, before: fn(&Lanes)) {
    let runtime = Runtime::new().unwrap();
    let work = runtime.block_on(work());
    let lanes = || Lanes::new(Arc::clone(&work), runtime.handle().clone());
    let consumer = member("", Arc::new(lanes()));
    for order in devservers::interleavings(&[commits * 2, 2, finishes]) {
        let (lanes, place): (Lanes, Place) = (lanes(), (Arc::from("t"), 3));
        lanes.start(vec![place.clone()]);
        let lane = lanes.list().remove(0);
        lane.progress.begin(0..3);
        before(&lanes);
        let play = Play {
            consumer: &consumer,
            lanes: &lanes,
            place,
            offsets,
            order: &order,
            next: Cell::default(),
            ended: RefCell::default(),
            waits: Cell::default(),
            at_broker: Cell::default(),
            given_away: Cell::default(),
        };
        play.go_on(false);
        assert!(play.given_away.get());
        let watermark = lane.progress.watermark().map(Offset::Offset);
        assert_eq!(play.at_broker.get(), watermark, "what is finished is committed: {order:?}");
    }
}

#[test]
fn in_every_order_of_commits_none_overtakes_a_newer_one_or_comes_after_the_partition_was_given_away() {
    play(2, 3, Lanes::unsent, |_| ());
}

#[test]
fn in_every_order_of_last_commits_none_comes_after_the_partition_was_given_away() {
    play(2, 0, Lanes::left, |lanes| {
        lanes.list()[0].progress.finish(0..2);
        lanes.close(GRACE);
    });
}

#[test]
fn once_offsets_are_forgotten_no_commit_passes() {
    let runtime = Runtime::new().unwrap();
    let lanes = Lanes::new(runtime.block_on(work()), runtime.handle().clone());
    let consumer = member("", Arc::new(lanes));
    let gate = consumer.context().gate();
    assert!(gate.commit(&consumer, TopicPartitionList::new).is_ok());
    gate.forgotten.set(Arc::from("t")).unwrap();
    assert!(gate.commit(&consumer, TopicPartitionList::new).is_err());
}

#[test]
fn what_is_lost_while_the_gate_looks_is_not_committed() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 1, 1).unwrap();
    let runtime = Runtime::new().unwrap();
    let lanes = || Lanes::new(runtime.block_on(work()), runtime.handle().clone());
    let consumer = member(&cluster.bootstrap_servers(), Arc::new(lanes()));
    let (lanes, place): (Lanes, Place) = (lanes(), (Arc::from("t"), 0));
    lanes.start(vec![place.clone()]);
    let progress = Arc::clone(&lanes.list()[0].progress);
    progress.begin(0..3);
    let gate = consumer.context().gate();
    let committed = || {
        let mut asked = TopicPartitionList::new();
        asked.add_partition("t", 0);
        gate.witness.committed_offsets(asked, ANSWER_LIMIT).unwrap().elements()[0].offset()
    };
    progress.finish(0..1);
    gate.commit(&consumer, || lanes.unsent()).unwrap();
    assert_eq!(committed(), Offset::Offset(1));

    progress.finish(1..2);
    cluster.broker_round_trip_time(1, Duration::from_millis(500)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // In the middle of the look.
            runtime.block_on(async { tokio::time::sleep(Duration::from_millis(100)).await });
            lanes.lose(&[place]);
        });
        gate.commit(&consumer, || lanes.unsent()).unwrap();
    });
    assert_eq!(committed(), Offset::Offset(1));
}
