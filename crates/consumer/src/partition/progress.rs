//! How far one partition has come, and what it waits for. Written by its lane, read by the reader (to commit), by
//! health and by metrics.

use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;

use crate::partition::offsets::{Finished, Tracker};
use service::lock::lock;

const UNKNOWN: i64 = -1;

/// Why a lane does not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waits {
    /// The database did not finish what it was given; it is asked again.
    ForStore(String),
    /// A dead letter cannot be produced; which, why, and the remedy.
    ForDeadLetter(String),
}

impl Waits {
    /// The reason, in words.
    pub fn reason(&self) -> &str {
        match self {
            Self::ForStore(reason) | Self::ForDeadLetter(reason) => reason,
        }
    }
}

/// A position that Kafka no longer has.
#[derive(Debug)]
struct Reset {
    at: i64,
    /// The first record that was read afterwards.
    next: Option<i64>,
}

/// One partition's progress.
#[derive(Debug)]
pub struct Progress {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its number.
    pub partition: i32,
    tracker: Mutex<Tracker>,
    position: AtomicI64,
    end: AtomicI64,
    committed: AtomicI64,
    reset: Mutex<Option<Reset>>,
    in_hand: AtomicUsize,
    moved: Mutex<Instant>,
    waits: Mutex<Option<Waits>>,
    repeated: Counter,
}

impl Progress {
    /// Of a partition of which this process has finished `earlier`; what is finished again is counted in `repeated`.
    pub fn new(topic: Arc<str>, partition: i32, earlier: Finished, repeated: Counter) -> Self {
        Self {
            topic,
            partition,
            tracker: Mutex::new(Tracker::after(earlier)),
            position: AtomicI64::new(UNKNOWN),
            end: AtomicI64::new(UNKNOWN),
            committed: AtomicI64::new(UNKNOWN),
            reset: Mutex::default(),
            in_hand: AtomicUsize::new(0),
            moved: Mutex::new(Instant::now()),
            waits: Mutex::default(),
            repeated,
        }
    }

    /// A record was read.
    pub fn read(&self, offset: i64) {
        lock(&self.tracker).read(offset);
        if let Some(reset) = &mut *lock(&self.reset) {
            reset.next.get_or_insert(offset);
        }
    }

    /// The client's position, where every record below it was read.
    pub fn pass(&self, position: i64) {
        let mut tracker = lock(&self.tracker);
        tracker.pass(position);
        self.follow(&tracker);
    }

    fn follow(&self, tracker: &Tracker) {
        if let Some(watermark) = tracker.watermark() {
            self.position.store(watermark, Ordering::Release);
        }
    }

    /// Kafka has no record at the client's position `at`: the client goes on at the beginning.
    pub fn is_reset(&self, at: i64) {
        lock(&self.reset).get_or_insert(Reset { at, next: None });
    }

    /// Whether a reset of the position is not judged yet.
    pub fn was_reset(&self) -> bool {
        lock(&self.reset).is_some()
    }

    /// The offsets that were deleted before they were read, now that the partition begins at `first`. A topic
    /// that was recreated begins below the position: nothing was lost.
    pub fn take_lost(&self, first: i64) -> Option<Range<i64>> {
        let Reset { at, next } = lock(&self.reset).take()?;
        let lost = at..next.map_or(first, |next| next.min(first));
        (!lost.is_empty()).then_some(lost)
    }

    /// Records are taken in hand; the sequence number of the first.
    pub fn begin(&self, offsets: impl Iterator<Item = i64>) -> u64 {
        let mut tracker = lock(&self.tracker);
        let sequences: Vec<u64> = offsets.map(|offset| tracker.begin(offset)).collect();
        self.in_hand.store(sequences.len(), Ordering::Relaxed);
        *lock(&self.moved) = Instant::now();
        sequences.first().copied().unwrap_or_default()
    }

