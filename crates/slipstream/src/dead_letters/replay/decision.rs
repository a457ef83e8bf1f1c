//! Decides whether a dead letter is replayed, and to which partition. Pure.

use std::collections::BTreeMap;

use crate::dead_letters::dead_letter::DeadLetter;
use crate::dead_letters::filter::Filter;

/// The rules of a replay.
#[derive(Debug, Clone)]
pub struct ReplayRules {
    /// The filters of the command line.
    pub filter: Filter,
    /// Records with this number of replays are left out.
    pub max_replays: u32,
    /// The topics that the consumer reads.
    pub topics: Vec<String>,
    /// All topics, with their numbers of partitions.
    pub existing: BTreeMap<String, usize>,
}

/// The destination of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The record's original topic.
    pub topic: String,
    /// The record's original partition; `None` if it no longer exists, so that the key decides.
    pub partition: Option<i32>,
}

/// The decision about a dead letter.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is replayed.
    Send(Target),
    /// The filters exclude it.
    Filtered,
    /// The consumer does not read its topic.
    OtherTopic,
    /// It has no original position.
    NoOrigin,
    /// It has the maximum number of replays.
    MaxReplays,
    /// It cannot be sent; the reason.
    Rejected(String),
}

impl ReplayRules {
    /// Decides about `dead_letter`.
    pub fn decide(&self, dead_letter: &DeadLetter) -> Decision {
        if !self.filter.matches(dead_letter) {
            return Decision::Filtered;
        }
        let Some(origin) = &dead_letter.origin else { return Decision::NoOrigin };
        if !self.topics.contains(&origin.topic) {
            return Decision::OtherTopic;
        }
        if dead_letter.replays >= self.max_replays {
            return Decision::MaxReplays;
        }
        match self.existing.get(&origin.topic) {
            None => Decision::Rejected(format!("topic {} does not exist: create it", origin.topic)),
            Some(partitions) => {
                let exists = usize::try_from(origin.partition).is_ok_and(|partition| partition < *partitions);
                let partition = exists.then_some(origin.partition);
                Decision::Send(Target { topic: origin.topic.clone(), partition })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letters::options::Filters;
    use kafka::topic_reader::RecordPosition;

    fn position(topic: &str, partition: i32) -> RecordPosition {
        RecordPosition { topic: topic.into(), partition, offset: 0 }
    }

    fn dead_letter(origin: Option<RecordPosition>, replays: u32) -> DeadLetter {
        DeadLetter {
            position: position("a.dlq", 0),
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

    fn decision(dead_letter: &DeadLetter, reason: Option<&str>) -> Decision {
        let filters = Filters { reason: reason.map(str::to_owned), ..Filters::default() };
        let rules = ReplayRules {
            filter: Filter::new(filters, 0),
            max_replays: 3,
            topics: vec!["a".into(), "gone".into()],
            existing: [("a".to_owned(), 2), ("b".to_owned(), 1)].into(),
        };
        rules.decide(dead_letter)
    }

    #[test]
    fn a_record_goes_to_its_original_partition_if_that_exists() {
        let target = |partition| Decision::Send(Target { topic: "a".into(), partition });
        assert_eq!(decision(&dead_letter(Some(position("a", 1)), 2), None), target(Some(1)));
        assert_eq!(decision(&dead_letter(Some(position("a", 2)), 0), None), target(None));
        assert_eq!(decision(&dead_letter(Some(position("a", -1)), 0), None), target(None));
    }

    #[test]
    fn a_record_that_is_not_sent_has_a_specific_decision() {
        assert_eq!(decision(&dead_letter(Some(position("a", 1)), 0), Some("x")), Decision::Filtered);
        assert_eq!(decision(&dead_letter(None, 0), Some("InvalidJson")), Decision::NoOrigin);
        assert_eq!(decision(&dead_letter(Some(position("b", 0)), 0), None), Decision::OtherTopic);
        assert_eq!(decision(&dead_letter(Some(position("a.dlq", 0)), 0), None), Decision::OtherTopic);
        assert_eq!(decision(&dead_letter(Some(position("a", 1)), 3), None), Decision::MaxReplays);
        let Decision::Rejected(why) = decision(&dead_letter(Some(position("gone", 0)), 0), None) else {
            panic!()
        };
        assert!(why.contains("topic gone does not exist"), "{why}");
    }
}
