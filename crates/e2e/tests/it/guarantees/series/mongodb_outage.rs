//! MongoDB is unavailable while records arrive.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use testkit::{Process, Stack, TopicLoad, eventually, http, kafka};

use super::{PARTITIONS, all_committed, assert_model, seed};

const MAX_MEMORY_BYTES: u64 = 150 << 20;

/// Reads the memory of the consumer ten times per second until `over`. Returns the maximum.
async fn most_memory(consumer: Arc<Process>, over: Arc<AtomicBool>) -> u64 {
    let most = AtomicU64::new(0);
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    while !over.load(Ordering::Relaxed) {
        tick.tick().await;
        most.fetch_max(consumer.resident_bytes(), Ordering::Relaxed);
    }
    most.into_inner()
}

async fn run_outage(records: usize, keys: usize, outage: Duration) {
    let (stack, seed) = (Stack::start_without_sync().await, seed());
    let (names, load) = (stack.names(), TopicLoad::new(seed, records, keys));
    kafka::create_topic(&names, PARTITIONS).await;
    let consumer = Arc::new(stack.consumer(&names, &[]));
    consumer.ready().await;
    load.produce(&names, 0..records / 100, None).await;
    all_committed(&names, records / 100).await;
    let over = Arc::new(AtomicBool::new(false));
    let memory = tokio::spawn(most_memory(Arc::clone(&consumer), Arc::clone(&over)));

    // A graceful stop, so that acknowledged writes survive although the server does not sync each
    // commit.
    stack.mongodb.stop().await;
    let gone = Instant::now();
    let rate = u32::try_from(records).unwrap() / u32::try_from(outage.as_secs()).unwrap();
    load.produce(&names, records / 100..records, Some(rate)).await;
    tokio::time::sleep_until((gone + outage).into()).await;
    let ready = http::get(&consumer.url("/readyz")).await.unwrap();
    assert_eq!(ready.status, 503, "{ready:?}");
    let before = consumer.counters().await.unwrap();
    stack.mongodb.restart().await.unwrap();
    let back = Instant::now();
    eventually("work resumes", Duration::from_secs(5), || async {
        (consumer.counters().await?.finished > before.finished).then_some(())
    })
    .await;
    println!("work resumed {:?} after the database was back", back.elapsed());
    all_committed(&names, records).await;
    println!("{records} records finished {:?} after the database was back", back.elapsed());
    over.store(true, Ordering::Relaxed);
    let most = memory.await.unwrap();
    println!("{} MiB of memory at most", most >> 20);
    assert!(most < MAX_MEMORY_BYTES, "{most} bytes");
    let consumer = Arc::into_inner(consumer).expect("nobody else holds it");
    let counted = consumer.terminate_with_counters().await;
    assert_eq!((counted.finished, counted.repeated), (records as u64, 0), "{counted:?}");
    assert_model(&load, &names, records).await;
}

#[testkit::needs(own_mongodb)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_mongodb_outage_memory_is_bounded_and_all_events_are_stored() {
    run_outage(20_000, 3_000, Duration::from_secs(15)).await;
}

#[testkit::needs(own_mongodb)]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a series: run with --release -- --ignored series"]
async fn mongodb_outage_of_two_minutes_while_200_000_records_arrive() {
    run_outage(200_000, 16_677, Duration::from_secs(120)).await;
}
