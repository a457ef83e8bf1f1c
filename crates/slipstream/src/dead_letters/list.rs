//! `slipstream dead-letters list`: one line for each dead-lettered record, ordered by time.
//! `slipstream dead-letters show`: one dead letter with headers and value.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::process::ExitCode;

use kafka::BoxError;
use kafka::cluster::Cluster;
use kafka::headers::RawHeaders;
use kafka::topic_reader::{CONTINUE, RecordPosition, TopicReader};
use rdkafka::Message;
use rdkafka::message::OwnedMessage;
use serde_json::{Map, Value, json};
use service::plural::counted;

use super::dead_letter::{DeadLetter, Deployment, Filter, bytes_block, bytes_line, insert_bytes};
use super::options::{ListOptions, ShowOptions};
use super::replay::PartitionProgress;
use crate::output::{self, rfc3339};

/// Lists the selected dead letters. The offsets of `group` determine which are replayed.
pub async fn list(options: ListOptions, group: String, deployment: Deployment) -> Result<ExitCode, BoxError> {
    let filter = Filter::new(options.filters);
    let config = deployment.config;
    let reader = TopicReader::new(&config.kafka_broker, &config.properties, "slipstream-dead-letters");
    let cluster = Cluster::new(&config.kafka_broker, &config.properties, "slipstream-check", &group)?;
    let mut passed = BTreeMap::new();
    for (topic, partitions) in &deployment.dead_letter_topics {
        for position in cluster.positions(topic, partitions.clone()).await? {
            let next = PartitionProgress::new(&position).next();
            passed.insert((topic.clone(), position.partition), next);
        }
    }
    let topics: Vec<String> = deployment.dead_letter_topics.into_keys().collect();
    let read = tokio::task::spawn_blocking(move || {
        let mut records = DeadLetteredRecords::default();
        for topic in topics {
            reader.read(&topic, filter.since_ms, |message| {
                let dead_letter = DeadLetter::of(message);
                if filter.matches(&dead_letter) {
                    let RecordPosition { partition, offset, .. } = dead_letter.position;
                    let is_passed =
                        passed.get(&(topic.clone(), partition)).is_some_and(|next| offset < *next);
                    // Others were left out, not sent.
                    let origin = dead_letter.origin.as_ref();
                    let is_replayed = is_passed && origin.is_some_and(|at| config.topics.contains(&at.topic));
                    records.add(dead_letter, is_replayed);
                }
                CONTINUE
            })?;
        }
        Ok::<_, BoxError>(records)
    });
    let entries = read.await??.sorted();
    let limit = options.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    for entry in entries.iter().take(limit) {
        if options.json {
            output::write_line(Value::Object(entry.json()))?;
        } else {
            output::write_line(entry.line())?;
        }
    }
    if !options.json {
        let count = counted(entries.len().min(limit), "dead letter");
        let end = if entries.len() > limit { "; the limit ends the list" } else { "" };
        output::write_line(format_args!("{count}{end}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A dead-lettered record. It has several dead letters if the consumer ended before a commit.
#[derive(Debug)]
struct Entry {
    /// Its first dead letter.
    dead_letter: DeadLetter,
    /// The positions of the others.
    copies: Vec<RecordPosition>,
    /// Whether one of them was replayed.
    is_replayed: bool,
}

/// The dead-lettered records, by original position and key. After a topic was recreated, different
/// records have the same position.
#[derive(Debug, Default)]
struct DeadLetteredRecords {
    entries: Vec<Entry>,
    index: HashMap<RecordKey, usize>,
}

/// The original position of a record, and its key.
type RecordKey = (RecordPosition, Option<Box<[u8]>>);

impl DeadLetteredRecords {
    fn add(&mut self, dead_letter: DeadLetter, is_replayed: bool) {
        let record = dead_letter.origin.clone().map(|origin| (origin, dead_letter.key.clone()));
        let next = self.entries.len();
        let at = record.map_or(next, |record| *self.index.entry(record).or_insert(next));
        let Some(entry) = self.entries.get_mut(at) else {
            return self.entries.push(Entry { dead_letter, copies: Vec::new(), is_replayed });
        };
        entry.is_replayed |= is_replayed;
        let is_earlier = sort_key(&dead_letter) < sort_key(&entry.dead_letter);
        let other = match is_earlier {
            true => std::mem::replace(&mut entry.dead_letter, dead_letter),
            false => dead_letter,
        };
        entry.copies.push(other.position);
    }

    fn sorted(mut self) -> Vec<Entry> {
        self.entries.sort_by(|one, other| sort_key(&one.dead_letter).cmp(&sort_key(&other.dead_letter)));
        self.entries
    }
}

/// Orders by time; dead letters without a time come first.
fn sort_key(dead_letter: &DeadLetter) -> (Option<i64>, &str, i32, i64) {
    let RecordPosition { topic, partition, offset } = &dead_letter.position;
    (dead_letter.timestamp_ms, topic, *partition, *offset)
}

impl Entry {
    fn line(&self) -> String {
        let copies = match self.copies.len() {
            0 => String::new(),
            more => format!("  ({} of this record)", counted(more + 1, "dead letter")),
        };
        let replayed = if self.is_replayed { "  replayed" } else { "" };
        format!("{}{replayed}{copies}  {}", self.dead_letter.head_line(), self.dead_letter.reason_line())
    }

    fn json(&self) -> Map<String, Value> {
        let mut object = self.dead_letter.json();
        object.insert("replayed".into(), self.is_replayed.into());
        object.insert("copies".into(), self.copies.iter().map(|at| json!(at.to_string())).collect());
        object
    }
}

/// Prints the record at the position in the options.
pub async fn show(options: ShowOptions, deployment: Deployment) -> Result<ExitCode, BoxError> {
    let topics: Vec<String> = deployment.dead_letter_topics.keys().cloned().collect();
    let position = options.place.with_topic_of(&topics)?;
    let partitions = deployment.topics.get(&position.topic).copied().unwrap_or_default();
    let config = &deployment.config;
    let reader = TopicReader::new(&config.kafka_broker, &config.properties, "slipstream-dead-letters");
    let wanted = position.clone();
    let exists = usize::try_from(position.partition).is_ok_and(|partition| partition < partitions);
    let read = tokio::task::spawn_blocking(move || if exists { reader.record(&wanted) } else { Ok(None) });
    let message = read.await??.ok_or_else(|| format!("there is no record at {position}"))?;
    if options.raw {
        let value = message.payload().ok_or_else(|| format!("the value of {position} is null"))?;
        output::write_bytes(value)?;
    } else if options.json {
        output::write_line(json(&message))?;
    } else {
        output::write_line(text(&message))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn json(message: &OwnedMessage) -> Value {
    let headers = message.headers().into_iter().flat_map(RawHeaders::raw_headers).map(|header| {
        let mut object = Map::new();
        insert_bytes(&mut object, "name", Some(header.name));
        insert_bytes(&mut object, "value", header.value);
        Value::Object(object)
    });
    let headers = headers.collect();
    let mut object = DeadLetter::of(message).json();
    object.insert("headers".to_owned(), headers);
    insert_bytes(&mut object, "value", message.payload());
    Value::Object(object)
}

fn text(message: &OwnedMessage) -> String {
    let dead_letter = DeadLetter::of(message);
    let origin = dead_letter.origin_text().unwrap_or_else(|| "unknown".to_owned());
    let time = dead_letter.timestamp_ms.map_or_else(|| "none".to_owned(), rfc3339);
    let key = dead_letter.key.as_deref().map_or_else(|| "none".to_owned(), bytes_line);
    let mut text = format!(
        "{}\norigin   {}\ntime     {time}\nreason   {}\nreplays  {}\nkey      {key}\nheaders",
        dead_letter.position,
        origin,
        dead_letter.reason_line(),
        dead_letter.replays
    );
    for header in message.headers().into_iter().flat_map(RawHeaders::raw_headers) {
        let value = header.value.map_or_else(|| "null".to_owned(), bytes_line);
        _ = write!(text, "\n  {}: {value}", bytes_line(header.name));
    }
    match message.payload() {
        None => text.push_str("\nvalue    null"),
        Some(value) => {
            _ = write!(text, "\nvalue    {}\n{}", counted(value.len(), "byte"), bytes_block(value));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dead_letter(offset: i64, timestamp_ms: Option<i64>, origin: Option<i64>) -> DeadLetter {
        let position = |topic: &str, offset| RecordPosition { topic: topic.into(), partition: 0, offset };
        DeadLetter {
            position: position("t.dlq", offset),
            timestamp_ms,
            key: Some(Box::from(&b"k"[..])),
            value_bytes: None,
            source: None,
            is_pulled: false,
            origin: origin.map(|offset| position("t", offset)),
            stage: None,
            class: None,
            reason: None,
            replays: 0,
        }
    }

    #[test]
    fn records_are_listed_once_in_the_order_of_time() {
        let mut records = DeadLetteredRecords::default();
        records.add(dead_letter(0, Some(9), Some(4)), false);
        records.add(dead_letter(1, Some(5), Some(3)), false);
        records.add(dead_letter(2, None, None), false);
        records.add(dead_letter(3, None, None), false);
        records.add(dead_letter(4, Some(9), Some(4)), true);
        let other = DeadLetter { key: None, ..dead_letter(5, Some(7), Some(4)) };
        records.add(other, false);
        let entries = records.sorted();
        let found: Vec<_> = entries
            .iter()
            .map(|entry| (entry.dead_letter.position.offset, entry.copies.len(), entry.is_replayed))
            .collect();
        let wanted = [(2, 0, false), (3, 0, false), (1, 0, false), (5, 0, false), (0, 1, true)];
        assert_eq!(found, wanted);
        assert!(entries[4].line().contains("of t/0@4  replayed  (2 dead letters of this record)  "));
        assert_eq!(entries[4].json()["copies"], json!(["t.dlq/0@4"]));
    }
}
