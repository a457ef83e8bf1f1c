//! The verifier: compares a ledger with the documents in MongoDB and with the dead letters. Each
//! accepted id must have exactly one document. It holds the newest accepted event, or a newer one
//! with an unknown outcome. Every field equals what was sent, and there are no other documents. The
//! verifier changes nothing. Its memory grows with the ids of the run, not with its events.

mod catch_up;
mod expected;
mod report;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bson::{Document, doc};
use catch_up::{Backlog, EndOffsets, catch_up};
use consumer::SourceStore;
use events::Source;
use expected::{HeldVersion, Metadata, SentVersions, Version, VersionTimes, differences, expected_document};
use kafka::BoxError;
use kafka::headers::{error_header, origin};
use kafka::topic_reader::{CONTINUE, RecordPosition, TopicReader};
use rdkafka::Message;
use rdkafka::message::BorrowedMessage;
use report::{Finding, LedgerCounts};
pub use report::{Report, VerifyResult};
use serde::Deserialize;
use service::ConfigErrors;
use service::http::object;

use crate::ledger::{Header, Line, Lines, Outcome, hash, id_of, key_of};
use crate::mongo::Mongo;
use crate::options::VerifyOptions;
use crate::progress::{PLAIN_PERIOD, PlainLines, Progress};

/// Maximum difference between the clocks of the load generator and of the producer, which sets the
/// timestamps of records.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// Waits for the consumer as the options say, then compares. Progress goes to stdout, with `json`
/// to stderr.
///
/// # Errors
/// A configuration or a ledger that cannot be verified, or a server that does not answer.
pub async fn run(config: &consumer::Config, options: &VerifyOptions) -> Result<Report, BoxError> {
    let plain = if options.json { PlainLines::Stderr } else { PlainLines::Stdout };
    let progress = Progress::start(None, plain, PLAIN_PERIOD);
    let ledger = &options.ledger;
    let (header, lines) = Lines::open(ledger)?;
    check_config(config, &header)?;
    let topics = config.topics_of(&header.source);
    let ends = end_offsets(lines, &topics)?;
    let backlog = catch_up(config, &ends, options.wait, progress).await?;
    let (owned_config, run) = (config.clone(), header.run.clone());
    let read = tokio::task::spawn_blocking(move || DeadLetters::read(&owned_config, &run));
    let dead_letters = read.await??;
    let (_, lines) = Lines::open(ledger)?;
    let mut comparison = Comparison::new(header.clone(), lines, dead_letters, (&backlog, &topics))?;
    let store = store_of(config, &header)?;
    comparison.source_field.clone_from(&store.source_field);
    comparison.ttl_ms = store.ttl.map(|ttl| i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX));
    documents(config, &header, &store.collection, |document| comparison.compare_document(document)).await?;
    let (owned_config, lacking) = (config.clone(), comparison.lacking());
    let (header, lines) = Lines::open(ledger)?;
    let collection = format!("{}.{}", config.store.database, store.collection);
    let find = tokio::task::spawn_blocking(move || find_gone(&owned_config, &header, lines, &lacking));
    let gone = find.await??;
    Ok(Report {
        waiting: backlog.records(),
        per_second: backlog.per_second,
        expected_dead_letters: options.expect_dead_letters,
        collection,
        ..comparison.finish(&gone)
    })
}

/// Rejects a configuration with which the pipeline stores other documents.
fn check_config(config: &consumer::Config, header: &Header) -> Result<(), ConfigErrors> {
    let source = &header.source;
    let mut faults = Vec::new();
    let file = config.expected.configured().and_then(|sources| sources.store(source));
    let keys = file.map_or(&config.store.upsert_keys, |store| &store.keys);
    if !keys.is_event_id() {
        let fault = match file {
            Some(_) => {
                ("SOURCES_FILE", format!("has the keys {keys} for {source}; verify requires event_id"))
            }
            None => ("UPSERT_KEYS", format!("is {keys}; verify requires event_id")),
        };
        faults.push((fault.0.to_owned(), fault.1));
    }
    if !config.expected.contains(source) {
        let why = format!("does not contain the ledger's source {source}, which is therefore not stored");
        faults.push(("EXPECTED_SOURCE".to_owned(), why));
    }
    if header.workload.deletes_ppm > 0 && file.is_none_or(|store| store.tombstones.is_none()) {
        let why = format!("has no `delete` for the ledger's source {source}, whose deletes are dead letters");
        faults.push(("SOURCES_FILE".to_owned(), why));
    }
    if faults.is_empty() { Ok(()) } else { Err(ConfigErrors(faults)) }
}

