//! One fault, from load to judgement: real processes behind relays, a load throughout, a watch over each process, and at the
//! end the judge.
//!
//! [`Trial::judged`] fails unless everything that was accepted is stored and nothing else, no process ended or grew
//! beyond [`MEMORY_LIMIT_BYTES`], and no event was answered with 504 but during a fault and shortly later.

pub mod servers;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use self::servers::{Servers, Wanted};
use crate::ledger::{self, Sending};
use crate::watch::Watch;
use crate::{Names, Process, Proxy, eventually, http};

/// The most memory that a process may have.
pub const MEMORY_LIMIT_BYTES: u64 = 256 << 20;
/// The options of a load that leaves the machine room for the fault; it goes on until it is ended.
pub const USUAL_LOAD: [&str; 6] = ["--rate", "200", "--connections", "16", "--keys", "1000"];
/// How long after a fault an outcome may still turn out to be unknown: as long as an event may wait for its
/// acknowledgement.
const AFTERMATH: Duration = Duration::from_secs(10);
/// How long a process may take to tell its counters.
const PATIENCE: Duration = Duration::from_secs(1);
/// A machine of two cores that runs two trials is slower to start than to recover.
const START: Duration = Duration::from_secs(60);

/// What a trial begins with.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// The servers.
    pub servers: Wanted,
    /// Consumers of the group.
    pub members: usize,
    /// Options of the load.
    pub load: &'a [&'a str],
    /// More variables of the processes.
    pub environment: &'a [(&'a str, &'a str)],
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self { servers: Wanted::default(), members: 1, load: &USUAL_LOAD, environment: &[] }
    }
}

/// A trial under way.
#[derive(Debug)]
pub struct Trial {
    /// The servers and the relays before them.
    pub servers: Servers,
    /// The producer, unless it is down.
    pub producer: Option<Process>,
    /// The group's members.
    pub consumers: Vec<Process>,
    /// The names, with the servers' own addresses.
    pub names: Names,
    load: Option<Sending>,
    loads: u32,
    watch: Watch,
    /// Each fault in which outcomes may be unknown, from its beginning to its end.
    faults: Vec<(Instant, Option<Instant>)>,
    /// When the last fault was over.
    mended: Instant,
    folder: tempfile::TempDir,
}

impl Trial {
    /// Everything is up, the load runs, and documents come out of it.
    pub async fn begin(setup: Setup<'_>) -> Self {
        let mut trial = Self::start(setup).await;
        trial.send(setup.load);
        trial.finishes(300, START).await;
        trial
    }

    /// Everything is up, and nothing is sent yet.
    pub async fn start(setup: Setup<'_>) -> Self {
        let servers = Servers::start(setup.servers).await;
        let names = servers.names();
        let watch = Watch::start();
        let mut trial = Self {
            servers,
            producer: None,
            consumers: Vec::new(),
            names,
            load: None,
            loads: 0,
            watch,
            faults: Vec::new(),
            mended: Instant::now(),
            folder: tempfile::tempdir().expect("a temporary directory"),
        };
        trial.start_producer(setup.environment);
        for _ in 0..setup.members {
            trial.start_consumer(setup.environment);
        }
        trial.producer().ready().await;
        for consumer in &trial.consumers {
            consumer.ready().await;
        }
        trial.works_within(START).await;
        // Until now each of them had every reason to complain.
        trial.watch.forget_troubles();
        trial
    }

    /// Begins a load with these options of `slipstream load`.
    pub fn send(&mut self, options: &[&str]) {
        let options = [&["--source", "manual"], options].concat();
        self.loads += 1;
        let ledger = self.folder.path().join(format!("ledger-{}.jsonl", self.loads));
        self.load = Some(Sending::start(ledger, &self.producer().url(""), &options));
    }

    /// The producer, which must not be down.
    pub fn producer(&self) -> &Process {
        self.producer.as_ref().expect("the producer is up")
    }

