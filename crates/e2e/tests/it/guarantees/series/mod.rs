//! Long runs of the consumer, compared with a model of the documents. Each has a small size that
//! always runs, and a full size in the series: `cargo test --release -p e2e -- --ignored series`.

mod kills;
mod mongodb_outage;
mod paused_member;
mod rebalances;
mod rejected_documents;

use std::time::Duration;

use testkit::{Names, TopicLoad, eventually, kafka};

/// Maximum time until all records of a topic are finished.
const LIMIT: Duration = Duration::from_secs(600);
/// The default of KAFKA_PARTITIONS.
const PARTITIONS: i32 = 6;

/// A random seed. It is printed: put it here to repeat a failure.
fn seed() -> u64 {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    seed
}

async fn committed(names: &Names) -> u64 {
    u64::try_from(kafka::committed_offsets(names).await.values().sum::<i64>()).unwrap()
}

/// Waits until all `records` are committed, and so finished.
async fn all_committed(names: &Names, records: usize) {
    let done = || async { (committed(names).await == records as u64).then_some(()) };
    eventually("all are committed", LIMIT, done).await;
}

/// Panics unless the collection is exactly what the first `records` records produce, without dead
/// letters.
async fn assert_model(load: &TopicLoad, names: &Names, records: usize) {
    load.assert_stored(names, records, |_| true).await;
    let letters = kafka::read_all(names, &names.dead_letter_topic()).await;
    assert!(letters.is_empty(), "{} dead letters", letters.len());
}
