//! Scaling under load: partitions move between members that join and leave gracefully.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use testkit::process::ConsumerCounters;
use testkit::{Process, Stack, TopicLoad, eventually, kafka};

use super::{LIMIT, PARTITIONS, all_committed, assert_model, seed};

async fn has(member: &Process, partitions: usize) {
    let assigned = || async { (member.assigned_partitions().await == partitions).then_some(()) };
    eventually(&format!("{partitions} partitions"), Duration::from_secs(60), assigned).await;
}

async fn works(member: &Process, more: u64) {
    let before = member.counters().await.unwrap_or_default().finished;
    let working = || async { (member.counters().await?.finished >= before + more).then_some(()) };
    eventually("it works", LIMIT, working).await;
}

/// 1, 3, then 1 member, while records arrive at `per_second`. Produces at least `records`, and
/// until the last rebalance is complete.
async fn scaled(records: usize, keys: usize, per_second: u32) {
    let (stack, seed) = (Stack::shared_without_sync().await, seed());
    let (names, load) = (stack.names(), Arc::new(TopicLoad::new(seed, 10 * records, keys)));
    kafka::create_topic(&names, PARTITIONS).await;
    let first = stack.consumer(&names, &[]);
    first.ready().await;
    let moved = Arc::new(AtomicBool::new(false));
    let (all, to, enough) = (Arc::clone(&load), names.clone(), Arc::clone(&moved));
    let producing = tokio::spawn(async move {
        let mut sent = 0;
        while sent < records || !enough.load(Ordering::Relaxed) {
            let next = sent + per_second as usize;
            all.produce(&to, sent..next, Some(per_second)).await;
            sent = next;
        }
        sent
    });
    let (some, began) = ((records / 50) as u64, Instant::now());
    let tell = |what: &str| println!("{what} after {:?}", began.elapsed());
    works(&first, some).await;
    tell("the first works");
    let (second, third) = (stack.consumer(&names, &[]), stack.consumer(&names, &[]));
    for member in [&first, &second, &third] {
        has(member, 2).await;
        works(member, some).await;
        tell("one of three works");
    }
    let mut counted = vec![second.terminate_with_counters().await];
    has(&first, 3).await;
    works(&first, some).await;
    tell("the first works beside the third");
    counted.push(third.terminate_with_counters().await);
    has(&first, 6).await;
    tell("the first has all");
    moved.store(true, Ordering::Relaxed);
    let records = producing.await.unwrap();
    all_committed(&names, records).await;
    counted.push(first.terminate_with_counters().await);
    println!("{counted:?}");
    let sum = |of: fn(&ConsumerCounters) -> u64| counted.iter().map(of).sum::<u64>();
    let each_once = (records as u64, records as u64, 0);
    let worked = (sum(|one| one.read), sum(|one| one.finished), sum(|one| one.repeated));
    assert_eq!(worked, each_once, "nothing twice");
    assert_model(&load, &names, records).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g7_scaled_1_3_1_under_load_no_record_is_processed_twice() {
    scaled(25_000, 4_000, 1_500).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a series: run with --release -- --ignored series"]
async fn scaled_1_3_1_with_100_000_records_none_is_processed_twice() {
    scaled(100_000, 16_677, 3_000).await;
}
