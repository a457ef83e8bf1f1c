//! A server as a child process. It is ready when it responds in its protocol. It keeps its port and
//! its data folder over kills and restarts.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::child::{Child, Log, lock};
use crate::error::ServerError;
use crate::wire;

/// Enough for a cold JVM on a machine that compiles at the same time.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// Time after which a server that does not stop is killed.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// Timeout of one readiness check.
const ASK_WITHIN: Duration = Duration::from_secs(1);
/// Interval between two readiness checks.
const ASK_EVERY: Duration = Duration::from_millis(25);

/// The command and the settings with which a server is started and restarted.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub name: &'static str,
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// If set, the only variable of the process is PATH with this value: for servers that read
    /// unrelated variables.
    pub only_path: Option<OsString>,
    pub folder: PathBuf,
    pub log: PathBuf,
    pub port: u16,
    pub readiness_check: ReadinessCheck,
}

/// The readiness check.
#[derive(Clone, Debug)]
pub(crate) enum ReadinessCheck {
    /// Kafka: metadata that names this cluster and a live broker.
    Metadata { cluster_id: String },
    /// MongoDB: hello.
    Hello,
}

/// A running server. It is killed when it is dropped.
#[derive(Debug)]
pub struct Server {
    launch: Launch,
    child: Mutex<Option<Arc<Child>>>,
    /// Serializes starts and stops.
    turn: tokio::sync::Mutex<()>,
}

impl Server {
    pub(crate) async fn start(launch: Launch) -> Result<Server, ServerError> {
        let server = Server { launch, child: Mutex::default(), turn: tokio::sync::Mutex::default() };
        server.run().await?;
        Ok(server)
    }

    pub(crate) fn port(&self) -> u16 {
        self.launch.port
    }

    pub(crate) fn launch(&self) -> &Launch {
        &self.launch
    }

    /// The process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child().filter(|child| child.status().is_none()).map(|child| child.id())
    }

    /// Stops it gracefully.
    pub async fn stop(&self) {
        let _turn = self.turn.lock().await;
        self.end().await;
    }

    /// Stops it if it runs, and starts it on the same port with the same data (tansu: without
    /// data).
    pub async fn restart(&self) -> Result<(), ServerError> {
        let _turn = self.turn.lock().await;
        self.end().await;
        self.run().await
    }

    /// Sends SIGKILL and waits until the process has ended, which takes a moment.
    pub fn kill(&self) {
        if let Some(child) = self.child() {
            child.kill_now();
        }
    }

    /// Pauses it: connections stay open without responses.
    pub fn pause(&self) {
        if let Some(child) = self.child() {
            child.pause();
        }
    }

    /// Resumes it after a pause.
    pub fn resume(&self) {
        if let Some(child) = self.child() {
            child.resume();
        }
    }

    async fn end(&self) {
        if let Some(child) = self.child() {
            let status = child.stop(STOP_WITHIN).await;
            tracing::debug!(server = self.launch.name, %status, "server stopped");
        }
    }

    async fn run(&self) -> Result<(), ServerError> {
        let launch = &self.launch;
        let log = Log::at_end_of(&launch.log);
        let child = Child::start(launch.command(), &launch.log)
            .map_err(ServerError::io("starting", &launch.program))?;
        let child = Arc::new(child);
        *lock(&self.child) = Some(Arc::clone(&child));
        let outcome = tokio::select! {
            status = child.ended() => Err(launch.died(&status.to_string(), &log)),
            ready = tokio::time::timeout(READY_WITHIN, launch.answers()) => ready.map_err(|_| launch.silent(&log)),
        };
        match (outcome, child.status()) {
            // Another process responded on its port.
            (Ok(()), Some(status)) => Err(launch.died(&status.to_string(), &log)),
            (outcome, _) => outcome,
        }
    }

    fn child(&self) -> Option<Arc<Child>> {
        lock(&self.child).clone()
    }
}

impl Launch {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(path) = &self.only_path {
            command.env_clear().env("PATH", path).env("NO_COLOR", "1");
        }
        command.args(&self.arguments).current_dir(&self.folder);
        command
    }

    async fn answers(&self) {
        let mut pauses = tokio::time::interval(ASK_EVERY);
        pauses.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            pauses.tick().await;
            let answer = async {
                match &self.readiness_check {
                    ReadinessCheck::Metadata { cluster_id } => {
                        wire::broker_answers(self.port, cluster_id).await
                    }
                    ReadinessCheck::Hello => wire::database_answers(self.port).await,
                }
            };
            if let Ok(Ok(true)) = tokio::time::timeout(ASK_WITHIN, answer).await {
                return;
            }
        }
    }

    fn died(&self, status: &str, log: &Log) -> ServerError {
        let (log, excerpt) = (log.path().to_owned(), log.excerpt());
        ServerError::Died { server: self.name, status: status.to_owned(), log, excerpt }
    }

    fn silent(&self, log: &Log) -> ServerError {
        let (log, excerpt) = (log.path().to_owned(), log.excerpt());
        ServerError::Silent { server: self.name, seconds: READY_WITHIN.as_secs(), log, excerpt }
    }
}
