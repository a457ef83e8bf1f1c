//! The command line of `slipstream dead-letters`.

use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use events::Source;

use kafka::topic_reader::RecordPosition;
use loadtest::parse_duration;

/// Options of `dead-letters`.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// What to do with them.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do with dead letters.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// A line for each record: place, time, key, origin and reason. Changes nothing.
    ///
    /// The order is that of time. What `replay` sent is marked. A record of which there are several dead letters has one line.
    List(ListOptions),
    /// One dead letter whole: its headers, its key and its value. Changes nothing.
    ///
    /// Exit code 1: there is none at that place.
    Show(ShowOptions),
    /// Send them to the topic that they came from, once more.
    ///
    /// Key, value, timestamp and headers are those of the record byte for byte, without the headers that dead-lettering added and
    /// with one that counts: slipstream.replays. The partition is the one that the record was in. Whatever is
    /// stored already stays as it is: the newest event wins, so that a record that is replayed twice changes nothing.
    ///
    /// What was replayed is kept as the offsets of a consumer group of its own, each after Kafka acknowledged the record: the
    /// group's offset in a partition is the first dead letter that is not replayed, and a note beside it names those above
    /// it that are. So a run that was ended at any moment goes on where it was, and what filters leave out, what was replayed
    /// --max-replays times and what Kafka refuses is there for the next run. Where the gaps become too many for the
    /// note (about 1000 in a partition) the run ends there and says so; a run without a filter, or in another group, goes on.
    ///
    /// Keep the consumer running: a record that is older than its topic's retention.ms may be deleted again before it is read.
    ///
    /// A run ends with what was there when it began. There is one run in a group at a time; a second one is refused. Records
    /// of topics that KAFKA_TOPIC does not name are left alone.
    Replay(ReplayOptions),
    /// Set one stuck record aside: the consumer makes its dead letter and goes on with the next.
    ///
    /// Asks the consumer at CONSUMER_BASE_URL (each address, where the name has several) with ADMIN_TOKEN, which must be
    /// the consumer's own; other variables are not read. The consumer that has the partition sets the record aside if
    /// it works on it and it is unfinished: while its collection is blocked, or while its write is tried again, alone or
    /// in a batch. The reason goes into the consumer's log and into the dead letter, whose class is SetAside.
    /// `list`, `show` and `replay` treat it as any other.
    ///
    /// Exit code 0: it is set aside; 1: no consumer works on it, or the consumer refuses or does not answer; 2: a wrong
    /// command line or configuration.
    Add(AddOptions),
}

/// Which dead letters are meant.
#[derive(Debug, Clone, Default, Args)]
pub struct Filters {
    /// Only those with this text in their reason, as `list` shows it: class and message.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Only those whose value names this source, where that can be read.
    #[arg(long, value_name = "SOURCE", value_parser = |text: &str| Source::new(text))]
    pub source: Option<Source>,
    /// Only those of this time or later, by the record's own timestamp: 2h (ago), or 2025-10-26T20:16:03Z.
    #[arg(long, value_name = "TIME")]
    pub since: Option<Moment>,
    /// Only those before this time.
    #[arg(long, value_name = "TIME")]
    pub until: Option<Moment>,
}

