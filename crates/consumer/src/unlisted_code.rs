//! Retry of a record that the server rejects with an unlisted code, in a statement or a command of
//! its own. Whether a retry helps is unknown for such a code. The record is written alone, and
//! dead-lettered after at least five rejections and [`UNLISTED_GRACE`] if the server accepts other
//! writes to the collection. A write concern error or a listed transient code never leads to a dead
//! letter.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::kafka::dead_letters::Cause;
use crate::mongo::BatchOutcome;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mongo::{Counts, Rejected, TransientError};

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
}
