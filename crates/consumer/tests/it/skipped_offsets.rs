//! Offsets without a record to process: control records of transactions, and records that were
//! deleted before they were read.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::AdminOptions;
use rdkafka::producer::{FutureProducer, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use testkit::servers::start_durable_mongodb;

use crate::trial::{SOON, Sent, Trial, event, eventually};

/// Sends `ids` in a transaction and ends it.
async fn transaction(trial: &Trial, ids: &[&str], commit: bool) {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &trial.bootstrap)
        .set("transactional.id", format!("{}-{commit}", trial.group))
        .create()
        .unwrap();
    let limit = Duration::from_secs(30);
    let initialized = producer.clone();
    tokio::task::spawn_blocking(move || initialized.init_transactions(limit)).await.unwrap().unwrap();
    producer.begin_transaction().unwrap();
    for id in ids {
        trial.send_with(&producer, Sent::new(id, &event(id, 1, "{}"))).await;
    }
    let end = move || {
        if commit { producer.commit_transaction(limit) } else { producer.abort_transaction(limit) }
    };
    tokio::task::spawn_blocking(end).await.unwrap().unwrap();
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g2_control_records_at_the_end_are_committed_as_finished() {
    let trial = Trial::new(1).await;
    let member = trial.start(&[]).await;
    trial.send(Sent::new("a", &event("a", 1, "{}"))).await;
    transaction(&trial, &["b"], true).await;
    let at = async |offset| trial.committed().await.get(&0) == Some(&offset);
    eventually("the commit marker is passed", SOON, async || at(3).await).await;
    transaction(&trial, &["c"], false).await;
    eventually("the aborted record and its marker are passed", SOON, async || at(5).await).await;
    eventually("lag is zero", SOON, async || member.seen().lag == Some(0)).await;
    let label = format!(r#"{{topic="{}",partition="0"}}"#, trial.topic);
    let committed = format!("slipstream_committed_lag_records{label}");
    eventually("committed lag is zero", SOON, async || member.metric(&committed).await == Some(0.0)).await;
    assert_eq!(member.stop().await.finished(), 2);
    assert_eq!(trial.ids().await, ["a", "b"]);

    // Another member starts at control records, without a record before them.
    transaction(&trial, &["d"], false).await;
    let member = trial.start(&[]).await;
    eventually("the second marker is passed", SOON, async || at(7).await).await;
    assert_eq!(member.stop().await.finished(), 0);
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g2_records_deleted_before_they_were_read_are_counted_once() {
    let trial = Trial::new(1).await;
    trial.send_many("a", 5).await;
    let member = trial.start(&[]).await;
    member.finishes(5).await;
    member.stop().await;
    trial.send_many("b", 10).await;
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(&trial.topic, 0, Offset::Offset(12)).unwrap();
    trial.admin().delete_records(&before, &AdminOptions::new()).await.unwrap();

    let member = trial.start(&[]).await;
    let name = format!(r#"slipstream_records_lost_to_retention_total{{topic="{}"}}"#, trial.topic);
    eventually("the lost records are counted", SOON, async || member.metric(&name).await == Some(7.0)).await;
    member.finishes(3).await;
    assert_eq!(member.health().await["counters"]["lost_to_retention"], 7);
    assert_eq!(member.stop().await.lost_to_retention, 7);
}

#[testkit::needs(apache_kafka, own_mongodb)]
#[tokio::test(flavor = "multi_thread")]
async fn g2_records_deleted_during_a_database_outage_are_counted() {
    let database = start_durable_mongodb().await;
    let trial = Trial { uri: database.uri(), ..Trial::new(1).await };
    database.kill();
    // The partition is paused at eight records. The worker may have taken the first one.
    let member = trial.start(&[("BATCH_MAX_RECORDS", "1")]).await;
    trial.send_many("a", 300).await;
    let is_full =
        async || member.health().await["assignment"][0]["queued"].as_u64().is_some_and(|queued| queued >= 7);
    eventually("the partition is paused", SOON, is_full).await;
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(&trial.topic, 0, Offset::Offset(200)).unwrap();
    trial.admin().delete_records(&before, &AdminOptions::new()).await.unwrap();
    database.restart().await.unwrap();

    let all = async || {
        let seen = member.seen();
        seen.lost_to_retention > 100 && seen.finished() + seen.lost_to_retention == 300
    };
    eventually("each record is finished or lost", SOON, all).await;
    eventually("all offsets are committed", SOON, async || trial.committed().await.get(&0) == Some(&300))
        .await;
    let seen = member.stop().await;
    assert_eq!(trial.ids().await.len() as u64, seen.finished());
}
