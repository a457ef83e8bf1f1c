//! What a replay did, or would do: a line for each dead letter that needs somebody's eye as it is met, and the counts.

use std::fmt;
use std::io::Write;

use serde_json::{Value, json};

use super::judge::{Target, Verdict};
use crate::dead_letter::DeadLetter;
use crate::dead_letters::list;
use crate::stdout;
use kafka::topic_reader::RecordPosition;
use service::plural::counted;

/// So many are named in the JSON of the end; all of them are, as they are met.
const NAMED: usize = 100;

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All that was there when it began was looked at.
    Everything,
    /// `--limit`.
    Limit,
    /// Ctrl-C or SIGTERM.
    Signal,
    /// Something went wrong.
    Failure,
}

/// Counts, and what they are of.
#[derive(Debug)]
pub struct Report {
    /// Nothing is sent.
    pub dry_run: bool,
    /// For programs.
    pub json: bool,
    /// The group.
    pub group: String,
    /// Sent and acknowledged; in a dry run, what would be sent.
    pub replayed: u64,
    /// Why it ended.
    pub end: End,
    filtered: u64,
    other_topics: u64,
    no_origin: Named,
    exhausted: Named,
    refused: Named,
    full: Named,
}

#[derive(Debug, Default)]
struct Named {
    count: u64,
    first: Vec<Value>,
}

impl Named {
    fn add(&mut self, place: &RecordPosition, why: &str) {
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(json!({"at": place.to_string(), "reason": why}));
        }
        _ = writeln!(std::io::stderr(), "{place}: {why}");
    }
}

impl Report {
    /// Of a run that has done nothing yet.
    pub fn new(dry_run: bool, json: bool, group: &str) -> Self {
        Self {
            dry_run,
            json,
            group: group.to_owned(),
            replayed: 0,
            end: End::Everything,
            filtered: 0,
            other_topics: 0,
            no_origin: Named::default(),
            exhausted: Named::default(),
            refused: Named::default(),
            full: Named::default(),
        }
    }

    /// Of a dead letter that is not sent.
    pub fn leave(&mut self, letter: &DeadLetter, verdict: &Verdict) {
        let place = &letter.position;
        match verdict {
            Verdict::Send(_) => {}
            Verdict::Filtered => self.filtered += 1,
            Verdict::OtherTopic => self.other_topics += 1,
            Verdict::NoOrigin => self.no_origin.add(place, "left out, as it does not say where it came from"),
            Verdict::Exhausted => {
                let why = list::reason(letter);
                self.exhausted
                    .add(place, &format!("left out, replayed {}: {why}", counted(letter.replays, "time")));
            }
            Verdict::Refused(why) => self.refuse(place, why),
        }
    }

    /// Of one that Kafka refuses.
    pub fn refuse(&mut self, place: &RecordPosition, why: &str) {
        self.refused.add(place, &format!("refused: {why}"));
    }

    /// Of one that would be sent.
    pub fn would_send(&mut self, letter: &DeadLetter, target: &Target) -> std::io::Result<()> {
        self.replayed += 1;
        if self.json {
            return Ok(());
        }
        let partition =
            target.partition.map_or_else(|| "the partition of its key".into(), |id| id.to_string());
        stdout::write_line(format_args!("would send to {}/{partition}: {}", target.topic, list::text(letter)))
    }

    /// A partition of which nothing more can be kept.
    pub fn full(&mut self, place: &RecordPosition) {
        let why = format!(
            "the run ends here in this partition: group {} can note no more gaps; replay without a filter, or in another \
             --group",
            self.group
        );
        self.full.add(place, &why);
    }

    /// Whether everything that was meant is done.
    pub fn is_well(&self) -> bool {
        self.refused.count + self.full.count == 0 && self.end != End::Failure
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let end = match self.end {
            End::Everything => "everything",
            End::Limit => "limit",
            End::Signal => "signal",
            End::Failure => "failure",
        };
        json!({
            "dry_run": self.dry_run,
            "group": self.group,
            "ended_by": end,
            if self.dry_run { "would_replay" } else { "replayed" }: self.replayed,
            "left_out": {
                "filtered": self.filtered,
                "other_topics": self.other_topics,
                "no_origin": self.no_origin.count,
                "max_replays": self.exhausted.count,
            },
            "refused": self.refused.count,
            "named": {
                "no_origin": self.no_origin.first,
                "max_replays": self.exhausted.first,
                "refused": self.refused.first,
                "full": self.full.first,
            },
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let did = if self.dry_run { "would replay" } else { "replayed" };
        write!(f, "{did} {}", counted(self.replayed, "dead letter"))?;
        let left_out = [
            (self.filtered, "by the filters"),
            (self.other_topics, "of topics that KAFKA_TOPIC does not name"),
            (self.no_origin.count, "without an origin"),
            (self.exhausted.count, "replayed too often"),
        ];
        for (count, why) in left_out.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "\nleft out {why}: {count}")?;
        }
        if self.refused.count > 0 {
            write!(f, "\nrefused: {}", self.refused.count)?;
        }
        match self.end {
            End::Everything => Ok(()),
            End::Limit => write!(f, "\nended by --limit; the rest is there for the next run"),
            End::Signal => write!(f, "\nended by a signal; the rest is there for the next run"),
            End::Failure => write!(f, "\nended by a failure; the rest is there for the next run"),
        }
    }
}
