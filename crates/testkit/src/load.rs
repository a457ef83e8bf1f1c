//! Runs `slipstream load`, which sends events and writes each response to a ledger, and `slipstream
//! verify`, which compares the ledger with the documents and the dead letters.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::process::Child;

use crate::process::command;
use crate::{Names, eventually};

/// Maximum time until each event of an ended load has a final response.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// A running load. It is killed when dropped.
#[derive(Debug)]
pub struct RunningLoad {
    child: Child,
    ledger: PathBuf,
}

impl RunningLoad {
    /// Sends to the producer at `base_url` until [`RunningLoad::end`].
    pub fn start(ledger: PathBuf, base_url: &str, options: &[&str]) -> Self {
        let log = std::fs::File::create(ledger.with_extension("log")).expect("a log file");
        let mut command = command("slipstream", &[("PRODUCER_BASE_URL", base_url)]);
        // A killed test leaves it behind, so it ends by itself, long after any test.
        command.args(["load", "--json", "--for", "15m", "--ledger"]).arg(&ledger).args(options);
        let child = command.stdout(Stdio::piped()).stderr(log).spawn().expect("the binary starts");
        Self { child, ledger }
    }

    /// The prefix of the ids of its events.
    pub async fn id_prefix(&self) -> String {
        let prefix = || async {
            let ledger = std::fs::read_to_string(&self.ledger).ok()?;
            let header: Value = serde_json::from_str(ledger.lines().next()?).ok()?;
            header["run"].as_str().map(str::to_owned)
        };
        eventually("the ledger has a header", END_TIMEOUT, prefix).await
    }

    /// Ends the load and returns its summary and its ledger. Each event in the ledger has a final
    /// response.
    pub async fn end(mut self) -> (Value, PathBuf) {
        assert!(self.child.try_wait().expect("it can be waited for").is_none(), "the load ended early");
        let pid = self.child.id().expect("it has not been waited for");
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).expect("the signal is sent");
        let output = tokio::time::timeout(END_TIMEOUT, self.child.wait_with_output()).await;
        let output = output.expect("a final response to each event in time").expect("its output");
        let summary =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no summary: {output:?}"));
        assert!(output.status.success(), "{}: {summary}", output.status);
        (summary, self.ledger)
    }
}

/// The events of a ledger.
pub fn ledger_events(ledger: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(ledger).expect("a ledger");
    text.lines().skip(1).map(|line| serde_json::from_str(line).expect("a line")).collect()
}

/// Panics unless verification passes with this number of dead letters. Returns the report.
pub async fn assert_verified(names: &Names, ledger: &Path, dead_letters: usize) -> Value {
    let dead_letters = dead_letters.to_string();
    let report = verify(names, ledger, &["--wait", "120s", "--expect-dead-letters", &dead_letters]).await;
    assert_eq!(report["well"], true, "{report}");
    report
}

/// Runs `slipstream verify` with these options and returns the report.
pub async fn verify(names: &Names, ledger: &Path, options: &[&str]) -> Value {
    let mut command = command("slipstream", &names.for_every_source(&[]));
    command.args(["verify", "--json", "--ledger"]).arg(ledger).args(options);
    let output = command.output().await.expect("the binary starts");
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no report: {output:?}"));
    assert_eq!(report["well"], output.status.success(), "{output:?}");
    report
}
