//! Reads topics to their end, or one record of them. Where a topic ends is told by the read itself, as not every
//! broker's watermarks are right. Nothing is kept: memory is bounded however long a topic is.

use std::fmt;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use kafka::client_config;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, OwnedMessage};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use crate::Failure;
use crate::kafka::{Asker, LIMIT, Unanswered, is_final};

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

impl Place {
    /// The place of `message`.
    pub fn of(message: &impl Message) -> Self {
        Self { topic: message.topic().to_owned(), partition: message.partition(), offset: message.offset() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.topic, self.partition, self.offset)
    }
}

/// What is done with each record; `Break` ends the read.
pub type Step = Result<ControlFlow<()>, Failure>;

/// Goes on with the read.
pub const NEXT: Step = Ok(ControlFlow::Continue(()));

/// Reads as a client that joins no group and commits nothing.
#[derive(Debug)]
pub struct Scan {
    client: ClientConfig,
}

impl Scan {
    /// Of the cluster that `config` names; connects to nothing yet.
    pub fn new(config: &consumer::Config, client_id: &str) -> Self {
        let defaults = [
            // Named, because the library wants one; it is never joined, and nothing is committed.
            ("group.id", client_id),
            ("enable.auto.commit", "false"),
            ("enable.partition.eof", "true"),
            // The end of a partition is told after this wait; the default is half a second, for each topic.
            ("fetch.wait.max.ms", "100"),
            ("auto.offset.reset", "earliest"),
            // Memory: what waits to be polled, all partitions together.
            ("queued.max.messages.kbytes", "16384"),
        ];
        Self { client: client_config(&config.kafka_broker, client_id, &defaults, &config.properties) }
    }

    /// Every record of `topic`, from `since_ms` on by its own timestamp; none where there is no such topic. The order is
    /// that of each partition.
    ///
    /// # Errors
    /// Kafka does not answer, or `each` fails.
    pub fn read(
        &self,
        topic: &str,
        since_ms: Option<i64>,
        each: impl FnMut(&BorrowedMessage<'_>) -> Step,
    ) -> Result<(), Failure> {
        let asker = Asker::new(&self.client)?;
        let starts = starts(&asker, topic, since_ms)?;
        to_the_end(&asker, topic, &starts, each)
    }

    /// The records of partitions of `topic`, each from its offset on.
    ///
    /// # Errors
    /// Kafka does not answer, or `each` fails.
    pub fn read_from(
        &self,
        topic: &str,
        offsets: impl IntoIterator<Item = (i32, i64)>,
        each: impl FnMut(&BorrowedMessage<'_>) -> Step,
    ) -> Result<(), Failure> {
        let asker = Asker::new(&self.client)?;
        let mut starts = TopicPartitionList::new();
        for (partition, offset) in offsets {
            starts.add_partition_offset(topic, partition, Offset::Offset(offset))?;
        }
        to_the_end(&asker, topic, &starts, each)
    }

    /// The record at `place`, if there is one.
    ///
    /// # Errors
    /// Kafka does not answer.
    pub fn record(&self, place: &Place) -> Result<Option<OwnedMessage>, Failure> {
        let mut found = None;
        self.read_from(&place.topic, [(place.partition, place.offset)], |message| {
            // Where that offset is gone, or not there yet, the read begins elsewhere.
            found = (message.offset() == place.offset).then(|| message.detach());
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }
}

fn to_the_end(
    asker: &Asker,
    topic: &str,
    starts: &TopicPartitionList,
    mut each: impl FnMut(&BorrowedMessage<'_>) -> Step,
) -> Result<(), Failure> {
    let consumer = asker.client();
    let mut open: Vec<i32> = starts.elements().iter().map(|element| element.partition()).collect();
    consumer.assign(starts)?;
    let mut last_news = Instant::now();
    while !open.is_empty() {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                if each(&message)?.is_break() {
                    return Ok(());
                }
                last_news = Instant::now();
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                open.retain(|open| *open != partition);
                last_news = Instant::now();
            }
            Some(Err(error)) if !passes(&error) => return Err(error.into()),
            Some(Err(_)) | None => {}
        }
        if last_news.elapsed() > LIMIT {
            return Err(unread(asker, topic));
        }
    }
    Ok(())
}

/// No record came of `topic` for too long.
pub fn unread(asker: &Asker, topic: &str) -> Failure {
    let silent = KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut);
    let why = asker.unanswered("its records", &silent);
    format!("topic {topic} cannot be read to its end: {why}").into()
}

/// Whether the client tries this again by itself, so that only time tells. It waits for a topic that was just made, and
/// reports one that is missing after that.
pub fn passes(error: &KafkaError) -> bool {
    let missing = matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)
    );
    !missing && !is_final(error)
}

/// The partitions of `topic`, each from where the read begins.
fn starts(asker: &Asker, topic: &str, since_ms: Option<i64>) -> Result<TopicPartitionList, Failure> {
    let partitions = partitions(asker, topic)?;
    let mut starts = TopicPartitionList::new();
    for partition in partitions {
        let start = since_ms.map_or(Offset::Beginning, Offset::Offset);
        starts.add_partition_offset(topic, partition, start)?;
    }
    if since_ms.is_none() || starts.count() == 0 {
        return Ok(starts);
    }
    let what = format!("the offsets of a time in topic {topic}");
    Ok(asker.ask(&what, |client, limit| client.offsets_for_times(starts.clone(), limit))?)
}

/// The partitions of `topic`; none where there is no such topic.
///
/// # Errors
/// Kafka does not answer, or does not let us see the topic.
pub fn partitions(asker: &Asker, topic: &str) -> Result<Vec<i32>, Unanswered> {
    use RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART as UNKNOWN;
    asker.ask(&format!("the partitions of topic {topic}"), |client, limit| {
        let metadata = client.fetch_metadata(Some(topic), limit)?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Ok(Vec::new());
        };
        match found.error() {
            Some(code) if code != UNKNOWN => Err(KafkaError::MetadataFetch(code.into())),
            _ => Ok(found.partitions().iter().map(|partition| partition.id()).collect()),
        }
    })
}
