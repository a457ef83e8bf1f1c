//! A member that is paused beyond its session timeout, loses its partitions to another member, and
//! resumes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use testkit::{Names, Stack, TopicLoad, eventually, kafka};

use super::{PARTITIONS, all_committed, assert_model, seed};

/// Panics if a committed offset decreases.
async fn follow_commits(names: Names, over: Arc<AtomicBool>) -> u32 {
    let (mut last, mut looks): (BTreeMap<i32, i64>, u32) = (BTreeMap::new(), 0);
    while !over.load(Ordering::Relaxed) {
        for (partition, offset) in kafka::committed_offsets(&names).await {
            let before = last.insert(partition, offset).unwrap_or(0);
            assert!(offset >= before, "partition {partition} went back from {before} to {offset}");
        }
        looks += 1;
    }
    looks
}

/// One third of the records is produced before the pause, one during the pause, one after it.
async fn stands_still(records: usize, keys: usize) {
    let (stack, seed) = (Stack::shared_without_sync().await, seed());
    let (names, load) = (stack.names(), TopicLoad::new(seed, records, keys));
    kafka::create_topic(&names, PARTITIONS).await;
    let over = Arc::new(AtomicBool::new(false));
    let commits = tokio::spawn(follow_commits(names.clone(), Arc::clone(&over)));
    let third = records / 3;
    load.produce(&names, 0..third, None).await;
    // Small batches, so that the pause begins within a batch.
    let paused = stack.consumer(&names, &[("BATCH_MAX_RECORDS", "20")]);
    eventually("it is at work", Duration::from_secs(60), || async {
        (paused.counters().await?.finished > third as u64 / 10).then_some(())
    })
    .await;
    paused.signal(Signal::SIGSTOP);
    let held = third as u64 - super::committed(&names).await;
    assert!(held > 0, "it was stopped too late to tell anything");

    let successor = stack.consumer(&names, &[]);
    load.produce(&names, third..2 * third, None).await;
    all_committed(&names, 2 * third).await;
    assert_eq!(successor.assigned_partitions().await, PARTITIONS as usize);

    paused.signal(Signal::SIGCONT);
    eventually("they share the partitions", Duration::from_secs(60), || async {
        (paused.assigned_partitions().await == 3 && successor.assigned_partitions().await == 3).then_some(())
    })
    .await;
    load.produce(&names, 2 * third..records, None).await;
    all_committed(&names, records).await;
    over.store(true, Ordering::Relaxed);
    println!("committed offsets were looked at {} times and never went back", commits.await.unwrap());
    let (paused, successor) =
        (paused.terminate_with_counters().await, successor.terminate_with_counters().await);
    println!(
        "paused {paused:?}, successor {successor:?}; {held} records were not committed when it was stopped"
    );
    let twice = paused.finished + successor.finished - records as u64;
    assert!(twice <= held, "{twice} records worked twice, {held} were uncommitted");
    assert_model(&load, &names, records).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g3_fenced_member_that_resumes_restores_no_older_event() {
    stands_still(15_000, 500).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a series: run with --release -- --ignored series"]
async fn member_fenced_within_100_000_records_restores_no_older_event() {
    stands_still(100_000, 16_677).await;
}
