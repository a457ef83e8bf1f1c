//! `slipstream trace`: finds the records, the dead letters and the document of an event. It reads
//! the topics, the group's offsets and the documents, and changes nothing.

mod outcome;
mod report;
mod search;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bson::{Document, doc};
use events::Source;
use kafka::topics::TopicSpec;

use crate::check::collections;
use crate::cli::TraceOptions;
use crate::output;
use kafka::BoxError;
use kafka::cluster::Cluster;
use loadtest::mongo::Mongo;
use report::{Report, Stored, Traced};
use search::{Content, FoundDeadLetter, FoundRecord, Search};

/// Searches for the event. The exit code is 0 if something was found, else 1.
///
/// # Errors
/// A wrong configuration, or a server that returns an error or no reply.
pub async fn trace(
    options: TraceOptions,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<ExitCode, BoxError> {
    let config = consumer::Config::from_environment(environment)?;
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let since_ms = options.since.map(|since| now_ms.saturating_sub(since.as_millis()) as i64);
    let search = Arc::new(Search::new(&config, &options.id, since_ms));
    let (dead_letter_topics, topics): (Vec<TopicSpec>, _) =
        config.topic_specs().into_iter().partition(|spec| spec.is_dead_letter_topic());
    // In this order: before an offset is committed, its document or dead letter is stored.
    let records = read(Arc::clone(&search), topics, Search::records).await?;
    let committed = committed(&config, &records).await?;
    let dead_letters = read(search, dead_letter_topics, Search::dead_letters).await?;
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

/// Runs a search on each of these topics.
async fn read<T: Send + 'static>(
    search: Arc<Search>,
    topics: Vec<TopicSpec>,
    search_topic: fn(&Search, &str) -> Result<Vec<T>, BoxError>,
) -> Result<Vec<T>, BoxError> {
    let read = tokio::task::spawn_blocking(move || {
        let mut found = Vec::new();
        for topic in &topics {
            found.extend(search_topic(&search, &topic.name)?);
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
        Content::Event(event) => Some((event.source.clone(), config.store.upsert_keys.filter(event))),
        _ => None,
    });
    let mut queries: Vec<(Source, Document)> = events.collect();
    if queries.is_empty() {
        let sources = collections(mongo, &config.expected).await?;
        queries = sources.into_iter().map(|source| (source, doc! { "event_id": id })).collect();
    }
    let mut stored: Vec<Stored> = Vec::new();
    for (source, filter) in queries {
        if stored.iter().any(|stored| stored.source == source && stored.filter == filter) {
            continue;
        }
        let collection = mongo.database.collection::<Document>(source.as_str());
        let mut cursor = mongo.with_timeout(collection.find(filter.clone()).limit(10)).await?;
        while mongo.with_timeout(cursor.advance()).await? {
            let document = Document::try_from(cursor.current())?;
            stored.push(Stored { source: source.clone(), filter: filter.clone(), document });
        }
    }
    Ok(stored)
}

fn traced(
    record: FoundRecord,
    dead_letters: &[FoundDeadLetter],
    committed: &BTreeMap<(String, i32), i64>,
    documents: &[Stored],
    config: &consumer::Config,
) -> Traced {
    let document = match &record.content {
        Content::Event(event) => {
            let filter = config.store.upsert_keys.filter(event);
            documents.iter().find(|stored| stored.source == event.source && stored.filter == filter)
        }
        _ => None,
    };
    let committed = committed.get(&(record.position.topic.clone(), record.position.partition)).copied();
    let document = document.map(|stored| &stored.document);
    let outcome = outcome::of_record(&record, dead_letters, committed, document);
    Traced { record, committed, outcome }
}
