//! How far one partition has come, and what it waits for. Written by its lane, read by the reader (to commit), by
//! health and by metrics.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;

use crate::offset::{Finished, Tracker};
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
            in_hand: AtomicUsize::new(0),
            moved: Mutex::new(Instant::now()),
            waits: Mutex::default(),
            repeated,
        }
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
        if let Some(watermark) = tracker.watermark() {
            self.position.store(watermark, Ordering::Release);
        }
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
        _ = self.position.compare_exchange(UNKNOWN, offset, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// What the broker says is the partition's end.
    pub fn ends_at(&self, offset: i64) {
        self.end.store(offset, Ordering::Relaxed);
    }

    /// Records between the position and the broker's end, once both are known.
    pub fn lag(&self) -> Option<u64> {
        let behind = known(&self.end)?.saturating_sub(self.position()?);
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
    use crate::inbox::Bound;
    use crate::lanes::View;
    use crate::record::Record;

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
    fn in_every_order_of_finishing_and_asking_the_position_is_the_watermark_as_soon_as_there_is_one() {
        // The lane begins 10 to 12 and finishes them in another order. The lag's follower tells the partition's end
        // and what is committed, and then, as it does not look in between, where the partition begins.
        for order in servers::interleavings(&[4, 3]) {
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
        for order in servers::interleavings(&[3, 6]) {
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
