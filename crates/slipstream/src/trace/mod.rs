//! `slipstream trace`: where an event is. It reads the topics, the group's offsets and the documents, and changes
//! nothing.

mod report;
mod scan;
mod state;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bson::{Document, doc};
use events::Source;
use kafka::topics::TopicSpec;

use crate::check::collections;
use crate::cli::TraceOptions;
use crate::stdout;
use kafka::BoxError;
use kafka::cluster::Cluster;
use loadtest::mongo::Mongo;
use report::{Report, Stored, Traced};
use scan::{Content, Found, Letter, Search};

/// Looks for the event everywhere. The exit code is 0 if it is anywhere, 1 if not.
///
/// # Errors
/// A wrong configuration, or a server that does not answer or refuses.
pub async fn trace(
    options: TraceOptions,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<ExitCode, BoxError> {
    let config = consumer::Config::from_environment(environment)?;
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let since_ms = options.since.map(|since| now_ms.saturating_sub(since.as_millis()) as i64);
    let search = Arc::new(Search::new(&config, &options.id, since_ms));
    let (letter_topics, topics): (Vec<TopicSpec>, _) =
        config.topic_specs().into_iter().partition(|spec| spec.is_dead_letter_topic());
    // In this order, as what the group has committed has left its document or its dead letter before.
    let found = read(Arc::clone(&search), topics, Search::records).await?;
    let committed = committed(&config, &found).await?;
    let letters = read(search, letter_topics, Search::letters).await?;
    let mongo = Mongo::open(&config.store.uri, &config.store.database).await?;
    let documents = documents(&config, &mongo, &options.id, &found).await?;
    let report = Report {
        traced: found
            .into_iter()
            .map(|found| judged(found, &letters, &committed, &documents, &config))
            .collect(),
        id: options.id,
        group: config.group_id,
        database: config.store.database,
        documents,
        letters,
    };
    let text = if options.json { report.json().to_string() } else { report.to_string() };
    stdout::write_line(text)?;
    Ok(if report.is_anywhere() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is found on these topics.
async fn read<T: Send + 'static>(
    search: Arc<Search>,
    topics: Vec<TopicSpec>,
    find: fn(&Search, &str) -> Result<Vec<T>, BoxError>,
) -> Result<Vec<T>, BoxError> {
    let read = tokio::task::spawn_blocking(move || {
        let mut found = Vec::new();
        for topic in &topics {
            found.extend(find(&search, &topic.name)?);
        }
        Ok(found)
    });
    read.await?
}

/// Where the group goes on, in the partitions of what was found.
async fn committed(
    config: &consumer::Config,
    found: &[Found],
) -> Result<BTreeMap<(String, i32), i64>, BoxError> {
    let cluster =
        Cluster::new(&config.kafka_broker, &config.properties, "slipstream-check", &config.group_id)?;
    let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for Found { place, .. } in found {
        topics.entry(&place.topic).or_default().push(place.partition);
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

/// The document of each event's key; where no record is left, the documents that carry the event's id.
async fn documents(
    config: &consumer::Config,
    mongo: &Mongo,
    id: &str,
    found: &[Found],
) -> Result<Vec<Stored>, BoxError> {
    let events = found.iter().filter_map(|found| match &found.content {
        Content::Event(event) => Some((event.source.clone(), config.store.upsert_keys.filter(event))),
        _ => None,
    });
    let mut asked: Vec<(Source, Document)> = events.collect();
    if asked.is_empty() {
        let sources = collections(mongo, &config.expected).await?;
        asked = sources.into_iter().map(|source| (source, doc! { "event_id": id })).collect();
    }
    let mut stored: Vec<Stored> = Vec::new();
    for (source, filter) in asked {
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

fn judged(
    found: Found,
    letters: &[Letter],
    committed: &BTreeMap<(String, i32), i64>,
    documents: &[Stored],
    config: &consumer::Config,
) -> Traced {
    let document = match &found.content {
        Content::Event(event) => {
            let filter = config.store.upsert_keys.filter(event);
            documents.iter().find(|stored| stored.source == event.source && stored.filter == filter)
        }
        _ => None,
    };
    let committed = committed.get(&(found.place.topic.clone(), found.place.partition)).copied();
    let state = state::of(&found, letters, committed, document.map(|stored| &stored.document));
    Traced { found, committed, state }
}
