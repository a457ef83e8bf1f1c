//! What is to be done with a dead letter. Pure.

use std::collections::BTreeMap;

use crate::dead_letter::DeadLetter;
use crate::dead_letters::filter::Filter;

/// What a replay goes by.
#[derive(Debug, Clone)]
pub struct Judge {
    /// Which are meant.
    pub filter: Filter,
    /// Those that were replayed so often are left out.
    pub max_replays: u32,
    /// The topics that the consumer reads.
    pub topics: Vec<String>,
    /// Every topic that there is, with its number of partitions.
    pub existing: BTreeMap<String, usize>,
}

/// Where a record goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The topic that it came from.
    pub topic: String,
    /// The partition that it was in; the one of its key where that is no longer there.
    pub partition: Option<i32>,
}

/// What is to be done with a dead letter.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it.
    Send(Target),
    /// The filters leave it out.
    Filtered,
    /// It is of a topic that the consumer does not read.
    OtherTopic,
    /// It does not say where it came from.
    NoOrigin,
    /// It was replayed too often.
    Exhausted,
    /// It cannot be sent; why.
    Refused(String),
}

impl Judge {
    /// What is to be done with `letter`.
    pub fn judge(&self, letter: &DeadLetter) -> Verdict {
        if !self.filter.takes(letter) {
            return Verdict::Filtered;
        }
        let Some(origin) = &letter.origin else { return Verdict::NoOrigin };
        if !self.topics.contains(&origin.topic) {
            return Verdict::OtherTopic;
        }
        if letter.replays >= self.max_replays {
            return Verdict::Exhausted;
        }
        match self.existing.get(&origin.topic) {
            None => Verdict::Refused(format!("topic {} does not exist: create it", origin.topic)),
            Some(partitions) => {
                let there = usize::try_from(origin.partition).is_ok_and(|partition| partition < *partitions);
                let partition = there.then_some(origin.partition);
                Verdict::Send(Target { topic: origin.topic.clone(), partition })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letters::options::Filters;
    use kafka::topic_reader::RecordPosition;

    fn place(topic: &str, partition: i32) -> RecordPosition {
        RecordPosition { topic: topic.into(), partition, offset: 0 }
    }

    fn letter(origin: Option<RecordPosition>, replays: u32) -> DeadLetter {
        DeadLetter {
            position: place("a.dlq", 0),
            timestamp_ms: None,
            key: None,
            value_bytes: None,
            source: None,
            origin,
            stage: None,
            class: Some("InvalidJson".into()),
            reason: None,
            replays,
        }
    }

    fn judged(letter: &DeadLetter, reason: Option<&str>) -> Verdict {
        let filters = Filters { reason: reason.map(str::to_owned), ..Filters::default() };
        let judge = Judge {
            filter: Filter::new(filters, 0),
            max_replays: 3,
            topics: vec!["a".into(), "gone".into()],
            existing: [("a".to_owned(), 2), ("b".to_owned(), 1)].into(),
        };
        judge.judge(letter)
    }

    #[test]
    fn a_record_goes_to_the_partition_that_it_was_in_while_that_is_there() {
        let target = |partition| Verdict::Send(Target { topic: "a".into(), partition });
        assert_eq!(judged(&letter(Some(place("a", 1)), 2), None), target(Some(1)));
        assert_eq!(judged(&letter(Some(place("a", 2)), 0), None), target(None));
        assert_eq!(judged(&letter(Some(place("a", -1)), 0), None), target(None));
    }

    #[test]
    fn what_is_not_sent_is_told_apart() {
        assert_eq!(judged(&letter(Some(place("a", 1)), 0), Some("x")), Verdict::Filtered);
        assert_eq!(judged(&letter(None, 0), Some("InvalidJson")), Verdict::NoOrigin);
        assert_eq!(judged(&letter(Some(place("b", 0)), 0), None), Verdict::OtherTopic);
        assert_eq!(judged(&letter(Some(place("a.dlq", 0)), 0), None), Verdict::OtherTopic);
        assert_eq!(judged(&letter(Some(place("a", 1)), 3), None), Verdict::Exhausted);
        let Verdict::Refused(why) = judged(&letter(Some(place("gone", 0)), 0), None) else { panic!() };
        assert!(why.contains("topic gone does not exist"), "{why}");
    }
}
