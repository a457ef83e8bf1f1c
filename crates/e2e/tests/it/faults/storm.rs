//! Processes, servers and networks harmed in a random sequence for three minutes, one at a time or two, while members come
//! and go and poison arrives.

use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::Signal;
use testkit::fault_test::Setup;
use testkit::fault_test::servers::{DatabaseSetup, ServerSetup};
use testkit::proxy::Fault;
use testkit::{FaultTest, Process, kafka};

use super::{RECOVERY, SESSION};

/// How long the storm lasts.
const LENGTH: Duration = Duration::from_secs(180);

/// What is harmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Producer,
    Member,
    Broker,
    Database,
}

/// How.
#[derive(Debug, Clone, Copy)]
enum Harm {
    Killed,
    StandsStill,
    Network(Fault),
    HalfOpen,
}

fn any(random: &mut Rng, target: Target) -> Harm {
    if matches!(target, Target::Producer | Target::Member) {
        return if random.bool() { Harm::Killed } else { Harm::StandsStill };
    }
    match random.u8(0..10) {
        0 | 1 => Harm::Killed,
        2 => Harm::StandsStill,
        3 => Harm::HalfOpen,
        4 => Harm::Network(Fault::Reset),
        5 => Harm::Network(Fault::Blackhole),
        6 => Harm::Network(Fault::Latency(Duration::from_millis(random.u64(50..500)))),
        7 => Harm::Network(Fault::Bandwidth(random.u32(50_000..500_000))),
        8 if target == Target::Database => Harm::Network(Fault::LoseReplyTo(super::database::WRITE)),
        _ => Harm::Network(Fault::ResetAfter(random.usize(100..50_000))),
    }
}

async fn begins(trial: &mut FaultTest, target: Target, harm: Harm) {
    let servers = &trial.servers;
    match (target, harm) {
        (Target::Producer, Harm::Killed) => trial.producer.take().unwrap().kill().await,
        (Target::Producer, _) => trial.producer().signal(Signal::SIGSTOP),
        (Target::Member, Harm::Killed) => trial.consumers.pop().unwrap().kill().await,
        (Target::Member, _) => trial.consumers[0].signal(Signal::SIGSTOP),
        (Target::Broker, Harm::Killed) => servers.broker().kill(),
        (Target::Broker, Harm::StandsStill) => servers.broker().pause(),
        (Target::Broker, Harm::HalfOpen) => trial.kafka().make_half_open(),
        (Target::Broker, Harm::Network(fault)) => trial.kafka().set(fault),
        (Target::Database, Harm::Killed) => servers.database().kill(),
        (Target::Database, Harm::StandsStill) => servers.database().pause(),
        (Target::Database, Harm::HalfOpen) => trial.mongodb().make_half_open(),
        (Target::Database, Harm::Network(fault)) => trial.mongodb().set(fault),
    }
}

async fn ends(trial: &mut FaultTest, target: Target, harm: Harm) {
    let servers = &trial.servers;
    match (target, harm) {
        (Target::Producer, Harm::Killed) => trial.start_producer(&[]),
        (Target::Producer, _) => trial.producer().signal(Signal::SIGCONT),
        (Target::Member, Harm::Killed) => trial.start_consumer(&[]),
        (Target::Member, _) => trial.consumers.iter().for_each(Process::resume),
        (Target::Broker, Harm::Killed) => servers.broker().restart().await.unwrap(),
        (Target::Broker, Harm::StandsStill) => servers.broker().resume(),
        (Target::Database, Harm::Killed) => servers.database().restart().await.unwrap(),
        (Target::Database, Harm::StandsStill) => servers.database().resume(),
        (Target::Broker, _) => trial.kafka().set(Fault::None),
        (Target::Database, _) => trial.mongodb().set(Fault::None),
    }
}

/// The seed of the environment, or a new one.
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
    let mut trial =
        FaultTest::start_with_load(Setup { servers, members: 2, load: &load, ..Setup::default() }).await;
    let (start, mut poison) = (Instant::now(), 0);
    let run = trial.load_id_prefix().await;
    while start.elapsed() < LENGTH {
        let mut targets = [Target::Producer, Target::Member, Target::Broker, Target::Database];
        random.shuffle(&mut targets);
        // One at a time, or two.
        let harms: Vec<_> = targets
            .into_iter()
            .take(random.usize(1..3))
            .map(|target| (target, any(&mut random, target)))
            .collect();
        let lasts = Duration::from_millis(random.u64(500..15_000));
        println!("{:?}: {harms:?} for {lasts:?}", start.elapsed());
        trial.begin_fault();
        for (target, harm) in &harms {
            begins(&mut trial, *target, *harm).await;
        }
        tokio::time::sleep(lasts).await;
        for (target, harm) in &harms {
            ends(&mut trial, *target, *harm).await;
        }
        trial.end_fault_and_resume_within(RECOVERY + SESSION).await;
        if random.bool() {
            let records =
                (poison..poison + 100).map(|n| (format!("{run}-poison-{n}"), format!("no json {n}")));
            kafka::produce_by_key(&trial.names, records).await;
            poison += 100;
        }
        if random.bool() {
            trial.start_consumer(&[]);
            tokio::time::sleep(Duration::from_millis(random.u64(0..5_000))).await;
            trial.consumers.remove(0).terminate_with_counters().await;
        }
        tokio::time::sleep(Duration::from_millis(random.u64(0..5_000))).await;
    }
    trial.verify_and_end(poison).await;
}
