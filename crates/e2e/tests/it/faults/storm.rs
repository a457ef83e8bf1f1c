//! Random faults of processes, servers and networks for three minutes, one or two at a time, while
//! members join and leave and poison records arrive. A twentieth of the load deletes documents.

use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::Signal;
use testkit::fault_test::Setup;
use testkit::fault_test::{DatabaseSetup, ServerSetup};
use testkit::proxy::Fault;
use testkit::{FaultTest, Process, kafka};

use super::{RECOVERY_TIMEOUT, SESSION_TIMEOUT};

/// Duration of the storm.
const DURATION: Duration = Duration::from_secs(180);

/// The process or server with the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Producer,
    Member,
    Broker,
    Database,
}

/// The kind of fault.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Killed,
    Paused,
    Network(Fault),
    HalfOpen,
}

fn random_kind(random: &mut Rng, target: Target) -> Kind {
    if matches!(target, Target::Producer | Target::Member) {
        return if random.bool() { Kind::Killed } else { Kind::Paused };
    }
    match random.u8(0..10) {
        0 | 1 => Kind::Killed,
        2 => Kind::Paused,
        3 => Kind::HalfOpen,
        4 => Kind::Network(Fault::Reset),
        5 => Kind::Network(Fault::Blackhole),
        6 => Kind::Network(Fault::Latency(Duration::from_millis(random.u64(50..500)))),
        7 => Kind::Network(Fault::Bandwidth(random.u32(50_000..500_000))),
        8 if target == Target::Database => Kind::Network(Fault::LoseReplyTo(super::database::WRITE)),
        _ => Kind::Network(Fault::ResetAfter(random.usize(100..50_000))),
    }
}

async fn begin(test: &mut FaultTest, target: Target, kind: Kind) {
    let servers = &test.servers;
    match (target, kind) {
        (Target::Producer, Kind::Killed) => test.producer.take().unwrap().kill().await,
        (Target::Producer, _) => test.producer().signal(Signal::SIGSTOP),
        (Target::Member, Kind::Killed) => test.consumers.pop().unwrap().kill().await,
        (Target::Member, _) => test.consumers[0].signal(Signal::SIGSTOP),
        (Target::Broker, Kind::Killed) => servers.broker().kill(),
        (Target::Broker, Kind::Paused) => servers.broker().pause(),
        (Target::Broker, Kind::HalfOpen) => test.kafka().make_half_open(),
        (Target::Broker, Kind::Network(fault)) => test.kafka().set(fault),
        (Target::Database, Kind::Killed) => servers.database().kill(),
        (Target::Database, Kind::Paused) => servers.database().pause(),
        (Target::Database, Kind::HalfOpen) => test.mongodb().make_half_open(),
        (Target::Database, Kind::Network(fault)) => test.mongodb().set(fault),
    }
}

async fn end(test: &mut FaultTest, target: Target, kind: Kind) {
    let servers = &test.servers;
    match (target, kind) {
        (Target::Producer, Kind::Killed) => test.start_producer(&[]),
        (Target::Producer, _) => test.producer().signal(Signal::SIGCONT),
        (Target::Member, Kind::Killed) => test.start_consumer(&[]),
        (Target::Member, _) => test.consumers.iter().for_each(Process::resume),
        (Target::Broker, Kind::Killed) => servers.broker().restart().await.unwrap(),
        (Target::Broker, Kind::Paused) => servers.broker().resume(),
        (Target::Database, Kind::Killed) => servers.database().restart().await.unwrap(),
        (Target::Database, Kind::Paused) => servers.database().resume(),
        (Target::Broker, _) => test.kafka().set(Fault::None),
        (Target::Database, _) => test.mongodb().set(Fault::None),
    }
}

/// The seed from SLIPSTREAM_SEED, or a new one.
fn seed() -> u64 {
    let given = std::env::var_os("SLIPSTREAM_SEED");
    let seed = given.map_or_else(
        || fastrand::u64(..),
        |seed| seed.to_string_lossy().parse().expect("SLIPSTREAM_SEED is a number"),
    );
    println!("SLIPSTREAM_SEED={seed}");
    seed
}

#[testkit::needs(apache_kafka, own_mongodb)]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "three minutes: run with --release -- --ignored storm"]
async fn storm() {
    let seed = seed();
    let mut random = Rng::with_seed(seed);
    let database = Some(DatabaseSetup { sync_on_commit: true, ..DatabaseSetup::default() });
    let servers = ServerSetup { broker: true, database };
    let seed = seed.to_string();
    let load = ["--rate", "300", "--connections", "16", "--keys", "3000", "--seed", &seed];
    let setup = Setup { servers, members: 2, load: &load, deletes: Some(true), ..Setup::default() };
    let mut test = FaultTest::start_with_load(setup).await;
    let (start, mut poison) = (Instant::now(), 0);
    let run = test.load_id_prefix().await;
    while start.elapsed() < DURATION {
        let mut targets = [Target::Producer, Target::Member, Target::Broker, Target::Database];
        random.shuffle(&mut targets);
        // One or two at a time.
        let faults: Vec<_> = targets
            .into_iter()
            .take(random.usize(1..3))
            .map(|target| (target, random_kind(&mut random, target)))
            .collect();
        let duration = Duration::from_millis(random.u64(500..15_000));
        println!("{:?}: {faults:?} for {duration:?}", start.elapsed());
        test.begin_fault();
        for (target, kind) in &faults {
            begin(&mut test, *target, *kind).await;
        }
        tokio::time::sleep(duration).await;
        for (target, kind) in &faults {
            end(&mut test, *target, *kind).await;
        }
        test.end_fault_and_resume_within(RECOVERY_TIMEOUT + SESSION_TIMEOUT).await;
        if random.bool() {
            let records =
                (poison..poison + 100).map(|n| (format!("{run}-poison-{n}"), format!("no json {n}")));
            kafka::produce_by_key(&test.names, records).await;
            poison += 100;
        }
        if random.bool() {
            test.start_consumer(&[]);
            tokio::time::sleep(Duration::from_millis(random.u64(0..5_000))).await;
            test.consumers.remove(0).terminate_with_counters().await;
        }
        tokio::time::sleep(Duration::from_millis(random.u64(0..5_000))).await;
    }
    test.verify_and_end(poison).await;
}
