//! `slipstream dead-letters show`: one dead letter whole.

use std::fmt::Write as _;
use std::process::ExitCode;

use kafka::headers::RawHeaders;
use rdkafka::Message;
use rdkafka::message::OwnedMessage;
use serde_json::{Map, Value};

use super::Deployment;
use super::list::object;
use super::options::ShowOptions;
use super::text::{block, escaped, line, member};
use crate::dead_letter::{DeadLetter, rfc3339};
use crate::stdout;
use kafka::BoxError;
use kafka::topic_reader::TopicReader;
use service::plural::counted;

/// Shows the record at the place that `options` name.
pub async fn show(options: ShowOptions, deployment: Deployment) -> Result<ExitCode, BoxError> {
    let topics: Vec<String> = deployment.letters.keys().cloned().collect();
    let place = options.place.among(&topics)?;
    let partitions = deployment.topics.get(&place.topic).copied().unwrap_or_default();
    let scan = TopicReader::new(
        &deployment.config.kafka_broker,
        &deployment.config.properties,
        "slipstream-dead-letters",
    );
    let wanted = place.clone();
    let there = usize::try_from(place.partition).is_ok_and(|partition| partition < partitions);
    let read = tokio::task::spawn_blocking(move || if there { scan.record(&wanted) } else { Ok(None) });
    let message = read.await??.ok_or_else(|| format!("there is no record at {place}"))?;
    if options.raw {
        stdout::write_bytes(message.payload().ok_or_else(|| format!("the value of {place} is null"))?)?;
    } else if options.json {
        stdout::write_line(whole(&message))?;
    } else {
        stdout::write_line(text(&message))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn whole(message: &OwnedMessage) -> Value {
    let headers = message.headers().into_iter().flat_map(RawHeaders::raw_headers).map(|header| {
        let mut entry = Map::new();
        member(&mut entry, "name", Some(header.name));
        member(&mut entry, "value", header.value);
        Value::Object(entry)
    });
    let headers = headers.collect();
    let mut object = object(&DeadLetter::of(message));
    object.insert("headers".to_owned(), headers);
    member(&mut object, "value", message.payload());
    Value::Object(object)
}

fn text(message: &OwnedMessage) -> String {
    let letter = DeadLetter::of(message);
    let origin = letter.origin.as_ref().map_or_else(|| "unknown".to_owned(), ToString::to_string);
    let at = letter.timestamp_ms.map_or_else(|| "none".to_owned(), rfc3339);
    let key = letter.key.as_deref().map_or_else(|| "none".to_owned(), line);
    let mut text = format!(
        "{}\norigin   {}\ntime     {at}\nreason   {}\nreplays  {}\nkey      {key}\nheaders",
        letter.position,
        escaped(&origin),
        escaped(&letter.reason_text()),
        letter.replays
    );
    for header in message.headers().into_iter().flat_map(RawHeaders::raw_headers) {
        let value = header.value.map_or_else(|| "null".to_owned(), line);
        _ = write!(text, "\n  {}: {value}", line(header.name));
    }
    match message.payload() {
        None => text.push_str("\nvalue    null"),
        Some(value) => _ = write!(text, "\nvalue    {}\n{}", counted(value.len(), "byte"), block(value)),
    }
    text
}
