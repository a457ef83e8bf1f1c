//! What is on a topic, written and read by clients of the test's own.

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

const LIMIT: Duration = Duration::from_secs(10);

fn config(names: &Names) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &names.kafka).set("acks", "all");
    config
}

/// Writes records to the topic's partition 0, in this order.
pub async fn produce(names: &Names, records: &[(Option<&str>, &[u8])]) {
    let producer: FutureProducer = config(names).create().expect("a producer");
    for (key, value) in records {
        let mut record = FutureRecord::<str, [u8]>::to(&names.topic).partition(0).payload(value);
        record.key = *key;
        producer.send(record, Duration::from_secs(10)).await.expect("acknowledged");
    }
}

/// Makes the topic.
pub async fn make_topic(names: &Names, partitions: i32) {
    let admin: AdminClient<DefaultClientContext> = config(names).create().expect("an admin client");
    let topic = NewTopic::new(&names.topic, partitions, TopicReplication::Fixed(1));
    let made = admin.create_topics([&topic], &AdminOptions::new()).await.expect("an answer");
    assert!(made.iter().all(Result::is_ok), "{made:?}");
}

/// Writes records as fast as the broker takes them, each to the partition of its key.
pub async fn flood(names: &Names, records: impl Iterator<Item = (String, String)>) {
    let producer: FutureProducer = config(names).create().expect("a producer");
    let mut waiting = Vec::new();
    for (key, value) in records {
        let record = FutureRecord::to(&names.topic).key(&key).payload(&value);
        waiting.push(producer.send_result(record).expect("room in the queue"));
    }
    for delivery in waiting {
        delivery.await.expect("the producer lives").expect("acknowledged");
    }
}

/// Changes a setting of the topic; the others become those of the broker.
pub async fn set_topic(names: &Names, setting: &str, value: &str) {
    let admin: AdminClient<DefaultClientContext> = config(names).create().expect("an admin client");
    let change = AlterConfig::new(ResourceSpecifier::Topic(&names.topic)).set(setting, value);
    let changed = admin.alter_configs([&change], &AdminOptions::new()).await.expect("an answer");
    assert!(changed.iter().all(Result::is_ok), "{changed:?}");
}

/// Deletes the topic, on which there are records, and waits until whoever needs it has made it again. From the answer on
/// it takes a moment until the broker accepts no more records for the old one, also while its metadata know none.
pub async fn delete_topic(names: &Names) {
    let before = ends(names).await;
    let admin: AdminClient<DefaultClientContext> = config(names).create().expect("an admin client");
    let deleted = admin.delete_topics(&[&names.topic], &AdminOptions::new()).await.expect("an answer");
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    let is_gone = || async {
        let now = ends(names).await;
        before.iter().all(|(id, end)| *end == 0 || now.get(id).is_some_and(|now| now < end)).then_some(())
    };
    eventually("the topic is made anew", LIMIT, is_gone).await;
}

/// Deletes the records of a partition before an offset, as retention does.
pub async fn delete_records(names: &Names, partition: i32, before: i64) {
    let admin: AdminClient<DefaultClientContext> = config(names).create().expect("an admin client");
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(&names.topic, partition, Offset::Offset(before)).expect("an offset");
    let deleted = admin.delete_records(&offsets, &AdminOptions::new()).await.expect("an answer");
    assert!(deleted.elements().iter().all(|one| one.error().is_ok()), "{deleted:?}");
}

/// Sends the group, which has no member, back to the beginning.
pub async fn rewind(names: &Names) {
    let partitions = committed(names).await;
    let names = names.clone();
    let rewound = move || {
        let mut config = config(&names);
        config.set("group.id", &names.group);
        let consumer: BaseConsumer = config.create().expect("a consumer");
        let mut beginning = TopicPartitionList::new();
        for partition in partitions.into_keys() {
            let at = beginning.add_partition_offset(&names.topic, partition, Offset::Offset(0));
            at.expect("an offset");
        }
        consumer.commit(&beginning, CommitMode::Sync).expect("the group has no member");
    };
    tokio::task::spawn_blocking(rewound).await.expect("an answer");
}

/// The group's committed offset of each partition that has one; none while the broker does not answer.
pub async fn committed(names: &Names) -> BTreeMap<i32, i64> {
    let names = names.clone();
    let ask = move || {
        let mut config = config(&names);
        config.set("group.id", &names.group);
        let consumer: BaseConsumer = config.create().expect("a consumer");
        let metadata = consumer.fetch_metadata(Some(&names.topic), LIMIT)?;
        let mut partitions = TopicPartitionList::new();
        for partition in metadata.topics()[0].partitions() {
            partitions.add_partition(&names.topic, partition.id());
        }
        consumer.committed_offsets(partitions, LIMIT)
    };
    let answer: Result<TopicPartitionList, KafkaError> =
        tokio::task::spawn_blocking(ask).await.expect("an answer");
    let Ok(answer) = answer else { return BTreeMap::new() };
    let offset = |offset| if let Offset::Offset(offset) = offset { Some(offset) } else { None };
    answer.elements().iter().filter_map(|at| Some((at.partition(), offset(at.offset())?))).collect()
}

/// How many members the group has.
pub async fn members(names: &Names) -> usize {
    let names = names.clone();
    let ask = move || {
        let consumer: BaseConsumer = config(&names).create().expect("a consumer");
        let groups = consumer.fetch_group_list(Some(&names.group), LIMIT).expect("an answer");
        groups.groups().iter().map(|group| group.members().len()).sum()
    };
    tokio::task::spawn_blocking(ask).await.expect("an answer")
}

/// The end of each partition of the topic; none while there is no such topic.
pub async fn ends(names: &Names) -> BTreeMap<i32, i64> {
    let names = names.clone();
    let ask = move || -> Result<BTreeMap<i32, i64>, KafkaError> {
        let consumer: BaseConsumer = config(&names).create()?;
        let metadata = consumer.fetch_metadata(Some(&names.topic), LIMIT)?;
        let partitions = metadata.topics()[0].partitions().iter().map(|partition| partition.id());
        let end = |partition| consumer.fetch_watermarks(&names.topic, partition, LIMIT).map(|(_, end)| end);
        partitions.map(|partition| Ok((partition, end(partition)?))).collect()
    };
    tokio::task::spawn_blocking(ask).await.expect("an answer").unwrap_or_default()
}

/// Every record of `topic`, read to the end.
pub async fn read_all(names: &Names, topic: &str) -> Vec<OwnedMessage> {
    let (names, topic) = (names.clone(), topic.to_owned());
    tokio::task::spawn_blocking(move || read_to_end(&names, &topic)).await.expect("the read ends")
}

fn read_to_end(names: &Names, topic: &str) -> Vec<OwnedMessage> {
    let mut config = config(names);
    config.set("group.id", "reader").set("enable.partition.eof", "true").set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create().expect("a consumer");
    let metadata = consumer.fetch_metadata(Some(topic), LIMIT).expect("metadata");
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

/// A header's text.
pub fn header(record: &OwnedMessage, name: &str) -> Option<String> {
    let headers = record.headers()?;
    let value = headers.iter().find(|header| header.key == name)?.value?;
    Some(String::from_utf8_lossy(value).into_owned())
}
