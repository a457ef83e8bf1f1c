//! Decodes a Kafka record into a document, or into the reason why it can never be stored.
//!
//! Guarantee: decoding is a pure function of the record, so a replay gives the same bytes. Every
//! event that `parse_request` accepted becomes a document.

use std::time::Duration;

use bson::RawDocumentBuf;

use crate::{
    document::{DocumentBuilder, Metadata},
    fields::{self, Envelope, EventId, Millis, Source, non_null},
    json,
    validation::{BrokenRule, Path, Violation, Violations},
};

/// A reason is cut at this length, because it becomes a header and a log field.
const MAX_REASON_BYTES: usize = 1024;

/// The parts of a Kafka record that decoding reads.
#[derive(Debug, Clone, Copy)]
pub struct RecordView<'r> {
    /// The key, if any.
    pub key: Option<&'r [u8]>,
    /// The value.
    pub value: &'r [u8],
    /// The record's timestamp in epoch milliseconds, if any.
    pub timestamp: Option<i64>,
}

/// The result of decoding a readable record.
#[derive(Debug, Clone, PartialEq)]
pub enum Decoded {
    /// An event to be stored.
    Event(StorableEvent),
    /// An event of a source that is not expected. Other violations are not checked.
    OtherSource(String),
}

/// An event and its document.
#[derive(Debug, Clone, PartialEq)]
pub struct StorableEvent {
    /// The event's id.
    pub id: EventId,
    /// The source. It names the collection.
    pub source: Source,
    /// When the event happened.
    pub timestamp: Millis,
    /// When the producer accepted the event.
    pub ingested_at: Millis,
    /// What the event does to the document.
    pub operation: Operation,
    /// The whole document without `_id`. That of a delete is empty.
    pub document: RawDocumentBuf,
}

/// What an event does to the document of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// The event's document replaces it.
    Replace,
    /// The document is deleted.
    Delete,
}

/// Why a record can never be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Poison {
    /// `decode` (the envelope) or `document` (the document).
    pub stage: &'static str,
    /// `EmptyValue`, `InvalidJson`, `InvalidEnvelope` or `Unstorable`.
    pub class: &'static str,
    /// All violations, at most 1 KiB. It never contains a value.
    pub reason: String,
}

/// The field of documents and tombstones with the time at which they expire.
pub const EXPIRES_AT: &str = "expires_at";

/// How the document of a source is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DocumentOptions<'o> {
    /// A field at the top of the document that gets the source's name. A payload field with this
    /// name moves into `payload_conflicts`.
    pub source_field: Option<&'o str>,
    /// How long after its timestamp the document expires. It then has the field `expires_at`, and a
    /// payload field with this name moves into `payload_conflicts`.
    pub ttl: Option<Duration>,
    /// Whether a record may delete the document of its id.
    pub takes_deletes: bool,
}

impl<'o> DocumentOptions<'o> {
    /// Names that these options reserve at the top of the document.
    fn reserved(&self) -> [Option<&'o str>; 2] {
        [self.source_field, self.ttl.map(|_| EXPIRES_AT)]
    }
}

/// Decodes a record. `expected` returns whether a source is stored here.
///
/// Fields that the value lacks come from the record: `id` from the key, `timestamp` and
/// `ingested_at` from the record's timestamp. No value is invented. Unknown fields of the envelope
/// are kept in `envelope_extra`.
pub fn decode(record: &RecordView<'_>, expected: impl Fn(&str) -> bool) -> Result<Decoded, Poison> {
    decode_with(record, |source| expected(source).then(DocumentOptions::default))
}

/// As [`decode`]. `options` returns how the document of a source is made, or `None` for a source
/// that is not stored here.
pub fn decode_with<'o>(
    record: &RecordView<'_>,
    options: impl Fn(&str) -> Option<DocumentOptions<'o>>,
) -> Result<Decoded, Poison> {
    if record.value.is_empty() {
        return Err(poison("decode", "EmptyValue", "the value is empty".to_owned()));
    }
    let raw = json::check_bytes(record.value)
        .map_err(|error| poison("decode", "InvalidJson", error.to_string()))?;
    let Some(envelope) = Envelope::split(raw.get()) else {
        return Err(poison("decode", "InvalidEnvelope", "the value is not a JSON object".to_owned()));
    };
    let options = match envelope.source.map(fields::text) {
        Some(Ok(source)) => match options(&source) {
            Some(options) => options,
            None => return Ok(Decoded::OtherSource(source.into_owned())),
        },
        _ => DocumentOptions::default(),
    };
    storable(&envelope, record, options).map(Decoded::Event)
}

