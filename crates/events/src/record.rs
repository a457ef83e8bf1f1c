//! What a Kafka record brings becomes a document, or a reason why it never can.
//!
//! Guarantee: a pure function of the record, so that a replay gives the same bytes; and whatever `parse_request`
//! accepted becomes a document.

use bson::RawDocumentBuf;

use crate::{
    document::{self, Metadata},
    envelope::{Envelope, given},
    fault::{Breach, Fault, Faults, Path},
    field,
    id::EventId,
    json,
    millis::Millis,
    source::Source,
    timestamp,
};

/// A reason is cut here: it becomes a header and a field of a log.
const MAX_REASON_BYTES: usize = 1024;

/// The parts of a Kafka record that an event is read from.
#[derive(Debug, Clone, Copy)]
pub struct RecordView<'r> {
    /// The key, if there is one.
    pub key: Option<&'r [u8]>,
    /// The value.
    pub value: &'r [u8],
    /// The record's own timestamp in epoch milliseconds, if it has one.
    pub timestamp: Option<i64>,
}

/// What a readable record turned out to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Decoded {
    /// An event, ready to be stored.
    Event(StorableEvent),
    /// An event of a source that is not expected here, whatever else is wrong with it.
    OtherSource(String),
}

/// An event and its document.
#[derive(Debug, Clone, PartialEq)]
pub struct StorableEvent {
    /// The event's id.
    pub id: EventId,
    /// Names the collection.
    pub source: Source,
    /// When it happened.
    pub timestamp: Millis,
    /// When the producer took it.
    pub ingested_at: Millis,
    /// The whole document, without `_id`.
    pub document: RawDocumentBuf,
}

/// Why a record can never be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Poison {
    /// `decode` (the envelope) or `document` (what would be stored).
    pub stage: &'static str,
    /// `EmptyValue`, `InvalidJson`, `InvalidEnvelope` or `Unstorable`.
    pub class: &'static str,
    /// Names every field that is at fault, at most 1 KiB; it never holds a value.
    pub reason: String,
}

/// Reads a record. `expected` says whether a source is to be stored here.
///
/// Fields that a foreign record lacks come from the record around it: `id` from the key, `timestamp` and `ingested_at`
/// from the record's timestamp. Nothing is ever made up. Unknown fields of the envelope are kept in `envelope_extra`.
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
    let mut faults = Faults::default();
    let id = faults.take(&at("id"), id(envelope, record));
    let timestamp = faults.take(&at("timestamp"), time(envelope.timestamp, record));
    let source = envelope.source.ok_or_else(Breach::missing).and_then(field::source);
    let source = faults.take(&at("source"), source);
    let ingested_at = faults.take(&at("ingested_at"), time(envelope.ingested_at, record));
    let api_version =
        given(envelope.api_version).and_then(|raw| faults.take(&at("api_version"), field::text(raw)));
    for name in &envelope.repeated {
        faults.push(&at(name), Breach::new("duplicate_field", "Field should be given only once"));
    }
    let payload = faults.take(&at("payload"), envelope.payload.ok_or_else(Breach::missing));
    let readable = faults.is_empty();

    let mut draft = payload.map(|text| document::Draft::new(text, &at("payload"), &mut faults));
    if let Some(draft) = &mut draft {
        draft.extra(&envelope.extra, &mut faults);
    }
    if let (Some(id), Some(timestamp), Some(source), Some(ingested_at), Some(mut draft)) =
        (id, timestamp, source, ingested_at, draft)
    {
        draft.metadata(&Metadata { id: &id, timestamp, ingested_at, api_version: api_version.as_deref() });
        if let Some(document) = draft.finish(&mut faults) {
            return Ok(StorableEvent { id, source, timestamp, ingested_at, document });
        }
    }
    let (stage, class) = if readable { ("document", "Unstorable") } else { ("decode", "InvalidEnvelope") };
    Err(poison(stage, class, reason(&faults.into_list())))
}

fn id(envelope: &Envelope<'_>, record: &RecordView<'_>) -> Result<EventId, Breach> {
    if let Some(raw) = given(envelope.id) {
        return field::id(raw);
    }
    let key =
        record.key.ok_or_else(|| Breach::new("missing", "Field required, since the record has no key"))?;
    let key = std::str::from_utf8(key)
        .map_err(|_| Breach::new("missing", "Field required, since the record's key is not valid UTF-8"))?;
    EventId::judge(key.to_owned())
        .map_err(|breach| Breach::new(breach.kind, format!("the record's key is no id: {}", breach.msg)))
}

fn time(field: Option<&str>, record: &RecordView<'_>) -> Result<Millis, Breach> {
    match given(field) {
        Some(raw) => field::timestamp(raw, timestamp::of_record_number),
        None => record.timestamp.and_then(Millis::new).ok_or_else(|| {
            Breach::new(
                "missing",
                "Field required, since the record has no timestamp of the years 1970 to 9999",
            )
        }),
    }
}

fn reason(faults: &[Fault]) -> String {
    let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
    faults.join("; ")
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
