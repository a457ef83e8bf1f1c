//! Reads topics to their end and keeps the records and dead letters of one event. The outcome of a
//! record follows from the dead letters, the group's offset and the stored document.

use bson::{Bson, Document};
use consumer::ExpectedSources;
use events::{Decoded, Operation, Poison, RecordView, StorableEvent};
use kafka::BoxError;
use kafka::headers::{error_header, origin};
use kafka::topic_reader::{CONTINUE, RecordPosition, TopicReader};
use rdkafka::Message;
use rdkafka::message::BorrowedMessage;

/// A record of the event.
#[derive(Debug)]
pub struct FoundRecord {
    pub position: RecordPosition,
    /// Its timestamp, in milliseconds.
    pub timestamp_ms: Option<i64>,
    /// Its decoded content.
    pub content: Content,
}

/// The decoded content of a record.
#[derive(Debug)]
pub enum Content {
    /// An event of an expected source.
    Event(Box<StorableEvent>),
    /// An event of a source that is not expected.
    OtherSource(String),
    /// A null value.
    Null,
    /// A poison record.
    Poison(Poison),
}

/// A dead letter of the event.
#[derive(Debug)]
pub struct FoundDeadLetter {
    pub position: RecordPosition,
    /// The position of its record.
    pub origin: Option<RecordPosition>,
    pub reason: String,
}

impl FoundRecord {
    /// The record of `message`.
    pub fn of(message: &BorrowedMessage<'_>, content: Content) -> Self {
        let timestamp_ms = message.timestamp().to_millis();
        Self { position: RecordPosition::of(message), timestamp_ms, content }
    }
}

impl FoundDeadLetter {
    /// The dead letter in `message`.
    pub fn of(message: &BorrowedMessage<'_>, _: Content) -> Self {
        let reason = error_header(message, "exception.message");
        let reason = reason.unwrap_or_else(|| "the dead letter has no reason".into());
        Self { position: RecordPosition::of(message), origin: origin(message), reason }
    }
}

/// The search for one event id.
#[derive(Debug)]
pub struct Search {
    reader: TopicReader,
    id: String,
    expected: ExpectedSources,
    since_ms: Option<i64>,
}

impl Search {
    /// Searches for the event `id` in records with a timestamp from `since_ms` on.
    pub fn new(config: &consumer::Config, id: &str, since_ms: Option<i64>) -> Self {
        let reader = TopicReader::new(&config.kafka_broker, &config.properties, "slipstream-trace");
        Self { reader, id: id.to_owned(), expected: config.expected.clone(), since_ms }
    }

    /// Reads `topic` and calls `each` for the records that belong to the event.
    pub fn read(
        &self,
        topic: &str,
        mut each: impl FnMut(&BorrowedMessage<'_>, Content),
    ) -> Result<(), BoxError> {
        self.reader.read(topic, self.since_ms, |message| {
            if let Some(content) = self.content(message) {
                each(message, content);
            }
            CONTINUE
        })
    }

    /// The content of a record that belongs to the event: by its key, or by the id in its value if
    /// the key is another one or null.
    fn content(&self, message: &BorrowedMessage<'_>) -> Option<Content> {
        let id = self.id.as_bytes();
        let by_key = message.key() == Some(id);
        let Some(value) = message.payload() else { return by_key.then_some(Content::Null) };
        if !by_key && !value.windows(id.len().max(1)).any(|part| part == id) {
            return None;
        }
        let timestamp = message.timestamp().to_millis();
        let view = RecordView { key: message.key(), value, timestamp };
        match self.expected.decode(&view) {
            Ok(Decoded::Event(event)) => {
                (event.id.as_str() == self.id).then(|| Content::Event(Box::new(event)))
            }
            Ok(Decoded::OtherSource(source)) => by_key.then_some(Content::OtherSource(source)),
            Err(poison) => by_key.then_some(Content::Poison(poison)),
        }
    }
}

/// The outcome of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordOutcome {
    /// The document holds this event.
    Stored,
    /// The document holds a newer event.
    Superseded,
    /// A newer delete removed the document.
    SupersededByDelete,
    /// The record deletes, and its key has no document.
    Deleted,
    /// The document expired, and the server removed it.
    Expired,
    /// The group has not finished it.
    Waiting,
    /// The record is a dead letter; the reason.
    DeadLettered(String),
    /// The consumer skips the record; the reason.
    Skipped(String),
    /// The record is finished, but its document or dead letter is missing; the text names it.
    Missing(String),
}

