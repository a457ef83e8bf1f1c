//! Writes and reads a test's topic and group with clients of its own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message, OwnedMessage};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::{Names, eventually};

const TIMEOUT: Duration = Duration::from_secs(10);

fn config(names: &Names) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &names.kafka).set("acks", "all");
    config
}

/// Produces records to partition 0 of the topic, in this order.
pub async fn produce(names: &Names, records: &[(Option<&str>, &[u8])]) {
    let producer: FutureProducer = config(names).create().expect("a producer");
    for (key, value) in records {
        let mut record = FutureRecord::<str, [u8]>::to(&names.topic).partition(0).payload(value);
        record.key = *key;
        producer.send(record, Duration::from_secs(10)).await.expect("acknowledged");
    }
}

/// Creates the topic.
pub async fn create_topic(names: &Names, partitions: i32) {
    let admin: AdminClient<DefaultClientContext> = config(names).create().expect("an admin client");
    let topic = NewTopic::new(&names.topic, partitions, TopicReplication::Fixed(1));
    let created = admin.create_topics([&topic], &AdminOptions::new()).await.expect("a response");
    assert!(created.iter().all(Result::is_ok), "{created:?}");
}

/// Produces records as fast as the broker accepts them, each to the partition of its key.
pub async fn produce_by_key(names: &Names, records: impl Iterator<Item = (String, String)>) {
    let producer: FutureProducer = config(names).create().expect("a producer");
    let mut deliveries = Vec::new();
    for (key, value) in records {
        let record = FutureRecord::to(&names.topic).key(&key).payload(&value);
        deliveries.push(producer.send_result(record).expect("room in the queue"));
    }
    for delivery in deliveries {
        delivery.await.expect("the producer exists").expect("acknowledged");
    }
}

/// Sets a configuration of the topic. All others return to the defaults of the broker.
pub async fn set_topic_config(names: &Names, name: &str, value: &str) {
    let admin: AdminClient<DefaultClientContext> = config(names).create().expect("an admin client");
    let change = AlterConfig::new(ResourceSpecifier::Topic(&names.topic)).set(name, value);
    let changed = admin.alter_configs([&change], &AdminOptions::new()).await.expect("a response");
    assert!(changed.iter().all(Result::is_ok), "{changed:?}");
}

/// Deletes a topic that has records, and waits until a process has created it again.
///
/// After its response the broker still accepts records for the old topic for a moment, even if the
/// metadata have no such topic. So this waits until the end offsets are lower than before.
pub async fn delete_recreated_topic(names: &Names) {
    let before = end_offsets(names).await;
    let admin: AdminClient<DefaultClientContext> = config(names).create().expect("an admin client");
    let deleted = admin.delete_topics(&[&names.topic], &AdminOptions::new()).await.expect("a response");
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    let is_new = || async {
        let now = end_offsets(names).await;
        before.iter().all(|(id, end)| *end == 0 || now.get(id).is_some_and(|now| now < end)).then_some(())
    };
    eventually("the topic is created again", TIMEOUT, is_new).await;
}

/// Deletes the records before an offset of a partition, as retention does.
pub async fn delete_records(names: &Names, partition: i32, before: i64) {
    let admin: AdminClient<DefaultClientContext> = config(names).create().expect("an admin client");
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(&names.topic, partition, Offset::Offset(before)).expect("an offset");
    let deleted = admin.delete_records(&offsets, &AdminOptions::new()).await.expect("a response");
    assert!(deleted.elements().iter().all(|one| one.error().is_ok()), "{deleted:?}");
}

/// Resets the group to the beginning of the topic. The group must have no members.
pub async fn reset_group_to_beginning(names: &Names) {
    let partitions = committed_offsets(names).await;
    let names = names.clone();
    let reset = move || {
        let mut config = config(&names);
        config.set("group.id", &names.group);
        let consumer: BaseConsumer = config.create().expect("a consumer");
        let mut beginning = TopicPartitionList::new();
        for partition in partitions.into_keys() {
            let at = beginning.add_partition_offset(&names.topic, partition, Offset::Offset(0));
            at.expect("an offset");
        }
        consumer.commit(&beginning, CommitMode::Sync).expect("a group without members");
    };
    tokio::task::spawn_blocking(reset).await.expect("a response");
}