fn storable(
    envelope: &Envelope<'_>,
    record: &RecordView<'_>,
    options: DocumentOptions<'_>,
) -> Result<StorableEvent, Poison> {
    let mut violations = Violations::default();
    let id = violations.take(&at("id"), id(envelope, record));
    let timestamp = violations.take(&at("timestamp"), time(envelope.timestamp, record));
    let source = envelope.source.ok_or_else(BrokenRule::missing).and_then(fields::source);
    let source = violations.take(&at("source"), source);
    let ingested_at = violations.take(&at("ingested_at"), time(envelope.ingested_at, record));
    let api_version =
        non_null(envelope.api_version).and_then(|raw| violations.take(&at("api_version"), fields::text(raw)));
    for name in &envelope.repeated {
        violations.push(&at(name), BrokenRule::new("duplicate_field", "Field should be given only once"));
    }
    let content = violations.take(&at("payload"), content(envelope, options));
    let readable = violations.is_empty();

    let mut builder = match content {
        Some(Some(text)) => {
            Some(DocumentBuilder::with_reserved(text, &at("payload"), &options.reserved(), &mut violations))
        }
        _ => None,
    };
    if let Some(builder) = &mut builder {
        builder.extra(&envelope.extra, &mut violations);
    }
    match (id, timestamp, source, ingested_at, content, builder) {
        (Some(id), Some(timestamp), Some(source), Some(ingested_at), Some(None), _) if readable => {
            let (operation, document) = (Operation::Delete, RawDocumentBuf::new());
            return Ok(StorableEvent { id, source, timestamp, ingested_at, operation, document });
        }
        (Some(id), Some(timestamp), Some(source), Some(ingested_at), _, Some(mut builder)) => {
            let api_version = api_version.as_deref();
            builder.metadata(&Metadata { id: &id, timestamp, ingested_at, api_version });
            if let Some(field) = options.source_field {
                builder.text(field, source.as_str());
            }
            if let Some(ttl) = options.ttl {
                builder.date(EXPIRES_AT, timestamp.saturating_add(ttl));
            }
            if let Some(document) = builder.finish(&mut violations) {
                let operation = Operation::Replace;
                return Ok(StorableEvent { id, source, timestamp, ingested_at, operation, document });
            }
        }
        _ => {}
    }
    let (stage, class) = if readable { ("document", "Unstorable") } else { ("decode", "InvalidEnvelope") };
    Err(poison(stage, class, reason(&violations.into_list())))
}

/// The payload, or `None` if the record deletes.
fn content<'t>(envelope: &Envelope<'t>, options: DocumentOptions<'_>) -> Result<Option<&'t str>, BrokenRule> {
    match (non_null(envelope.payload), envelope.is_delete(), options.takes_deletes) {
        (Some(_), true, true) => Err(BrokenRule::new("extra_forbidden", "A delete should have no payload")),
        (None, true, true) => Ok(None),
        (None, true, false) => Err(BrokenRule::new(
            "missing",
            "Field required, since the source has no `delete` in the sources file of this consumer",
        )),
        _ => envelope.payload.map(Some).ok_or_else(BrokenRule::missing),
    }
}

fn id(envelope: &Envelope<'_>, record: &RecordView<'_>) -> Result<EventId, BrokenRule> {
    if let Some(raw) = non_null(envelope.id) {
        return fields::id(raw);
    }
    let key = record
        .key
        .ok_or_else(|| BrokenRule::new("missing", "Field required, since the record has no key"))?;
    let key = std::str::from_utf8(key).map_err(|_| {
        BrokenRule::new("missing", "Field required, since the record's key is not valid UTF-8")
    })?;
    EventId::validate(key.to_owned()).map_err(|broken_rule| {
        BrokenRule::new(broken_rule.kind, format!("the record's key is not a valid id: {}", broken_rule.msg))
    })
}

fn time(field: Option<&str>, record: &RecordView<'_>) -> Result<Millis, BrokenRule> {
    match non_null(field) {
        Some(raw) => fields::timestamp(raw, fields::timestamp_of_record_number),
        None => record.timestamp.and_then(Millis::new).ok_or_else(|| {
            BrokenRule::new(
                "missing",
                "Field required, since the record has no timestamp of the years 1970 to 9999",
            )
        }),
    }
}