    /// Starts the producer, where the last one was if there was one.
    pub fn start_producer(&mut self, more: &[(&str, &str)]) {
        let environment = self.servers.environment(&self.names, more);
        let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let producer = Process::start_at("producer", self.servers.producer, &environment);
        self.watch.add("producer", &producer);
        self.producer = Some(producer);
    }

    /// Starts one more member of the group.
    pub fn start_consumer(&mut self, more: &[(&str, &str)]) {
        let environment = self.servers.environment(&self.names, more);
        let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let consumer = Process::start("consumer", &environment);
        self.watch.add("consumer", &consumer);
        self.consumers.push(consumer);
    }

    /// The relay before Kafka.
    pub fn kafka(&self) -> &Proxy {
        self.servers.kafka.as_ref().expect("the trial has a broker of its own")
    }

    /// The relay before MongoDB.
    pub fn mongodb(&self) -> &Proxy {
        &self.servers.mongodb
    }

    /// Says that a fault begins.
    pub fn breaks(&mut self) {
        self.faults.push((Instant::now(), None));
    }

    /// Says that the fault is over.
    pub fn mends(&mut self) {
        self.faults.last_mut().expect("a fault").1 = Some(Instant::now());
    }

    /// Says that the fault is over; work must resume within `limit`, at both ends.
    pub async fn recovers_within(&mut self, limit: Duration) {
        self.mends();
        self.works_within(limit).await;
    }

    /// Work must resume within `limit`: events are accepted, and records are finished.
    pub async fn works_within(&mut self, limit: Duration) {
        let start = Instant::now();
        self.mended = start;
        let tell = || async { Some((self.producer_counter("accepted").await?, self.finished().await?)) };
        let (accepted, finished) = eventually("producer and consumers answer", limit, tell).await;
        // Whatever the load does; one that finds no answer holds up no other.
        let probes = tokio::spawn(probe(self.producer().url("/ingest")));
        let left = || limit.saturating_sub(start.elapsed());
        let accepts = || async { (self.producer_counter("accepted").await? > accepted).then_some(()) };
        eventually("events are accepted", left(), accepts).await;
        let accepted = start.elapsed();
        let finishes = || async { (self.finished().await? > finished).then_some(()) };
        eventually("records are finished", left(), finishes).await;
        println!("events are accepted after {accepted:?}, records finished after {:?}", start.elapsed());
        probes.abort();
    }

    /// Waits until `more` records are finished.
    pub async fn finishes(&self, more: u64, limit: Duration) {
        let before = eventually("the members answer", limit, || self.finished()).await;
        let finished = || async { (self.finished().await? >= before + more).then_some(()) };
        eventually("records are finished", limit, finished).await;
    }

    /// What the members have finished; `None` if one does not answer.
    pub async fn finished(&self) -> Option<u64> {
        let mut sum = 0;
        for consumer in &self.consumers {
            sum += tokio::time::timeout(PATIENCE, consumer.counted()).await.ok()??.finished;
        }
        Some(sum)
    }

    /// One of the producer's counters; `None` if it does not answer.
    pub async fn producer_counter(&self, name: &str) -> Option<u64> {
        let url = self.producer().url("/health");
        let health = tokio::time::timeout(PATIENCE, http::get(&url)).await.ok()?.ok()?;
        health.body["counters"][name].as_u64()
    }

    /// Whether a process of this kind named a trouble in which these words are.
    pub fn has_said(&self, kind: &str, words: &str) -> bool {
        self.watch.troubles().iter().any(|(of, trouble)| *of == kind && trouble.contains(words))
    }

    /// Fails if a process of this kind ever named a trouble in which these words are.
    pub fn never_said(&self, kind: &str, words: &str) {
        assert!(!self.has_said(kind, words), "{kind} said {words:?}: {:?}", self.watch.troubles());
    }

    /// Fails if a process of any kind ever named a trouble in which these words are.
    pub fn nobody_said(&self, words: &str) {
        self.never_said("consumer", words);
        self.never_said("producer", words);
    }

