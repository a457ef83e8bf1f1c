//! The sources file in `up`: its topics, samples for its push sources, and the documents of each
//! source.

use std::path::Path;
use std::time::Duration;

use ::sources::{Faults, SOURCES_FILE, Secrets, Source, Sources};
use bson::{Document, doc};
use consumer::mongo::StoreConfig;
use kafka::BoxError;
use loadtest::mongo::Mongo;
use serde_json::Value;
use service::config::environment_value as value;
use service::plural::counted;

use super::stack::{Addresses, simulator_override};
use crate::output::write_progress;

/// Maximum number of sources that are named at the start.
const MAX_NAMES: usize = 10;
/// Timeout of a sample's response.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the file of SOURCES_FILE, if it is set.
///
/// # Errors
/// All faults of the file.
pub fn load(environment: &[(String, String)]) -> Result<Option<Sources>, Faults> {
    let Some(file) = value(environment, SOURCES_FILE) else { return Ok(None) };
    Sources::load(Path::new(file), environment, Secrets::Skip).map(Some)
}

/// The topics of all sources, that of the producer first.
pub fn topics(of_producer: &str, file: Option<&Sources>) -> Vec<String> {
    let mut topics = vec![of_producer.to_owned()];
    for topic in file.iter().flat_map(|file| file.iter()).filter_map(|source| source.topic.clone()) {
        if !topics.contains(&topic) {
            topics.push(topic);
        }
    }
    topics
}

/// Prints the sources of the file, and whether the simulator serves their APIs.
pub fn announce(file: &Sources, environment: &[(String, String)], addresses: &Addresses) {
    let path = value(environment, SOURCES_FILE).unwrap_or_default();
    let names: Vec<&str> = file.iter().map(|source| source.name.as_str()).take(MAX_NAMES).collect();
    let more = match file.iter().count() - names.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    write_progress(&format!("  sources   {path}: {}{more}", names.join(", ")));
    if let Some((name, _)) = simulator_override(environment, addresses) {
        write_progress(&format!("  note      {name} is the simulator, which serves samples of public APIs"));
    }
}

/// Sends the `examples` of the schema of each push source, so that it has documents without a
/// sender. A failure is reported and is no failure of the run.
pub async fn send_examples(file: &Sources, producer: &poller::Config) {
    for source in file.iter().filter(|source| source.push) {
        let examples = examples(source);
        if examples.is_empty() {
            continue;
        }
        let sent = examples.len() as u64;
        write_progress(&match send(source, &examples, producer).await {
            Ok(()) => {
                format!("  {:<9} sent {} of its schema", source.name.as_str(), counted(sent, "example"))
            }
            Err(error) => {
                format!("  {:<9} the examples of its schema were not accepted: {error}", source.name.as_str())
            }
        });
    }
}

fn examples(source: &Source) -> Vec<Value> {
    let schema = source.schema.as_ref().map(::sources::Schema::document);
    schema.and_then(|schema| schema["examples"].as_array()).cloned().unwrap_or_default()
}

async fn send(source: &Source, examples: &[Value], producer: &poller::Config) -> Result<(), BoxError> {
    let client = poller::client::http_client(producer, concat!("slipstream-up/", env!("CARGO_PKG_VERSION")))?;
    let url = poller::client::endpoint(&producer.producer, &format!("ingest/{}", source.name));
    for example in examples {
        let response = client.post(url.clone()).timeout(SAMPLE_TIMEOUT).json(example).send().await?;
        let status = response.status();
        if status != reqwest::StatusCode::ACCEPTED {
            return Err(format!("answered {status}").into());
        }
    }
    Ok(())
}

/// A line for each source with the number of documents in its collection.
pub async fn count_documents(file: &Sources, store: &StoreConfig) -> Vec<String> {
    let mongo = Mongo::open_with_short_timeouts(&store.uri, &store.database).await;
    let mut lines = Vec::new();
    for source in file.iter() {
        let (name, collection) = (&source.name, &source.store.collection);
        let count = match &mongo {
            Ok(mongo) => {
                let collection = mongo.database.collection::<Document>(collection);
                let count = mongo.with_timeout(async { collection.count_documents(doc! {}).await }).await;
                count.map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        lines.push(match count {
            Ok(documents) => {
                format!("{name}: {} in {}.{collection}", counted(documents, "document"), store.database)
            }
            Err(error) => format!("{name}: the documents cannot be counted: {error}"),
        });
    }
    lines
}