fn reason(violations: &[Violation]) -> String {
    let violations: Vec<String> = violations.iter().map(ToString::to_string).collect();
    violations.join("; ")
}

fn poison(stage: &'static str, class: &'static str, mut reason: String) -> Poison {
    reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
    Poison { stage, class, reason }
}

fn at(name: &str) -> Path<'_> {
    Path::Name(&Path::Root, name)
}

#[cfg(test)]
mod tests {
    //! Records of other producers, and records that can never be stored.

    use std::time::Duration;

    use bson::{Document, doc};

    use super::{
        Decoded, DocumentOptions, Operation, Poison, RecordView, StorableEvent, decode, decode_with,
    };

    const KEY: Option<&[u8]> = Some(b"key");

    fn record(value: &str) -> RecordView<'_> {
        RecordView { key: KEY, value: value.as_bytes(), timestamp: Some(7000) }
    }

    fn event(record: &RecordView<'_>) -> StorableEvent {
        match decode(record, |source| source == "s") {
            Ok(Decoded::Event(event)) => event,
            other => panic!("an event expected, not {other:?}"),
        }
    }

    fn document(value: &str) -> Document {
        Document::try_from(event(&record(value)).document).unwrap()
    }

    fn poisoned(record: &RecordView<'_>) -> Poison {
        decode(record, |source| source == "s").expect_err("poison expected")
    }

    #[test]
    fn absent_fields_come_from_the_record() {
        let event = event(&record(r#"{"source":"s","payload":{"a":1},"id":null,"ingested_at":null}"#));
        assert_eq!(event.id.as_str(), "key");
        assert_eq!((event.timestamp.get(), event.ingested_at.get()), (7000, 7000));
        let expected = doc! {
            "a": 1_i32, "event_id": "key", "event_timestamp": 7000_i64, "ingested_at": 7000_i64,
            "event_timestamp_iso": "1970-01-01T00:00:07.000Z", "ingested_at_iso": "1970-01-01T00:00:07.000Z",
        };
        assert_eq!(Document::try_from(event.document).unwrap(), expected);
    }

    #[test]
    fn fields_absent_from_value_and_record_are_named() {
        let value = br#"{"source":"s","payload":{}}"#;
        let poison = poisoned(&RecordView { key: None, value, timestamp: None });
        assert_eq!((poison.stage, poison.class), ("decode", "InvalidEnvelope"));
        for field in ["id: ", "timestamp: ", "ingested_at: "] {
            assert!(poison.reason.contains(field), "{}", poison.reason);
        }
        for key in [&b"\xff"[..], b"", b"a\n"] {
            let poison = poisoned(&RecordView { key: Some(key), value, timestamp: Some(1) });
            assert!(poison.reason.starts_with("id: "), "{}", poison.reason);
        }
        let poison = poisoned(&RecordView { key: KEY, value, timestamp: Some(-1) });
        assert!(poison.reason.starts_with("timestamp: "), "{}", poison.reason);
    }

    #[test]
    fn integer_times_are_milliseconds_and_text_is_rfc_3339() {
        let value =
            r#"{"source":"s","payload":{},"timestamp":1730000000,"ingested_at":"2024-10-27T03:33:20.1Z"}"#;
        let event = event(&record(value));
        assert_eq!((event.timestamp.get(), event.ingested_at.get()), (1_730_000_000, 1_730_000_000_100));
        let poison = poisoned(&record(r#"{"source":"s","payload":{},"timestamp":1.5}"#));
        assert!(poison.reason.starts_with("timestamp: "), "{}", poison.reason);
    }

    #[test]
    fn unknown_fields_of_the_envelope_are_kept() {
        let document =
            document(r#"{"v":[1],"source":"s","payload":{"envelope_extra":1},"a.b":{"$c":"$d"},"v":2}"#);
        assert_eq!(
            document.get_document("envelope_extra").unwrap(),
            &doc! { "a.b": { "$c": "$d" }, "v": 2_i32 }
        );
        assert_eq!(document.get_document("payload_conflicts").unwrap(), &doc! { "envelope_extra": 1_i32 });
    }

    #[test]
    fn the_source_field_is_the_last_one_and_moves_a_payload_field() {
        let named = |value: &str| {
            let options = DocumentOptions { source_field: Some("from"), ..DocumentOptions::default() };
            match decode_with(&record(value), |source| (source == "s").then_some(options)) {
                Ok(Decoded::Event(event)) => Document::try_from(event.document).unwrap(),
                other => panic!("an event expected, not {other:?}"),
            }
        };
        let plain = named(r#"{"source":"s","payload":{"a":1}}"#);
        assert_eq!(plain.keys().last().map(String::as_str), Some("from"));
        assert!(!plain.contains_key("payload_conflicts"));
        let value = r#"{"source":"s","payload":{"from":[1],"event_id":2,"from":3},"more":4}"#;
        let moved = named(value);
        assert_eq!(
            moved.get_document("payload_conflicts").unwrap(),
            &doc! { "event_id": 2_i32, "from": 3_i32 }
        );
        assert_eq!(moved.get_str("from").unwrap(), "s");
        assert_eq!(moved.get_document("envelope_extra").unwrap(), &doc! { "more": 4_i32 });
        assert_eq!(moved.keys().filter(|key| *key == "from").count(), 1);
        assert_eq!(document(value).get_i32("from").unwrap(), 3, "without the option it is a payload field");
    }

    /// Decodes as a source with these options.
    fn with_options(options: DocumentOptions<'_>, value: &str) -> Result<StorableEvent, Poison> {
        match decode_with(&record(value), |source| (source == "s").then_some(options))? {
            Decoded::Event(event) => Ok(event),
            Decoded::OtherSource(source) => panic!("an event expected, not one of {source}"),
        }
    }

    const DELETES: DocumentOptions<'static> =
        DocumentOptions { source_field: None, ttl: None, takes_deletes: true };

    #[test]
    fn a_delete_has_id_and_version_and_no_document() {
        let value =
            r#"{"id":"a","timestamp":5,"source":"s","op":"delete","ingested_at":6,"api_version":"1"}"#;
        let delete = with_options(DELETES, value).unwrap();
        assert_eq!((delete.id.as_str(), delete.timestamp.get(), delete.ingested_at.get()), ("a", 5, 6));
        assert_eq!((delete.operation, delete.document.is_empty()), (Operation::Delete, true));
        for same in [
            r#"{"source":"s","op":"delete","payload":null}"#,
            r#"{"source":"s","\u006fp":"del\u0065te","more":1}"#,
        ] {
            let delete = with_options(DELETES, same).unwrap();
            assert_eq!((delete.operation, delete.id.as_str()), (Operation::Delete, "key"), "{same}");
        }
        let replaced = with_options(DELETES, r#"{"source":"s","op":"upsert","payload":{}}"#).unwrap();
        assert_eq!(replaced.operation, Operation::Replace);
        let extra = Document::try_from(replaced.document).unwrap();
        assert_eq!(extra.get_document("envelope_extra").unwrap(), &doc! { "op": "upsert" });
    }

    #[test]
    fn a_delete_is_poison_where_it_cannot_be_applied_as_sent() {
        let value = r#"{"source":"s","op":"delete"}"#;
        let poison = with_options(DocumentOptions::default(), value).unwrap_err();
        assert_eq!((poison.stage, poison.class), ("decode", "InvalidEnvelope"));
        assert!(poison.reason.starts_with("payload: Field required"), "{}", poison.reason);
        for (value, reason) in [
            (r#"{"source":"s","op":"delete","payload":{}}"#, "payload: A delete should have no payload"),
            (r#"{"source":"s","op":"Delete"}"#, "payload: Field required"),
            (r#"{"source":"s","op":"delete","id":""}"#, "id: "),
            (r#"{"source":"s","op":"delete","timestamp":-1}"#, "timestamp: "),
            (r#"{"source":"s","op":"delete","api_version":1}"#, "api_version: "),
        ] {
            let poison = with_options(DELETES, value).unwrap_err();
            assert_eq!((poison.stage, poison.class), ("decode", "InvalidEnvelope"), "{value}");
            assert!(poison.reason.starts_with(reason), "{}", poison.reason);
        }
        let replaced = event(&record(r#"{"source":"s","op":"delete","payload":{"a":1}}"#));
        assert_eq!(replaced.operation, Operation::Replace, "as before, where there are no deletes");
    }

    #[test]
    fn a_document_that_expires_ends_with_the_date() {
        let options = DocumentOptions { ttl: Some(Duration::from_secs(60)), ..DocumentOptions::default() };
        let value = r#"{"source":"s","payload":{"expires_at":"never","a":1},"timestamp":1000}"#;
        let document = Document::try_from(with_options(options, value).unwrap().document).unwrap();
        assert_eq!(document.keys().last().map(String::as_str), Some("expires_at"));
        assert_eq!(document.get_datetime("expires_at").unwrap().timestamp_millis(), 61_000);
        assert_eq!(document.get_document("payload_conflicts").unwrap(), &doc! { "expires_at": "never" });
        let latest = format!(r#"{{"source":"s","payload":{{}},"timestamp":{}}}"#, crate::Millis::MAX.get());
        let document = Document::try_from(with_options(options, &latest).unwrap().document).unwrap();
        let expires = document.get_datetime("expires_at").unwrap().timestamp_millis();
        assert_eq!(expires, crate::Millis::MAX.get());
    }

    #[test]
    fn an_unexpected_source_is_skipped_despite_other_violations() {
        let deep = "[".repeat(1000) + &"]".repeat(1000);
        for value in [
            r#"{"source":"other"}"#,
            r#"{"source":"not a name","payload":1e9999}"#,
            r#"{"source":"s","source":"other","id":{}}"#,
            &format!(r#"{{"payload":{deep},"source":"o\u0074her","timestamp":"\ud800"}}"#),
        ] {
            let decoded = decode(&record(value), |source| source == "s");
            assert!(matches!(decoded, Ok(Decoded::OtherSource(_))), "{value}: {decoded:?}");
        }
    }

    #[test]
    fn a_record_whose_source_cannot_be_read_is_poison() {
        for value in [
            r#"{"payload":{}}"#,
            r#"{"source":5,"payload":{}}"#,
            r#"{"source":null,"payload":{}}"#,
            r#"{"source":"\ud800","payload":{}}"#,
            r#"{"source":"system.a","payload":{}}"#,
            r#"{"source":"a.system.b","payload":{}}"#,
            r#"{"source":"a.","payload":{}}"#,
            r#"{"source":"a..b","payload":{}}"#,
        ] {
            let poison = decode(&record(value), |_| true).expect_err("poison expected");
            assert_eq!((poison.stage, poison.class), ("decode", "InvalidEnvelope"), "{value}");
            assert!(poison.reason.starts_with("source: "), "{}", poison.reason);
        }
    }

    #[test]
    fn a_value_that_is_not_a_json_object_is_poison() {
        for (value, class) in [
            (&b""[..], "EmptyValue"),
            (b" ", "InvalidJson"),
            (b"{\"source\":\"other\"", "InvalidJson"),
            (b"{\"source\":\"other\",\"a\":\"\xff\"}", "InvalidJson"),
            (b"[1]", "InvalidEnvelope"),
        ] {
            let poison = poisoned(&RecordView { key: KEY, value, timestamp: Some(1) });
            assert_eq!((poison.stage, poison.class), ("decode", class));
            assert_eq!(poison.to_string(), poison.reason);
        }
    }

    #[test]
    fn a_value_that_cannot_be_stored_is_poison_with_its_path() {
        for (value, reason) in [
            (r#"{"source":"s","payload":{"a":[1e9999]}}"#, "payload.a[0]: "),
            (r#"{"source":"s","payload":{},"b":{"c\u0000":1}}"#, "b.c\0: "),
            (r#"{"source":"s","payload":[]}"#, "payload: "),
        ] {
            let poison = poisoned(&record(value));
            assert_eq!((poison.stage, poison.class), ("document", "Unstorable"), "{value}");
            assert!(poison.reason.starts_with(reason), "{}", poison.reason);
        }
    }

    #[test]
    fn an_invalid_envelope_is_poison_with_all_violations() {
        let value = r#"{"source":"s","id":true,"timestamp":[],"api_version":1,"payload":{"x":1e9999},"id":"b","id":"\ud800"}"#;
        let poison = poisoned(&record(value));
        assert_eq!((poison.stage, poison.class), ("decode", "InvalidEnvelope"));
        for part in [
            "id: Input",
            "timestamp: ",
            "api_version: ",
            "id: Field should be given only once",
            "payload.x: ",
        ] {
            assert!(poison.reason.contains(part), "{part} not in {}", poison.reason);
        }
    }

    #[test]
    fn a_reason_has_at_most_1_kib() {
        let value = format!(r#"{{"source":"s","payload":{{"a":[{}1e9999]}}}}"#, "1e9999,".repeat(5000));
        assert!(poisoned(&record(&value)).reason.len() <= 1024);
    }
}