/// Where and how the consumer stores the source of the ledger.
fn store_of(config: &consumer::Config, header: &Header) -> Result<SourceStore, BoxError> {
    let source = Source::new(header.source.as_str())
        .map_err(|why| format!("the source of the ledger is wrong: {why}"))?;
    Ok(config.expected.store_of(&source, &config.store.upsert_keys))
}

/// Reads every document whose id has the run's prefix.
async fn documents(
    config: &consumer::Config,
    header: &Header,
    collection: &str,
    mut each: impl FnMut(&Document),
) -> Result<(), BoxError> {
    let mongo = Mongo::open(&config.store.uri, &config.store.database).await?;
    let collection = mongo.database.collection::<Document>(collection);
    // The range of texts that begin with the run and a `-`; the next character is `.`. The server
    // can use an index for it.
    let of_the_run =
        doc! { "event_id": { "$gte": format!("{}-", header.run), "$lt": format!("{}.", header.run) } };
    let mut cursor = mongo.with_timeout(collection.find(of_the_run)).await?;
    while mongo.with_timeout(cursor.advance()).await? {
        // Not through serde: it converts a field in the form of Extended JSON to another type.
        each(&Document::try_from(cursor.current())?);
    }
    Ok(())
}

/// The sent events and the findings so far.
#[derive(Debug)]
struct Comparison {
    header: Header,
    /// The field of a document that has the source's name.
    source_field: Option<String>,
    /// How long after its timestamp a document expires.
    ttl_ms: Option<i64>,
    /// When the comparison began, in epoch milliseconds.
    now_ms: i64,
    sent: HashMap<u64, SentVersions>,
    /// Keys that an unfinished record may still change.
    undecided: HashSet<u64>,
    /// Documents that a newer event should have replaced.
    superseded: Vec<SupersededDocument>,
    report: Report,
}

/// A document that a newer event should have replaced or removed.
#[derive(Debug)]
struct SupersededDocument {
    key: u64,
    stored: VersionTimes,
    /// Its id and its times, as text.
    description: String,
    /// Whether the newest event deletes.
    is_resurrected: bool,
}

