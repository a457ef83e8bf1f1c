//! The account of a run: the outcomes must add up to the records of the topic.

use std::fmt;

use super::topic_count::TopicCount;
use service::plural::{counted, counted_with};

/// The account; each number is counted separately.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Records of the topic, from the consumer's position at the start to the end.
    pub topic: TopicCount,
    /// Those of [`TopicCount::records`] that were on the topic before the run.
    pub left_over: u64,
    /// Events with a 202 from the producer.
    pub accepted: u64,
    /// Outcomes of the consumer.
    pub finished: Finished,
}

/// The consumer's outcomes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Finished {
    /// New documents.
    pub inserted: u64,
    /// Documents that changed.
    pub updated: u64,
    /// Documents that did not change.
    pub unchanged: u64,
    /// Events that are older than the stored document.
    pub superseded: u64,
    /// Dead letters.
    pub dead_lettered: u64,
    /// Records of other sources, and null values.
    pub skipped: u64,
    /// Outcomes of records that were finished before: their partition was lost before the commit,
    /// so that they were read again.
    pub repeated: u64,
}

impl Finished {
    /// Finished records: a record with several outcomes counts once.
    pub fn records(&self) -> u64 {
        self.outcomes().saturating_sub(self.repeated)
    }

    fn outcomes(&self) -> u64 {
        self.inserted + self.updated + self.unchanged + self.superseded + self.dead_lettered + self.skipped
    }
}

impl Summary {
    /// Whether every record has an outcome or waits, and every accepted event is a record.
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
            let were = counted_with(self.left_over, "record", ["was", "were"]);
            write!(f, "\nof these, {were} left by an earlier run")?;
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
        Summary { topic: TopicCount { records, waiting }, left_over: 0, accepted, finished }
    }

    #[test]
    fn a_missing_or_surplus_outcome_or_a_lost_event_unbalances_the_account() {
        assert!(summary(10, 2, 8, 10).balances());
        assert!(summary(10, 2, 8, 9).balances(), "other producers may write to the topic");
        assert!(!summary(10, 2, 7, 10).balances());
        assert!(!summary(10, 2, 9, 10).balances());
        assert!(!summary(10, 2, 8, 11).balances());
    }

    #[test]
    fn records_of_an_earlier_run_do_not_count_as_accepted() {
        let summary = Summary { left_over: 3, ..summary(10, 0, 10, 8) };
        assert!(!summary.balances());
        assert!(summary.to_string().contains("DOES NOT BALANCE"));
    }

    #[test]
    fn a_record_with_several_outcomes_counts_once() {
        let finished = Finished { inserted: 8, unchanged: 3, repeated: 3, ..Finished::default() };
        let summary = Summary { finished, ..summary(10, 2, 0, 10) };
        assert!(summary.balances(), "{summary}");
        assert!(summary.to_string().contains("+ 0 skipped - 3 read again + 2 waiting"), "{summary}");
        let uncounted = Finished { repeated: 0, ..finished };
        assert!(!Summary { finished: uncounted, ..summary }.balances());
    }
}
