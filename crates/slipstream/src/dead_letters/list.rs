//! `slipstream dead-letters list`: a line for each record that could not be stored, in the order of time.

use std::collections::{BTreeMap, HashMap};
use std::process::ExitCode;

use serde_json::{Map, Value, json};

use super::filter::Filter;
use super::options::ListOptions;
use super::replay::Partition;
use super::text::{escaped, line, member};
use super::{Deployment, now_ms};
use crate::dead_letter::{DeadLetter, rfc3339};
use crate::stdout;
use kafka::BoxError;
use kafka::cluster::Cluster;
use kafka::topic_reader::{CONTINUE, RecordPosition, TopicReader};
use service::plural::counted;

/// Lists the dead letters that `options` mean; `group` keeps which are replayed.
pub async fn list(options: ListOptions, group: String, deployment: Deployment) -> Result<ExitCode, BoxError> {
    let filter = Filter::new(options.filters, now_ms()?);
    let scan = TopicReader::new(
        &deployment.config.kafka_broker,
        &deployment.config.properties,
        "slipstream-dead-letters",
    );
    let config = deployment.config;
    let cluster = Cluster::new(&config.kafka_broker, &config.properties, "slipstream-check", &group)?;
    let mut replayed = BTreeMap::new();
    for (topic, ids) in &deployment.letters {
        for position in cluster.positions(topic, ids.clone()).await? {
            replayed.insert((topic.clone(), position.partition), Partition::new(&position));
        }
    }
    let topics: Vec<String> = deployment.letters.into_keys().collect();
    let read = tokio::task::spawn_blocking(move || {
        let mut listed = Listed::default();
        for topic in topics {
            scan.read(&topic, filter.since_ms, |message| {
                let letter = DeadLetter::of(message);
                if filter.takes(&letter) {
                    let at = replayed.get(&(topic.clone(), letter.position.partition));
                    let is_replayed =
                        at.is_some_and(|partition| partition.is_replayed(letter.position.offset));
                    listed.add(letter, is_replayed);
                }
                CONTINUE
            })?;
        }
        Ok::<_, BoxError>(listed)
    });
    let entries = read.await??.in_order();
    let limit = options.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    for entry in entries.iter().take(limit) {
        if options.json {
            stdout::write_line(Value::Object(entry.object()))?;
        } else {
            stdout::write_line(entry.text())?;
        }
    }
    if !options.json {
        let count = counted(entries.len().min(limit), "dead letter");
        let end = if entries.len() > limit { "; the limit ends the list" } else { "" };
        stdout::write_line(format_args!("{count}{end}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A record that could not be stored. The consumer dead-letters it again if it ends before it commits.
#[derive(Debug)]
struct Entry {
    /// Its first dead letter.
    letter: DeadLetter,
    /// Where the others are.
    copies: Vec<RecordPosition>,
    /// Whether one of them was replayed.
    replayed: bool,
}

/// Records by their places, as far as those are known; a topic that was made anew has others in the same places.
#[derive(Debug, Default)]
struct Listed {
    entries: Vec<Entry>,
    known: HashMap<Record, usize>,
}

/// The place of a record, and its key.
type Record = (RecordPosition, Option<Box<[u8]>>);

impl Listed {
    fn add(&mut self, letter: DeadLetter, replayed: bool) {
        let record = letter.origin.clone().map(|origin| (origin, letter.key.clone()));
        let next = self.entries.len();
        let at = record.map_or(next, |record| *self.known.entry(record).or_insert(next));
        let Some(entry) = self.entries.get_mut(at) else {
            return self.entries.push(Entry { letter, copies: Vec::new(), replayed });
        };
        entry.replayed |= replayed;
        let is_earlier = order(&letter) < order(&entry.letter);
        let other = if is_earlier { std::mem::replace(&mut entry.letter, letter) } else { letter };
        entry.copies.push(other.position);
    }

    fn in_order(mut self) -> Vec<Entry> {
        self.entries.sort_by(|one, other| order(&one.letter).cmp(&order(&other.letter)));
        self.entries
    }
}

/// By time; what has none comes first.
fn order(letter: &DeadLetter) -> (Option<i64>, &str, i32, i64) {
    let RecordPosition { topic, partition, offset } = &letter.position;
    (letter.timestamp_ms, topic, *partition, *offset)
}

impl Entry {
    fn text(&self) -> String {
        let copies = match self.copies.len() {
            0 => String::new(),
            more => format!("  ({} of this record)", counted(more + 1, "dead letter")),
        };
        let replayed = if self.replayed { "  replayed" } else { "" };
        format!("{}{replayed}{copies}  {}", head(&self.letter), reason(&self.letter))
    }

    fn object(&self) -> Map<String, Value> {
        let mut object = object(&self.letter);
        object.insert("replayed".into(), self.replayed.into());
        object.insert("copies".into(), self.copies.iter().map(|at| json!(at.to_string())).collect());
        object
    }
}

/// A dead letter in a line.
pub fn text(letter: &DeadLetter) -> String {
    format!("{}  {}", head(letter), reason(letter))
}

fn head(letter: &DeadLetter) -> String {
    let at = letter.timestamp_ms.map_or_else(|| "no time".to_owned(), rfc3339);
    let key = letter.key.as_deref().map_or_else(|| "no key".to_owned(), |key| format!("key {}", line(key)));
    let origin = letter
        .origin
        .as_ref()
        .map_or_else(|| "an unknown place".to_owned(), |origin| escaped(&origin.to_string()));
    let replays = match letter.replays {
        0 => String::new(),
        replays => format!("  replays {replays}"),
    };
    format!("{}  {at}  {key}  of {origin}{replays}", letter.position)
}

/// Why a record could not be stored, in a line.
pub fn reason(letter: &DeadLetter) -> String {
    escaped(&letter.reason_text())
}

/// A dead letter for programs, without headers and value.
pub fn object(letter: &DeadLetter) -> Map<String, Value> {
    let place = |place: &RecordPosition| json!({"topic": place.topic, "partition": place.partition, "offset": place.offset});
    let mut object = Map::new();
    let members = [
        ("topic", json!(letter.position.topic)),
        ("partition", json!(letter.position.partition)),
        ("offset", json!(letter.position.offset)),
        ("timestamp", json!(letter.timestamp_ms)),
        ("time", json!(letter.timestamp_ms.map(rfc3339))),
        ("origin", json!(letter.origin.as_ref().map(place))),
        ("stage", json!(letter.stage)),
        ("class", json!(letter.class)),
        ("reason", json!(letter.reason)),
        ("source", json!(letter.source)),
        ("replays", json!(letter.replays)),
        ("value_bytes", json!(letter.value_bytes)),
    ];
    object.extend(members.map(|(name, value)| (name.to_owned(), value)));
    member(&mut object, "key", letter.key.as_deref());
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(offset: i64, timestamp_ms: Option<i64>, origin: Option<i64>) -> DeadLetter {
        let place = |topic: &str, offset| RecordPosition { topic: topic.into(), partition: 0, offset };
        DeadLetter {
            position: place("t.dlq", offset),
            timestamp_ms,
            key: Some(Box::from(&b"k"[..])),
            value_bytes: None,
            source: None,
            origin: origin.map(|offset| place("t", offset)),
            stage: None,
            class: None,
            reason: None,
            replays: 0,
        }
    }

    #[test]
    fn records_are_listed_once_in_the_order_of_time() {
        let mut listed = Listed::default();
        listed.add(letter(0, Some(9), Some(4)), false);
        listed.add(letter(1, Some(5), Some(3)), false);
        listed.add(letter(2, None, None), false);
        listed.add(letter(3, None, None), false);
        listed.add(letter(4, Some(9), Some(4)), true);
        let other = DeadLetter { key: None, ..letter(5, Some(7), Some(4)) };
        listed.add(other, false);
        let entries = listed.in_order();
        let found: Vec<_> = entries
            .iter()
            .map(|entry| (entry.letter.position.offset, entry.copies.len(), entry.replayed))
            .collect();
        let wanted = [(2, 0, false), (3, 0, false), (1, 0, false), (5, 0, false), (0, 1, true)];
        assert_eq!(found, wanted);
        assert!(entries[4].text().contains("of t/0@4  replayed  (2 dead letters of this record)  "));
        assert_eq!(entries[4].object()["copies"], json!(["t.dlq/0@4"]));
    }
}