/// The committed offset of each partition that has one; empty if the broker is unavailable.
pub async fn committed_offsets(names: &Names) -> BTreeMap<i32, i64> {
    let names = names.clone();
    let request = move || {
        let mut config = config(&names);
        config.set("group.id", &names.group);
        let consumer: BaseConsumer = config.create().expect("a consumer");
        let metadata = consumer.fetch_metadata(Some(&names.topic), TIMEOUT)?;
        let mut partitions = TopicPartitionList::new();
        for partition in metadata.topics()[0].partitions() {
            partitions.add_partition(&names.topic, partition.id());
        }
        consumer.committed_offsets(partitions, TIMEOUT)
    };
    let response: Result<TopicPartitionList, KafkaError> =
        tokio::task::spawn_blocking(request).await.expect("a response");
    let Ok(response) = response else { return BTreeMap::new() };
    let offset = |offset| if let Offset::Offset(offset) = offset { Some(offset) } else { None };
    response.elements().iter().filter_map(|at| Some((at.partition(), offset(at.offset())?))).collect()
}

/// The number of members of the group.
pub async fn group_members(names: &Names) -> usize {
    let names = names.clone();
    let request = move || {
        let consumer: BaseConsumer = config(&names).create().expect("a consumer");
        let groups = consumer.fetch_group_list(Some(&names.group), TIMEOUT).expect("a response");
        groups.groups().iter().map(|group| group.members().len()).sum()
    };
    tokio::task::spawn_blocking(request).await.expect("a response")
}

/// The end offset of each partition; empty if the topic does not exist.
pub async fn end_offsets(names: &Names) -> BTreeMap<i32, i64> {
    let names = names.clone();
    let request = move || -> Result<BTreeMap<i32, i64>, KafkaError> {
        let consumer: BaseConsumer = config(&names).create()?;
        let metadata = consumer.fetch_metadata(Some(&names.topic), TIMEOUT)?;
        let partitions = metadata.topics()[0].partitions().iter().map(|partition| partition.id());
        let end = |partition| consumer.fetch_watermarks(&names.topic, partition, TIMEOUT).map(|(_, end)| end);
        partitions.map(|partition| Ok((partition, end(partition)?))).collect()
    };
    tokio::task::spawn_blocking(request).await.expect("a response").unwrap_or_default()
}

/// All records of `topic`.
pub async fn read_all(names: &Names, topic: &str) -> Vec<OwnedMessage> {
    let (names, topic) = (names.clone(), topic.to_owned());
    tokio::task::spawn_blocking(move || read_to_end(&names, &topic)).await.expect("the read ends")
}

fn read_to_end(names: &Names, topic: &str) -> Vec<OwnedMessage> {
    let mut config = config(names);
    config.set("group.id", "reader").set("enable.partition.eof", "true").set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create().expect("a consumer");
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT).expect("metadata");
    let mut open: Vec<i32> =
        metadata.topics()[0].partitions().iter().map(|partition| partition.id()).collect();
    let mut assignment = TopicPartitionList::new();
    for partition in &open {
        assignment.add_partition_offset(topic, *partition, Offset::Beginning).expect("an offset");
    }
    consumer.assign(&assignment).expect("an assignment");
    let (mut records, start) = (Vec::new(), Instant::now());
    while !open.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(60), "the topic {topic} cannot be read to its end");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(record)) => records.push(record.detach()),
            Some(Err(KafkaError::PartitionEOF(partition))) => open.retain(|open| *open != partition),
            Some(Err(_)) | None => {}
        }
    }
    records
}

/// The text of a header.
pub fn header(record: &OwnedMessage, name: &str) -> Option<String> {
    let headers = record.headers()?;
    let value = headers.iter().find(|header| header.key == name)?.value?;
    Some(String::from_utf8_lossy(value).into_owned())
}
