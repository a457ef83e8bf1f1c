//! The rules of a replay, which decide whether a dead letter is sent and to which partition, and the
//! report: a line for each dead letter that needs attention, and the counts at the end.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;

use kafka::topic_reader::RecordPosition;
use serde_json::{Value, json};
use service::plural::counted;

use crate::dead_letters::dead_letter::{DeadLetter, Filter};
use crate::output;

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
    /// The sources whose records may be older than the deletes that are still remembered, each with
    /// the timestamp in milliseconds from which on they are.
    pub remembered_since: BTreeMap<String, i64>,
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
    /// It is a fetched record, which never was on a topic.
    Pulled,
    /// It has no original position.
    NoOrigin,
    /// It has the maximum number of replays.
    MaxReplays,
    /// Its document may have been deleted by a delete that is forgotten.
    TooOld,
    /// It cannot be sent; the reason.
    Rejected(String),
}

impl Decision {
    /// Whether the dead letter stays for the next run. A dead letter that no later run with the same
    /// rules sends must not hold the group's offset.
    pub fn keeps_offset(&self) -> bool {
        matches!(self, Self::Filtered | Self::Rejected(_))
    }
}

impl ReplayRules {
    /// Decides about `dead_letter`.
    pub fn decide(&self, dead_letter: &DeadLetter) -> Decision {
        // Before the filters, which keep the offset: no run ever replays it.
        if dead_letter.is_pulled && dead_letter.origin.is_none() {
            return Decision::Pulled;
        }
        if !self.filter.matches(dead_letter) {
            return Decision::Filtered;
        }
        let Some(origin) = &dead_letter.origin else {
            return Decision::NoOrigin;
        };
        if !self.topics.contains(&origin.topic) {
            return Decision::OtherTopic;
        }
        if dead_letter.replays >= self.max_replays {
            return Decision::MaxReplays;
        }
        let since = dead_letter.source.as_ref().and_then(|source| self.remembered_since.get(source));
        if since.is_some_and(|since| dead_letter.timestamp_ms.is_none_or(|ms| ms < *since)) {
            return Decision::TooOld;
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

/// Maximum number of records of each kind in the JSON; stderr has all of them.
const MAX_NAMED: usize = 100;

/// The reason for the end of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EndReason {
    /// All dead letters that existed at the start were processed.
    #[default]
    Everything,
    Limit,
    /// Ctrl-C or SIGTERM.
    Signal,
    /// An error.
    Failure,
}

/// The counts of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// Whether nothing is sent.
    pub dry_run: bool,
    /// Whether the output is JSON.
    pub json: bool,
    pub group: String,
    /// Acknowledged records; in a dry run, records that would be sent.
    pub replayed: u64,
    pub end: EndReason,
    filtered: u64,
    other_topics: u64,
    pulled: u64,
    no_origin: NamedRecords,
    max_replays: NamedRecords,
    too_old: NamedRecords,
    rejected: NamedRecords,
}

#[derive(Debug, Default)]
struct NamedRecords {
    count: u64,
    first: Vec<Value>,
}

impl NamedRecords {
    fn add(&mut self, position: &RecordPosition, why: &str) {
        self.count += 1;
        if self.first.len() < MAX_NAMED {
            self.first.push(json!({"at": position.to_string(), "reason": why}));
        }
        _ = writeln!(std::io::stderr(), "{position}: {why}");
    }
}

impl Report {
    /// Creates an empty report.
    pub fn new(dry_run: bool, json: bool, group: String) -> Self {
        Self { dry_run, json, group, ..Self::default() }
    }

    /// Counts a dead letter that is not sent.
    pub fn leave_out(&mut self, dead_letter: &DeadLetter, decision: &Decision) {
        let position = &dead_letter.position;
        match decision {
            Decision::Send(_) => {}
            Decision::Filtered => self.filtered += 1,
            Decision::OtherTopic => self.other_topics += 1,
            Decision::Pulled => self.pulled += 1,
            Decision::NoOrigin => {
                self.no_origin.add(position, "left out, because it has no original position");
            }
            Decision::MaxReplays => {
                let why = dead_letter.reason_line();
                self.max_replays.add(
                    position,
                    &format!("left out, replayed {}: {why}", counted(dead_letter.replays, "time")),
                );
            }
            Decision::TooOld => {
                let why = "left out, because it is older than the deletes that its source remembers";
                self.too_old.add(position, why);
            }
            Decision::Rejected(why) => self.reject(position, why),
        }
    }

    /// Counts a record that Kafka rejects.
    pub fn reject(&mut self, position: &RecordPosition, why: &str) {
        self.rejected.add(position, &format!("rejected: {why}"));
    }

    /// Counts a record that a dry run would send, and prints it.
    pub fn would_send(&mut self, dead_letter: &DeadLetter, target: &Target) -> std::io::Result<()> {
        self.replayed += 1;
        if self.json {
            return Ok(());
        }
        let partition =
            target.partition.map_or_else(|| "the partition of its key".into(), |id| id.to_string());
        let line = format!("{}  {}", dead_letter.head_line(), dead_letter.reason_line());
        output::write_line(format_args!("would send to {}/{partition}: {line}", target.topic))
    }

