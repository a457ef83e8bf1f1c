//! Long runs of the consumer, compared with a model of the documents. Each has a small size that
//! always runs, and a full size in the series: `cargo test --release -p e2e -- --ignored series`.

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

/// SIGKILL at random moments while the consumer reads a topic.
mod kills {
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
        assert_eq!(
            (last.read, last.finished),
            (left, left),
            "exactly what was not committed is worked again"
        );
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
}

/// MongoDB is unavailable while records arrive.
mod mongodb_outage {
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
}

/// A member that is paused beyond its session timeout, loses its partitions to another member, and
/// resumes.
mod paused_member {
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
            (paused.assigned_partitions().await == 3 && successor.assigned_partitions().await == 3)
                .then_some(())
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
}

/// Scaling under load: partitions move between members that join and leave gracefully.
mod rebalances {
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
}

/// A collection whose validator rejects every third document.
mod rejected_documents {
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
}
