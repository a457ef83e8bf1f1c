//! `slipstream trace`: finds the records, the dead letters and the document of an event, and reports
//! them as text or as JSON. It reads the topics, the group's offsets and the documents, and changes
//! nothing.

mod search;

use std::collections::BTreeMap;
use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;

use bson::{Document, doc};
use events::StorableEvent;
use kafka::BoxError;
use kafka::cluster::Cluster;
use kafka::topic_reader::RecordPosition;
use kafka::topics::TopicSpec;
use loadtest::mongo::Mongo;
use rdkafka::message::BorrowedMessage;
use search::{
    Content, FoundDeadLetter, FoundRecord, RecordOutcome, Search, outcome_of, with_absence_explained,
};
use serde_json::{Value, json};
use service::plural::counted;
use sources::deletes_collection;

use crate::check::collections;
use crate::cli::TraceOptions;
use crate::output;
use crate::output::rfc3339;

/// Searches for the event. The exit code is 0 if something was found, else 1.
pub async fn trace(
    options: TraceOptions,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<ExitCode, BoxError> {
    let config = consumer::Config::from_environment(environment)?;
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let since_ms = options.since.map(|since| now_ms.saturating_sub_unsigned(since.as_millis() as u64));
    let search = Arc::new(Search::new(&config, &options.id, since_ms));
    let (dead_letter_topics, topics): (Vec<TopicSpec>, _) =
        config.topic_specs().into_iter().partition(|spec| spec.is_dead_letter_topic());
    // In this order: before an offset is committed, its document or dead letter is stored.
    let records = read(Arc::clone(&search), topics, FoundRecord::of).await?;
    let committed = committed(&config, &records).await?;
    let dead_letters = read(search, dead_letter_topics, FoundDeadLetter::of).await?;
    let mongo = Mongo::open(&config.store.uri, &config.store.database).await?;
    let documents = documents(&config, &mongo, &options.id, &records).await?;
    let report = Report {
        traced: records
            .into_iter()
            .map(|record| traced(record, &dead_letters, &committed, &documents, &config))
            .collect(),
        id: options.id,
        group: config.group_id,
        database: config.store.database,
        documents,
        dead_letters,
    };
    let text = if options.json { report.json().to_string() } else { report.to_string() };
    output::write_line(text)?;
    Ok(if report.is_found() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Searches each of these topics.
async fn read<T: Send + 'static>(
    search: Arc<Search>,
    topics: Vec<TopicSpec>,
    of: fn(&BorrowedMessage<'_>, Content) -> T,
) -> Result<Vec<T>, BoxError> {
    let read = tokio::task::spawn_blocking(move || {
        let mut found = Vec::new();
        for topic in &topics {
            search.read(&topic.name, |message, content| found.push(of(message, content)))?;
        }
        Ok(found)
    });
    read.await?
}

/// The committed offsets of the group in the partitions of these records.
async fn committed(
    config: &consumer::Config,
    records: &[FoundRecord],
) -> Result<BTreeMap<(String, i32), i64>, BoxError> {
    let cluster =
        Cluster::new(&config.kafka_broker, &config.properties, "slipstream-check", &config.group_id)?;
    let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for FoundRecord { position, .. } in records {
        topics.entry(&position.topic).or_default().push(position.partition);
    }
    let mut committed = BTreeMap::new();
    for (topic, mut partitions) in topics {
        partitions.sort_unstable();
        partitions.dedup();
        for position in cluster.positions(topic, partitions).await? {
            committed.extend(position.committed.map(|offset| ((position.topic, position.partition), offset)));
        }
    }
    Ok(committed)
}

/// The document of each event's key. If no record was found, the documents with the event's id.
async fn documents(
    config: &consumer::Config,
    mongo: &Mongo,
    id: &str,
    records: &[FoundRecord],
) -> Result<Vec<Stored>, BoxError> {
    let events = records.iter().filter_map(|record| match &record.content {
        Content::Event(event) => {
            Some(std::iter::once(query(config, event)).chain(tombstone_query(config, event)))
        }
        _ => None,
    });
    let mut queries: Vec<(String, Document)> = events.flatten().collect();
    if queries.is_empty() {
        let names = collections(mongo, &config.expected).await?;
        queries = names.into_iter().map(|name| (name.to_string(), doc! { "event_id": id })).collect();
        queries.extend(tombstone_queries(config, id));
    }
    let has_deletes = |name: &str| config.expected.configured().is_some_and(|file| file.has_deletes(name));
    let mut stored: Vec<Stored> = Vec::new();
    for (name, filter) in queries {
        if stored.iter().any(|stored| stored.collection == name && stored.filter == filter) {
            continue;
        }
        let collection = mongo.database.collection::<Document>(&name);
        let mut cursor = mongo.with_timeout(collection.find(filter.clone()).limit(10)).await?;
        while mongo.with_timeout(cursor.advance()).await? {
            let document = Document::try_from(cursor.current())?;
            let is_tombstone = has_deletes(&name);
            stored.push(Stored { collection: name.clone(), filter: filter.clone(), document, is_tombstone });
        }
    }
    Ok(stored)
}

/// The collection of an event and the filter of its document, as the consumer has them.
fn query(config: &consumer::Config, event: &StorableEvent) -> (String, Document) {
    let store = config.expected.store_of(&event.source, &config.store.upsert_keys);
    let filter = store.keys.filter(event);
    (store.collection, filter)
}

/// The collections that remember deletes, each with the filter of the tombstone of an id.
fn tombstone_queries(config: &consumer::Config, id: &str) -> Vec<(String, Document)> {
    let configured = config.expected.configured().into_iter();
    let stores = configured.flat_map(|file| file.stored().filter_map(|source| file.store(source.as_str())));
    let with_deletes = stores.filter(|store| store.tombstones.is_some());
    with_deletes.map(|store| (deletes_collection(&store.collection), doc! { "_id": id })).collect()
}

/// The collection and the filter of the tombstone of an event's id, if its source has deletes.
fn tombstone_query(config: &consumer::Config, event: &StorableEvent) -> Option<(String, Document)> {
    let store = config.expected.store_of(&event.source, &config.store.upsert_keys);
    store.tombstones?;
    Some((deletes_collection(&store.collection), doc! { "_id": event.id.as_str() }))
}

fn traced(
    record: FoundRecord,
    dead_letters: &[FoundDeadLetter],
    committed: &BTreeMap<(String, i32), i64>,
    documents: &[Stored],
    config: &consumer::Config,
) -> Traced {
    let find = |(collection, filter): (String, Document)| {
        let found =
            documents.iter().find(|stored| stored.collection == collection && stored.filter == filter);
        found.map(|stored| &stored.document)
    };
    let document = match &record.content {
        Content::Event(event) => find(query(config, event)),
        _ => None,
    };
    let committed = committed.get(&(record.position.topic.clone(), record.position.partition)).copied();
    let mut outcome = outcome_of(&record, dead_letters, committed, document);
    if let Content::Event(event) = &record.content {
        let store = config.expected.store_of(&event.source, &config.store.upsert_keys);
        let ttl_ms = store.ttl.map(|ttl| i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX));
        let now_ms = jiff::Timestamp::now().as_millisecond();
        let tombstone = tombstone_query(config, event).and_then(find);
        outcome = with_absence_explained(outcome, event, tombstone, (ttl_ms, now_ms));
    }
    Traced { record, committed, outcome }
}

/// A record and its outcome.
#[derive(Debug)]
pub struct Traced {
    pub record: FoundRecord,
    /// The committed offset of its partition.
    pub committed: Option<i64>,
    pub outcome: RecordOutcome,
}

/// A document or a tombstone of the event.
#[derive(Debug)]
pub struct Stored {
    /// The name of its collection.
    pub collection: String,
    /// The query that found it.
    pub filter: Document,
    pub document: Document,
    /// Whether it remembers a delete.
    pub is_tombstone: bool,
}

/// The report.
#[derive(Debug)]
pub struct Report {
    /// The event's id.
    pub id: String,
    /// The consumer's group.
    pub group: String,
    pub database: String,
    /// Records, in the order of the topic.
    pub traced: Vec<Traced>,
    pub dead_letters: Vec<FoundDeadLetter>,
    pub documents: Vec<Stored>,
}

impl Report {
    /// Whether anything was found.
    pub fn is_found(&self) -> bool {
        !(self.traced.is_empty() && self.dead_letters.is_empty() && self.documents.is_empty())
    }

    /// Dead letters whose records are no longer on the topic.
    fn orphans(&self) -> impl Iterator<Item = &FoundDeadLetter> {
        self.dead_letters.iter().filter(|dead_letter| {
            let origin = dead_letter.origin.as_ref();
            !self.traced.iter().any(|traced| origin == Some(&traced.record.position))
        })
    }

    /// The report as JSON.
    pub fn json(&self) -> Value {
        let dead_letter = |dead_letter: &FoundDeadLetter| {
            json!({
                "at": dead_letter.position.to_string(),
                "of": dead_letter.origin.as_ref().map(RecordPosition::to_string),
                "reason": dead_letter.reason,
            })
        };
        let stored = |stored: &Stored| json!({"database": self.database, "collection": stored.collection, "document": stored.document});
        let (tombstones, documents): (Vec<&Stored>, Vec<&Stored>) =
            self.documents.iter().partition(|stored| stored.is_tombstone);
        let mut json = json!({
            "id": self.id,
            "group": self.group,
            "records": self.traced.iter().map(Traced::json).collect::<Vec<_>>(),
            "dead_letters": self.dead_letters.iter().map(dead_letter).collect::<Vec<_>>(),
            "documents": documents.into_iter().map(stored).collect::<Vec<_>>(),
        });
        // Only sources with deletes have them.
        if !tombstones.is_empty() {
            json["tombstones"] = tombstones.into_iter().map(stored).collect();
        }
        json
    }
}

impl Traced {
    fn versions(&self) -> Option<(i64, i64)> {
        match &self.record.content {
            Content::Event(event) => Some((event.timestamp.get(), event.ingested_at.get())),
            _ => None,
        }
    }

    fn json(&self) -> Value {
        let RecordPosition { topic, partition, offset } = &self.record.position;
        json!({
            "topic": topic,
            "partition": partition,
            "offset": offset,
            "record_timestamp": self.record.timestamp_ms,
            "timestamp": self.versions().map(|(timestamp, _)| timestamp),
            "ingested_at": self.versions().map(|(_, ingested_at)| ingested_at),
            "committed": self.committed,
            "state": self.outcome.name(),
            "detail": self.outcome.text(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_found() {
            return write!(f, "event {} was not found on the topics or in the database", self.id);
        }
        write!(f, "event {}: {}", self.id, counted(self.traced.len(), "record"))?;
        for traced in &self.traced {
            write!(f, "\n  {}", traced.record.position)?;
            if let Some((timestamp, ingested_at)) = traced.versions() {
                write!(f, "  timestamp {}, ingested_at {}", rfc3339(timestamp), rfc3339(ingested_at))?;
            }
            write!(f, "  {}", traced.outcome.text())?;
            if traced.outcome == RecordOutcome::Waiting {
                let at =
                    traced.committed.map_or_else(|| "its beginning".to_owned(), |offset| offset.to_string());
                write!(f, ": group {} is at {at}", self.group)?;
            }
        }
        for dead_letter in self.orphans() {
            let origin = dead_letter
                .origin
                .as_ref()
                .map_or_else(|| "an unknown position".to_owned(), RecordPosition::to_string);
            write!(f, "\n  {}  dead letter of {origin}: {}", dead_letter.position, dead_letter.reason)?;
        }
        for Stored { collection, document, is_tombstone, .. } in &self.documents {
            let kind = if *is_tombstone { "tombstone" } else { "document" };
            let document = serde_json::to_string(document).map_err(|_| fmt::Error)?;
            write!(f, "\n{kind} in {}.{collection}: {document}", self.database)?;
        }
        Ok(())
    }
}
