//! The one escape from waiting for ever: a record that the server refuses with a code of which nobody knows whether
//! waiting helps. It is tried alone, and given up after its fifth refusal if the server took others meanwhile. Never
//! for a command or a write concern that failed, and never for a code that is listed as transient.

use std::collections::{BTreeMap, VecDeque};

use crate::dead_letters::Cause;
use crate::store::Applied;

/// Refusals of a record that was alone, after which it is given up.
const REFUSALS_MAX: u32 = 5;

/// The suspects of one batch, by their place in it.
#[derive(Debug, Default)]
pub struct Suspects(BTreeMap<usize, Suspect>);

#[derive(Debug)]
struct Suspect {
    refusals: u32,
    /// Events that were in the collection before the first refusal.
    written_before: u64,
}

impl Suspects {
    /// How many of `todo` to write next, at most `most`: a suspect goes alone.
    pub fn share(&self, todo: &VecDeque<usize>, most: usize) -> usize {
        let unsuspected = todo.iter().take(most).take_while(|index| !self.0.contains_key(index)).count();
        unsuspected.max(1)
    }

    /// Looks at what became of `chunk`, and takes out of its unfinished records the one to be given up.
    pub fn judge(&mut self, chunk: &[usize], applied: &mut Applied) -> Option<(usize, Cause)> {
        let written_before = applied.written - applied.counts.total();
        let strange = std::mem::take(&mut applied.strange);
        for refused in &strange {
            let suspect = Suspect { refusals: 0, written_before };
            let suspect = self.0.entry(chunk[refused.index]).or_insert(suspect);
            if chunk.len() == 1 && applied.written > suspect.written_before {
                suspect.refusals += 1;
            }
        }
        let refused = strange.into_iter().next().filter(|_| chunk.len() == 1)?;
        self.0.get(&chunk[0]).filter(|suspect| suspect.refusals >= REFUSALS_MAX)?;
        applied.unfinished.clear();
        applied.trouble = None;
        Some((chunk[0], Cause::from(refused)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Counts, Rejected, Trouble};

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
    fn a_suspect_goes_alone_and_is_given_up_after_five_refusals_while_others_are_taken() {
        let mut suspects = Suspects::default();
        assert_eq!(suspects.share(&[4, 5, 6, 7].into(), 3), 3);
        assert!(suspects.judge(&[4, 5, 6], &mut refused(1, 2, 2)).is_none());
        assert_eq!(suspects.share(&[4, 5, 6].into(), 3), 1, "up to the suspect");
        assert_eq!(suspects.share(&[5, 6].into(), 3), 1, "the suspect alone");
        for _ in 0..4 {
            let mut applied = refused(0, 0, 2);
            assert!(suspects.judge(&[5], &mut applied).is_none());
            assert_eq!(applied.unfinished, [0]);
        }
        let mut applied = refused(0, 0, 2);
        let (index, cause) = suspects.judge(&[5], &mut applied).expect("given up");
        assert_eq!((index, cause.class.as_str()), (5, "Location987654"));
        assert!(applied.unfinished.is_empty() && applied.trouble.is_none());
    }

    #[test]
    fn while_the_server_takes_nothing_at_all_nothing_is_given_up() {
        let mut suspects = Suspects::default();
        for _ in 0..20 {
            assert!(suspects.judge(&[0], &mut refused(0, 0, 7)).is_none());
        }
        for _ in 0..4 {
            assert!(suspects.judge(&[0], &mut refused(0, 0, 8)).is_none());
        }
        assert!(suspects.judge(&[0], &mut refused(0, 0, 8)).is_some());
    }
}
