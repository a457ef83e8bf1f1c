//! One of our binaries as a child process, with exactly the environment that the test gives it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use devservers::Child;
use nix::sys::signal::Signal;
use tokio::process::Command;

use crate::{binaries, eventually, http};

/// A running process. It is killed when dropped, and when the test is killed.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Where it listens.
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

    /// A URL on this process.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Waits for `/readyz`.
    pub async fn ready(&self) {
        let url = self.url("/readyz");
        let ready = eventually("readyz", Duration::from_secs(60), || async {
            http::get(&url).await.ok().filter(|answer| answer.status == 200)
        });
        ready.await;
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.child.signal(signal);
    }

    /// SIGCONT.
    pub fn goes_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// SIGKILL, and waits for the end.
    pub async fn kill(self) {
        self.child.kill().await;
    }

    /// SIGTERM; the exit status, which must come within 10 s.
    pub async fn terminate(self) -> ExitStatus {
        self.end().await
    }

    async fn end(&self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        let ended = tokio::time::timeout(Duration::from_secs(10), self.child.ended()).await;
        ended.unwrap_or_else(|_| panic!("still running 10 s after SIGTERM: {}", self.log()))
    }

    /// SIGTERM to a consumer; what it counted in its whole life, from the last line of its log. It must end with 0.
    pub async fn terminate_counted(self) -> Counted {
        let ended = self.end().await;
        assert!(ended.success(), "{ended}: {}", self.log());
        let log = self.log();
        let line = log.lines().rev().find(|line| line.contains("consumer stopped"));
        Counted::of(&serde_json::from_str(line.expect("its last line")).expect("a JSON line"))
    }

    /// What a consumer has counted so far; nothing if it does not answer.
    pub async fn counted(&self) -> Option<Counted> {
        let health = http::get(&self.url("/health")).await.ok()?.body;
        health.get("counters").map(Counted::of)
    }

    /// How many partitions a consumer has; 0 if it does not answer.
    pub async fn assigned(&self) -> usize {
        let health = http::get(&self.url("/health")).await.map(|answer| answer.body).unwrap_or_default();
        health["assignment"].as_array().map_or(0, Vec::len)
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its memory in RAM, as the kernel tells it.
    pub fn resident_bytes(&self) -> u64 {
        devservers::usage::resident_bytes(self.pid()).expect("the kernel tells a child's memory")
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        self.child.status().is_none()
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// What a consumer has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Records taken in hand.
    pub read: u64,
    /// Records that are done with, in whatever way.
    pub finished: u64,
    /// Those of them that it had finished before.
    pub repeated: u64,
    /// Dead letters.
    pub dead_lettered: u64,
}

impl Counted {
    fn of(counters: &serde_json::Value) -> Self {
        let number = |name: &str| counters[name].as_u64().unwrap_or_else(|| panic!("{name} in {counters}"));
        let outcomes = ["inserted", "updated", "unchanged", "stale", "skipped", "dead_lettered"];
        Self {
            read: number("read"),
            finished: outcomes.into_iter().map(number).sum(),
            repeated: number("repeated"),
            dead_lettered: number("dead_lettered"),
        }
    }
}

/// The command of the binary `name` with this environment and nothing else.
pub fn command(name: &str, environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(binaries::path(name));
    command.env_clear().envs(environment.iter().copied()).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// An address that nothing listens on at this moment.
pub fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address")
}
