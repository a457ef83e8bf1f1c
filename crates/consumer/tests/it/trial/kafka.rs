//! What is in Kafka: the group's offsets, and records.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Headers, Message, OwnedMessage};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{SOON, Trial};

impl Trial {
    /// The group's committed offset of each partition that has one.
    pub async fn committed(&self) -> BTreeMap<i32, i64> {
        let deadline = Instant::now() + SOON;
        let committed = loop {
            let consumer = self.reader(&self.group);
            let mut list = TopicPartitionList::new();
            list.add_partition_range(&self.topic, 0, self.partitions - 1);
            let ask = move || consumer.committed_offsets(list, Duration::from_secs(5));
            match tokio::task::spawn_blocking(ask).await.unwrap() {
                Ok(committed) => break committed,
                Err(error) => assert!(is_passing(&error) && Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let offset = |offset| if let Offset::Offset(offset) = offset { Some(offset) } else { None };
        committed.elements().iter().filter_map(|e| Some((e.partition(), offset(e.offset())?))).collect()
    }

    /// Everything in the dead-letter topic now.
    pub async fn dead_letters(&self) -> Vec<OwnedMessage> {
        self.records_of(format!("{}.dlq", self.topic)).await
    }

    /// Everything in `topic` now.
    pub async fn records_of(&self, topic: String) -> Vec<OwnedMessage> {
        let consumer = self.reader("none");
        tokio::task::spawn_blocking(move || read_to_end(&consumer, &topic)).await.unwrap()
    }

    pub fn reader(&self, group: &str) -> BaseConsumer {
        ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .create()
            .unwrap()
    }
}

/// Whether a broker that was away is not yet its groups' coordinator again.
fn is_passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    let coordinator = [Code::NotCoordinator, Code::CoordinatorNotAvailable, Code::CoordinatorLoadInProgress];
    error.rdkafka_error_code().is_some_and(|code| coordinator.contains(&code))
}

/// The text of a dead letter's header about its error.
pub fn told(letter: &OwnedMessage, name: &str) -> String {
    let name = format!("__connect.errors.{name}");
    let header = letter.headers().unwrap().iter().find(|header| header.key == name);
    String::from_utf8(header.unwrap_or_else(|| panic!("no {name}")).value.unwrap().to_vec()).unwrap()
}

fn read_to_end(consumer: &BaseConsumer, topic: &str) -> Vec<OwnedMessage> {
    let metadata = consumer.fetch_metadata(Some(topic), SOON).unwrap();
    let partitions: Vec<i32> = metadata.topics()[0].partitions().iter().map(|p| p.id()).collect();
    let mut list = TopicPartitionList::new();
    for &partition in &partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let (mut messages, mut open) = (Vec::new(), partitions.len());
    let deadline = Instant::now() + SOON;
    while open > 0 {
        assert!(Instant::now() < deadline, "the dead-letter topic does not end");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => messages.push(message.detach()),
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            Some(Err(error)) => panic!("{error}"),
            None => {}
        }
    }
    messages
}
