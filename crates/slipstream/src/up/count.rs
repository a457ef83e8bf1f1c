//! Counting the records of a topic by reading it to its end. Watermarks are not trusted: not every broker that
//! `up` can run answers them rightly.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use service::kafka::client_config;

use crate::Failure;

/// How long Kafka may take to answer, and how long a read may bring nothing.
const LIMIT: Duration = Duration::from_secs(10);

/// The next offset of each partition.
pub type Positions = BTreeMap<i32, i64>;

/// A topic and a group that reads it.
#[derive(Debug, Clone)]
pub struct Reading {
    client: ClientConfig,
    topic: String,
}

/// What a read to the end found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Records from the start positions on.
    pub records: u64,
    /// Those of them that are not finished.
    pub waiting: u64,
}

impl Reading {
    /// Of `topic`, beside the consumer that `config` describes; the group's offsets are looked at, never changed.
    pub fn of(config: &consumer::Config, topic: &str) -> Self {
        let defaults = [("group.id", config.group_id.as_str()), ("enable.auto.commit", "false")];
        let client = client_config(&config.kafka_broker, "slipstream-up", &defaults, &config.properties);
        Self { client, topic: topic.to_owned() }
    }

    /// The group's committed positions; a partition without one counts from its beginning.
    ///
    /// # Errors
    /// Kafka does not answer.
    pub fn committed(&self) -> Result<Positions, Failure> {
        let consumer: BaseConsumer = self.client.create()?;
        let mut partitions = TopicPartitionList::new();
        for partition in self.partitions(&consumer)? {
            partitions.add_partition(&self.topic, partition);
        }
        let committed = consumer.committed_offsets(partitions, LIMIT)?;
        let position = |offset| if let Offset::Offset(offset) = offset { offset } else { 0 };
        Ok(committed.elements().iter().map(|found| (found.partition(), position(found.offset()))).collect())
    }

    fn partitions(&self, consumer: &BaseConsumer) -> Result<Vec<i32>, KafkaError> {
        let metadata = consumer.fetch_metadata(Some(&self.topic), LIMIT)?;
        let topic = metadata.topics().iter().find(|topic| topic.name() == self.topic);
        Ok(topic.map_or_else(Vec::new, |topic| topic.partitions().iter().map(|found| found.id()).collect()))
    }

    /// The topic's name.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Reads from `start` to the end; `waits` says of a partition and an offset whether that record is not finished.
    ///
    /// # Errors
    /// Kafka does not answer, or brings nothing for 10 s before the end.
    pub fn count(&self, start: &Positions, waits: impl Fn(i32, i64) -> bool) -> Result<Count, Failure> {
        let mut client = self.client.clone();
        client.set("enable.partition.eof", "true").set("auto.offset.reset", "earliest");
        let consumer: BaseConsumer = client.create()?;
        let mut open = self.partitions(&consumer)?;
        let mut assignment = TopicPartitionList::new();
        for partition in &open {
            let offset = start.get(partition).copied().unwrap_or(0);
            assignment.add_partition_offset(&self.topic, *partition, Offset::Offset(offset))?;
        }
        consumer.assign(&assignment)?;
        let mut count = Count::default();
        let mut last_news = Instant::now();
        while !open.is_empty() {
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(record)) => {
                    count.records += 1;
                    count.waiting += u64::from(waits(record.partition(), record.offset()));
                    last_news = Instant::now();
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => open.retain(|open| *open != partition),
                // The client tries these again by itself; the limit below ends it.
                Some(Err(KafkaError::MessageConsumption(
                    RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown,
                )))
                | None => {}
                Some(Err(error)) => return Err(error.into()),
            }
            if last_news.elapsed() > LIMIT {
                return Err(
                    format!("topic {} cannot be read to its end: kafka does not answer", self.topic).into()
                );
            }
        }
        Ok(count)
    }
}
