//! The consumer group. Tests that need end offsets need Apache Kafka.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::Value;
use testkit::{Names, Process, Stack, eventually, http, kafka};

use super::findings::check;
use super::topics::make_topic;

const LIMIT: Duration = Duration::from_secs(60);

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

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn group_without_members_and_with_lag_is_a_failure() {
    let names = Stack::shared().await.names();
    let subject = format!("group {}", names.group);
    make_topic(&names, &names.topic, &[]).await;
    check(&names, &[]).await.assert("warn", &subject, "no records wait");
    kafka::produce(&names, &[(None, b"one"), (None, b"two"), (None, b"three")]).await;
    commit(&names, 1);
    check(&names, &[]).await.assert(
        "fail",
        &subject,
        &format!("no consumer runs; lag 2 ({}/0: 2)", names.topic),
    );
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn unread_deleted_records_and_offsets_beyond_the_end_are_failures() {
    let names = Stack::shared().await.names();
    let subject = format!("group {}", names.group);
    make_topic(&names, &names.topic, &[]).await;
    kafka::produce(&names, &[(None, b"one"), (None, b"two"), (None, b"three")]).await;
    commit(&names, 1);
    kafka::delete_records(&names, 0, 3).await;
    check(&names, &[]).await.assert("fail", &subject, "2 records were deleted");
    commit(&names, 100);
    let found = check(&names, &[]).await;
    found.assert("fail", &subject, &format!("past the end of {}/0", names.topic));
    assert!(!format!("{found:?}").contains("no records wait"), "{found:?}");
    kafka::produce(&names, &[(None, b"four")]).await;
    check(&names, &[]).await.assert("fail", &subject, &format!("lag 1 ({}/0: 1)", names.topic));
}

/// A member of the group that is not a Slipstream consumer. It leaves when it is dropped.
struct Stranger {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stranger {
    fn join(names: &Names, property: (&str, &str)) -> Self {
        let mut config = client(names);
        let consumer: BaseConsumer =
            config.set("client.id", "kafka-python-2.0.2").set(property.0, property.1).create().unwrap();
        consumer.subscribe(&[&names.topic]).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                drop(consumer.poll(Duration::from_millis(100)));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

async fn health(consumer: &Process) -> Value {
    http::get(&consumer.url("/health")).await.map(|answer| answer.body).unwrap_or_default()
}

/// Waits until the consumer is degraded with a wait reason that contains `parts`.
async fn is_degraded(consumer: &Process, parts: &[&str]) {
    eventually("the consumer names the stranger", LIMIT, || async {
        let health = health(consumer).await;
        let waiting = health["waiting_for"].to_string();
        let told = parts.iter().all(|part| waiting.contains(part));
        (health["status"] == "degraded" && told).then_some(())
    })
    .await;
}

/// Waits until the consumer has all partitions.
async fn is_well(consumer: &Process, partitions: usize) {
    eventually("the consumer is alone", LIMIT, || async {
        let health = health(consumer).await;
        let assigned = health["assignment"].as_array().map_or(0, Vec::len);
        (health["status"] == "ok" && assigned == partitions).then_some(())
    })
    .await;
    assert_eq!(health(consumer).await["waiting_for"], serde_json::json!([]));
}

fn warnings(consumer: &Process) -> usize {
    let told = |line: &&str| line.contains("group has foreign members");
    consumer.log().lines().filter(told).count()
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn members_that_block_the_consumer_are_a_failure_in_check_and_health() {
    let stack = Stack::shared().await;
    let names = stack.names();
    make_topic(&names, &names.topic, &[]).await;
    let python = Stranger::join(&names, ("partition.assignment.strategy", "range,roundrobin"));
    let found = eventually("the member is seen", LIMIT, || async {
        let found = check(&names, &[]).await;
        found.has("fail", &format!("group {}", names.group), "the assignor range").then_some(found)
    })
    .await;
    assert_eq!(found.code, Some(1));
    found.assert("fail", &format!("group {}", names.group), "kafka-python-2.0.2 at ");
    let consumer = stack.consumer(&names, &[]);
    let parts =
        [&names.group, "assignor range", "kafka-python-2.0.2 at ", "cannot join", "stop these members"];
    is_degraded(&consumer, &parts).await;
    consumer.ready().await;
    drop(python);
    is_well(&consumer, 1).await;
    assert_eq!(warnings(&consumer), 1, "{}", consumer.log());
    assert!(consumer.terminate().await.success());
}

/// Ends partition 0 with the control record of an aborted transaction of another application.
async fn abort_a_transaction(names: &Names) {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &names.kafka)
        .set("transactional.id", &names.group)
        .create()
        .unwrap();
    let begun = producer.clone();
    tokio::task::spawn_blocking(move || begun.init_transactions(LIMIT)).await.unwrap().unwrap();
    producer.begin_transaction().unwrap();
    let record = FutureRecord::<str, str>::to(&names.topic).partition(0).key("aborted").payload("{}");
    producer.send(record, LIMIT).await.unwrap();
    tokio::task::spawn_blocking(move || producer.abort_transaction(LIMIT)).await.unwrap().unwrap();
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn control_records_at_the_end_are_not_lag() {
    let stack = Stack::shared().await;
    let names = stack.names();
    let subject = format!("group {}", names.group);
    kafka::create_topic(&names, 1).await;
    let consumer = stack.consumer(&names, &[]);
    is_well(&consumer, 1).await;
    abort_a_transaction(&names).await;
    eventually("check finds no lag", LIMIT, || async {
        check(&names, &[]).await.has("ok", &subject, "1 member, stable; lag 0").then_some(())
    })
    .await;
    assert!(consumer.terminate().await.success());
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn other_members_with_our_partitions_are_a_failure_in_both_protocols() {
    let stack = Stack::shared().await;
    let strangers = [("group.protocol", "consumer"), ("partition.assignment.strategy", "cooperative-sticky")];
    for property in strangers {
        let names = stack.names();
        let subject = format!("group {}", names.group);
        kafka::create_topic(&names, 2).await;
        let consumer = stack.consumer(&names, &[]);
        is_well(&consumer, 2).await;
        let stranger = Stranger::join(&names, property);
        is_degraded(&consumer, &[&names.group, "kafka-python-2.0.2 at ", "(1 partition)", "not stored"])
            .await;
        let found = check(&names, &[]).await;
        found.assert(
            "fail",
            &subject,
            "not Slipstream's: 1 of 2; records of their partitions are not stored",
        );
        found.assert("fail", &subject, "kafka-python-2.0.2 at 127.0.0.1 (1 partition)");
        drop(stranger);
        is_well(&consumer, 2).await;
        let alone = check(&names, &[]).await;
        assert!(alone.has("ok", &subject, "1 member, stable"), "{property:?}: {alone:?}");
        assert_eq!(warnings(&consumer), 1, "{property:?}: {}", consumer.log());
        assert!(consumer.terminate().await.success());
    }
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn group_of_the_consumer_protocol_is_found_without_a_consumer() {
    let names = Stack::shared().await.names();
    make_topic(&names, &names.topic, &[]).await;
    let _stranger = Stranger::join(&names, ("group.protocol", "consumer"));
    let subject = format!("group {}", names.group);
    eventually("the member is seen", LIMIT, || async {
        let found = check(&names, &[]).await;
        found.has("fail", &subject, "not Slipstream's: 1 of 1;").then_some(())
    })
    .await;
}
