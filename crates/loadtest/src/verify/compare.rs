//! Compares the sent events with the stored documents. Memory grows with the ids of the run, not
//! with its events.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bson::Document;
use kafka::BoxError;
use kafka::topic_reader::{CONTINUE, RecordPosition, TopicReader};
use rdkafka::Message;

use super::catch_up::{Backlog, EndOffsets};
use super::dead_letters::DeadLetters;
use super::document::{Metadata, differences, expected_document};
use super::report::{LedgerCounts, Report};
use super::versions::{HeldVersion, SentVersions, Version, VersionTimes};
use crate::ledger::{Header, Line, Lines, Outcome, hash, id_of, key_of};

/// Maximum difference between the clocks of the load generator and of the producer, which sets the
/// timestamps of records.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// The sent events and the findings so far.
#[derive(Debug)]
pub struct Comparison {
    header: Header,
    sent: HashMap<u64, SentVersions>,
    /// Keys that an unfinished record may still change.
    undecided: HashSet<u64>,
    /// Documents that a newer event should have replaced.
    superseded: Vec<SupersededDocument>,
    report: Report,
}

/// A document that a newer event should have replaced.
#[derive(Debug)]
struct SupersededDocument {
    key: u64,
    stored: VersionTimes,
    /// Its id and its times, as text.
    description: String,
}

/// For each partition, the offset after its last accepted event, as far as the ledger has it.
///
/// # Errors
/// A line cannot be read.
pub fn end_offsets(
    lines: impl Iterator<Item = Result<Line, BoxError>>,
    topics: &[String],
) -> Result<EndOffsets, BoxError> {
    let mut ends = EndOffsets::new();
    for line in lines {
        if let Some(RecordPosition { topic, partition, offset }) = position_of(&line?, topics) {
            let end = ends.entry((topic, partition)).or_insert(0);
            *end = (*end).max(offset + 1);
        }
    }
    Ok(ends)
}

/// The position of an event's record, if the response had it. A batch response has no topic.
fn position_of(line: &Line, topics: &[String]) -> Option<RecordPosition> {
    let only_topic = if let [topic] = topics { Some(topic) } else { None };
    let topic = line.topic.as_ref().or(only_topic)?.clone();
    Some(RecordPosition { topic, partition: line.partition?, offset: line.offset? })
}

/// Whether the backlog may contain a record of the event.
fn may_be_unfinished(line: &Line, (backlog, topics): (&Backlog, &[String])) -> bool {
    if backlog.records() == 0 || line.outcome == Outcome::Rejected {
        return false;
    }
    match position_of(line, topics).filter(|_| line.outcome == Outcome::Accepted) {
        // A record of another attempt can be anywhere in the partition.
        Some(RecordPosition { topic, partition, .. }) if line.may_be_repeated() => {
            backlog.contains_partition(&topic, partition)
        }
        Some(RecordPosition { topic, partition, offset }) => backlog.contains(&topic, partition, offset),
        None => true,
    }
}

impl Comparison {
    /// Reads the events of a ledger. A dead-lettered event need not be stored. Keys that the
    /// backlog of these topics may still change are not compared.
    ///
    /// # Errors
    /// A line cannot be read, or is not of the run's events.
    pub fn new(
        header: Header,
        lines: impl Iterator<Item = Result<Line, BoxError>>,
        dead_letters: DeadLetters,
        backlog: (&Backlog, &[String]),
    ) -> Result<Self, BoxError> {
        let (mut sent, mut ledger) = (HashMap::<u64, SentVersions>::new(), LedgerCounts::default());
        let mut undecided = HashSet::new();
        for line in lines {
            let line = line?;
            check_line(&header, &line)?;
            ledger.events += 1;
            ledger.attempts += u64::from(line.attempts);
            ledger.unconfirmed += line.unconfirmed.len() as u64;
            let version = Version {
                n: line.n,
                timestamp: line.timestamp,
                ingested_at: line.ingested_at,
                may_be_repeated: line.may_be_repeated(),
            };
            let key = header.workload.key(line.n);
            if may_be_unfinished(&line, backlog) {
                undecided.insert(key);
            }
            match line.outcome {
                Outcome::Accepted => {
                    ledger.accepted += 1;
                    let sent = sent.entry(key).or_default();
                    // An operator may have replayed the dead letter.
                    if dead_letters.contains(key, line.timestamp) {
                        sent.add_possible(version);
                    } else {
                        sent.add_accepted(version);
                    }
                }
                Outcome::Unknown => {
                    ledger.unknown += 1;
                    sent.entry(key).or_default().add_possible(version);
                }
                Outcome::Rejected => ledger.rejected += 1,
            }
        }
        let report = Report {
            run: header.run.clone(),
            ledger,
            undecided: undecided.len() as u64,
            dead_lettered: dead_letters.finding,
            ..Report::default()
        };
        Ok(Self { header, sent, undecided, superseded: Vec::new(), report })
    }

