//! The account of a run: the outcomes must add up to the records of the topic. The topic is read to
//! its end, because the watermarks of some brokers that `up` can run are wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use consumer::Snapshot;
use kafka::requests::{REQUEST_TIMEOUT, RequestClient, RequestError, RetryObserver, committed};
use kafka::topic_reader::{is_transient, partitions, read_timeout};
use kafka::{BoxError, client_config};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use service::plural::{counted, counted_with};

/// The account; each number is counted separately.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Records of the topic, from the consumer's position at the start to the end.
    pub topic: TopicCount,
    /// Those of [`TopicCount::records`] that were on the topic before the run.
    pub left_over: u64,
    /// Events with a 202 from the producer.
    pub accepted: u64,
    /// Fetched records that are dead letters: they were neither accepted nor on a topic.
    pub pulled_dead_letters: u64,
    /// Outcomes of the consumer.
    pub consumed: Snapshot,
}

impl Summary {
    /// Finished records: a record with several outcomes counts once.
    fn finished(&self) -> u64 {
        self.consumed.finished().saturating_sub(self.consumed.repeated)
    }

    /// Whether every record has an outcome or waits, and every accepted event is a record.
    pub fn balances(&self) -> bool {
        self.topic.records == self.finished() + self.topic.waiting
            && self.accepted + self.left_over <= self.topic.records
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Snapshot { inserted, updated, unchanged, superseded, deleted, .. } = self.consumed;
        let Snapshot { dead_lettered, skipped, repeated, .. } = self.consumed;
        let deleted = if deleted > 0 { format!(" + {deleted} deleted") } else { String::new() };
        let again = if repeated > 0 { format!(" - {repeated} read again") } else { String::new() };
        write!(
            f,
            "{} = {inserted} inserted + {updated} updated + {unchanged} unchanged + {superseded} superseded\
             {deleted} + {dead_lettered} dead-lettered + {skipped} skipped{again} + {} waiting",
            counted(self.topic.records, "record"),
            self.topic.waiting
        )?;
        if self.left_over > 0 {
            let were = counted_with(self.left_over, "record", ["was", "were"]);
            write!(f, "\nof these, {were} left by an earlier run")?;
        }
        write!(f, "\n{} accepted", counted(self.accepted, "event"))?;
        if self.pulled_dead_letters > 0 {
            let letters = counted(self.pulled_dead_letters, "fetched record");
            write!(f, "\nbesides, {letters} in the dead-letter topics: slipstream dead-letters list")?;
        }
        if self.balances() {
            write!(f, "\nevery record is accounted for")
        } else {
            write!(
                f,
                "\nTHE ACCOUNT DOES NOT BALANCE: {}",
                counted(self.finished() + self.topic.waiting, "outcome")
            )
        }
    }
}

/// The next offset of each partition.
pub type NextOffsets = BTreeMap<i32, i64>;

/// Counts the records of a topic and reads the offsets of a group.
#[derive(Clone)]
pub struct TopicCounter {
    client: ClientConfig,
    pub topic: String,
    group: String,
    observer: Option<Arc<RetryObserver>>,
}

/// The result of a count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TopicCount {
    /// Records from the start offsets on.
    pub records: u64,
    /// Unfinished records among them.
    pub waiting: u64,
}

impl TopicCounter {
    /// Counts `topic` for the group of `config`; the group's offsets do not change.
    pub fn new(config: &consumer::Config, topic: &str) -> Self {
        let defaults = [("group.id", config.group_id.as_str()), ("enable.auto.commit", "false")];
        let client = client_config(&config.kafka_broker, "slipstream-up", &defaults, &config.properties);
        Self { client, topic: topic.to_owned(), group: config.group_id.clone(), observer: None }
    }

    /// A counter that waits without a limit while Kafka is unavailable; `observer` gets the causes.
    pub fn without_deadline(&self, observer: impl Fn(&RequestError) + Send + Sync + 'static) -> Self {
        Self { observer: Some(Arc::new(observer)), ..self.clone() }
    }

    fn request_client(&self, client: &ClientConfig) -> Result<RequestClient, BoxError> {
        let requests = RequestClient::new(client)?;
        Ok(match &self.observer {
            Some(observer) => requests.without_deadline(Arc::clone(observer)),
            None => requests,
        })
    }

    /// The group's committed offsets; 0 for a partition without one.
    pub fn committed(&self) -> Result<NextOffsets, BoxError> {
        let requests = self.request_client(&self.client)?;
        let mut list = TopicPartitionList::new();
        for partition in partitions(&requests, &self.topic)? {
            list.add_partition(&self.topic, partition);
        }
        let subject = format!("the offsets of group {}", self.group);
        let committed =
            requests.request(&subject, |client, timeout| committed(client, list.clone(), timeout))?;
        let position = |offset| if let Offset::Offset(offset) = offset { offset } else { 0 };
        Ok(committed.elements().iter().map(|found| (found.partition(), position(found.offset()))).collect())
    }