/// For each partition, the offset after its last accepted event, as far as the ledger has it.
fn end_offsets(
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
    fn new(
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
                deletes: header.workload.deletes(line.n),
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
            has_deletes: header.workload.deletes_ppm > 0,
            dead_lettered: dead_letters.finding,
            ..Report::default()
        };
        let (source_field, ttl_ms, superseded) = (None, None, Vec::new());
        let now_ms = jiff::Timestamp::now().as_millisecond();
        Ok(Self { header, source_field, ttl_ms, now_ms, sent, undecided, superseded, report })
    }

    /// Compares a document whose id has the run's prefix.
    fn compare_document(&mut self, stored: &Document) {
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
        let newest = sent.newest_timestamp();
        let has_expired = newest.is_some_and(|newest| is_expired(newest, self.ttl_ms, self.now_ms));
        match sent.held_by(timestamp, ingested_at) {
            // The server removed the newer document, and removes this one within a minute.
            HeldVersion::Superseded if has_expired => {}
            held @ (HeldVersion::Superseded | HeldVersion::Resurrected) => {
                let stored = VersionTimes { timestamp, ingested_at };
                let is_resurrected = held == HeldVersion::Resurrected;
                self.superseded.push(SupersededDocument { key, stored, description, is_resurrected });
            }
            HeldVersion::NotSent => {
                self.report.altered.add(|| format!("{description}: no accepted event has these times"));
            }
            HeldVersion::Event(n) => {
                // If the producer's version is unknown, any text is right.
                let api_version = self.header.api_version.as_deref();
                let api_version = api_version.or(stored.get_str("api_version").ok()).unwrap_or("a text");
                let metadata = Metadata { id, timestamp, ingested_at, api_version };
                let payload = self.header.workload.payload(n);
                let payload = match &self.header.record {
                    Some(record) => record.record(payload, id, timestamp).fields,
                    None => payload.fields,
                };
                let source_field = self.source_field.as_deref().map(|field| (field, &*self.header.source));
                let mut expected = expected_document(payload, metadata, source_field);
                if let Some(ttl_ms) = self.ttl_ms {
                    let expires_at = timestamp.saturating_add(ttl_ms).min(events::Millis::MAX.get());
                    expected.insert("expires_at", bson::DateTime::from_millis(expires_at));
                }
                let differing = differences(&expected, stored);
                if !differing.is_empty() {
                    let names = differing.join(", ");
                    self.report.altered.add(|| format!("{description}: differs in {names}"));
                }
            }
        }
    }

    /// After the last document: the keys that lack an accepted event, with the times of their
    /// stored document. A record with newer times could still complete them.
    fn lacking(&self) -> HashMap<u64, VersionTimes> {
        let decided = self.sent.iter().filter(|(key, _)| !self.undecided.contains(key));
        let missing = decided.filter(|(_, sent)| sent.requires_document() && sent.documents == 0);
        let missing = missing.filter(|(_, sent)| !self.has_expired(sent));
        let missing = missing.map(|(key, _)| (*key, VersionTimes::NONE));
        let superseded = self.superseded.iter().map(|document| (document.key, document.stored));
        missing.chain(superseded).collect()
    }

    /// Whether the server has removed the newest document of an id because it expired.
    fn has_expired(&self, sent: &SentVersions) -> bool {
        sent.newest_timestamp().is_some_and(|newest| is_expired(newest, self.ttl_ms, self.now_ms))
    }

    /// Completes the report. `gone` are those of the [`Comparison::lacking`] keys whose records
    /// Kafka no longer has.
    fn finish(mut self, gone: &HashSet<u64>) -> Report {
        let expired = self.sent.values().filter(|sent| sent.documents == 0 && sent.requires_document());
        self.report.expired = expired.filter(|sent| self.has_expired(sent)).count() as u64;
        let superseded = std::mem::take(&mut self.superseded);
        for SupersededDocument { key, description, is_resurrected, .. } in superseded {
            if gone.contains(&key) {
                let why = "newer events were accepted, and the topic no longer has their records";
                self.report.gone.add(|| format!("{description}: {why}"));
            } else if is_resurrected {
                self.report.resurrected.add(|| format!("{description}: a newer delete was accepted"));
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

/// Whether a document with this timestamp has expired.
fn is_expired(timestamp: i64, ttl_ms: Option<i64>, now_ms: i64) -> bool {
    ttl_ms.is_some_and(|ttl_ms| timestamp.saturating_add(ttl_ms) <= now_ms)
}

/// Checks that the run's seed generates the event of a line.
fn check_line(header: &Header, line: &Line) -> Result<(), BoxError> {
    let id = id_of(&header.run, header.workload.key(line.n));
    if line.id != id || line.hash != hash(&header.workload.text(line.n)) {
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
fn find_gone(
    config: &consumer::Config,
    header: &Header,
    lines: Lines,
    lacking: &HashMap<u64, VersionTimes>,
) -> Result<HashSet<u64>, BoxError> {
    if lacking.is_empty() {
        return Ok(HashSet::new());
    }
    let topics = config.topics_of(&header.source);
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
        match position_of(&line, &topics) {
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

/// The dead letters of a run.
#[derive(Debug, Default)]
struct DeadLetters {
    /// The events, by key and timestamp.
    events: HashSet<(u64, i64)>,
    /// Records of the run that are not events, by their positions.
    others: HashSet<RecordPosition>,
    /// Their number, and examples with their reasons.
    finding: Finding,
}

#[derive(Deserialize)]
struct Value {
    id: String,
    timestamp: i64,
}

impl DeadLetters {
    /// Reads the dead-letter topics to their end.
    fn read(config: &consumer::Config, run: &str) -> Result<Self, BoxError> {
        let reader = TopicReader::new(&config.kafka_broker, &config.properties, "slipstream-verify");
        let mut dead_letters = Self::default();
        for spec in config.topic_specs().iter().filter(|spec| spec.is_dead_letter_topic()) {
            reader.read(&spec.name, None, |message| {
                dead_letters.add(run, message);
                CONTINUE
            })?;
        }
        Ok(dead_letters)
    }

    /// Whether the event with this key and timestamp is a dead letter.
    fn contains(&self, key: u64, timestamp: i64) -> bool {
        self.events.contains(&(key, timestamp))
    }

    fn add(&mut self, run: &str, message: &BorrowedMessage<'_>) {
        let key = message.key().and_then(|key| std::str::from_utf8(key).ok()).unwrap_or_default();
        if !key.strip_prefix(run).is_some_and(|rest| rest.starts_with('-')) {
            return;
        }
        let event = message.payload().and_then(|value| event(run, value));
        let is_new = match event {
            Some(event) => self.events.insert(event),
            None => self.others.insert(origin(message).unwrap_or_else(|| RecordPosition::of(message))),
        };
        if is_new {
            let reason = error_header(message, "exception.message");
            let reason = reason.as_deref().unwrap_or("the dead letter has no reason");
            self.finding.add(|| format!("{key}: {reason}"));
        }
    }
}

/// Key and timestamp of the event in a record's value.
fn event(run: &str, value: &[u8]) -> Option<(u64, i64)> {
    let value: Value = object(value).ok()?;
    Some((key_of(run, &value.id)?, value.timestamp))
}

#[cfg(test)]
mod tests {
    use super::event;

    #[test]
    fn an_event_is_read_only_from_an_object() {
        assert_eq!(event("r", br#"{"id":"r-3","timestamp":8}"#), Some((3, 8)));
        assert_eq!(event("r", br#"["r-3",8]"#), None);
    }
}
