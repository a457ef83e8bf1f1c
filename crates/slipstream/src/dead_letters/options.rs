//! The options of `slipstream dead-letters`.

use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use events::Source;

use kafka::topic_reader::RecordPosition;
use loadtest::parse_duration;

/// Options of `dead-letters`.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Print a line for each record: position, time, key, origin and reason. Changes nothing.
    ///
    /// The lines are ordered by time. Replayed records, which are those before the group's offset, are
    /// marked. A record with several dead letters has one line.
    List(ListOptions),
    /// Print one dead letter with its headers, key and value. Changes nothing.
    ///
    /// Exit code 1: there is no record at that position.
    Show(ShowOptions),
    /// Send records to the topic that they came from, once more.
    ///
    /// Key, value, timestamp and headers are those of the record byte for byte, without the headers
    /// that dead-lettering added. The header slipstream.replays counts the replays. The record goes
    /// to its original partition. The newest event wins: a record that is replayed twice changes
    /// nothing.
    ///
    /// The offsets are committed in a separate consumer group. The group's offset in a partition is
    /// the first dead letter that Kafka did not acknowledge, that Kafka rejects, or that the filters
    /// exclude. The next run starts there and sends later ones once more. A run without a filter
    /// therefore continues where an interrupted one ended; with a filter, each run starts again at
    /// the first dead letter that the filters exclude. Dead letters that were replayed --max-replays
    /// times are left out and passed; another group reads them again.
    ///
    /// Keep the consumer running: Kafka may delete a record older than its topic's retention.ms
    /// before it is read.
    ///
    /// A run ends at the end of the dead-letter topic at its start. A group allows one run at a
    /// time; a second one is an error. Records of topics that KAFKA_TOPIC does not name are not
    /// replayed.
    Replay(ReplayOptions),
    /// Set one stuck record aside: the consumer makes its dead letter and continues with the next
    /// record.
    ///
    /// Sends a request to the consumer at CONSUMER_BASE_URL (to each address of the name) with
    /// ADMIN_TOKEN, which must be the consumer's own; other variables are not read. The consumer
    /// that has the partition sets the record aside if it processes the record and the record is
    /// unfinished: its collection is blocked, or its write is retried, alone or in a batch. The
    /// reason is in the consumer's log and in the dead letter, whose class is SetAside. `list`,
    /// `show` and `replay` treat it as any other dead letter.
    ///
    /// Exit code 0: the record is set aside; 1: no consumer processes it, or the consumer rejects
    /// the request or does not answer; 2: a wrong command line or configuration.
    Add(AddOptions),
}

/// Filters of dead letters.
#[derive(Debug, Clone, Default, Args)]
pub struct Filters {
    /// Only dead letters with this text in their reason, as `list` shows it: class and message.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Only dead letters with this source in their value, if the value can be decoded that far.
    #[arg(long, value_name = "SOURCE", value_parser = |text: &str| Source::new(text))]
    pub source: Option<Source>,
    /// Only records with this timestamp or a later one: 2h (ago), or 2025-10-26T20:16:03Z.
    #[arg(long, value_name = "TIME")]
    pub since: Option<TimeArgument>,
    /// Only records with an earlier timestamp.
    #[arg(long, value_name = "TIME")]
    pub until: Option<TimeArgument>,
}

