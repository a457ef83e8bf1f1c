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

    /// A record came while none waited: the time before does not count as standing still.
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
}
