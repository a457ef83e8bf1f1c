//! One fault under load: real processes behind proxies, a load during the whole test, and
//! verification at the end.
//!
//! [`FaultTest::verify_and_end`] panics unless
//! - exactly the accepted events are stored,
//! - no process ended early or used more than [`MAX_MEMORY_BYTES`],
//! - each 504 response was sent during a fault or at most DELIVERY_TIMEOUT_MS after it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use devservers::{Broker, BrokerOptions, Credentials, Database, DatabaseOptions, Progress};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::load::{self, RunningLoad};
use crate::monitor::UnknownOutcomes;
use crate::process::free_address;
use crate::servers::{MongoServer, broker_kind, folder};
use crate::{Monitor, Names, Process, Proxy, SourcesFile, Stack, eventually, http, mongo};

/// Maximum resident memory of a process.
pub const MAX_MEMORY_BYTES: u64 = 256 << 20;
/// Options of a load that leaves the machine enough time for the fault.
pub const USUAL_LOAD: [&str; 6] = ["--rate", "200", "--connections", "16", "--keys", "1000"];
/// Maximum time after a fault until an outcome becomes unknown: DELIVERY_TIMEOUT_MS.
const MAX_OUTCOME_DELAY: Duration = Duration::from_secs(10);
/// Timeout of a request for counters.
const COUNTERS_TIMEOUT: Duration = Duration::from_secs(1);
/// Timeout of the examination of tombstones: its age, its interval, and the time of the
/// verifications.
const RECHECK_TIMEOUT: Duration = Duration::from_secs(90);
/// Timeout of the start. With two cores and two tests at once the start is slower than a recovery.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How a fault test starts.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// The servers of its own.
    pub servers: ServerSetup,
    /// Number of consumers in the group.
    pub members: usize,
    /// Options of the load.
    pub load: &'a [&'a str],
    /// Additional variables of the processes.
    pub environment: &'a [(&'a str, &'a str)],
    /// The sources file of all processes, and its sources that get the load.
    pub sources: Option<(&'a SourcesFile, &'a [&'a str])>,
    /// Whether a twentieth of the load deletes documents, if there is no sources file. If absent,
    /// SLIPSTREAM_DELETES decides.
    pub deletes: Option<bool>,
}

/// The share of deletes in a load with deletes.
const DELETES: &str = "5%";
/// The sources file of a test with deletes. Other sources are stored too.
const SOURCES: &str = "sources: {manual: {envelope: true, delete: {}}}\n";

impl Default for Setup<'_> {
    fn default() -> Self {
        let servers = ServerSetup::default();
        Self { servers, members: 1, load: &USUAL_LOAD, environment: &[], sources: None, deletes: None }
    }
}

/// A running fault test.
#[derive(Debug)]
pub struct FaultTest {
    /// The servers and the proxies in front of them.
    pub servers: Servers,
    /// The producer, if it runs.
    pub producer: Option<Process>,
    /// The members of the group.
    pub consumers: Vec<Process>,
    /// The names, with the addresses of the servers themselves.
    pub names: Names,
    /// The sources that get a load.
    loaded: Vec<String>,
    /// Whether the load deletes documents.
    deletes: bool,
    /// The running loads, one for each source.
    loads: Vec<RunningLoad>,
    ledgers: u32,
    monitor: Monitor,
    /// Start and end of each fault that can make outcomes unknown.
    faults: Vec<(Instant, Option<Instant>)>,
    /// End of the last fault.
    last_fault_end: Instant,
    folder: tempfile::TempDir,
}

impl FaultTest {
    /// Starts servers, processes and the load, and waits until records are finished.
    pub async fn start_with_load(setup: Setup<'_>) -> Self {
        let mut test = Self::start(setup).await;
        test.start_load(setup.load);
        test.wait_for_finished(300, START_TIMEOUT).await;
        test
    }

    /// Starts servers and processes, without a load.
    pub async fn start(setup: Setup<'_>) -> Self {
        let servers = Servers::start(setup.servers).await;
        let mut names = servers.names();
        let folder = tempfile::tempdir().expect("a temporary directory");
        let mut loaded = vec!["manual".to_owned()];
        let mut deletes = false;
        if let Some((file, sources)) = setup.sources {
            names = names.with_sources(file);
            loaded = sources.iter().map(|source| (*source).to_owned()).collect();
        } else if setup.deletes.unwrap_or_else(|| std::env::var_os("SLIPSTREAM_DELETES").is_some()) {
            let file = folder.path().join("sources.yaml");
            std::fs::write(&file, SOURCES).expect("a sources file");
            names.sources_file = Some(file.display().to_string());
            deletes = true;
        }
        let monitor = Monitor::start();
        let mut test = Self {
            servers,
            producer: None,
            consumers: Vec::new(),
            names,
            loaded,
            deletes,
            loads: Vec::new(),
            ledgers: 0,
            monitor,
            faults: Vec::new(),
            last_fault_end: Instant::now(),
            folder,
        };
        test.start_producer(setup.environment);
        for _ in 0..setup.members {
            test.start_consumer(setup.environment);
        }
        test.producer().ready().await;
        for consumer in &test.consumers {
            consumer.ready().await;
        }
        test.assert_work_resumes_within(START_TIMEOUT).await;
        // Before this point each process may report that a server is unavailable.
        test.monitor.clear_reasons();
        test
    }

