//! Reads topics to their end and keeps the records and dead letters of one event.

use consumer::ExpectedSources;
use events::{Decoded, Poison, RecordView, StorableEvent, decode};
use rdkafka::Message;
use rdkafka::message::BorrowedMessage;

use kafka::BoxError;
use kafka::dead_letter_headers::{error_header, origin};
use kafka::topic_reader::{CONTINUE, RecordPosition, TopicReader};

/// A record of the event.
#[derive(Debug)]
pub struct FoundRecord {
    /// Its position.
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
    /// Its position.
    pub position: RecordPosition,
    /// The position of its record.
    pub origin: Option<RecordPosition>,
    /// The reason.
    pub reason: String,
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

    /// The event's records on `topic`.
    ///
    /// # Errors
    /// Kafka is unavailable.
    pub fn records(&self, topic: &str) -> Result<Vec<FoundRecord>, BoxError> {
        let mut found = Vec::new();
        self.reader.read(topic, self.since_ms, |message| {
            if let Some(content) = self.content(message) {
                found.push(FoundRecord {
                    position: RecordPosition::of(message),
                    timestamp_ms: message.timestamp().to_millis(),
                    content,
                });
            }
            CONTINUE
        })?;
        Ok(found)
    }

    /// The event's dead letters on `topic`.
    ///
    /// # Errors
    /// Kafka is unavailable.
    pub fn dead_letters(&self, topic: &str) -> Result<Vec<FoundDeadLetter>, BoxError> {
        let mut found = Vec::new();
        self.reader.read(topic, self.since_ms, |message| {
            if self.content(message).is_some() {
                found.push(dead_letter(message));
            }
            CONTINUE
        })?;
        Ok(found)
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
        match decode(&view, |source| self.expected.contains(source)) {
            Ok(Decoded::Event(event)) => {
                (event.id.as_str() == self.id).then(|| Content::Event(Box::new(event)))
            }
            Ok(Decoded::OtherSource(source)) => by_key.then_some(Content::OtherSource(source)),
            Err(poison) => by_key.then_some(Content::Poison(poison)),
        }
    }
}

fn dead_letter(message: &BorrowedMessage<'_>) -> FoundDeadLetter {
    let reason =
        error_header(message, "exception.message").unwrap_or_else(|| "the dead letter has no reason".into());
    FoundDeadLetter { position: RecordPosition::of(message), origin: origin(message), reason }
}