    /// Reads from `start` to the end. `is_waiting` returns whether the record at a partition and
    /// offset is unfinished.
    pub fn count(
        &self,
        start: &NextOffsets,
        is_waiting: impl Fn(i32, i64) -> bool,
    ) -> Result<TopicCount, BoxError> {
        let mut client = self.client.clone();
        client.set("enable.partition.eof", "true").set("auto.offset.reset", "earliest");
        let requests = self.request_client(&client)?;
        let mut unfinished = partitions(&requests, &self.topic)?;
        let consumer = requests.client();
        let mut assignment = TopicPartitionList::new();
        for partition in &unfinished {
            let offset = start.get(partition).copied().unwrap_or(0);
            assignment.add_partition_offset(&self.topic, *partition, Offset::Offset(offset))?;
        }
        consumer.assign(&assignment)?;
        let mut count = TopicCount::default();
        let mut last_progress = Instant::now();
        while !unfinished.is_empty() {
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(record)) => {
                    count.records += 1;
                    count.waiting += u64::from(is_waiting(record.partition(), record.offset()));
                    last_progress = Instant::now();
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    unfinished.retain(|unfinished| *unfinished != partition);
                }
                Some(Err(error)) if !is_transient(&error) => return Err(error.into()),
                // librdkafka retries after these; the timeout below ends the read.
                Some(Err(_)) | None => {}
            }
            if last_progress.elapsed() > REQUEST_TIMEOUT {
                return Err(read_timeout(&requests, &self.topic));
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
    use service::tasks::lock;

    use super::*;

    fn summary(records: u64, waiting: u64, inserted: u64, accepted: u64) -> Summary {
        let consumed = Snapshot { inserted, ..Snapshot::default() };
        let topic = TopicCount { records, waiting };
        Summary { topic, left_over: 0, accepted, pulled_dead_letters: 0, consumed }
    }

    #[test]
    fn a_missing_or_surplus_outcome_or_a_lost_event_unbalances_the_account() {
        assert!(summary(10, 2, 8, 10).balances());
        assert!(summary(10, 2, 8, 9).balances(), "other producers may write to the topic");
        assert!(!summary(10, 2, 7, 10).balances());
        assert!(!summary(10, 2, 9, 10).balances());
        assert!(!summary(10, 2, 8, 11).balances());
    }

    #[test]
    fn records_of_an_earlier_run_do_not_count_as_accepted() {
        let summary = Summary { left_over: 3, ..summary(10, 0, 10, 8) };
        assert!(!summary.balances());
        assert!(summary.to_string().contains("DOES NOT BALANCE"));
    }

    #[test]
    fn dead_letters_of_fetched_records_are_named_and_not_part_of_the_account() {
        let summary = Summary { pulled_dead_letters: 2, ..summary(10, 0, 10, 10) };
        assert!(summary.balances() && summary.to_string().contains("besides, 2 fetched records in the"));
    }

    #[test]
    fn a_record_with_several_outcomes_counts_once() {
        let consumed = Snapshot { inserted: 8, unchanged: 3, repeated: 3, ..Snapshot::default() };
        let summary = Summary { consumed, ..summary(10, 2, 0, 10) };
        assert!(summary.balances(), "{summary}");
        assert!(summary.to_string().contains("+ 0 skipped - 3 read again + 2 waiting"), "{summary}");
        let uncounted = Snapshot { repeated: 0, ..consumed };
        assert!(!Summary { consumed: uncounted, ..summary }.balances());
    }

    #[test]
    fn a_loading_coordinator_is_waited_for_at_start() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 2, 1).unwrap();
        let loading = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_COORDINATOR;
        cluster.request_errors(RDKafkaApiKey::OffsetFetch, &[loading; 8]);
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", "g");
        let counter = TopicCounter { client, topic: "t".into(), group: "g".into(), observer: None };
        let causes = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&causes);
        let waiting = counter.without_deadline(move |cause| lock(&log).push(cause.to_string()));
        assert_eq!(waiting.committed().unwrap(), NextOffsets::from([(0, 0), (1, 0)]));
        let causes = lock(&causes);
        let prefix = format!("kafka at {} (KAFKA_BROKER) does not return", cluster.bootstrap_servers());
        assert!(!causes.is_empty() && causes.iter().all(|cause| cause.starts_with(&prefix)), "{causes:?}");
    }
}
