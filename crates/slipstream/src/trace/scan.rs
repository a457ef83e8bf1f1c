//! Reads topics to their end and keeps what belongs to one event.

use consumer::ExpectedSources;
use events::{Decoded, Poison, RecordView, StorableEvent, decode};
use rdkafka::Message;
use rdkafka::message::BorrowedMessage;

use kafka::BoxError;
use kafka::dead_letter_headers::{error_header, origin};
use kafka::topic_reader::{CONTINUE, RecordPosition, TopicReader};

/// A record of the event.
#[derive(Debug)]
pub struct Found {
    /// Where it is.
    pub place: RecordPosition,
    /// The record's own timestamp, in milliseconds.
    pub record_ms: Option<i64>,
    /// What it turned out to be.
    pub content: Content,
}

/// What a record turned out to be.
#[derive(Debug)]
pub enum Content {
    /// An event that is to be stored.
    Event(Box<StorableEvent>),
    /// An event of a source that is not expected.
    OtherSource(String),
    /// A null value.
    Null,
    /// It can never be stored.
    Poison(Poison),
}

/// A dead letter of the event.
#[derive(Debug)]
pub struct Letter {
    /// Where it is.
    pub place: RecordPosition,
    /// Where its record was.
    pub origin: Option<RecordPosition>,
    /// Why it can never be stored.
    pub reason: String,
}

/// Reads for one id.
#[derive(Debug)]
pub struct Search {
    scan: TopicReader,
    id: String,
    expected: ExpectedSources,
    since_ms: Option<i64>,
}

impl Search {
    /// For the event `id`, in records from `since_ms` on.
    pub fn new(config: &consumer::Config, id: &str, since_ms: Option<i64>) -> Self {
        let scan = TopicReader::new(&config.kafka_broker, &config.properties, "slipstream-trace");
        Self { scan, id: id.to_owned(), expected: config.expected.clone(), since_ms }
    }

    /// The event's records on `topic`.
    ///
    /// # Errors
    /// Kafka does not answer.
    pub fn records(&self, topic: &str) -> Result<Vec<Found>, BoxError> {
        let mut found = Vec::new();
        self.scan.read(topic, self.since_ms, |message| {
            if let Some(content) = self.content(message) {
                found.push(Found {
                    place: RecordPosition::of(message),
                    record_ms: message.timestamp().to_millis(),
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
    /// Kafka does not answer.
    pub fn letters(&self, topic: &str) -> Result<Vec<Letter>, BoxError> {
        let mut found = Vec::new();
        self.scan.read(topic, self.since_ms, |message| {
            if self.content(message).is_some() {
                found.push(letter(message));
            }
            CONTINUE
        })?;
        Ok(found)
    }

    /// What the record is, if it belongs to the event: by its key, or by the id inside where the key is another or none.
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

fn letter(message: &BorrowedMessage<'_>) -> Letter {
    let reason = error_header(message, "exception.message")
        .unwrap_or_else(|| "the dead letter does not say why".into());
    Letter { place: RecordPosition::of(message), origin: origin(message), reason }
}
