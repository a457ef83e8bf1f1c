//! Reads topics to their end and keeps what belongs to one event. Where a topic ends is told by the read itself, as not
//! every broker's watermarks are right.

use std::time::{Duration, Instant};

use consumer::Expected;
use events::{Decoded, Poison, RecordView, StorableEvent, decode};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use service::kafka::client_config;

use crate::Failure;

/// How long Kafka may take to answer, and how long a read may bring nothing.
const LIMIT: Duration = Duration::from_secs(10);

/// Where a record is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
}

/// A record of the event.
#[derive(Debug)]
pub struct Found {
    /// Where it is.
    pub place: Place,
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
    pub place: Place,
    /// Where its record was.
    pub origin: Option<Place>,
    /// Why it can never be stored.
    pub reason: String,
}

/// Reads for one id.
#[derive(Debug)]
pub struct Search {
    client: ClientConfig,
    id: String,
    expected: Expected,
    since_ms: Option<i64>,
}

impl Search {
    /// For the event `id`, in records from `since_ms` on.
    pub fn new(config: &consumer::Config, id: &str, since_ms: Option<i64>) -> Self {
        let defaults = [
            // Named, because the library wants one; it is never joined, and nothing is committed.
            ("group.id", "slipstream-trace"),
            ("enable.auto.commit", "false"),
            ("enable.partition.eof", "true"),
            // The end of a partition is told after this wait; the default is half a second, for each topic.
            ("fetch.wait.max.ms", "100"),
            ("auto.offset.reset", "earliest"),
        ];
        let client = client_config(&config.kafka_broker, "slipstream-trace", &defaults, &config.properties);
        Self { client, id: id.to_owned(), expected: config.expected.clone(), since_ms }
    }

    /// The event's records on `topic`.
    ///
    /// # Errors
    /// Kafka does not answer.
    pub fn records(&self, topic: &str) -> Result<Vec<Found>, Failure> {
        let mut found = Vec::new();
        self.read(topic, |message| {
            if let Some(content) = self.content(message) {
                found.push(Found {
                    place: place(message),
                    record_ms: message.timestamp().to_millis(),
                    content,
                });
            }
        })?;
        Ok(found)
    }

    /// The event's dead letters on `topic`.
    ///
    /// # Errors
    /// Kafka does not answer.
    pub fn letters(&self, topic: &str) -> Result<Vec<Letter>, Failure> {
        let mut found = Vec::new();
        self.read(topic, |message| {
            if self.content(message).is_some() {
                found.push(letter(message));
            }
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
        match decode(&view, |source| self.expected.takes(source)) {
            Ok(Decoded::Event(event)) => {
                (event.id.as_str() == self.id).then(|| Content::Event(Box::new(event)))
            }
            Ok(Decoded::OtherSource(source)) => by_key.then_some(Content::OtherSource(source)),
            Err(poison) => by_key.then_some(Content::Poison(poison)),
        }
    }

    fn read(&self, topic: &str, mut each: impl FnMut(&BorrowedMessage<'_>)) -> Result<(), Failure> {
        let consumer: BaseConsumer = self.client.create()?;
        let assignment = self.starts(&consumer, topic)?;
        let mut open: Vec<i32> = assignment.elements().iter().map(|element| element.partition()).collect();
        consumer.assign(&assignment)?;
        let mut last_news = Instant::now();
        while !open.is_empty() {
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    each(&message);
                    last_news = Instant::now();
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    open.retain(|open| *open != partition);
                    last_news = Instant::now();
                }
                // The client tries these again by itself; the limit below ends it.
                Some(Err(KafkaError::MessageConsumption(
                    RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown,
                )))
                | None => {}
                Some(Err(error)) => return Err(error.into()),
            }
            if last_news.elapsed() > LIMIT {
                return Err(format!("topic {topic} cannot be read to its end: kafka does not answer").into());
            }
        }
        Ok(())
    }

    /// The partitions of `topic`, each from where the search begins; none where there is no such topic.
    fn starts(&self, consumer: &BaseConsumer, topic: &str) -> Result<TopicPartitionList, KafkaError> {
        let metadata = consumer.fetch_metadata(Some(topic), LIMIT)?;
        let partitions = metadata.topics().iter().filter(|found| found.name() == topic);
        let partitions =
            partitions.flat_map(|found| found.partitions().iter().map(|partition| partition.id()));
        let mut starts = TopicPartitionList::new();
        for partition in partitions {
            let start = self.since_ms.map_or(Offset::Beginning, Offset::Offset);
            starts.add_partition_offset(topic, partition, start)?;
        }
        if self.since_ms.is_none() || starts.count() == 0 {
            return Ok(starts);
        }
        consumer.offsets_for_times(starts, LIMIT)
    }
}

fn place(message: &BorrowedMessage<'_>) -> Place {
    Place { topic: message.topic().to_owned(), partition: message.partition(), offset: message.offset() }
}

fn letter(message: &BorrowedMessage<'_>) -> Letter {
    let header = |name: &str| {
        let headers = message.headers()?;
        let name = format!("__connect.errors.{name}");
        // A dead letter of a dead letter has two of each; ours come last.
        let value = headers.iter().filter(|header| header.key == name).last()?.value?;
        Some(String::from_utf8_lossy(value).into_owned())
    };
    let origin = (|| {
        Some(Place {
            topic: header("topic")?,
            partition: header("partition")?.parse().ok()?,
            offset: header("offset")?.parse().ok()?,
        })
    })();
    let reason = header("exception.message").unwrap_or_else(|| "the dead letter does not say why".into());
    Letter { place: place(message), origin, reason }
}
