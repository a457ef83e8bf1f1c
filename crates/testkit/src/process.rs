//! A binary of this workspace as a child process, with no environment but what the test gives it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use devservers::Child;
use nix::sys::signal::Signal;
use tokio::process::Command;

use crate::{eventually, http};

/// A running process. It is killed when dropped, and when the test process ends.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// The address on which it listens.
    pub address: SocketAddr,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

impl Process {
    /// Starts the binary `name` on a free port of 127.0.0.1.
    pub fn start(name: &str, environment: &[(&str, &str)]) -> Self {
        Self::start_at(name, free_address(), environment)
    }

    /// Starts the binary `name` on `address`.
    pub fn start_at(name: &str, address: SocketAddr, environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let log = folder.path().join("log");
        let mut command = command(name, environment);
        command.env("LISTEN_ADDR", address.to_string());
        let child = Child::start(command.into_std(), &log).expect("the binary starts");
        Self { child, address, log, _folder: folder }
    }

    /// The URL of `path` on this process.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Waits until `/readyz` returns 200.
    pub async fn ready(&self) {
        let url = self.url("/readyz");
        let ready = eventually("readyz", Duration::from_secs(60), || async {
            http::get(&url).await.ok().filter(|response| response.status == 200)
        });
        ready.await;
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.child.signal(signal);
    }

    /// Resumes it with SIGCONT after a SIGSTOP.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Sends SIGKILL and waits until it has ended.
    pub async fn kill(self) {
        self.child.kill().await;
    }

    /// Sends SIGTERM and returns the exit status. Panics after 10 s.
    pub async fn terminate(self) -> ExitStatus {
        self.terminated().await
    }

    async fn terminated(&self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        let ended = tokio::time::timeout(Duration::from_secs(10), self.child.ended()).await;
        ended.unwrap_or_else(|_| panic!("still running 10 s after SIGTERM: {}", self.log()))
    }

    /// Sends SIGTERM to a consumer and returns its final counters, from the last line of its log.
    /// Panics unless it exits with code 0.
    pub async fn terminate_with_counters(self) -> ConsumerCounters {
        let ended = self.terminated().await;
        assert!(ended.success(), "{ended}: {}", self.log());
        let log = self.log();
        let line = log.lines().rev().find(|line| line.contains("consumer stopped"));
        ConsumerCounters::of(&serde_json::from_str(line.expect("its last line")).expect("a JSON line"))
    }

    /// The counters of a consumer; `None` if it does not respond.
    pub async fn counters(&self) -> Option<ConsumerCounters> {
        let health = http::get(&self.url("/health")).await.ok()?.body;
        health.get("counters").map(ConsumerCounters::of)
    }

    /// The number of partitions assigned to a consumer; 0 if it does not respond.
    pub async fn assigned_partitions(&self) -> usize {
        let health = http::get(&self.url("/health")).await.map(|response| response.body).unwrap_or_default();
        health["assignment"].as_array().map_or(0, Vec::len)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The resident memory, from `/proc`.
    pub fn resident_bytes(&self) -> u64 {
        devservers::resident_bytes(self.pid()).expect("the memory of a child process")
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.child.status().is_none()
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// Counters of a consumer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConsumerCounters {
    /// Records that a worker took for a batch.
    pub read: u64,
    /// Records with an outcome.
    pub finished: u64,
    /// Finished records that this process had finished before.
    pub repeated: u64,
    /// Dead letters.
    pub dead_lettered: u64,
}

impl ConsumerCounters {
    fn of(counters: &serde_json::Value) -> Self {
        let number = |name: &str| counters[name].as_u64().unwrap_or_else(|| panic!("{name} in {counters}"));
        let outcomes =
            ["inserted", "updated", "unchanged", "superseded", "deleted", "skipped", "dead_lettered"];
        Self {
            read: number("read"),
            finished: outcomes.into_iter().map(number).sum(),
            repeated: number("repeated"),
            dead_lettered: number("dead_lettered"),
        }
    }
}

/// A command for the binary `name` with exactly this environment, and [`as_entry`].
pub fn command(name: &str, environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(binary(name));
    let file = as_entry().filter(|_| name != "slipstream");
    let environment = file.into_iter().chain(environment.iter().copied());
    command.env_clear().envs(environment).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// SOURCES_FILE with ADSBDB as an entry of the file, if the name of the test begins with
/// `as_entry_`. So the tests of a module can run twice: with ADSBDB built in, and as an entry.
pub fn as_entry() -> Option<(&'static str, &'static str)> {
    // The name of the thread is that of the test.
    let is_wanted = std::thread::current().name().is_some_and(|name| name.starts_with("as_entry_"));
    is_wanted.then_some(("SOURCES_FILE", concat!(env!("CARGO_MANIFEST_DIR"), "/src/adsbdb.yaml")))
}

/// An address on which nothing listens now.
pub fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address")
}

/// The binaries under test. Each test binary builds them once, by the same cargo and in its own
/// profile.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let mut build = devservers::binaries::build(&["producer", "consumer", "poller", "slipstream"]);
    assert!(build.status().expect("cargo runs").success(), "the binaries do not build");
    // target/PROFILE/deps/it-HASH -> target/PROFILE
    let test = std::env::current_exe().expect("the path of the test binary");
    test.ancestors().nth(2).expect("the folder of the profile").to_owned()
});

/// The path of the binary `name`.
pub fn binary(name: &str) -> PathBuf {
    FOLDER.join(name)
}