    /// Starts a load with these options of `slipstream load`, for each source that gets one.
    pub fn start_load(&mut self, options: &[&str]) {
        let deletes: &[&str] = if self.deletes { &["--deletes", DELETES] } else { &[] };
        for source in &self.loaded {
            self.ledgers += 1;
            let ledger = self.folder.path().join(format!("ledger-{}.jsonl", self.ledgers));
            let options = [&["--source", source], options, deletes].concat();
            self.loads.push(RunningLoad::start(ledger, &self.producer().url(""), &options));
        }
    }

    /// The producer. Panics if it does not run.
    pub fn producer(&self) -> &Process {
        self.producer.as_ref().expect("a running producer")
    }

    /// Starts the producer on the same address each time.
    pub fn start_producer(&mut self, more: &[(&str, &str)]) {
        let environment = self.servers.environment(&self.names, more);
        let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let producer = Process::start_at("producer", self.servers.producer, &environment);
        self.monitor.add("producer", &producer);
        self.producer = Some(producer);
    }

    /// Starts another member of the group.
    pub fn start_consumer(&mut self, more: &[(&str, &str)]) {
        let environment = self.servers.environment(&self.names, more);
        let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let consumer = Process::start("consumer", &environment);
        self.monitor.add("consumer", &consumer);
        self.consumers.push(consumer);
    }

    /// The proxy in front of Kafka.
    pub fn kafka(&self) -> &Proxy {
        self.servers.kafka.as_ref().expect("a test with its own broker")
    }

    /// The proxy in front of MongoDB.
    pub fn mongodb(&self) -> &Proxy {
        &self.servers.mongodb
    }

    /// Notes that a fault begins.
    pub fn begin_fault(&mut self) {
        self.faults.push((Instant::now(), None));
    }

    /// Notes that the fault has ended.
    pub fn end_fault(&mut self) {
        self.faults.last_mut().expect("a fault").1 = Some(Instant::now());
    }

    /// Notes that the fault has ended. Panics unless work resumes within `timeout`.
    pub async fn end_fault_and_resume_within(&mut self, timeout: Duration) {
        self.end_fault();
        self.assert_work_resumes_within(timeout).await;
    }

    /// Panics unless an event is accepted and a record is finished within `timeout`.
    pub async fn assert_work_resumes_within(&mut self, timeout: Duration) {
        let start = Instant::now();
        self.last_fault_end = start;
        let counters = || async { Some((self.producer_counter("accepted").await?, self.finished().await?)) };
        let (accepted, finished) = eventually("producer and consumers respond", timeout, counters).await;
        // Independent of the load. A request without a response does not delay the next one.
        let probes = tokio::spawn(probe(self.producer().url("/ingest")));
        let left = || timeout.saturating_sub(start.elapsed());
        let accepts = || async { (self.producer_counter("accepted").await? > accepted).then_some(()) };
        eventually("events are accepted", left(), accepts).await;
        let accepted = start.elapsed();
        let finishes = || async { (self.finished().await? > finished).then_some(()) };
        eventually("records are finished", left(), finishes).await;
        println!(
            "an event was accepted after {accepted:?}, a record was finished after {:?}",
            start.elapsed()
        );
        probes.abort();
    }

    /// Waits until `more` records are finished.
    pub async fn wait_for_finished(&self, more: u64, timeout: Duration) {
        let before = eventually("the members respond", timeout, || self.finished()).await;
        let finished = || async { (self.finished().await? >= before + more).then_some(()) };
        eventually("records are finished", timeout, finished).await;
    }

    /// The number of records that the members have finished; `None` if one does not respond.
    pub async fn finished(&self) -> Option<u64> {
        let mut sum = 0;
        for consumer in &self.consumers {
            sum += tokio::time::timeout(COUNTERS_TIMEOUT, consumer.counters()).await.ok()??.finished;
        }
        Some(sum)
    }

    /// A counter of the producer; `None` if it does not respond.
    pub async fn producer_counter(&self, name: &str) -> Option<u64> {
        let url = self.producer().url("/health");
        let health = tokio::time::timeout(COUNTERS_TIMEOUT, http::get(&url)).await.ok()?.ok()?;
        health.body["counters"][name].as_u64()
    }

