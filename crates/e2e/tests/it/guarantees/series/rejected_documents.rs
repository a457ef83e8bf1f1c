//! A collection whose validator rejects every third document.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bson::{Document, doc};
use rdkafka::Message;
use testkit::topic_load::SOURCE;
use testkit::{Names, Stack, TopicLoad, kafka, mongo};

use super::{PARTITIONS, all_committed, seed};

/// Consumes a topic with the records of `load`. Returns the duration and the names.
async fn drained(load: &TopicLoad, validator: Document) -> (Duration, Names) {
    let stack = Stack::shared_without_sync().await;
    let names = stack.names();
    kafka::create_topic(&names, PARTITIONS).await;
    let create = doc! { "create": SOURCE, "validator": validator };
    mongo::database(&names).await.run_command(create).await.unwrap();
    load.produce(&names, 0..load.records(), None).await;
    let consumer = stack.consumer(&names, &[]);
    let started = Instant::now();
    all_committed(&names, load.records()).await;
    let took = started.elapsed();
    let counted = consumer.terminate_with_counters().await;
    assert_eq!(counted.finished, load.records() as u64, "{counted:?}");
    (took, names)
}

/// Panics unless exactly the rejected records are dead letters, byte for byte. Returns the
/// duration.
async fn every_third_is_refused(load: &TopicLoad) -> Duration {
    let (took, names) = drained(load, doc! { "third": { "$ne": 0 } }).await;
    load.assert_stored(&names, load.records(), |n| n % 3 != 0).await;
    let mut refused: HashMap<String, String> =
        (0..load.records()).step_by(3).map(|n| (load.key(n), load.value(n))).collect();
    for letter in kafka::read_all(&names, &names.dead_letter_topic()).await {
        let key = String::from_utf8_lossy(letter.key().unwrap()).into_owned();
        let value = refused.remove(&key).unwrap_or_else(|| panic!("{key} is dead, or dead twice"));
        assert_eq!(letter.payload(), Some(value.as_bytes()));
        let class = kafka::header(&letter, "__connect.errors.exception.class.name");
        assert_eq!(class.as_deref(), Some("DocumentValidationFailure"));
    }
    assert_eq!(refused.len(), 0, "refused, and no dead letter");
    took
}

#[tokio::test(flavor = "multi_thread")]
async fn g5_every_third_document_rejected_exactly_those_are_dead_lettered() {
    every_third_is_refused(&TopicLoad::new(seed(), 6_000, 6_000)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a series: run with --release -- --ignored series"]
async fn a_third_of_100_000_rejected_throughput_stays_above_half() {
    let load = TopicLoad::new(seed(), 100_000, 100_000);
    let (free, _) = drained(&load, doc! {}).await;
    let refusing = every_third_is_refused(&load).await;
    println!("100,000 records: {free:?} where all are taken, {refusing:?} where every third is refused");
    assert!(refusing < free * 2, "less than half of the throughput");
}