    /// Compares a document whose id has the run's prefix.
    pub fn compare_document(&mut self, stored: &Document) {
        self.report.documents += 1;
        let id = stored.get_str("event_id").unwrap_or_default();
        let sent = key_of(&self.header.run, id).and_then(|key| Some((key, self.sent.get_mut(&key)?)));
        let Some((key, sent)) = sent else {
            return self.report.foreign.add(|| format!("{id}: was never sent, or was rejected"));
        };
        sent.documents += 1;
        if sent.documents == 2 {
            self.report.duplicated.add(|| format!("{id}: has several documents"));
        }
        if self.undecided.contains(&key) {
            return;
        }
        let times = (stored.get_i64("event_timestamp"), stored.get_i64("ingested_at"));
        let (Ok(timestamp), Ok(ingested_at)) = times else {
            let why = "event_timestamp or ingested_at is not an int64";
            return self.report.altered.add(|| format!("{id}: {why}"));
        };
        let description = format!("{id}: event_timestamp {timestamp}, ingested_at {ingested_at}");
        match sent.held_by(timestamp, ingested_at) {
            HeldVersion::Superseded => {
                let stored = VersionTimes { timestamp, ingested_at };
                self.superseded.push(SupersededDocument { key, stored, description });
            }
            HeldVersion::NotSent => {
                self.report.altered.add(|| format!("{description}: no accepted event has these times"));
            }
            HeldVersion::Event(n) => {
                // If the producer's version is unknown, any text is right.
                let api_version = self.header.api_version.as_deref();
                let api_version = api_version.or(stored.get_str("api_version").ok()).unwrap_or("a text");
                let metadata = Metadata { id, timestamp, ingested_at, api_version };
                let payload = self.header.workload.payload(n).fields;
                let differing = differences(&expected_document(payload, metadata), stored);
                if !differing.is_empty() {
                    let names = differing.join(", ");
                    self.report.altered.add(|| format!("{description}: differs in {names}"));
                }
            }
        }
    }

    /// After the last document: the keys that lack an accepted event, with the times of their
    /// stored document. A record with newer times could still complete them.
    pub fn lacking(&self) -> HashMap<u64, VersionTimes> {
        let decided = self.sent.iter().filter(|(key, _)| !self.undecided.contains(key));
        let missing = decided.filter(|(_, sent)| sent.requires_document() && sent.documents == 0);
        let missing = missing.map(|(key, _)| (*key, VersionTimes::NONE));
        let superseded = self.superseded.iter().map(|document| (document.key, document.stored));
        missing.chain(superseded).collect()
    }

    /// Completes the report. `gone` are those of the [`Comparison::lacking`] keys whose records
    /// Kafka no longer has.
    pub fn finish(mut self, gone: &HashSet<u64>) -> Report {
        for SupersededDocument { key, description, .. } in std::mem::take(&mut self.superseded) {
            if gone.contains(&key) {
                let why = "newer events were accepted, and the topic no longer has their records";
                self.report.gone.add(|| format!("{description}: {why}"));
            } else {
                self.report.superseded.add(|| format!("{description}: a newer event was accepted"));
            }
        }
        let mut missing: Vec<u64> = self.lacking().into_keys().collect();
        missing.sort_unstable();
        for key in missing {
            let id = id_of(&self.header.run, key);
            if gone.contains(&key) {
                let why = "was not stored, and the topic no longer has its records";
                self.report.gone.add(|| format!("{id}: {why}"));
            } else {
                self.report.missing.add(|| format!("{id}: has no document"));
            }
        }
        self.report
    }
}

/// Checks that the run's seed generates the event of a line.
fn check_line(header: &Header, line: &Line) -> Result<(), BoxError> {
    let id = id_of(&header.run, header.workload.key(line.n));
    if line.id != id || line.hash != hash(&header.workload.payload(line.n).text) {
        return Err(format!(
            "the seed of the ledger does not generate its event {} ({}): the ledger was changed, or another version \
             of slipstream wrote it",
            line.n, line.id
        )
        .into());
    }
    Ok(())
}

/// Returns those of the `lacking` keys that Kafka can no longer complete: the topic was deleted, or
/// its retention deleted the record. A key stays out if the ledger has no position of a newer
/// record.
///
/// # Errors
/// Kafka is unavailable, or the ledger cannot be read.
pub fn find_gone(
    config: &consumer::Config,
    header: &Header,
    lines: Lines,
    lacking: &HashMap<u64, VersionTimes>,
) -> Result<HashSet<u64>, BoxError> {
    if lacking.is_empty() {
        return Ok(HashSet::new());
    }
    let mut positions = HashMap::<RecordPosition, u64>::new();
    let mut gone: HashSet<u64> = lacking.keys().copied().collect();
    for line in lines {
        let line = line?;
        let key = header.workload.key(line.n);
        let ingested_at = line.ingested_at.unwrap_or(i64::MAX);
        let times = VersionTimes { timestamp: line.timestamp, ingested_at };
        let is_newer = lacking.get(&key).is_some_and(|stored| times > *stored);
        if line.outcome != Outcome::Accepted || !is_newer {
            continue;
        }
        match position_of(&line, &config.topics) {
            Some(position) => _ = positions.insert(position, key),
            None => _ = gone.remove(&key),
        }
    }
    let since_ms = header.started_at - MAX_CLOCK_SKEW.as_millis() as i64;
    let reader = TopicReader::new(&config.kafka_broker, &config.properties, "slipstream-verify");
    for topic in &config.topics {
        reader.read(topic, Some(since_ms), |message| {
            if let Some(key) = positions.get(&RecordPosition::of(message))
                && message.key() == Some(id_of(&header.run, *key).as_bytes())
            {
                gone.remove(key);
            }
            CONTINUE
        })?;
    }
    Ok(gone)
}
