//! One server as a child: ready means that it answers its protocol, never that some time has passed. It keeps its port and
//! its data folder for life, over any number of kills and restarts.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::ServerError;
use crate::child::Child;
use crate::packages::Log;
use crate::{broker, database};

/// Long enough for a cold JVM on a machine that compiles meanwhile.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// A server that does not stop within this time is killed.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// One question to a server that starts.
const ASK_WITHIN: Duration = Duration::from_secs(1);
/// Between two questions.
const ASK_EVERY: Duration = Duration::from_millis(25);

/// All that it takes to start a server, any number of times.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub name: &'static str,
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// A server that reads stray variables gets none but PATH.
    pub only_path: Option<OsString>,
    pub folder: PathBuf,
    pub log: PathBuf,
    pub port: u16,
    pub question: Question,
}

/// What a server is asked to see whether it is ready.
#[derive(Clone, Debug)]
pub(crate) enum Question {
    /// Kafka: metadata that names this cluster and a live broker.
    Metadata { cluster_id: String },
    /// MongoDB: hello.
    Hello,
}

#[derive(Debug)]
pub(crate) struct Server {
    launch: Launch,
    child: Mutex<Option<Arc<Child>>>,
    /// One start or stop at a time.
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

    pub(crate) fn pid(&self) -> Option<u32> {
        self.child().filter(|child| child.status().is_none()).map(|child| child.id())
    }

    pub(crate) async fn stop(&self) {
        let _turn = self.turn.lock().await;
        self.end().await;
    }

    pub(crate) async fn restart(&self) -> Result<(), ServerError> {
        let _turn = self.turn.lock().await;
        self.end().await;
        self.run().await
    }

    /// Returns when the process is gone; it never takes more than the kernel needs for that.
    pub(crate) fn kill(&self) {
        if let Some(child) = self.child() {
            child.kill_now();
        }
    }

    pub(crate) fn pause(&self) {
        if let Some(child) = self.child() {
            child.pause();
        }
    }

    pub(crate) fn resume(&self) {
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
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&child));
        let outcome = tokio::select! {
            status = child.ended() => Err(launch.died(&status.to_string(), &log)),
            ready = tokio::time::timeout(READY_WITHIN, launch.answers()) => ready.map_err(|_| launch.silent(&log)),
        };
        match (outcome, child.status()) {
            // Somebody else answered on its port.
            (Ok(()), Some(status)) => Err(launch.died(&status.to_string(), &log)),
            (outcome, _) => outcome,
        }
    }

    fn child(&self) -> Option<Arc<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
                match &self.question {
                    Question::Metadata { cluster_id } => broker::answers(self.port, cluster_id).await,
                    Question::Hello => database::answers(self.port).await,
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
