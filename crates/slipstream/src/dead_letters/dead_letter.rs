//! A dead letter without its value: its fields, the filters that select it, and its forms as text and
//! as JSON. The text of untrusted bytes cannot move the cursor or break a line. The dead-letter
//! topics of a deployment.

use std::collections::BTreeMap;
use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use events::{Decoded, RecordView, decode};
use jiff::Timestamp;
use kafka::BoxError;
use kafka::cluster::Cluster;
use kafka::headers::RawHeaders;
use kafka::headers::{error_header, origin, record_timestamp_ms, replays};
use kafka::topic_reader::RecordPosition;
use rdkafka::Message;
use serde_json::{Map, Value, json};

use super::options::Filters;
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
    /// The source that was fetched, or that in its value, if the value can be decoded that far.
    pub source: Option<String>,
    /// Whether it is a fetched record, which never was on a topic.
    pub is_pulled: bool,
    /// The position of its record.
    pub origin: Option<RecordPosition>,
    /// The stage that failed: `decode`, `document`, `store` or `pull`.
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
        let pulled = pulled_source(message);
        Self {
            position: RecordPosition::of(message),
            timestamp_ms: record_timestamp_ms(message),
            key: message.key().map(Box::from),
            value_bytes: message.payload().map(<[u8]>::len),
            is_pulled: pulled.is_some(),
            source: pulled.or_else(|| source(message)),
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
        let origin = self.origin_text().unwrap_or_else(|| "an unknown position".to_owned());
        let replays = match self.replays {
            0 => String::new(),
            replays => format!("  replays {replays}"),
        };
        format!("{}  {time}  {key}  of {origin}{replays}", self.position)
    }

    /// The position of its record, or the source that was fetched, in one line.
    pub fn origin_text(&self) -> Option<String> {
        let fetch = || format!("a fetch of {}", self.source.as_deref().unwrap_or_default());
        let pulled = self.is_pulled.then(fetch);
        self.origin.as_ref().map(ToString::to_string).or(pulled).map(|text| escaped(&text))
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
            ("pulled", json!(self.is_pulled)),
            ("replays", json!(self.replays)),
            ("value_bytes", json!(self.value_bytes)),
        ];
        let mut object: Map<String, Value> =
            members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        insert_bytes(&mut object, "key", self.key.as_deref());
        object
    }
}

/// The source of a fetched record, which the producer dead-lettered. A record of a topic may have a
/// header of this name too, but it has an origin.
fn pulled_source(message: &impl Message<Headers: RawHeaders>) -> Option<String> {
    let is_pulled = origin(message).is_none() && error_header(message, "stage")? == "pull";
    let header = message.headers()?.raw_headers().filter(|header| header.name == b"pull").last()?;
    is_pulled.then(|| String::from_utf8_lossy(header.value.unwrap_or_default()).into_owned())
}

fn source(message: &impl Message<Headers: RawHeaders>) -> Option<String> {
    let view =
        RecordView { key: message.key(), value: message.payload()?, timestamp: record_timestamp_ms(message) };
    match decode(&view, |_| false) {
        Ok(Decoded::OtherSource(source)) => Some(source),
        _ => None,
    }
}

/// The filters, with times relative to the start of the command.
#[derive(Debug, Clone)]
pub struct Filter {
    reason: Option<String>,
    source: Option<String>,
    /// The lowest selected timestamp.
    pub since_ms: Option<i64>,
    until_ms: Option<i64>,
}

impl Filter {
    /// Resolves `filters` now.
    pub fn new(filters: Filters) -> Self {
        let now_ms = Timestamp::now().as_millisecond();
        Self {
            reason: filters.reason,
            source: filters.source.map(|source| source.to_string()),
            since_ms: filters.since.map(|since| since.epoch_ms(now_ms)),
            until_ms: filters.until.map(|until| until.epoch_ms(now_ms)),
        }
    }

