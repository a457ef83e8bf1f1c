//! Reads topics to their end, or a single record. The read itself detects the end of a partition
//! (EOF events), because the watermarks of some brokers are wrong. Memory is bounded for any topic.

use std::fmt;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, OwnedMessage};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use crate::properties::{KafkaProperties, client_config};
use crate::requests::{BoxError, REQUEST_TIMEOUT, RequestClient, RequestError, is_permanent};

/// The position of a record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RecordPosition {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
}

impl RecordPosition {
    /// The position of `message`.
    pub fn of(message: &impl Message) -> Self {
        Self { topic: message.topic().to_owned(), partition: message.partition(), offset: message.offset() }
    }
}

impl fmt::Display for RecordPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.topic, self.partition, self.offset)
    }
}

/// The result of a record's callback; `Break` ends the read.
pub type Step = Result<ControlFlow<()>, BoxError>;

/// Continues the read.
pub const CONTINUE: Step = Ok(ControlFlow::Continue(()));

/// Reads topics with a client that joins no group and commits nothing.
#[derive(Debug)]
pub struct TopicReader {
    client: ClientConfig,
}

impl TopicReader {
    /// Configures the client without connecting; `bootstrap` is KAFKA_BROKER.
    pub fn new(bootstrap: &str, properties: &KafkaProperties, client_id: &str) -> Self {
        let defaults = [
            // librdkafka requires a group name for the assignment. The client never joins it.
            ("group.id", client_id),
            ("enable.auto.commit", "false"),
            ("enable.partition.eof", "true"),
            // An EOF event comes after this wait; the default is 500 ms for each topic.
            ("fetch.wait.max.ms", "100"),
            ("auto.offset.reset", "earliest"),
            // Memory: maximum size of the records that wait for a poll, all partitions together.
            ("queued.max.messages.kbytes", "16384"),
        ];
        Self { client: client_config(bootstrap, client_id, &defaults, properties) }
    }

    /// Reads every record of `topic` with a timestamp from `since_ms` on, in the order of each
    /// partition. A missing topic has no records.
    ///
    /// # Errors
    /// Kafka is unavailable, or `each` fails.
    pub fn read(
        &self,
        topic: &str,
        since_ms: Option<i64>,
        each: impl FnMut(&BorrowedMessage<'_>) -> Step,
    ) -> Result<(), BoxError> {
        let requests = RequestClient::new(&self.client)?;
        let starts = start_offsets(&requests, topic, since_ms)?;
        read_to_end(&requests, topic, &starts, each)
    }

    /// Reads the records of the given partitions of `topic`, each from its offset on.
    ///
    /// # Errors
    /// Kafka is unavailable, or `each` fails.
    pub fn read_from(
        &self,
        topic: &str,
        offsets: impl IntoIterator<Item = (i32, i64)>,
        each: impl FnMut(&BorrowedMessage<'_>) -> Step,
    ) -> Result<(), BoxError> {
        let requests = RequestClient::new(&self.client)?;
        let mut starts = TopicPartitionList::new();
        for (partition, offset) in offsets {
            starts.add_partition_offset(topic, partition, Offset::Offset(offset))?;
        }
        read_to_end(&requests, topic, &starts, each)
    }

    /// Reads the record at `position`; `None` if there is no such record.
    ///
    /// # Errors
    /// Kafka is unavailable.
    pub fn record(&self, position: &RecordPosition) -> Result<Option<OwnedMessage>, BoxError> {
        let mut found = None;
        self.read_from(&position.topic, [(position.partition, position.offset)], |message| {
            // If Kafka does not have the offset, the read starts at another one.
            found = (message.offset() == position.offset).then(|| message.detach());
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }
}

fn read_to_end(
    requests: &RequestClient,
    topic: &str,
    starts: &TopicPartitionList,
    mut each: impl FnMut(&BorrowedMessage<'_>) -> Step,
) -> Result<(), BoxError> {
    let consumer = requests.client();
    let mut unfinished: Vec<i32> = starts.elements().iter().map(|element| element.partition()).collect();
    consumer.assign(starts)?;
    let mut last_progress = Instant::now();
    while !unfinished.is_empty() {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                if each(&message)?.is_break() {
                    return Ok(());
                }
                last_progress = Instant::now();
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                unfinished.retain(|unfinished| *unfinished != partition);
                last_progress = Instant::now();
            }
            Some(Err(error)) if !is_transient(&error) => return Err(error.into()),
            Some(Err(_)) | None => {}
        }
        if last_progress.elapsed() > REQUEST_TIMEOUT {
            return Err(read_timeout(requests, topic));
        }
    }
    Ok(())
}

/// The error of a read of `topic` that got no record within [`REQUEST_TIMEOUT`].
pub fn read_timeout(requests: &RequestClient, topic: &str) -> BoxError {
    let timeout = KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut);
    let cause = requests.error("its records", &timeout);
    format!("topic {topic} cannot be read to its end: {cause}").into()
}

/// Whether librdkafka retries after this error, so that only a timeout ends the read. It also waits
/// for a topic that was just created, and then reports a missing topic as an error.
pub fn is_transient(error: &KafkaError) -> bool {
    let is_missing_topic = matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)
    );
    !is_missing_topic && !is_permanent(error)
}

/// The partitions of `topic`, each with the offset at which the read starts.
fn start_offsets(
    requests: &RequestClient,
    topic: &str,
    since_ms: Option<i64>,
) -> Result<TopicPartitionList, BoxError> {
    let mut starts = TopicPartitionList::new();
    for partition in partitions(requests, topic)? {
        let start = since_ms.map_or(Offset::Beginning, Offset::Offset);
        starts.add_partition_offset(topic, partition, start)?;
    }
    if since_ms.is_none() || starts.count() == 0 {
        return Ok(starts);
    }
    let subject = format!("the offsets of a time in topic {topic}");
    Ok(requests.request(&subject, |client, timeout| client.offsets_for_times(starts.clone(), timeout))?)
}

/// The partitions of `topic`; empty for a missing topic.
///
/// # Errors
/// Kafka is unavailable, or the user may not describe the topic.
pub fn partitions(requests: &RequestClient, topic: &str) -> Result<Vec<i32>, RequestError> {
    use RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART as UNKNOWN;
    requests.request(&format!("the partitions of topic {topic}"), |client, timeout| {
        let metadata = client.fetch_metadata(Some(topic), timeout)?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Ok(Vec::new());
        };
        match found.error() {
            Some(code) if code != UNKNOWN => Err(KafkaError::MetadataFetch(code.into())),
            _ => Ok(found.partitions().iter().map(|partition| partition.id()).collect()),
        }
    })
}