    /// Whether the binary `name` reported a reason that contains `text`.
    pub fn has_reported(&self, name: &str, text: &str) -> bool {
        self.monitor.reasons().iter().any(|(of, reason)| *of == name && reason.contains(text))
    }

    /// Panics if the binary `name` reported a reason that contains `text`.
    pub fn assert_never_reported(&self, name: &str, text: &str) {
        assert!(!self.has_reported(name, text), "{name} reported {text:?}: {:?}", self.monitor.reasons());
    }

    /// Panics if the producer or a consumer reported a reason that contains `text`.
    pub fn assert_not_reported(&self, text: &str) {
        self.assert_never_reported("consumer", text);
        self.assert_never_reported("producer", text);
    }

    /// Panics if a process reported that a server is unavailable or rejects it.
    pub fn assert_no_server_reported(&self) {
        self.monitor.assert_no_server_reported();
    }

    /// Panics unless each process that needs `server` reported it, and none reported the other
    /// server.
    pub fn assert_only_reported(&self, server: &str) {
        let other = if server == "kafka" { "mongodb" } else { "kafka" };
        let reported = self.has_reported("consumer", server)
            && (server == "mongodb" || self.has_reported("producer", server));
        assert!(reported, "{server:?} was not reported: {:?}", self.monitor.reasons());
        self.assert_not_reported(other);
    }

    /// Waits until no outcome can become unknown because of a fault, and then for some seconds of
    /// load without fault.
    pub async fn wait_for_late_outcomes(&self) {
        let delay = if self.faults.is_empty() { Duration::ZERO } else { MAX_OUTCOME_DELAY };
        let until = self.last_fault_end + delay + Duration::from_secs(2);
        tokio::time::sleep_until(until.into()).await;
    }

    /// The prefix of the ids of the load.
    pub async fn load_id_prefix(&self) -> String {
        self.loads.first().expect("a load").id_prefix().await
    }

    /// Ends the load that was started last and returns its ledger.
    pub async fn end_load(&mut self) -> PathBuf {
        let (summary, ledger) = self.loads.pop().expect("a load").end().await;
        println!("load: {summary}");
        ledger
    }

    /// Ends the load, verifies it with this number of dead letters, and ends the processes. Returns
    /// the report.
    pub async fn verify_and_end(self, dead_letters: usize) -> Value {
        self.verify_and_end_with(async |_, _| dead_letters).await
    }

    /// As [`FaultTest::verify_and_end`], where the number of dead letters depends on the ledger of
    /// the first source. Other sources have none.
    pub async fn verify_and_end_with(
        mut self,
        dead_letters: impl AsyncFnOnce(&Names, &[Value]) -> usize,
    ) -> Value {
        self.wait_for_late_outcomes().await;
        let mut ledgers = Vec::new();
        while !self.loads.is_empty() {
            ledgers.push(self.end_load().await);
        }
        let ledger = ledgers.pop().expect("a load");
        for ledger in ledgers {
            println!("verification: {}", load::assert_verified(&self.names, &ledger, 0).await);
        }
        let dead_letters = dead_letters(&self.names, &load::ledger_events(&ledger)).await;
        if self.deletes {
            self.wait_for_recheck(&ledger).await;
        }
        let report = load::assert_verified(&self.names, &ledger, dead_letters).await;
        println!("verification: {report}");
        self.end().await;
        report
    }

    /// Waits until no document is resurrected. MongoDB may apply a write after the fault, whose
    /// consumer has long given it up. The consumers examine each tombstone again after 30 s.
    async fn wait_for_recheck(&self, ledger: &Path) {
        let resurrected = || async {
            let report = load::verify(&self.names, ledger, &["--wait", "120s"]).await;
            (report["resurrected"]["count"] == 0).then_some(())
        };
        eventually("no document is resurrected", RECHECK_TIMEOUT, resurrected).await;
    }

    /// Ends the processes. Panics if one ended early or used too much memory, or if a 504 response
    /// had no fault as its cause.
    pub async fn end(mut self) {
        let memory = self.monitor.max_memory_bytes();
        println!("{} MiB of memory at most", memory >> 20);
        assert!(memory < MAX_MEMORY_BYTES, "{memory} bytes of memory");
        let in_fault = |unknown: &UnknownOutcomes| {
            let after =
                |end: &Option<Instant>| end.is_none_or(|end| unknown.after <= end + MAX_OUTCOME_DELAY);
            self.faults.iter().any(|(begin, end)| unknown.before >= *begin && after(end))
        };
        let unknown = self.monitor.unknown_outcomes();
        let events: u64 = unknown.iter().map(|unknown| unknown.events).sum();
        println!("{events} events with a 504 response");
        let without_fault: Vec<_> = unknown.iter().filter(|unknown| !in_fault(unknown)).collect();
        assert!(without_fault.is_empty(), "504 without a fault: {without_fault:?}");
        for process in self.producer.take().into_iter().chain(self.consumers.drain(..)) {
            assert!(process.is_running(), "it ended early: {}", process.log());
            process.signal(Signal::SIGCONT);
            let ended = process.terminate().await;
            assert!(ended.success(), "{ended}");
        }
    }
}

