//! Long runs of the consumer against what they must leave behind. Each has an everyday size that always runs, and its
//! full size in the series: `cargo test --release -p e2e -- --ignored series`.

mod kills;
mod mongodb_outage;
mod paused_member;
mod rebalances;
mod rejected_documents;

use std::time::Duration;

use testkit::{Names, TopicLoad, eventually, kafka};

/// How long a drain may take.
const LIMIT: Duration = Duration::from_secs(600);
/// As in the original.
const PARTITIONS: i32 = 6;

/// A seed, said so that a failure can be repeated: with that number here instead.
fn seed() -> u64 {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    seed
}

async fn committed(names: &Names) -> u64 {
    u64::try_from(kafka::committed_offsets(names).await.values().sum::<i64>()).unwrap()
}

/// Waits until every one of `records` is committed, and so finished.
async fn all_committed(names: &Names, records: usize) {
    let done = || async { (committed(names).await == records as u64).then_some(()) };
    eventually("all are committed", LIMIT, done).await;
}

/// Fails unless exactly the load's first `records` records have left what they must.
async fn assert_model(load: &TopicLoad, names: &Names, records: usize) {
    load.assert_stored(names, records, |_| true).await;
    let letters = kafka::read_all(names, &names.dead_letter_topic()).await;
    assert!(letters.is_empty(), "{} dead letters", letters.len());
}
