//! The load and its judge: `slipstream load` writes down what it sent and what it was answered, `slipstream verify` holds
//! that against what is in the database and among the dead letters.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::process::Child;

use crate::process::command;
use crate::{Names, eventually};

/// How long a load may go on until each of its events is answered for good.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

/// A load that is being sent. It is killed when dropped.
#[derive(Debug)]
pub struct Sending {
    child: Child,
    ledger: PathBuf,
}

impl Sending {
    /// Sends to the producer at `base_url` until it is ended, and keeps the ledger.
    pub fn start(ledger: PathBuf, base_url: &str, options: &[&str]) -> Self {
        let said = std::fs::File::create(ledger.with_extension("log")).expect("a log file");
        let mut load = command("slipstream", &[("PRODUCER_BASE_URL", base_url)]);
        // A test that is killed leaves it behind: it ends by itself, long after any test is over.
        load.args(["load", "--json", "--for", "15m", "--ledger"]).arg(&ledger).args(options);
        let child = load.stdout(Stdio::piped()).stderr(said).spawn().expect("the binary starts");
        Self { child, ledger }
    }

    /// The prefix of its events' ids.
    pub async fn run(&self) -> String {
        let begun = || async {
            let ledger = std::fs::read_to_string(&self.ledger).ok()?;
            let header: Value = serde_json::from_str(ledger.lines().next()?).ok()?;
            header["run"].as_str().map(str::to_owned)
        };
        eventually("the ledger begins", ANSWERED_WITHIN, begun).await
    }

    /// Ends it; its summary and its ledger, in which each event was answered for good.
    pub async fn end(mut self) -> (Value, PathBuf) {
        assert!(self.child.try_wait().expect("it can be waited for").is_none(), "the load ended by itself");
        let pid = self.child.id().expect("it has not been waited for");
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).expect("the signal is sent");
        let output = tokio::time::timeout(ANSWERED_WITHIN, self.child.wait_with_output()).await;
        let output = output.expect("each event is answered for good in time").expect("its output");
        let summary = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("no summary of the load: {output:?}"));
        assert!(output.status.success(), "{}: {summary}", output.status);
        (summary, self.ledger)
    }
}

/// The events that a ledger tells of, a line each.
pub fn events(ledger: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(ledger).expect("a ledger");
    text.lines().skip(1).map(|line| serde_json::from_str(line).expect("a line")).collect()
}

/// Fails unless the judge finds everything as it must be; what it says.
pub async fn verify(names: &Names, ledger: &Path, dead_letters: usize) -> Value {
    let dead_letters = dead_letters.to_string();
    let judgement = judge(names, ledger, &["--wait", "120s", "--expect-dead-letters", &dead_letters]).await;
    assert_eq!(judgement["well"], true, "{judgement}");
    judgement
}

/// What the judge says with these options.
pub async fn judge(names: &Names, ledger: &Path, options: &[&str]) -> Value {
    let mut verify = command("slipstream", &names.for_every_source(&[]));
    verify.args(["verify", "--json", "--ledger"]).arg(ledger).args(options);
    let output = verify.output().await.expect("the binary starts");
    let judgement: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no judgement: {output:?}"));
    assert_eq!(judgement["well"], output.status.success(), "{output:?}");
    judgement
}