impl Drop for FaultTest {
    /// Prints the last log lines of each process if the test fails.
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

/// Sends an event twice per second.
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

// The servers of a fault test, and the proxies in front of them.

/// The servers that a fault test wants for itself. It shares the others with other tests and must
/// not stop them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServerSetup {
    /// Whether the test has its own broker, with a proxy in front of it.
    pub broker: bool,
    /// The test's own MongoDB server. A test that sets it needs `own_mongodb`.
    pub database: Option<DatabaseSetup>,
}

/// Options of a MongoDB server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DatabaseSetup {
    /// Whether an acknowledged write survives SIGKILL.
    pub sync_on_commit: bool,
    /// Whether clients must authenticate with [`credentials`].
    pub authentication: bool,
    /// The folder for its data; `None` is a temporary one.
    pub folder: Option<&'static Path>,
}

/// The user and password of a server with authentication.
pub fn credentials() -> Credentials {
    Credentials { user: "slipstream".into(), password: "s3cret".into() }
}

/// The servers and the proxies.
#[derive(Debug)]
pub struct Servers {
    /// The proxy in front of the test's own broker.
    pub kafka: Option<Proxy>,
    /// The proxy in front of MongoDB.
    pub mongodb: Proxy,
    /// The address for the test's producer.
    pub producer: SocketAddr,
    broker: Option<Broker>,
    database: Option<MongoServer>,
    shared: Option<&'static Stack>,
    _folder: tempfile::TempDir,
}

impl Servers {
    /// Starts the servers that the test wants for itself.
    pub async fn start(setup: ServerSetup) -> Self {
        let folder = folder();
        let shared = if setup.broker && setup.database.is_some() {
            None
        } else {
            Some(Stack::shared_without_sync().await)
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let broker = async {
            let options = BrokerOptions::new(broker_kind(), folder.path().join("kafka"));
            let options = BrokerOptions { relay: Some(port), ..options };
            let started = setup.broker.then(|| Broker::start(options, Progress::silent()));
            Some(started?.await.expect("a broker"))
        };
        let database = async {
            let DatabaseSetup { sync_on_commit, authentication, folder: named } = setup.database?;
            let options = DatabaseOptions::new(named.unwrap_or(folder.path()).join("mongodb"));
            let auth = authentication.then(credentials);
            let options = DatabaseOptions { sync_on_commit, auth, ..options };
            let database = Database::start(options, Progress::silent()).await.expect("a MongoDB server");
            Some(MongoServer::Started { database: Box::new(database), _folder: None })
        };
        let (broker, database) = tokio::join!(broker, database);
        let behind = broker.as_ref().and_then(Broker::behind_relay);
        let kafka = behind.map(|broker| Proxy::start_on(listener, broker));
        let uri = database.as_ref().or(shared.map(|stack| &stack.mongodb)).expect("a MongoDB server").uri();
        let mongodb = Proxy::start(mongo::address(&uri).await).await;
        let producer = free_address();
        Self { kafka, mongodb, producer, broker, database, shared, _folder: folder }
    }

    /// The broker.
    pub fn broker(&self) -> &Broker {
        self.broker.as_ref().or(self.shared.map(Stack::broker)).expect("a broker")
    }

    /// The MongoDB server.
    pub fn database(&self) -> &MongoServer {
        self.database.as_ref().or(self.shared.map(|stack| &stack.mongodb)).expect("a MongoDB server")
    }

    /// Unique names, with the addresses of the servers themselves.
    pub fn names(&self) -> Names {
        Names::new(self.broker().bootstrap(), self.database().uri())
    }

    /// The variables of a process that connects through the proxies.
    pub fn environment<'a>(&self, names: &Names, more: &[(&'a str, &str)]) -> Vec<(&'a str, String)> {
        let kafka = self.kafka.as_ref().map(|kafka| kafka.address.to_string());
        let mongodb = names.mongodb.replace(mongo::host(&names.mongodb), &self.mongodb.address.to_string());
        let names = names.clone();
        let proxied = Names { kafka: kafka.unwrap_or(names.kafka), mongodb, ..names };
        let all = proxied.for_every_source(more);
        all.into_iter().map(|(name, value)| (name, value.to_owned())).collect()
    }
}