    /// Whether the filters select `dead_letter`. A time filter excludes one without a timestamp.
    pub fn matches(&self, dead_letter: &DeadLetter) -> bool {
        let reason = self.reason.as_ref().is_none_or(|text| dead_letter.reason_text().contains(text));
        let source = self.source.is_none() || self.source == dead_letter.source;
        let since = self.since_ms.is_none_or(|since| dead_letter.timestamp_ms.is_some_and(|ms| ms >= since));
        let until = self.until_ms.is_none_or(|until| dead_letter.timestamp_ms.is_some_and(|ms| ms < until));
        reason && source && since && until
    }
}

/// Maximum number of bytes that a line shows of a key that is not UTF-8.
const MAX_SHOWN_BYTES: usize = 48;

/// Whether a character is invisible but has an effect: control characters, and those that change
/// the text direction.
fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Text for one line, with escaped control characters and backslashes.
pub fn escaped(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if is_control(c) || c == '\\' { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// Bytes for one line: as text, or in hexadecimal if they are not UTF-8.
pub fn bytes_line(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => escaped(text),
        Err(_) => {
            let more = if bytes.len() > MAX_SHOWN_BYTES { "…" } else { "" };
            format!("0x{}{more}", hex(&bytes[..bytes.len().min(MAX_SHOWN_BYTES)]))
        }
    }
}

/// Printable text unchanged, other bytes as a hex dump with offsets and ASCII characters.
pub fn bytes_block(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(|c| matches!(c, '\n' | '\t') || !is_control(c)) => text.to_owned(),
        _ => dump(bytes),
    }
}

fn dump(bytes: &[u8]) -> String {
    let rows = bytes.chunks(16).enumerate().map(|(n, row)| {
        let halves: Vec<String> =
            row.chunks(8).map(|half| half.iter().map(|byte| format!("{byte:02x} ")).collect()).collect();
        let ascii: String = row
            .iter()
            .map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' })
            .collect();
        format!("{:08x}  {:<49} |{ascii}|", n * 16, halves.join(" "))
    });
    rows.collect::<Vec<_>>().join("\n")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        _ = write!(text, "{byte:02x}");
        text
    })
}

/// Inserts a member `name` with the text, or `NAME_base64` if the bytes are not UTF-8.
pub fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(|bytes| (std::str::from_utf8(bytes), bytes)) {
        None => _ = object.insert(name.to_owned(), Value::Null),
        Some((Ok(text), _)) => _ = object.insert(name.to_owned(), text.into()),
        Some((Err(_), bytes)) => {
            _ = object.insert(format!("{name}_base64"), BASE64_STANDARD.encode(bytes).into());
        }
    }
}

/// The topics of a deployment.
pub struct Deployment {
    /// The consumer's configuration.
    pub config: consumer::Config,
    /// The existing dead-letter topics with their partitions.
    pub dead_letter_topics: BTreeMap<String, Vec<i32>>,
    /// All topics, with their numbers of partitions.
    pub topics: BTreeMap<String, usize>,
}

impl Deployment {
    /// Reads the topics.
    pub async fn load(config: consumer::Config) -> Result<Self, BoxError> {
        let group = &config.group_id;
        let cluster = Cluster::new(&config.kafka_broker, &config.properties, "slipstream-check", group)?;
        let found = cluster.topics().await?;
        let mut dead_letter_topics = BTreeMap::new();
        for spec in config.topic_specs().into_iter().filter(|spec| spec.is_dead_letter_topic()) {
            let topic = found.get(&spec.name).ok_or_else(|| {
                format!(
                    "topic {} does not exist: start the consumer, which creates it, or set KAFKA_TOPIC and \
                     DEAD_LETTER_TOPIC as for the consumer",
                    spec.name
                )
            })?;
            dead_letter_topics.insert(spec.name, topic.partition_ids());
        }
        let topics = found.into_iter().map(|(name, topic)| (name, topic.partitions.len())).collect();
        Ok(Self { config, dead_letter_topics, topics })
    }
}

