//! A dead letter without its value, and its forms as text and as JSON.

use events::{Decoded, RecordView, decode};
use kafka::dead_letter_headers::{error_header, origin, record_timestamp_ms, replays};
use kafka::headers::RawHeaders;
use kafka::topic_reader::RecordPosition;
use rdkafka::Message;
use serde_json::{Map, Value, json};

use super::escape::{bytes_line, escaped, insert_bytes};
use crate::output::rfc3339;

/// A dead letter without its value.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Its position on the dead-letter topic.
    pub position: RecordPosition,
    /// The timestamp of its record, in milliseconds, even if the dead-letter topic rejected that.
    pub timestamp_ms: Option<i64>,
    /// The key of its record.
    pub key: Option<Box<[u8]>>,
    /// The size of its value; `None` for a null value.
    pub value_bytes: Option<usize>,
    /// The source in its value, if the value can be decoded that far.
    pub source: Option<String>,
    /// The position of its record.
    pub origin: Option<RecordPosition>,
    /// The stage that failed: `decode`, `document` or `store`.
    pub stage: Option<String>,
    /// The class of the error.
    pub class: Option<String>,
    /// The message of the error.
    pub reason: Option<String>,
    /// The number of replays of its record.
    pub replays: u32,
}

impl DeadLetter {
    /// Reads the key, the headers and the source of `message`.
    pub fn of(message: &impl Message<Headers: RawHeaders>) -> Self {
        Self {
            position: RecordPosition::of(message),
            timestamp_ms: record_timestamp_ms(message),
            key: message.key().map(Box::from),
            value_bytes: message.payload().map(<[u8]>::len),
            source: source(message),
            origin: origin(message),
            stage: error_header(message, "stage"),
            class: error_header(message, "exception.class.name"),
            reason: error_header(message, "exception.message"),
            replays: replays(message),
        }
    }

    /// Class and message of the error, in one line.
    pub fn reason_text(&self) -> String {
        match (&self.class, &self.reason) {
            (Some(class), Some(reason)) => format!("{class}: {reason}"),
            (Some(text), None) | (None, Some(text)) => text.clone(),
            (None, None) => "the dead letter has no reason".to_owned(),
        }
    }

    /// Position, time, key and origin, in one line.
    pub fn head_line(&self) -> String {
        let time = self.timestamp_ms.map_or_else(|| "no time".to_owned(), rfc3339);
        let key = self.key.as_deref();
        let key = key.map_or_else(|| "no key".to_owned(), |key| format!("key {}", bytes_line(key)));
        let origin = self.origin.as_ref();
        let origin =
            origin.map_or_else(|| "an unknown position".to_owned(), |origin| escaped(&origin.to_string()));
        let replays = match self.replays {
            0 => String::new(),
            replays => format!("  replays {replays}"),
        };
        format!("{}  {time}  {key}  of {origin}{replays}", self.position)
    }

    /// [`DeadLetter::reason_text`] without control characters.
    pub fn reason_line(&self) -> String {
        escaped(&self.reason_text())
    }

    /// The dead letter as JSON, without headers and value.
    pub fn json(&self) -> Map<String, Value> {
        let position = |position: &RecordPosition| json!({"topic": position.topic, "partition": position.partition, "offset": position.offset});
        let members = [
            ("topic", json!(self.position.topic)),
            ("partition", json!(self.position.partition)),
            ("offset", json!(self.position.offset)),
            ("timestamp", json!(self.timestamp_ms)),
            ("time", json!(self.timestamp_ms.map(rfc3339))),
            ("origin", json!(self.origin.as_ref().map(position))),
            ("stage", json!(self.stage)),
            ("class", json!(self.class)),
            ("reason", json!(self.reason)),
            ("source", json!(self.source)),
            ("replays", json!(self.replays)),
            ("value_bytes", json!(self.value_bytes)),
        ];
        let mut object: Map<String, Value> =
            members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        insert_bytes(&mut object, "key", self.key.as_deref());
        object
    }
}

fn source(message: &impl Message<Headers: RawHeaders>) -> Option<String> {
    let view =
        RecordView { key: message.key(), value: message.payload()?, timestamp: record_timestamp_ms(message) };
    match decode(&view, |_| false) {
        Ok(Decoded::OtherSource(source)) => Some(source),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka::dead_letter_headers::REPLAYS;
    use rdkafka::Timestamp;
    use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};

    fn message(headers: &[(&str, &str)], value: Option<&[u8]>) -> OwnedMessage {
        let headers = headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(value.as_bytes()) })
        });
        let (value, key) = (value.map(<[u8]>::to_vec), Some(b"k".to_vec()));
        OwnedMessage::new(value, key, "t.dlq".into(), Timestamp::CreateTime(5), 1, 7, Some(headers))
    }

    #[test]
    fn a_dead_letter_has_its_origin_its_reason_and_its_source() {
        let headers = [
            ("content-type", "application/json"),
            ("__connect.errors.topic", "t"),
            ("__connect.errors.partition", "3"),
            ("__connect.errors.offset", "9"),
            ("__connect.errors.exception.class.name", "InvalidJson"),
            ("__connect.errors.exception.message", "no JSON"),
        ];
        let dead_letter = DeadLetter::of(&message(&headers, Some(br#"{"source":"s","payload":7}"#)));
        assert_eq!(dead_letter.position.to_string(), "t.dlq/1@7");
        assert_eq!(dead_letter.origin.as_ref().unwrap().to_string(), "t/3@9");
        assert_eq!(dead_letter.reason_text(), "InvalidJson: no JSON");
        assert_eq!(dead_letter.source.as_deref(), Some("s"));
        let numbers = (dead_letter.timestamp_ms, dead_letter.replays, dead_letter.value_bytes);
        assert_eq!(numbers, (Some(5), 0, Some(26)));
        let timestamp = ("__connect.errors.timestamp", "9999999999999");
        let with_timestamp = DeadLetter::of(&message(&[&headers[..], &[timestamp]].concat(), None));
        assert_eq!(with_timestamp.timestamp_ms, Some(9_999_999_999_999));
        let replayed = [(REPLAYS, "1")];
        assert_eq!(DeadLetter::of(&message(&[&replayed[..], &headers].concat(), None)).replays, 1);
    }

    #[test]
    fn a_record_that_is_no_dead_letter_of_ours_has_empty_fields() {
        let headers =
            [("__connect.errors.topic", "t"), ("__connect.errors.partition", "x"), (REPLAYS, "many")];
        let other = DeadLetter::of(&message(&headers, None));
        assert!(other.origin.is_none() && other.source.is_none() && other.value_bytes.is_none(), "{other:?}");
        assert_eq!((other.reason_text().as_str(), other.replays), ("the dead letter has no reason", 0));
        let without_headers = OwnedMessage::new(None, None, "t".into(), Timestamp::NotAvailable, 0, 0, None);
        let empty = DeadLetter::of(&without_headers);
        assert!(empty.key.is_none() && empty.timestamp_ms.is_none(), "{empty:?}");
    }
}
