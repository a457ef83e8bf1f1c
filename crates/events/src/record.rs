//! Decodes a Kafka record into a document, or into the reason why it can never be stored.
//!
//! Guarantee: decoding is a pure function of the record, so a replay gives the same bytes. Every
//! event that `parse_request` accepted becomes a document.

use bson::RawDocumentBuf;

use crate::{
    document::{self, Metadata},
    envelope::{Envelope, non_null},
    field,
    id::EventId,
    json,
    millis::Millis,
    source::Source,
    timestamp,
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
    /// The whole document without `_id`.
    pub document: RawDocumentBuf,
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

/// Decodes a record. `expected` returns whether a source is stored here.
///
/// Fields that the value lacks come from the record: `id` from the key, `timestamp` and
/// `ingested_at` from the record's timestamp. No value is invented. Unknown fields of the envelope
/// are kept in `envelope_extra`.
pub fn decode(record: &RecordView<'_>, expected: impl Fn(&str) -> bool) -> Result<Decoded, Poison> {
    if record.value.is_empty() {
        return Err(poison("decode", "EmptyValue", "the value is empty".to_owned()));
    }
    let raw = json::check_bytes(record.value)
        .map_err(|error| poison("decode", "InvalidJson", error.to_string()))?;
    let Some(envelope) = Envelope::split(raw.get()) else {
        return Err(poison("decode", "InvalidEnvelope", "the value is not a JSON object".to_owned()));
    };
    if let Some(Ok(source)) = envelope.source.map(field::text)
        && !expected(&source)
    {
        return Ok(Decoded::OtherSource(source.into_owned()));
    }
    storable(&envelope, record).map(Decoded::Event)
}

fn storable(envelope: &Envelope<'_>, record: &RecordView<'_>) -> Result<StorableEvent, Poison> {
    let mut violations = Violations::default();
    let id = violations.take(&at("id"), id(envelope, record));
    let timestamp = violations.take(&at("timestamp"), time(envelope.timestamp, record));
    let source = envelope.source.ok_or_else(BrokenRule::missing).and_then(field::source);
    let source = violations.take(&at("source"), source);
    let ingested_at = violations.take(&at("ingested_at"), time(envelope.ingested_at, record));
    let api_version =
        non_null(envelope.api_version).and_then(|raw| violations.take(&at("api_version"), field::text(raw)));
    for name in &envelope.repeated {
        violations.push(&at(name), BrokenRule::new("duplicate_field", "Field should be given only once"));
    }
    let payload = violations.take(&at("payload"), envelope.payload.ok_or_else(BrokenRule::missing));
    let readable = violations.is_empty();

    let mut draft = payload.map(|text| document::DocumentBuilder::new(text, &at("payload"), &mut violations));
    if let Some(draft) = &mut draft {
        draft.extra(&envelope.extra, &mut violations);
    }
    if let (Some(id), Some(timestamp), Some(source), Some(ingested_at), Some(mut draft)) =
        (id, timestamp, source, ingested_at, draft)
    {
        draft.metadata(&Metadata { id: &id, timestamp, ingested_at, api_version: api_version.as_deref() });
        if let Some(document) = draft.finish(&mut violations) {
            return Ok(StorableEvent { id, source, timestamp, ingested_at, document });
        }
    }
    let (stage, class) = if readable { ("document", "Unstorable") } else { ("decode", "InvalidEnvelope") };
    Err(poison(stage, class, reason(&violations.into_list())))
}

fn id(envelope: &Envelope<'_>, record: &RecordView<'_>) -> Result<EventId, BrokenRule> {
    if let Some(raw) = non_null(envelope.id) {
        return field::id(raw);
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
        Some(raw) => field::timestamp(raw, timestamp::of_record_number),
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
mod tests;