    /// Fails if a process ever said of a server that it is away, or that it lets nobody in.
    pub fn blames_no_server(&self) {
        self.watch.blames_no_server();
    }

    /// Fails unless this server was named as the trouble by who needs it, and the other by nobody.
    pub fn is_only(&self, server: &str) {
        let other = if server == "kafka" { "mongodb" } else { "kafka" };
        let said =
            self.has_said("consumer", server) && (server == "mongodb" || self.has_said("producer", server));
        assert!(said, "nobody said {server:?}: {:?}", self.watch.troubles());
        self.nobody_said(other);
    }

    /// Keeps up the load for as long as outcomes may be unknown after the last fault, and a little longer.
    pub async fn waits_for_aftermath(&self) {
        tokio::time::sleep_until((self.mended + AFTERMATH + Duration::from_secs(2)).into()).await;
    }

    /// The prefix of the load's ids.
    pub async fn run(&self) -> String {
        self.load.as_ref().expect("a load").run().await
    }

    /// Ends the load; its ledger.
    pub async fn sent(&mut self) -> PathBuf {
        let (summary, ledger) = self.load.take().expect("a load").end().await;
        println!("load: {summary}");
        ledger
    }

    /// Ends the load once the last fault's aftermath is over, has the judge look, and ends the processes; what the
    /// judge says.
    pub async fn judged(self, dead_letters: usize) -> Value {
        self.judged_by(async |_, _| dead_letters).await
    }

    /// The same, where the number of dead letters follows from the ledger.
    pub async fn judged_by(mut self, dead_letters: impl AsyncFnOnce(&Names, &[Value]) -> usize) -> Value {
        self.waits_for_aftermath().await;
        let ledger = self.sent().await;
        let dead_letters = dead_letters(&self.names, &ledger::events(&ledger)).await;
        let judgement = ledger::verify(&self.names, &ledger, dead_letters).await;
        println!("judgement: {judgement}");
        self.ends_well().await;
        judgement
    }

    /// Fails if a process ended or grew too large, or an outcome was unknown without a fault.
    pub async fn ends_well(mut self) {
        let most = self.watch.most_bytes();
        println!("{} MiB of memory at most", most >> 20);
        assert!(most < MEMORY_LIMIT_BYTES, "{most} bytes of memory");
        let in_fault = |unknown: &crate::watch::Unknown| {
            let after = |end: &Option<Instant>| end.is_none_or(|end| unknown.after <= end + AFTERMATH);
            self.faults.iter().any(|(begin, end)| unknown.before >= *begin && after(end))
        };
        let unknown = self.watch.unknown();
        let events: u64 = unknown.iter().map(|unknown| unknown.events).sum();
        println!("{events} events answered with 504");
        let without_fault: Vec<_> = unknown.iter().filter(|unknown| !in_fault(unknown)).collect();
        assert!(without_fault.is_empty(), "504 without a fault: {without_fault:?}");
        for process in self.producer.take().into_iter().chain(self.consumers.drain(..)) {
            assert!(process.is_running(), "it ended by itself: {}", process.log());
            process.signal(Signal::SIGCONT);
            let ended = process.terminate().await;
            assert!(ended.success(), "{ended}");
        }
    }
}

impl Drop for Trial {
    /// What its processes said last, if it ends by a failure.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for process in self.producer.iter().chain(&self.consumers) {
            let log = process.log();
            let lines: Vec<&str> = log.lines().collect();
            println!("process {}:\n{}", process.pid(), lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

/// Sends an event twice a second.
async fn probe(url: String) {
    let event = json!({"id": "probe", "source": "probe", "payload": {}});
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    let mut probes = tokio::task::JoinSet::new();
    loop {
        tick.tick().await;
        let (url, event) = (url.clone(), event.clone());
        probes.spawn(async move { http::post(&url, &event).await });
    }
}
