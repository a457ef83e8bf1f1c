//! Runs `slipstream check --json` and parses its findings.

use serde_json::Value;
use testkit::Names;
use testkit::process::command;

/// The result of a check.
#[derive(Debug)]
pub struct Findings {
    /// The findings.
    pub all: Vec<Value>,
    /// The exit code.
    pub code: Option<i32>,
}

impl Findings {
    /// Whether there is a finding of this level and subject whose cause contains `part`.
    pub fn has(&self, level: &str, subject: &str, part: &str) -> bool {
        self.all.iter().any(|finding| {
            finding["level"] == level
                && finding["subject"] == subject
                && finding["cause"].as_str().is_some_and(|cause| cause.contains(part))
                && (level == "ok") == finding["remedy"].is_null()
        })
    }

    /// Panics unless there is such a finding and the exit code agrees.
    pub fn assert(&self, level: &str, subject: &str, part: &str) {
        assert!(self.has(level, subject, part), "no {level} of {subject} with {part:?}: {self:#?}");
        let failed = self.all.iter().any(|finding| finding["level"] == "fail");
        assert_eq!(self.code, Some(i32::from(failed)));
    }
}

/// The variables of a deployment with these names. Later ones override earlier ones.
pub fn environment<'a>(names: &'a Names, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    // Not the public ADSBDB: tests send no requests to the internet.
    names.environment(&[&[("ADSBDB_BASE_URL", "http://127.0.0.1:9")], more].concat())
}

/// Checks the deployment with these names.
pub async fn check(names: &Names, more: &[(&str, &str)]) -> Findings {
    let output =
        command("slipstream", &environment(names, more)).args(["check", "--json"]).output().await.unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    Findings { all: said["findings"].as_array().unwrap().clone(), code: output.status.code() }
}
