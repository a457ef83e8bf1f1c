//! `slipstream dead-letters show`: prints one dead letter with headers and value.

use std::fmt::Write as _;
use std::process::ExitCode;

use kafka::BoxError;
use kafka::headers::RawHeaders;
use kafka::topic_reader::TopicReader;
use rdkafka::Message;
use rdkafka::message::OwnedMessage;
use serde_json::{Map, Value};
use service::plural::counted;

use super::dead_letter::DeadLetter;
use super::deployment::Deployment;
use super::escape::{bytes_block, bytes_line, escaped, insert_bytes};
use super::options::ShowOptions;
use crate::output::{self, rfc3339};

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
    let origin = dead_letter.origin.as_ref().map_or_else(|| "unknown".to_owned(), ToString::to_string);
    let time = dead_letter.timestamp_ms.map_or_else(|| "none".to_owned(), rfc3339);
    let key = dead_letter.key.as_deref().map_or_else(|| "none".to_owned(), bytes_line);
    let mut text = format!(
        "{}\norigin   {}\ntime     {time}\nreason   {}\nreplays  {}\nkey      {key}\nheaders",
        dead_letter.position,
        escaped(&origin),
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
