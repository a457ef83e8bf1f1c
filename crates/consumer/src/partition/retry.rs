//! How a failed write is retried: with a smaller batch or a longer deadline after a timeout, and
//! record by record after an unlisted code.
//!
//! A timeout halves the batch and a success doubles it. For a single record that times out, the
//! deadline is doubled instead.
//!
//! An unlisted code rejects a record in a statement or a command of its own. Whether a retry helps
//! is unknown for such a code. The record is written alone, and dead-lettered after at least five
//! rejections and [`UNLISTED_GRACE`] if the server accepts other writes to the collection. A write
//! concern error or a listed transient code never leads to a dead letter.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::kafka::dead_letters::Cause;
use crate::mongo::{BatchOutcome, MAX_DOUBLINGS, TransientError};

/// Minimum time from the first rejection of a record to its dead letter.
pub const UNLISTED_GRACE: Duration = Duration::from_secs(60);

/// Minimum rejections of a record that was written alone before it is dead-lettered.
const MIN_REJECTIONS: u32 = 5;

/// The records of one batch that were rejected with an unlisted code.
#[derive(Debug)]
pub struct UnlistedCodeRetry {
    grace: Duration,
    /// By the index in the batch.
    records: BTreeMap<usize, RejectedRecord>,
}

#[derive(Debug)]
struct RejectedRecord {
    /// Rejections while it was written alone.
    rejections: u32,
    first: Instant,
    /// The collection's count of written events at the last rejection. An increase means that other
    /// events were stored.
    written: u64,
}

/// The next step for a record that was written alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryDecision {
    /// It was not rejected with an unlisted code, or is retried.
    Retry,
    /// It is dead-lettered if the server accepts other writes.
    DeadLetter {
        /// Others were stored since the last rejection. If not, only a probe shows whether the
        /// server accepts writes.
        others_stored: bool,
    },
}

impl UnlistedCodeRetry {
    /// Records are dead-lettered after `grace` at the earliest.
    pub fn new(grace: Duration) -> Self {
        Self { grace, records: BTreeMap::new() }
    }

    /// The number of records of `todo` to write next, at most `max`. A rejected record is written
    /// alone.
    pub fn chunk_size(&self, todo: &VecDeque<usize>, max: usize) -> usize {
        let others = todo.iter().take(max).take_while(|index| !self.records.contains_key(index)).count();
        others.max(1)
    }

    /// Records the outcome of writing `chunk` and decides what to do.
    pub fn after_write(&mut self, chunk: &[usize], outcome: &BatchOutcome, now: Instant) -> RetryDecision {
        let mut decision = RetryDecision::Retry;
        for rejected in &outcome.unlisted {
            let new = RejectedRecord { rejections: 0, first: now, written: outcome.written };
            let record = self.records.entry(chunk[rejected.index]).or_insert(new);
            if chunk.len() == 1 {
                record.rejections += 1;
                let others_stored = outcome.written > record.written;
                if record.rejections >= MIN_REJECTIONS && now.duration_since(record.first) >= self.grace {
                    decision = RetryDecision::DeadLetter { others_stored };
                }
            }
            record.written = outcome.written;
        }
        decision
    }
}

/// For a batch of one rejected record: marks it as no longer unfinished, and returns the cause of
/// its dead letter.
pub fn take_rejected(outcome: &mut BatchOutcome) -> Option<Cause> {
    let rejected = outcome.unlisted.pop()?;
    outcome.unfinished.clear();
    outcome.error = None;
    Some(Cause::from(rejected))
}

/// Batch size control of one worker.
#[derive(Debug)]
pub struct BatchSize {
    max_records: usize,
    records: AtomicUsize,
    doublings: AtomicU32,
}

impl BatchSize {
    /// Starts with `max_records` records per write.
    pub fn new(max_records: usize) -> Self {
        Self { max_records, records: AtomicUsize::new(max_records), doublings: AtomicU32::new(0) }
    }

    /// Current maximum of records per write.
    pub fn records(&self) -> usize {
        self.records.load(Ordering::Relaxed)
    }

    /// How often the deadline of a write of `records` records is doubled.
    pub fn doublings(&self, records: usize) -> u32 {
        if records == 1 { self.doublings.load(Ordering::Relaxed) } else { 0 }
    }