/// Options of `list`.
#[derive(Debug, Clone, Args)]
pub struct ListOptions {
    /// Filters.
    #[command(flatten)]
    pub filters: Filters,
    /// Maximum number of records.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// The consumer group with the replayed offsets; the default is KAFKA_GROUP_ID with
    /// `.dead-letters` added.
    #[arg(long)]
    pub group: Option<String>,
    /// Print one JSON object per line instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Options of `show`.
#[derive(Debug, Clone, Args)]
pub struct ShowOptions {
    /// TOPIC/PARTITION@OFFSET, as `list` prints it. With one dead-letter topic, PARTITION@OFFSET is
    /// enough. A slash may replace the @.
    pub place: PositionArgument,
    /// Write only the bytes of the value.
    #[arg(long, conflicts_with = "json")]
    pub raw: bool,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Options of `replay`.
#[derive(Debug, Clone, Args)]
pub struct ReplayOptions {
    /// Filters.
    #[command(flatten)]
    pub filters: Filters,
    /// Maximum number of records.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Leave out records with this number of replays.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub max_replays: u32,
    /// The consumer group with the replayed offsets; the default is KAFKA_GROUP_ID with
    /// `.dead-letters` added.
    #[arg(long)]
    pub group: Option<String>,
    /// Print what would be sent, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON object at the end instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Options of `add`.
#[derive(Debug, Clone, Args)]
pub struct AddOptions {
    /// TOPIC/PARTITION@OFFSET of the record, such as events.raw/3@17. A slash may replace the @.
    pub place: PositionArgument,
    /// The reason, for the log and the dead letter; 1 to 1024 bytes.
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub reason: String,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

fn reason(text: &str) -> Result<String, String> {
    match !text.trim().is_empty() && text.len() <= 1024 {
        true => Ok(text.to_owned()),
        false => Err("a reason has 1 to 1024 bytes".into()),
    }
}

/// A time, absolute or relative to now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeArgument {
    /// This long before now.
    Ago(Duration),
    /// Epoch milliseconds.
    At(i64),
}

impl TimeArgument {
    /// The time in epoch milliseconds.
    pub fn epoch_ms(self, now_ms: i64) -> i64 {
        match self {
            Self::Ago(ago) => now_ms.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX)),
            Self::At(ms) => ms,
        }
    }
}

impl FromStr for TimeArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(time) = text.parse::<jiff::Timestamp>() {
            return Ok(Self::At(time.as_millisecond()));
        }
        let wrong = |_| {
            "is neither a duration such as 20s, 5m or 24h, nor a time such as 2025-10-26T20:16:03Z".to_owned()
        };
        parse_duration(text).map(Self::Ago).map_err(wrong)
    }
}

/// The position of a record on the command line; the topic is optional.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PositionArgument {
    topic: Option<String>,
    partition: i32,
    offset: i64,
}

impl PositionArgument {
    /// The complete position.
    pub fn with_topic(self) -> Result<RecordPosition, String> {
        let topic =
            self.topic.ok_or("has no topic; write TOPIC/PARTITION@OFFSET, such as events.raw/3@17")?;
        Ok(RecordPosition { topic, partition: self.partition, offset: self.offset })
    }

    /// The complete position; `topics` are the dead-letter topics.
    pub fn with_topic_of(self, topics: &[String]) -> Result<RecordPosition, String> {
        let topic = match (self.topic, topics) {
            (Some(topic), _) => topic,
            (None, [topic]) => topic.clone(),
            (None, topics) => return Err(format!("add the topic, one of {}", topics.join(", "))),
        };
        Ok(RecordPosition { topic, partition: self.partition, offset: self.offset })
    }
}

impl FromStr for PositionArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || "is not TOPIC/PARTITION@OFFSET or PARTITION@OFFSET, such as events.raw.dlq/0@12".to_owned();
        let parts: Vec<&str> = text.split(['/', '@']).collect();
        let (topic, partition, offset) = match *parts.as_slice() {
            [topic, partition, offset] => (Some(service::parse::topic(topic)?), partition, offset),
            [partition, offset] => (None, partition, offset),
            _ => return Err(wrong()),
        };
        let (partition, offset) = (partition.parse().ok(), offset.parse().ok());
        let (Some(partition @ 0..), Some(offset @ 0..)) = (partition, offset) else { return Err(wrong()) };
        Ok(Self { topic, partition, offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_duration_before_now_or_a_time() {
        let at = |text: &str| text.parse::<TimeArgument>().map(|time| time.epoch_ms(10_000));
        assert_eq!((at("2s"), at("2")), (Ok(8_000), Ok(8_000)));
        assert_eq!(at("1970-01-01T00:00:03.5Z"), Ok(3_500));
        assert_eq!(at("1970-01-01T01:00:03+01:00"), Ok(3_000));
        for wrong in ["", "-2", "yesterday", "2025-10-26"] {
            assert!(at(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_position_is_parsed_with_or_without_its_topic() {
        let topics = ["a.dlq".to_owned()];
        let place = |text: &str| {
            text.parse::<PositionArgument>().unwrap().with_topic_of(&topics).unwrap().to_string()
        };
        assert_eq!(place("b/1@7"), "b/1@7");
        assert_eq!(place("b/1/7"), "b/1@7");
        assert_eq!((place("1/7"), place("1@7")), ("a.dlq/1@7".into(), "a.dlq/1@7".into()));
        for wrong in ["7", "a/b/c", "a/-1@7", "1@-7", "a b/1@7", "/1@7", "a/1/7/9", "99999999999@1"] {
            assert!(wrong.parse::<PositionArgument>().is_err(), "{wrong}");
        }
        let two = ["a.dlq".to_owned(), "b.dlq".to_owned()];
        assert!(
            "1@7"
                .parse::<PositionArgument>()
                .unwrap()
                .with_topic_of(&two)
                .unwrap_err()
                .contains("a.dlq, b.dlq")
        );
    }
}