    /// Records are finished.
    pub fn finish(&self, sequences: impl Iterator<Item = u64>) {
        let mut tracker = lock(&self.tracker);
        let (mut count, mut repeated) = (0, 0);
        for sequence in sequences {
            count += 1;
            repeated += u64::from(tracker.finish(sequence));
        }
        if count == 0 {
            return;
        }
        self.repeated.inc_by(repeated);
        self.follow(&tracker);
        _ = self
            .in_hand
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(n.saturating_sub(count)));
        *lock(&self.moved) = Instant::now();
    }

    /// The offset to commit, once anything is finished.
    pub fn watermark(&self) -> Option<i64> {
        lock(&self.tracker).watermark()
    }

    /// What this process has finished of the partition.
    pub fn finished(&self) -> Finished {
        lock(&self.tracker).finished()
    }

    /// The next offset to finish, as far as it is known.
    pub fn position(&self) -> Option<i64> {
        known(&self.position)
    }

    /// Where the group stood when the partition came, for as long as nothing is finished here.
    pub fn starts_at(&self, offset: i64) {
        for known in [&self.position, &self.committed] {
            _ = known.compare_exchange(UNKNOWN, offset, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Kafka confirmed a commit of this offset.
    pub fn is_committed(&self, offset: i64) {
        self.committed.store(offset, Ordering::Release);
    }

    /// Whether the monitor has to ask where the group stands.
    pub fn is_new(&self) -> bool {
        self.position().is_none() || known(&self.committed).is_none()
    }

    /// What the broker says is the partition's end.
    pub fn ends_at(&self, offset: i64) {
        self.end.store(offset, Ordering::Relaxed);
    }

    /// Records between the position and the broker's end, once both are known.
    pub fn lag(&self) -> Option<u64> {
        self.records_from(self.position()?)
    }

    /// Records between the last confirmed commit and the broker's end, once both are known.
    pub fn committed_lag(&self) -> Option<u64> {
        self.records_from(known(&self.committed)?)
    }

    fn records_from(&self, offset: i64) -> Option<u64> {
        let behind = known(&self.end)?.saturating_sub(offset);
        Some(u64::try_from(behind).unwrap_or_default())
    }

    /// Records in hand.
    pub fn in_hand(&self) -> usize {
        self.in_hand.load(Ordering::Relaxed)
    }

    /// A record comes while none waits: the time before does not count as standing still.
    pub fn wakes(&self) {
        if self.in_hand() == 0 {
            *lock(&self.moved) = Instant::now();
        }
    }

    /// For how long nothing was finished, at `now`.
    pub fn still_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*lock(&self.moved))
    }

    /// Says what it waits for, or that it goes on.
    pub fn waits_for(&self, waits: Option<Waits>) {
        *lock(&self.waits) = waits;
    }

    /// What it waits for.
    pub fn waits(&self) -> Option<Waits> {
        lock(&self.waits).clone()
    }
}

