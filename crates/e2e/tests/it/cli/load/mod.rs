//! `slipstream load` and `slipstream verify`: successful runs, each finding of a verification, and
//! servers that reject, close connections or do not respond.

mod client;
mod endings;
mod runs;
mod script;
mod tampering;

use std::path::{Path, PathBuf};

use serde_json::Value;
use testkit::process::command;
use testkit::{Names, Process, Stack};

/// The exit code of a command and its JSON output.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    json: Value,
}

impl Said {
    fn count(&self, path: &str) -> u64 {
        let found = self.json.pointer(path).and_then(Value::as_u64);
        found.unwrap_or_else(|| panic!("{path} in {self:?}"))
    }
}

async fn run(environment: &[(&str, &str)], arguments: &[&str]) -> Said {
    let output = command("slipstream", environment).args(arguments).arg("--json").output().await.unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    Said { code: output.status.code(), json }
}

/// Runs a command. Returns its exit code and its whole output.
async fn text(environment: &[(&str, &str)], arguments: &[&str]) -> (Option<i32>, String) {
    let output = command("slipstream", environment).args(arguments).output().await.unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// A producer, a consumer, and a folder for ledgers.
struct Site {
    names: Names,
    producer: Process,
    consumer: Process,
    folder: tempfile::TempDir,
}

impl Site {
    async fn start(stack: &Stack) -> Self {
        let names = stack.names();
        let (producer, consumer) = (stack.producer(&names, &[]), stack.consumer(&names, &[]));
        producer.ready().await;
        consumer.ready().await;
        Self { names, producer, consumer, folder: tempfile::tempdir().unwrap() }
    }

    fn ledger(&self) -> PathBuf {
        self.folder.path().join("ledger")
    }

    /// Runs a load with events of the source `manual`.
    async fn load(&self, arguments: &[&str]) -> Said {
        let ledger = self.ledger();
        load(&self.producer.url(""), &[], &ledger, arguments).await
    }

    async fn verify(&self, arguments: &[&str]) -> Said {
        verify(&self.names, &self.ledger(), arguments).await
    }

    async fn end(self) {
        assert!(self.producer.terminate().await.success());
        assert!(self.consumer.terminate().await.success());
    }
}

async fn load(producer: &str, more: &[(&str, &str)], ledger: &Path, arguments: &[&str]) -> Said {
    let environment = [&[("PRODUCER_BASE_URL", producer)], more].concat();
    let ours = ["load", "--source", "manual", "--ledger", ledger.to_str().unwrap()];
    run(&environment, &[&ours, arguments].concat()).await
}

async fn verify(names: &Names, ledger: &Path, arguments: &[&str]) -> Said {
    let ours = ["verify", "--wait", "60s", "--ledger", ledger.to_str().unwrap()];
    run(&names.for_every_source(&[]), &[&ours, arguments].concat()).await
}

/// The lines of the ledger; the first is its header.
fn lines(ledger: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(ledger).unwrap();
    assert!(text.ends_with('\n'), "the last line is cut");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