    /// Whether all selected records were replayed.
    pub fn is_success(&self) -> bool {
        self.rejected.count == 0 && self.end != EndReason::Failure
    }

    /// The report as JSON.
    pub fn to_json(&self) -> Value {
        let end = match self.end {
            EndReason::Everything => "everything",
            EndReason::Limit => "limit",
            EndReason::Signal => "signal",
            EndReason::Failure => "failure",
        };
        let mut json = json!({
            "dry_run": self.dry_run,
            "group": self.group,
            "ended_by": end,
            if self.dry_run { "would_replay" } else { "replayed" }: self.replayed,
            "left_out": {
                "filtered": self.filtered,
                "other_topics": self.other_topics,
                "pulled": self.pulled,
                "no_origin": self.no_origin.count,
                "max_replays": self.max_replays.count,
            },
            "refused": self.rejected.count,
            "named": {
                "no_origin": self.no_origin.first,
                "max_replays": self.max_replays.first,
                "refused": self.rejected.first,
            },
        });
        // Only sources with deletes have such records.
        if self.too_old.count > 0 {
            json["left_out"]["too_old"] = self.too_old.count.into();
            json["named"]["too_old"] = json!(self.too_old.first);
        }
        json
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let did = if self.dry_run { "would replay" } else { "replayed" };
        write!(f, "{did} {}", counted(self.replayed, "dead letter"))?;
        let left_out = [
            (self.filtered, "by the filters"),
            (self.other_topics, "of topics that KAFKA_TOPIC does not name"),
            (self.pulled, "of fetched records, which never were on a topic"),
            (self.no_origin.count, "without an original position"),
            (self.max_replays.count, "with the maximum number of replays"),
            (self.too_old.count, "older than the deletes that their source remembers"),
        ];
        for (count, why) in left_out.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "\nleft out {why}: {count}")?;
        }
        if self.rejected.count > 0 {
            write!(f, "\nrejected: {}", self.rejected.count)?;
        }
        match self.end {
            EndReason::Everything => Ok(()),
            EndReason::Limit => write!(f, "\nended by --limit; the next run continues"),
            EndReason::Signal => write!(f, "\nended by a signal; the next run continues"),
            EndReason::Failure => write!(f, "\nended by a failure; the next run continues"),
        }
    }
}

#[cfg(test)]
mod tests {
    use kafka::topic_reader::RecordPosition;

    use super::*;
    use crate::dead_letters::options::Filters;

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
            is_pulled: false,
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
            filter: Filter::new(filters),
            max_replays: 3,
            topics: vec!["a".into(), "gone".into()],
            existing: [("a".to_owned(), 2), ("b".to_owned(), 1)].into(),
            remembered_since: [("orders".to_owned(), 1_000)].into(),
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
    fn a_record_older_than_the_deletes_that_its_source_remembers_is_left_out() {
        let of = |source: &str, timestamp_ms| {
            let dead_letter = dead_letter(Some(position("a", 1)), 0);
            decision(&DeadLetter { source: Some(source.into()), timestamp_ms, ..dead_letter }, None)
        };
        let sent = Decision::Send(Target { topic: "a".into(), partition: Some(1) });
        assert_eq!(of("orders", Some(999)), Decision::TooOld);
        assert_eq!(of("orders", None), Decision::TooOld);
        assert_eq!(of("orders", Some(1_000)), sent);
        assert_eq!(of("quakes", Some(1)), sent);
        assert!(!Decision::TooOld.keeps_offset(), "no later run sends it");
    }

    #[test]
    fn a_record_that_is_not_sent_has_a_specific_decision() {
        assert_eq!(decision(&dead_letter(Some(position("a", 1)), 0), Some("x")), Decision::Filtered);
        assert_eq!(decision(&dead_letter(None, 0), Some("InvalidJson")), Decision::NoOrigin);
        let pulled = DeadLetter { is_pulled: true, ..dead_letter(None, 0) };
        assert_eq!(decision(&pulled, None), Decision::Pulled);
        assert_eq!(decision(&pulled, Some("x")), Decision::Pulled);
        assert!(!Decision::Pulled.keeps_offset());
        assert_eq!(decision(&dead_letter(Some(position("b", 0)), 0), None), Decision::OtherTopic);
        assert_eq!(decision(&dead_letter(Some(position("a.dlq", 0)), 0), None), Decision::OtherTopic);
        assert_eq!(decision(&dead_letter(Some(position("a", 1)), 3), None), Decision::MaxReplays);
        let Decision::Rejected(why) = decision(&dead_letter(Some(position("gone", 0)), 0), None) else {
            panic!()
        };
        assert!(why.contains("topic gone does not exist"), "{why}");
    }
}