    /// Adapts to a write of `records` records: `error` says why records are unfinished, and
    /// `server_answers` whether the server replies to other calls. Neither fewer records nor more
    /// time help against an error that is no timeout.
    pub fn update(&self, records: usize, error: Option<&TransientError>, server_answers: bool) {
        let Some(error) = error else {
            self.records.store((self.records() * 2).min(self.max_records), Ordering::Relaxed);
            self.doublings.store(0, Ordering::Relaxed);
            return;
        };
        if error.timed_out {
            self.records.store((records / 2).max(1), Ordering::Relaxed);
            if records == 1 && server_answers {
                let doublings = self.doublings.load(Ordering::Relaxed);
                self.doublings.store((doublings + 1).min(MAX_DOUBLINGS), Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mongo::{Counts, Rejected};

    fn outcome(index: usize, others: u64, written: u64) -> BatchOutcome {
        let error = TransientError { reason: "rejected for now".into(), timed_out: false };
        let rejected =
            Rejected { index, code: 987_654, code_name: "Location987654".into(), reason: "no".into() };
        BatchOutcome {
            counts: Counts { inserted: others, ..Counts::default() },
            unfinished: vec![index],
            unlisted: vec![rejected],
            error: Some(error),
            written,
            ..BatchOutcome::default()
        }
    }

    #[test]
    fn a_rejected_record_is_written_alone() {
        let mut retry = UnlistedCodeRetry::new(UNLISTED_GRACE);
        assert_eq!(retry.chunk_size(&[4, 5, 6, 7].into(), 3), 3);
        let decision = retry.after_write(&[4, 5, 6], &outcome(1, 2, 2), Instant::now());
        assert_eq!(decision, RetryDecision::Retry);
        assert_eq!(retry.chunk_size(&[4, 5, 6].into(), 3), 1, "up to the rejected record");
        assert_eq!(retry.chunk_size(&[5, 6].into(), 3), 1, "the rejected record alone");
    }

    #[test]
    fn dead_letter_after_five_rejections_alone_and_sixty_seconds() {
        let start = Instant::now();
        for (times, due) in [
            (&[0, 10, 20, 59, 60][..], &[false, false, false, false, true][..]),
            (&[0, 1, 2, 3, 4, 59, 60], &[false, false, false, false, false, false, true]),
            (&[0, 70, 80, 90, 95], &[false, false, false, false, true]),
        ] {
            let mut retry = UnlistedCodeRetry::new(UNLISTED_GRACE);
            for (second, due) in times.iter().zip(due) {
                let now = start + Duration::from_secs(*second);
                let wanted = if *due {
                    RetryDecision::DeadLetter { others_stored: false }
                } else {
                    RetryDecision::Retry
                };
                assert_eq!(retry.after_write(&[5], &outcome(0, 0, 7), now), wanted, "{second} of {times:?}");
            }
        }
    }

    #[test]
    fn others_count_as_stored_only_since_the_last_rejection() {
        let mut retry = UnlistedCodeRetry::new(Duration::ZERO);
        let now = Instant::now();
        for written in [7, 9, 9, 9] {
            assert_eq!(retry.after_write(&[5], &outcome(0, 0, written), now), RetryDecision::Retry);
        }
        let due = |others_stored| RetryDecision::DeadLetter { others_stored };
        assert_eq!(retry.after_write(&[5], &outcome(0, 0, 9), now), due(false));
        assert_eq!(retry.after_write(&[5], &outcome(0, 0, 10), now), due(true));
    }

    #[test]
    fn a_dead_lettered_record_is_finished_with_its_cause() {
        let mut outcome = outcome(0, 0, 2);
        let cause = take_rejected(&mut outcome).expect("a cause");
        assert_eq!((cause.class.as_str(), cause.reason.as_str()), ("Location987654", "code 987654: no"));
        assert!(outcome.unfinished.is_empty() && outcome.error.is_none());
    }

    #[test]
    fn timeouts_halve_the_batch_to_one_record_then_double_the_deadline() {
        let size = BatchSize::new(4);
        let error = |timed_out| TransientError { reason: "no reply".into(), timed_out };
        let (slow, failed) = (error(true), error(false));
        for expected in [2, 1, 1] {
            assert_eq!(size.doublings(size.records()), 0);
            size.update(size.records(), Some(&slow), true);
            assert_eq!(size.records(), expected);
        }
        size.update(1, Some(&failed), true);
        assert_eq!((size.records(), size.doublings(1), size.doublings(2)), (1, 1, 0));
        size.update(1, Some(&slow), false);
        assert_eq!(size.doublings(1), 1, "no doubling while the server is unavailable");
        (0..10).for_each(|_| size.update(1, Some(&slow), true));
        assert_eq!(size.doublings(1), MAX_DOUBLINGS);
        for expected in [2, 4, 4] {
            size.update(size.records(), None, true);
            assert_eq!((size.records(), size.doublings(1)), (expected, 0));
        }
    }
}