#[cfg(test)]
mod tests {
    use events::Source;
    use kafka::headers::REPLAYS;
    use kafka::topic_reader::RecordPosition;
    use rdkafka::Timestamp;
    use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};

    use super::*;
    use crate::dead_letters::options::TimeArgument;

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

    fn dead_letter() -> DeadLetter {
        DeadLetter {
            position: RecordPosition { topic: "t.dlq".into(), partition: 0, offset: 0 },
            timestamp_ms: Some(5_000),
            key: None,
            value_bytes: Some(1),
            is_pulled: false,
            source: Some("manual".into()),
            origin: None,
            stage: None,
            class: Some("Unstorable".into()),
            reason: Some("payload.a: too deep".into()),
            replays: 0,
        }
    }

    fn matches(filters: Filters, dead_letter: &DeadLetter) -> bool {
        Filter::new(filters).matches(dead_letter)
    }

    #[test]
    fn a_reason_is_a_part_of_class_or_message() {
        for (text, taken) in
            [("Unstorable", true), ("too deep", true), ("Unstorable: payload", true), ("x", false)]
        {
            let filters = Filters { reason: Some(text.into()), ..Filters::default() };
            assert_eq!(matches(filters, &dead_letter()), taken, "{text}");
        }
    }

    #[test]
    fn a_source_filter_excludes_a_value_without_a_readable_source() {
        let filters = |name| Filters { source: Some(Source::new(name).unwrap()), ..Filters::default() };
        assert!(matches(filters("manual"), &dead_letter()) && !matches(filters("man"), &dead_letter()));
        assert!(!matches(filters("manual"), &DeadLetter { source: None, ..dead_letter() }));
    }

    #[test]
    fn since_is_inclusive_and_until_is_exclusive() {
        let between = |since, until| Filters {
            since: Some(TimeArgument::At(since)),
            until: Some(TimeArgument::At(until)),
            ..Filters::default()
        };
        assert!(matches(between(5_000, 5_001), &dead_letter()));
        assert!(
            !matches(between(5_001, 6_000), &dead_letter()) && !matches(between(0, 5_000), &dead_letter())
        );
        assert!(!matches(between(0, 9_000), &DeadLetter { timestamp_ms: None, ..dead_letter() }));
        assert!(matches(Filters::default(), &DeadLetter { timestamp_ms: None, ..dead_letter() }));
    }

    #[test]
    fn a_line_has_no_control_characters() {
        assert_eq!(bytes_line("Zu\u{308}rich \"7\"".as_bytes()), "Zu\u{308}rich \"7\"");
        assert_eq!(bytes_line(b"a\nb\x1b[2J\\"), "a\\nb\\u{1b}[2J\\\\");
        assert_eq!(bytes_line("\u{202e}x".as_bytes()), "\\u{202e}x");
        assert_eq!(bytes_line(b"\xff\x00a"), "0xff0061");
        assert_eq!(bytes_line(&[0xff; 50]), format!("0x{}…", "ff".repeat(48)));
        assert_eq!(bytes_line(b""), "");
    }

    #[test]
    fn a_block_is_printable_text_or_a_hex_dump() {
        let text = "{\n\t\"a\": \"é\\n\"}";
        assert_eq!(bytes_block(text.as_bytes()), text);
        assert_eq!(bytes_block(b""), "");
        let dump = bytes_block(b"0123456789abcdef\xff\x1b ");
        let wanted = "00000000  30 31 32 33 34 35 36 37  38 39 61 62 63 64 65 66  |0123456789abcdef|\n\
                      00000010  ff 1b 20                                          |.. |";
        assert_eq!(dump, wanted);
        assert!(bytes_block(b"a\x1b[2J").starts_with("00000000  61 1b"));
    }

    #[test]
    fn bytes_that_are_not_utf8_are_inserted_as_base64() {
        let mut object = Map::new();
        insert_bytes(&mut object, "a", Some(b"x\n"));
        insert_bytes(&mut object, "b", Some(b"\xff"));
        insert_bytes(&mut object, "c", None);
        let wanted = serde_json::json!({"a": "x\n", "b_base64": "/w==", "c": null});
        assert_eq!(Value::Object(object), wanted);
    }
}
