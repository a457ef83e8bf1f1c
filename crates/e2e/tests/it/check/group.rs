//! The consumer group. What needs the end of a partition is asked of Apache Kafka only.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use e2e::{Names, Stack, eventually, kafka};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use servers::BrokerKind;

use super::findings::check;
use super::topics::make_topic;

fn tells_the_end() -> bool {
    BrokerKind::from_env().unwrap() == BrokerKind::ApacheKafka
}

fn client(names: &Names) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &names.kafka)
        .set("group.id", &names.group)
        .set("enable.auto.commit", "false");
    config
}

fn commit(names: &Names, offset: i64) {
    let consumer: BaseConsumer = client(names).create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&names.topic, 0, Offset::Offset(offset)).unwrap();
    consumer.commit(&list, CommitMode::Sync).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_without_a_consumer_is_a_failure_once_records_wait() {
    if !tells_the_end() {
        return;
    }
    let names = Stack::shared().await.names();
    let subject = format!("group {}", names.group);
    make_topic(&names, &names.topic, &[]).await;
    check(&names, &[]).await.assert("warn", &subject, "nothing waits");
    kafka::produce(&names, &[(None, b"one"), (None, b"two"), (None, b"three")]).await;
    commit(&names, 1);
    check(&names, &[]).await.assert(
        "fail",
        &subject,
        &format!("no consumer runs; lag 2 ({}/0: 2)", names.topic),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_were_deleted_unread_and_offsets_past_the_end_are_failures() {
    if !tells_the_end() {
        return;
    }
    let names = Stack::shared().await.names();
    let subject = format!("group {}", names.group);
    make_topic(&names, &names.topic, &[]).await;
    kafka::produce(&names, &[(None, b"one"), (None, b"two"), (None, b"three")]).await;
    commit(&names, 1);
    kafka::delete_records(&names, 0, 3).await;
    check(&names, &[]).await.assert("fail", &subject, "2 records were deleted");
    commit(&names, 100);
    check(&names, &[]).await.assert("fail", &subject, &format!("past the end of {}/0", names.topic));
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_are_not_ours_are_a_failure() {
    let names = Stack::shared().await.names();
    make_topic(&names, &names.topic, &[]).await;
    let consumer: BaseConsumer =
        client(&names).set("partition.assignment.strategy", "range,roundrobin").create().unwrap();
    consumer.subscribe(&[&names.topic]).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let member = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            drop(consumer.poll(Duration::from_millis(100)));
        }
    });
    let found = eventually("the member is seen", Duration::from_secs(60), || async {
        let found = check(&names, &[]).await;
        found.has("fail", &format!("group {}", names.group), "by range").then_some(found)
    });
    assert_eq!(found.await.code, Some(1));
    stop.store(true, Ordering::Relaxed);
    member.join().unwrap();
}