/// Options of `list`.
#[derive(Debug, Clone, Args)]
pub struct ListOptions {
    /// Which.
    #[command(flatten)]
    pub filters: Filters,
    /// No more than this many.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// The consumer group that keeps what was replayed; the default is KAFKA_GROUP_ID with `.dead-letters` added.
    #[arg(long)]
    pub group: Option<String>,
    /// Print a JSON object a line instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Options of `show`.
#[derive(Debug, Clone, Args)]
pub struct ShowOptions {
    /// TOPIC/PARTITION@OFFSET, as `list` prints it; with one dead-letter topic PARTITION@OFFSET will do. A slash may stand for the @.
    pub place: PlaceName,
    /// Write the bytes of the value, and nothing else.
    #[arg(long, conflicts_with = "json")]
    pub raw: bool,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Options of `replay`.
#[derive(Debug, Clone, Args)]
pub struct ReplayOptions {
    /// Which.
    #[command(flatten)]
    pub filters: Filters,
    /// No more than this many.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Leave out those that were replayed so often.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub max_replays: u32,
    /// The consumer group that keeps what was replayed; the default is KAFKA_GROUP_ID with `.dead-letters` added.
    #[arg(long)]
    pub group: Option<String>,
    /// Say what would be sent, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON object at the end instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Options of `add`.
#[derive(Debug, Clone, Args)]
pub struct AddOptions {
    /// TOPIC/PARTITION@OFFSET of the record, as events.raw/3@17. A slash may stand for the @.
    pub place: PlaceName,
    /// Why, for those who read the log or the dead letter; 1 to 1024 bytes.
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

/// A time, or how long ago it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// So long before now.
    Ago(Duration),
    /// Milliseconds.
    At(i64),
}

impl Moment {
    /// In milliseconds.
    pub fn epoch_ms(self, now_ms: i64) -> i64 {
        match self {
            Self::Ago(ago) => now_ms.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX)),
            Self::At(ms) => ms,
        }
    }
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(time) = text.parse::<jiff::Timestamp>() {
            return Ok(Self::At(time.as_millisecond()));
        }
        let wrong =
            |_| "is neither a duration, as 20s, 5m or 24h, nor a time, as 2025-10-26T20:16:03Z".to_owned();
        parse_duration(text).map(Self::Ago).map_err(wrong)
    }
}

/// A place on a dead-letter topic, as an operator names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceName {
    topic: Option<String>,
    partition: i32,
    offset: i64,
}

impl PlaceName {
    /// The whole place.
    ///
    /// # Errors
    /// It has no topic.
    pub fn whole(self) -> Result<RecordPosition, String> {
        let topic = self.topic.ok_or("names no topic: TOPIC/PARTITION@OFFSET, as events.raw/3@17")?;
        Ok(RecordPosition { topic, partition: self.partition, offset: self.offset })
    }

    /// The whole place; `topics` are the dead-letter topics that there are.
    ///
    /// # Errors
    /// Which of them is meant is not clear.
    pub fn among(self, topics: &[String]) -> Result<RecordPosition, String> {
        let topic = match (self.topic, topics) {
            (Some(topic), _) => topic,
            (None, [topic]) => topic.clone(),
            (None, topics) => return Err(format!("name the topic as well: {}", topics.join(", "))),
        };
        Ok(RecordPosition { topic, partition: self.partition, offset: self.offset })
    }
}

impl FromStr for PlaceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "is not TOPIC/PARTITION@OFFSET or PARTITION@OFFSET, as events.raw.dlq/0@12".to_owned();
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
        let at = |text: &str| text.parse::<Moment>().map(|moment| moment.epoch_ms(10_000));
        assert_eq!((at("2s"), at("2")), (Ok(8_000), Ok(8_000)));
        assert_eq!(at("1970-01-01T00:00:03.5Z"), Ok(3_500));
        assert_eq!(at("1970-01-01T01:00:03+01:00"), Ok(3_000));
        for wrong in ["", "-2", "yesterday", "2025-10-26"] {
            assert!(at(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_place_is_named_with_its_topic_or_without() {
        let topics = ["a.dlq".to_owned()];
        let place = |text: &str| text.parse::<PlaceName>().unwrap().among(&topics).unwrap().to_string();
        assert_eq!(place("b/1@7"), "b/1@7");
        assert_eq!(place("b/1/7"), "b/1@7");
        assert_eq!((place("1/7"), place("1@7")), ("a.dlq/1@7".into(), "a.dlq/1@7".into()));
        for wrong in ["7", "a/b/c", "a/-1@7", "1@-7", "a b/1@7", "/1@7", "a/1/7/9", "99999999999@1"] {
            assert!(wrong.parse::<PlaceName>().is_err(), "{wrong}");
        }
        let two = ["a.dlq".to_owned(), "b.dlq".to_owned()];
        assert!("1@7".parse::<PlaceName>().unwrap().among(&two).unwrap_err().contains("a.dlq, b.dlq"));
    }
}