fn known(offset: &AtomicI64) -> Option<i64> {
    Some(offset.load(Ordering::Acquire)).filter(|&offset| offset != UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::record::Record;
    use crate::partition::queue::Bound;
    use crate::partition::view::View;

    #[test]
    fn lag_counts_from_the_committed_offset_until_something_is_finished() {
        let progress = Progress::new("t".into(), 0, Finished::default(), Counter::default());
        assert_eq!(progress.lag(), None);
        progress.ends_at(10);
        progress.starts_at(4);
        assert_eq!(progress.lag(), Some(6));
        let first = progress.begin([4, 5].into_iter());
        progress.finish([first].into_iter());
        progress.starts_at(0);
        assert_eq!((progress.lag(), progress.watermark(), progress.in_hand()), (Some(5), Some(5), 1));
    }

    #[test]
    fn committed_lag_counts_from_the_confirmed_commit() {
        let progress = Progress::new("t".into(), 0, Finished::default(), Counter::default());
        progress.ends_at(10);
        progress.starts_at(4);
        let first = progress.begin([4, 5].into_iter());
        progress.finish([first, first + 1].into_iter());
        assert_eq!((progress.lag(), progress.committed_lag()), (Some(4), Some(6)));
        progress.is_committed(6);
        assert_eq!((progress.lag(), progress.committed_lag()), (Some(4), Some(4)));
    }

    #[test]
    fn g2_lost_records_are_those_between_the_reset_position_and_the_beginning() {
        // The position, the first record read afterwards, the beginning, and what was lost.
        for (at, next, first, lost) in [
            (5, None, 9, Some(5..9)),
            (5, Some(9), 9, Some(5..9)),
            (5, Some(9), 20, Some(5..9)),
            (5, Some(12), 9, Some(5..9)),
            (50, Some(0), 0, None),
            (50, None, 0, None),
        ] {
            let progress = Progress::new("t".into(), 0, Finished::default(), Counter::default());
            progress.is_reset(at);
            next.into_iter().for_each(|next| progress.read(next));
            assert!(progress.was_reset());
            assert_eq!(progress.take_lost(first), lost);
            assert_eq!(progress.take_lost(first), None, "told once");
        }
    }

    #[test]
    fn in_every_order_of_finishing_and_asking_the_position_is_the_watermark_as_soon_as_there_is_one() {
        // The lane begins 10 to 12 and finishes them in another order. The lag's follower tells the partition's end
        // and what is committed, and then, as it does not look in between, where the partition begins.
        for order in devservers::interleavings(&[4, 3]) {
            let progress = Progress::new("t".into(), 0, Finished::default(), Counter::default());
            let mut taken = [0; 2];
            for thread in &order {
                match (thread, taken[*thread]) {
                    (0, 0) => assert_eq!(progress.begin(10..13), 0),
                    (0, finished) => progress.finish([[1, 0, 2][finished - 1]].into_iter()),
                    (_, 0) => progress.ends_at(20),
                    (_, 1) => progress.starts_at(4),
                    (_, _) => progress.starts_at(0),
                }
                taken[*thread] += 1;
                let [worked, asked] = taken;
                let watermark = [None, None, None, Some(12), Some(13)][worked];
                let position = watermark.or([None, None, Some(4), Some(4)][asked]);
                let lag = position.filter(|_| asked > 0).map(|position| 20_u64.abs_diff(position as u64));
                let told = (progress.watermark(), progress.position(), progress.lag());
                assert_eq!(told, (watermark, position, lag), "{taken:?} of {order:?}");
                assert_eq!(progress.in_hand(), [0, 3, 2, 1, 0][worked]);
            }
        }
    }

    #[test]
    fn in_every_order_of_arriving_and_working_only_the_time_in_which_records_wait_is_standing_still() {
        const STEP: Duration = Duration::from_secs(600);
        // The reader pushes three records; the lane takes two at most, begins and finishes them, twice.
        for order in devservers::interleavings(&[3, 6]) {
            let progress = Progress::new("t".into(), 0, Finished::default(), Counter::default());
            let lane = View { progress: Arc::new(progress), inbox: Arc::default() };
            let bound = Bound { records: usize::MAX, bytes: usize::MAX };
            let (mut pushed, mut worked, mut hand) = (0, 0, Vec::new());
            let (mut waiting, mut waits_since, mut moved) = (false, 0, 0);
            for (now, thread) in (1..).zip(&order) {
                *lock(&lane.progress.moved) -= STEP;
                if *thread == 0 {
                    lane.push(Record::new(pushed, None, None, None, std::iter::empty), bound);
                    pushed += 1;
                } else {
                    match worked % 3 {
                        0 => hand = lane.inbox.take(2, usize::MAX),
                        _ if hand.is_empty() => {}
                        1 => _ = lane.progress.begin(hand.iter().map(|record| record.offset)),
                        _ => lane.progress.finish(hand.iter().map(|record| record.offset.unsigned_abs())),
                    }
                    if worked % 3 > 0 && !hand.is_empty() {
                        moved = now;
                    }
                    worked += 1;
                }
                let waits = lane.inbox.len() > 0 || lane.progress.in_hand() > 0;
                if waits && !waiting {
                    waits_since = now;
                }
                waiting = waits;
                let still = lane.still_for(Instant::now()).map(|still| still.as_secs() / STEP.as_secs());
                assert_eq!(still, waits.then(|| now - moved.max(waits_since)), "step {now} of {order:?}");
            }
        }
    }
}
