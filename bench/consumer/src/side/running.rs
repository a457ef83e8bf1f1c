//! A side that runs. It ends with this value, and with this process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use devservers::Child;

use crate::Failure;
use crate::programs;

const GRACE: Duration = Duration::from_secs(15);

/// A running process and its log.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts the command; its log goes into the folder.
    pub fn start(command: Command, folder: &Path) -> Result<Running, Failure> {
        let program = command.get_program().to_string_lossy().into_owned();
        let log = folder.join("log");
        let child =
            Child::start(command, &log).map_err(|error| format!("{program} cannot be started: {error}"))?;
        Ok(Running { child, log })
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Does `work` within `limit`, as long as the process runs.
    pub async fn meanwhile<T>(
        &self,
        what: &str,
        limit: Duration,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            done = tokio::time::timeout(limit, work) => done.map_err(|_| {
                format!("{what}: not within {} s; its log ends so:\n{}", limit.as_secs(), programs::tail(&self.log))
            })?,
            status = self.child.ended() => {
                Err(format!("{what}: it ended by itself ({status}):\n{}", programs::tail(&self.log)).into())
            }
        }
    }

    /// Asks it to stop and waits for that.
    pub async fn stop(self) {
        self.child.stop(GRACE).await;
    }
}