impl RecordOutcome {
    /// The name in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Superseded | Self::SupersededByDelete => "superseded",
            Self::Deleted => "deleted",
            Self::Expired => "expired",
            Self::Waiting => "waiting",
            Self::DeadLettered(_) => "dead_lettered",
            Self::Skipped(_) => "skipped",
            Self::Missing(_) => "missing",
        }
    }

    /// As text.
    pub fn text(&self) -> String {
        match self {
            Self::Stored => "stored".into(),
            Self::Superseded => "superseded by a newer event".into(),
            Self::SupersededByDelete => "superseded by a newer delete".into(),
            Self::Deleted => "deleted".into(),
            Self::Expired => "expired".into(),
            Self::Waiting => "waits for the consumer".into(),
            Self::DeadLettered(reason) => format!("dead-lettered: {reason}"),
            Self::Skipped(why) => format!("skipped: {why}"),
            Self::Missing(what) => format!("MISSING: {what}"),
        }
    }
}

/// Determines the outcome of `record`. `committed` is the group's offset in its partition;
/// `document` is that of its key.
pub fn outcome_of(
    record: &FoundRecord,
    dead_letters: &[FoundDeadLetter],
    committed: Option<i64>,
    document: Option<&Document>,
) -> RecordOutcome {
    let is_of_record = |dead_letter: &&FoundDeadLetter| dead_letter.origin.as_ref() == Some(&record.position);
    if let Some(dead_letter) = dead_letters.iter().find(is_of_record) {
        return RecordOutcome::DeadLettered(dead_letter.reason.clone());
    }
    let is_finished = committed.is_some_and(|committed| record.position.offset < committed);
    match &record.content {
        Content::OtherSource(source) => RecordOutcome::Skipped(format!("source {source} is not expected")),
        Content::Null => RecordOutcome::Skipped("its value is null".into()),
        Content::Event(event) => of_event(event, is_finished, document),
        Content::Poison(_) if !is_finished => RecordOutcome::Waiting,
        Content::Poison(poison) => RecordOutcome::Missing(format!(
            "it cannot be stored ({poison}), and its dead letter does not exist"
        )),
    }
}

/// The outcome of an event without a document: `tombstone` is the one of its id, and documents of
/// its source expire after `ttl_ms`.
pub fn with_absence_explained(
    outcome: RecordOutcome,
    event: &StorableEvent,
    tombstone: Option<&Document>,
    (ttl_ms, now_ms): (Option<i64>, i64),
) -> RecordOutcome {
    let deleted = tombstone.map(version);
    let deletes = event.operation == Operation::Delete;
    let expires_at = ttl_ms.map(|ttl_ms| event.timestamp.get().saturating_add(ttl_ms));
    match outcome {
        RecordOutcome::Deleted if deleted.is_some_and(|newest| newest > own_version(event)) => {
            RecordOutcome::SupersededByDelete
        }
        RecordOutcome::Missing(_) if deletes => outcome,
        RecordOutcome::Missing(_) if deleted.is_some_and(|newest| newest >= own_version(event)) => {
            RecordOutcome::SupersededByDelete
        }
        RecordOutcome::Missing(_) if expires_at.is_some_and(|at| at <= now_ms) => RecordOutcome::Expired,
        _ => outcome,
    }
}

fn version(document: &Document) -> (f64, f64) {
    let field = |name: &str| rank(document.get(name));
    (field("event_timestamp"), field("ingested_at"))
}

fn own_version(event: &StorableEvent) -> (f64, f64) {
    (event.timestamp.get() as f64, event.ingested_at.get() as f64)
}

fn of_event(event: &StorableEvent, is_finished: bool, document: Option<&Document>) -> RecordOutcome {
    let stored = document.map(version);
    let own = own_version(event);
    if event.operation == Operation::Delete {
        return match stored {
            Some(stored) if stored > own => RecordOutcome::Superseded,
            _ if !is_finished => RecordOutcome::Waiting,
            None => RecordOutcome::Deleted,
            Some(_) => RecordOutcome::Missing("the document that it deletes is stored".into()),
        };
    }
    match stored {
        Some(stored) if stored == own => RecordOutcome::Stored,
        Some(stored) if stored > own => RecordOutcome::Superseded,
        _ if !is_finished => RecordOutcome::Waiting,
        Some(_) => RecordOutcome::Missing(
            "the stored document is older: it was changed outside of the consumer".into(),
        ),
        None => RecordOutcome::Missing(
            "it is finished, and its key has no document: the document was removed".into(),
        ),
    }
}

