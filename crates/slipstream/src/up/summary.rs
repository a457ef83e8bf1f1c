//! The account of a run: every record on the topic must be found again among the outcomes.

use std::fmt;

use super::count::Count;
use service::plural::{counted, counted_with};

/// What was counted, each number on its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Records read from the topic, from where the consumer began this run to the end.
    pub topic: Count,
    /// Those of [`Count::records`] that were on the topic before this run began.
    pub left_over: u64,
    /// Events that the producer answered with 202.
    pub accepted: u64,
    /// Outcomes that the consumer counted.
    pub finished: Finished,
}

/// The consumer's outcomes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Finished {
    /// New documents.
    pub inserted: u64,
    /// Documents that changed.
    pub updated: u64,
    /// Documents that were the same already.
    pub unchanged: u64,
    /// Events older than what is stored.
    pub superseded: u64,
    /// Records that can never be stored.
    pub dead_lettered: u64,
    /// Records of other sources, and null values.
    pub skipped: u64,
    /// Those of the outcomes above that are of records finished before: their partition was lost uncommitted, and
    /// they were read again.
    pub repeated: u64,
}

impl Finished {
    /// Records: all outcomes, those of one record counted once.
    pub fn records(&self) -> u64 {
        self.outcomes().saturating_sub(self.repeated)
    }

    fn outcomes(&self) -> u64 {
        self.inserted + self.updated + self.unchanged + self.superseded + self.dead_lettered + self.skipped
    }
}

impl Summary {
    /// Whether every record is accounted for, and every accepted event is a record.
    pub fn balances(&self) -> bool {
        self.topic.records == self.finished.records() + self.topic.waiting
            && self.accepted + self.left_over <= self.topic.records
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finished { inserted, updated, unchanged, superseded, dead_lettered, skipped, repeated } =
            self.finished;
        let again = if repeated > 0 { format!(" - {repeated} read again") } else { String::new() };
        write!(
            f,
            "{} = {inserted} inserted + {updated} updated + {unchanged} unchanged + {superseded} superseded \
             + {dead_lettered} dead-lettered + {skipped} skipped{again} + {} waiting",
            counted(self.topic.records, "record"),
            self.topic.waiting
        )?;
        if self.left_over > 0 {
            let had = counted_with(self.left_over, "record", ["was", "were"]);
            write!(f, "\nof these, {had} left by an earlier run")?;
        }
        write!(f, "\n{} accepted", counted(self.accepted, "event"))?;
        if self.balances() {
            write!(f, "\nevery record is accounted for")
        } else {
            write!(
                f,
                "\nTHE ACCOUNT DOES NOT BALANCE: {}",
                counted(self.finished.records() + self.topic.waiting, "outcome")
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(records: u64, waiting: u64, inserted: u64, accepted: u64) -> Summary {
        let finished = Finished { inserted, ..Finished::default() };
        Summary { topic: Count { records, waiting }, left_over: 0, accepted, finished }
    }

    #[test]
    fn a_missing_record_a_surplus_outcome_and_a_lost_event_unbalance_the_account() {
        assert!(summary(10, 2, 8, 10).balances());
        assert!(summary(10, 2, 8, 9).balances(), "others may write to the topic too");
        assert!(!summary(10, 2, 7, 10).balances());
        assert!(!summary(10, 2, 9, 10).balances());
        assert!(!summary(10, 2, 8, 11).balances());
    }

    #[test]
    fn what_an_earlier_run_left_is_not_taken_for_accepted() {
        let summary = Summary { left_over: 3, ..summary(10, 0, 10, 8) };
        assert!(!summary.balances());
        assert!(summary.to_string().contains("DOES NOT BALANCE"));
    }

    #[test]
    fn a_record_that_was_read_again_counts_once() {
        let finished = Finished { inserted: 8, unchanged: 3, repeated: 3, ..Finished::default() };
        let summary = Summary { finished, ..summary(10, 2, 0, 10) };
        assert!(summary.balances(), "{summary}");
        assert!(summary.to_string().contains("+ 0 skipped - 3 read again + 2 waiting"), "{summary}");
        let uncounted = Finished { repeated: 0, ..finished };
        assert!(!Summary { finished: uncounted, ..summary }.balances());
    }
}
