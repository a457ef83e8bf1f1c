//! SIGKILL at random moments while the consumer reads a topic.

use std::time::Duration;

use testkit::{Stack, TopicLoad, eventually, kafka};

use super::{LIMIT, PARTITIONS, all_committed, assert_model, committed, seed};

struct Size {
    records: usize,
    keys: usize,
    kills: usize,
    /// KAFKA_PROPERTIES of the consumer.
    properties: &'static str,
}

async fn killed(size: Size) {
    let Size { records, keys, kills, properties } = size;
    let (stack, seed) = (Stack::shared_without_sync().await, seed());
    let (names, load) = (stack.names(), TopicLoad::new(seed, records, keys));
    kafka::create_topic(&names, PARTITIONS).await;
    load.produce(&names, 0..records, None).await;
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut in_batches, mut finished) = (0, 0);
    for kill in 1..=kills {
        let before = committed(&names).await;
        let consumer = stack.consumer(&names, &[("KAFKA_PROPERTIES", properties)]);
        // After this number of records of this run, and then at a random moment.
        let target = random.u64(0..(records / kills) as u64);
        eventually("the consumer works", LIMIT, || async {
            let counted = consumer.counters().await?;
            let left = records as u64 - before;
            (counted.finished >= target.min(left)).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(random.u64(0..150))).await;
        let seen = consumer.counters().await.unwrap_or_default();
        consumer.kill().await;
        let after = committed(&names).await;
        assert!(after >= before, "what is committed stays so");
        assert!(seen.read <= records as u64 - before, "more was read than was left: {seen:?}");
        in_batches += seen.read.saturating_sub(after - before);
        finished += seen.finished.saturating_sub(after - before);
        println!("kill {kill}: committed {before} before and {after} after, {seen:?}");
    }
    let left = records as u64 - committed(&names).await;
    let consumer = stack.consumer(&names, &[("KAFKA_PROPERTIES", properties)]);
    consumer.ready().await;
    all_committed(&names, records).await;
    let last = consumer.terminate_with_counters().await;
    assert_eq!((last.read, last.finished), (left, left), "exactly what was not committed is worked again");
    println!(
        "{kills} kills in {records} records; uncommitted then, and so processed again: {finished} finished, {in_batches} with those in batches"
    );
    assert_model(&load, &names, records).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g2_consumer_killed_at_random_collection_equals_the_model() {
    // The broker removes a killed member after this time.
    let properties = "session.timeout.ms=6000";
    killed(Size { records: 20_000, keys: 3_000, kills: 4, properties }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a series: run with --release -- --ignored series"]
async fn consumer_killed_20_times_in_100_000_records_equals_the_model() {
    killed(Size { records: 100_000, keys: 16_677, kills: 20, properties: "" }).await;
}
