//! The one escape from waiting for ever: a record that the server refuses with a code of which
//! nobody knows whether waiting helps, by itself or as the only one of its command. It is tried
//! alone, and dead-lettered after at least five refusals and [`UNLISTED_GRACE`], if the server
//! takes other writes to the collection. Never for a write concern that failed, and never for a
//! code that is listed as transient.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::kafka::dead_letters::Cause;
use crate::mongo::Applied;

/// How long a record is refused before it is dead-lettered.
pub const UNLISTED_GRACE: Duration = Duration::from_secs(60);

/// Refusals of a record that was alone, before it is dead-lettered.
const REFUSALS_MIN: u32 = 5;

/// The suspects of one batch.
#[derive(Debug)]
pub struct Suspects {
    grace: Duration,
    /// By their place in the batch.
    suspects: BTreeMap<usize, Suspect>,
}

#[derive(Debug)]
struct Suspect {
    refusals: u32,
    first: Instant,
    /// Events that were in the collection at the last refusal.
    written: u64,
}

/// What is to become of the record that was written alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// It is no suspect, or is tried again.
    TryAgain,
    /// It is dead-lettered if others are stored.
    Due {
        /// Others were stored since its last refusal. If not, only the server can tell whether it
        /// takes writes.
        others_stored: bool,
    },
}

impl Suspects {
    /// Suspects are dead-lettered after `grace`.
    pub fn new(grace: Duration) -> Self {
        Self { grace, suspects: BTreeMap::new() }
    }

    /// How many of `todo` to write next, at most `most`: a suspect goes alone.
    pub fn share(&self, todo: &VecDeque<usize>, most: usize) -> usize {
        let unsuspected =
            todo.iter().take(most).take_while(|index| !self.suspects.contains_key(index)).count();
        unsuspected.max(1)
    }

    /// Looks at what became of `chunk` at `now`.
    pub fn judge(&mut self, chunk: &[usize], applied: &Applied, now: Instant) -> Judgement {
        let mut judgement = Judgement::TryAgain;
        for refused in &applied.strange {
            let new = Suspect { refusals: 0, first: now, written: applied.written };
            let suspect = self.suspects.entry(chunk[refused.index]).or_insert(new);
            if chunk.len() == 1 {
                suspect.refusals += 1;
                let others_stored = applied.written > suspect.written;
                if suspect.refusals >= REFUSALS_MIN && now.duration_since(suspect.first) >= self.grace {
                    judgement = Judgement::Due { others_stored };
                }
            }
            suspect.written = applied.written;
        }
        judgement
    }
}

/// Takes the one record out of what is unfinished, to be dead-lettered.
pub fn give_up(applied: &mut Applied) -> Option<Cause> {
    let refused = applied.strange.pop()?;
    applied.unfinished.clear();
    applied.trouble = None;
    Some(Cause::from(refused))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mongo::{Counts, Rejected, Trouble};

    fn refused(index: usize, others: u64, written: u64) -> Applied {
        let trouble = Trouble { reason: "refused for now".into(), timed_out: false };
        let strange = Rejected { index, code: 987_654, class: "Location987654".into(), reason: "no".into() };
        Applied {
            counts: Counts { inserted: others, ..Counts::default() },
            unfinished: vec![index],
            strange: vec![strange],
            trouble: Some(trouble),
            written,
            ..Applied::default()
        }
    }

    #[test]
    fn a_suspect_goes_alone() {
        let mut suspects = Suspects::new(UNLISTED_GRACE);
        assert_eq!(suspects.share(&[4, 5, 6, 7].into(), 3), 3);
        let judgement = suspects.judge(&[4, 5, 6], &refused(1, 2, 2), Instant::now());
        assert_eq!(judgement, Judgement::TryAgain);
        assert_eq!(suspects.share(&[4, 5, 6].into(), 3), 1, "up to the suspect");
        assert_eq!(suspects.share(&[5, 6].into(), 3), 1, "the suspect alone");
    }

    #[test]
    fn a_suspect_is_due_after_five_refusals_alone_and_sixty_seconds() {
        let start = Instant::now();
        for (times, due) in [
            (&[0, 10, 20, 59, 60][..], &[false, false, false, false, true][..]),
            (&[0, 1, 2, 3, 4, 59, 60], &[false, false, false, false, false, false, true]),
            (&[0, 70, 80, 90, 95], &[false, false, false, false, true]),
        ] {
            let mut suspects = Suspects::new(UNLISTED_GRACE);
            for (second, due) in times.iter().zip(due) {
                let now = start + Duration::from_secs(*second);
                let wanted = if *due { Judgement::Due { others_stored: false } } else { Judgement::TryAgain };
                assert_eq!(suspects.judge(&[5], &refused(0, 0, 7), now), wanted, "{second} of {times:?}");
            }
        }
    }

    #[test]
    fn others_count_as_stored_only_since_the_last_refusal() {
        let mut suspects = Suspects::new(Duration::ZERO);
        let now = Instant::now();
        for written in [7, 9, 9, 9] {
            assert_eq!(suspects.judge(&[5], &refused(0, 0, written), now), Judgement::TryAgain);
        }
        let due = |others_stored| Judgement::Due { others_stored };
        assert_eq!(suspects.judge(&[5], &refused(0, 0, 9), now), due(false));
        assert_eq!(suspects.judge(&[5], &refused(0, 0, 10), now), due(true));
    }

    #[test]
    fn a_suspect_that_is_given_up_is_finished_with_its_cause() {
        let mut applied = refused(0, 0, 2);
        let cause = give_up(&mut applied).expect("a cause");
        assert_eq!((cause.class.as_str(), cause.reason.as_str()), ("Location987654", "code 987654: no"));
        assert!(applied.unfinished.is_empty() && applied.trouble.is_none());
    }
}