/// The order of the consumer's guard: a missing field and null are below every number, other types
/// above.
fn rank(value: Option<&Bson>) -> f64 {
    match value {
        None | Some(Bson::Null) => f64::NEG_INFINITY,
        Some(Bson::Int32(number)) => f64::from(*number),
        Some(Bson::Int64(number)) => *number as f64,
        Some(Bson::Double(number)) => *number,
        Some(_) => f64::INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use bson::doc;
    use events::{Decoded, RecordView, decode};
    use kafka::topic_reader::RecordPosition;

    use super::*;

    fn record(value: &[u8]) -> FoundRecord {
        let view = RecordView { key: Some(b"k"), value, timestamp: Some(5) };
        let content = match decode(&view, |source| source == "adsbdb") {
            Ok(Decoded::Event(event)) => Content::Event(Box::new(event)),
            Ok(Decoded::OtherSource(source)) => Content::OtherSource(source),
            Err(poison) => Content::Poison(poison),
        };
        let position = RecordPosition { topic: "t".into(), partition: 0, offset: 7 };
        FoundRecord { position, timestamp_ms: Some(5), content }
    }

    #[test]
    fn the_outcome_of_an_event_follows_from_its_document_and_the_offset() {
        let event = record(br#"{"source":"adsbdb","timestamp":5,"ingested_at":6,"payload":{}}"#);
        let document = |timestamp: i64, ingested_at: i64| {
            doc! { "event_timestamp": timestamp, "ingested_at": ingested_at }
        };
        let name = |committed, document: Option<Document>| {
            outcome_of(&event, &[], committed, document.as_ref()).name()
        };
        assert_eq!(name(Some(7), Some(document(5, 6))), "stored");
        assert_eq!(name(Some(8), Some(document(5, 7))), "superseded");
        assert_eq!(name(Some(7), Some(document(5, 5))), "waiting");
        assert_eq!(name(None, None), "waiting");
        assert_eq!(name(Some(8), None), "missing");
        assert_eq!(name(Some(8), Some(doc! {})), "missing");
    }

    #[test]
    fn a_delete_and_what_it_removed_have_outcomes() {
        let position = RecordPosition { topic: "t".into(), partition: 0, offset: 7 };
        let version = |timestamp: i64| doc! { "event_timestamp": timestamp, "ingested_at": 6_i64 };
        let mut record = record(br#"{"source":"adsbdb","timestamp":5,"ingested_at":6,"payload":{}}"#);
        let Content::Event(event) = &mut record.content else { panic!("an event") };
        let explained = |outcome, tombstone: Option<i64>, ttl_ms| {
            let tombstone = tombstone.map(version);
            with_absence_explained(outcome, event, tombstone.as_ref(), (ttl_ms, 100)).name()
        };
        let missing = || RecordOutcome::Missing("x".into());
        assert_eq!(explained(missing(), Some(5), None), "superseded");
        assert_eq!(explained(missing(), Some(4), None), "missing");
        assert_eq!(explained(missing(), None, Some(95)), "expired");
        assert_eq!(explained(missing(), None, Some(96)), "missing");
        assert_eq!(explained(RecordOutcome::Waiting, Some(9), Some(1)), "waiting");
        event.operation = Operation::Delete;
        let of_delete = |outcome, tombstone| {
            with_absence_explained(outcome, event, Some(&version(tombstone)), (Some(1), 100)).name()
        };
        assert_eq!(of_delete(RecordOutcome::Deleted, 5), "deleted");
        assert_eq!(of_delete(RecordOutcome::Deleted, 6), "superseded");
        assert_eq!(of_delete(missing(), 6), "missing", "its document is still stored");
        let record = FoundRecord { position, timestamp_ms: Some(5), content: Content::Event(event.clone()) };
        let name = |committed, document: Option<Document>| {
            outcome_of(&record, &[], committed, document.as_ref()).name()
        };
        assert_eq!(name(Some(8), None), "deleted");
        assert_eq!(name(Some(7), None), "waiting");
        assert_eq!(name(Some(7), Some(version(6))), "superseded");
        assert_eq!(name(Some(7), Some(version(5))), "waiting");
        assert_eq!(name(Some(8), Some(version(5))), "missing");
    }

    #[test]
    fn a_skipped_or_dead_lettered_record_has_its_reason() {
        let other = record(br#"{"source":"other","payload":7}"#);
        assert_eq!(
            outcome_of(&other, &[], Some(8), None),
            RecordOutcome::Skipped("source other is not expected".into())
        );
        let poison = record(b"no JSON");
        assert_eq!(outcome_of(&poison, &[], Some(7), None), RecordOutcome::Waiting);
        assert_eq!(outcome_of(&poison, &[], Some(8), None).name(), "missing");
        let (position, origin) = (poison.position.clone(), Some(poison.position.clone()));
        let dead_letter = FoundDeadLetter { position, origin, reason: "why".into() };
        assert_eq!(
            outcome_of(&poison, &[dead_letter], Some(8), None),
            RecordOutcome::DeadLettered("why".into())
        );
    }
}
