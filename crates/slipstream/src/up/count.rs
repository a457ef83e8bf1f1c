//! Counting the records of a topic by reading it to its end. Watermarks are not trusted: not every broker that
//! `up` can run answers them rightly.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka::client_config;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use kafka::BoxError;
use kafka::requests::{REQUEST_TIMEOUT, RequestClient, RequestError, RetryObserver, committed};
use kafka::topic_reader::{is_transient, partitions, read_timeout};

/// The next offset of each partition.
pub type Positions = BTreeMap<i32, i64>;

/// A topic and a group that reads it.
#[derive(Clone)]
pub struct Reading {
    client: ClientConfig,
    topic: String,
    group: String,
    told: Option<Arc<RetryObserver>>,
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
        Self { client, topic: topic.to_owned(), group: config.group_id.clone(), told: None }
    }

    /// The same, but a Kafka that does not answer is waited for; `told` learns why it does not, again and again.
    pub fn wait_for_ever(&self, told: impl Fn(&RequestError) + Send + Sync + 'static) -> Self {
        Self { told: Some(Arc::new(told)), ..self.clone() }
    }

    fn asker(&self, client: &ClientConfig) -> Result<RequestClient, BoxError> {
        let asker = RequestClient::new(client)?;
        Ok(match &self.told {
            Some(told) => asker.without_deadline(Arc::clone(told)),
            None => asker,
        })
    }

    /// The group's committed positions; a partition without one counts from its beginning.
    ///
    /// # Errors
    /// Kafka does not answer.
    pub fn committed(&self) -> Result<Positions, BoxError> {
        let asker = self.asker(&self.client)?;
        let mut asked = TopicPartitionList::new();
        for partition in partitions(&asker, &self.topic)? {
            asked.add_partition(&self.topic, partition);
        }
        let what = format!("the offsets of group {}", self.group);
        let committed = asker.request(&what, |client, limit| committed(client, asked.clone(), limit))?;
        let position = |offset| if let Offset::Offset(offset) = offset { offset } else { 0 };
        Ok(committed.elements().iter().map(|found| (found.partition(), position(found.offset()))).collect())
    }

    /// The topic's name.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Reads from `start` to the end; `waits` says of a partition and an offset whether that record is not finished.
    ///
    /// # Errors
    /// Kafka does not answer, or brings nothing for 10 s before the end.
    pub fn count(&self, start: &Positions, waits: impl Fn(i32, i64) -> bool) -> Result<Count, BoxError> {
        let mut client = self.client.clone();
        client.set("enable.partition.eof", "true").set("auto.offset.reset", "earliest");
        let asker = self.asker(&client)?;
        let mut open = partitions(&asker, &self.topic)?;
        let consumer = asker.client();
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
                Some(Err(error)) if !is_transient(&error) => return Err(error.into()),
                // The client tries these again by itself; the limit below ends it.
                Some(Err(_)) | None => {}
            }
            if last_news.elapsed() > REQUEST_TIMEOUT {
                return Err(read_timeout(&asker, &self.topic));
            }
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
    use service::lock::lock;

    use super::*;

    #[test]
    fn a_coordinator_that_is_loading_is_waited_for_at_start() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 2, 1).unwrap();
        let loading = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_COORDINATOR;
        cluster.request_errors(RDKafkaApiKey::OffsetFetch, &[loading; 8]);
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", "g");
        let reading = Reading { client, topic: "t".into(), group: "g".into(), told: None };
        let told = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&told);
        let waiting = reading.wait_for_ever(move |why| lock(&log).push(why.to_string()));
        assert_eq!(waiting.committed().unwrap(), Positions::from([(0, 0), (1, 0)]));
        let told = lock(&told);
        let place = format!("kafka at {} (KAFKA_BROKER) does not return", cluster.bootstrap_servers());
        assert!(!told.is_empty() && told.iter().all(|why| why.starts_with(&place)), "{told:?}");
    }
}
