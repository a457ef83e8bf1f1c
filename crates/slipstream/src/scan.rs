//! Reads topics to their end. Where a topic ends is told by the read itself, as not every broker's watermarks are right.

use std::fmt;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use service::kafka::client_config;

use crate::Failure;

/// How long Kafka may take to answer, and how long a read may bring nothing.
const LIMIT: Duration = Duration::from_secs(10);

/// Where a record is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.topic, self.partition, self.offset)
    }
}

/// A dead letter.
#[derive(Debug)]
pub struct Letter {
    /// Where it is.
    pub place: Place,
    /// Where its record was.
    pub origin: Option<Place>,
    /// Why it can never be stored.
    pub reason: String,
}

/// Reads topics of a deployment; joins no group and commits nothing.
#[derive(Debug)]
pub struct Scan {
    client: ClientConfig,
}

impl Scan {
    /// As the client `name`.
    pub fn new(config: &consumer::Config, name: &str) -> Self {
        let defaults = [
            // Named, because the library wants one; it is never joined, and nothing is committed.
            ("group.id", name),
            ("enable.auto.commit", "false"),
            ("enable.partition.eof", "true"),
            // The end of a partition is told after this wait; the default is half a second, for each topic.
            ("fetch.wait.max.ms", "100"),
            ("auto.offset.reset", "earliest"),
        ];
        Self { client: client_config(&config.kafka_broker, name, &defaults, &config.properties) }
    }

    /// Every record of `topic` up to its end, from `since_ms` on if that is given; none where there is no such topic.
    ///
    /// # Errors
    /// Kafka does not answer.
    pub fn read(
        &self,
        topic: &str,
        since_ms: Option<i64>,
        mut each: impl FnMut(&BorrowedMessage<'_>),
    ) -> Result<(), Failure> {
        let consumer: BaseConsumer = self.client.create()?;
        let assignment = starts(&consumer, topic, since_ms)?;
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
}

/// The partitions of `topic`, each from where the read begins; none where there is no such topic.
fn starts(
    consumer: &BaseConsumer,
    topic: &str,
    since_ms: Option<i64>,
) -> Result<TopicPartitionList, KafkaError> {
    let metadata = consumer.fetch_metadata(Some(topic), LIMIT)?;
    let partitions = metadata.topics().iter().filter(|found| found.name() == topic);
    let partitions = partitions.flat_map(|found| found.partitions().iter().map(|partition| partition.id()));
    let mut starts = TopicPartitionList::new();
    for partition in partitions {
        let start = since_ms.map_or(Offset::Beginning, Offset::Offset);
        starts.add_partition_offset(topic, partition, start)?;
    }
    if since_ms.is_none() || starts.count() == 0 {
        return Ok(starts);
    }
    consumer.offsets_for_times(starts, LIMIT)
}

/// Where a record is.
pub fn place(message: &BorrowedMessage<'_>) -> Place {
    Place { topic: message.topic().to_owned(), partition: message.partition(), offset: message.offset() }
}

/// What the headers of a dead letter say.
pub fn letter(message: &BorrowedMessage<'_>) -> Letter {
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
