//! `slipstream load`: sends events to a producer and prints a summary. It reads the poller's
//! variables, which describe how to reach the producer, and EXPECTED_SOURCE for the source.
//! `slipstream verify`: compares a ledger of `load` with the documents and the dead letters.

use std::process::ExitCode;

use events::Source;
use kafka::BoxError;
use loadtest::load::Target;
use loadtest::verify::{VerifyResult, run};
use loadtest::{LoadOptions, VerifyOptions};
use service::{ConfigErrors, ConfigReader, Kind};

use crate::dedupe::first_source;
use crate::output;

service::settings! {
    /// The variables besides the poller's.
    pub struct Settings {
        /// The first source is that of the events, unless the command line names one.
        expected_source: Kind::Default("adsbdb"),
    }
}

/// Sends events. The exit code is 0 if every event got a final response and at least one was
/// accepted.
pub async fn load(options: LoadOptions, environment: Vec<(String, String)>) -> Result<ExitCode, BoxError> {
    let target = target(options.source.clone(), &environment)?;
    let summary = loadtest::load::run(&target, &options, &service::tasks::stop_token()?).await?;
    let text = if options.json { summary.json().to_string() } else { summary.to_string() };
    output::write_line(text)?;
    Ok(if summary.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reads and checks the environment; `source` is that of the command line.
pub fn target(source: Option<Source>, environment: &[(String, String)]) -> Result<Target, ConfigErrors> {
    let (s, mut check) = ConfigReader::read::<Settings>(Settings::VARIABLES, environment.iter().cloned());
    let source = match source {
        Some(source) => Some(source),
        None => check.value("expected_source", s.expected_source.as_ref(), first_source("--source")),
    };
    let producer = poller::Config::from_environment(environment.iter().cloned()).map_err(|faults| {
        faults.0.into_iter().for_each(|(name, problem)| check.add_error(&name, problem));
    });
    let target = (|| Some(Target { producer: producer.ok()?, source: source? }))();
    check.finish(target)
}

/// Exit code of a verification without differences while records are unfinished.
const INCOMPLETE: u8 = 3;

/// Compares and prints the report. The exit code is 0 if the verification passed, 1 if it failed,
/// and 3 if it is incomplete.
pub async fn verify(
    options: VerifyOptions,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<ExitCode, BoxError> {
    let config = consumer::Config::from_environment(environment)?;
    let report = run(&config, &options).await?;
    let text = if options.json { report.json().to_string() } else { report.to_string() };
    output::write_line(text)?;
    Ok(match report.result() {
        VerifyResult::Passed => ExitCode::SUCCESS,
        VerifyResult::Failed => ExitCode::FAILURE,
        VerifyResult::Incomplete => ExitCode::from(INCOMPLETE),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_every_wrong_variable() {
        let environment = [("PRODUCER_BASE_URL", "p:8080"), ("EXPECTED_SOURCE", "*")];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let faults = target(None, &environment).unwrap_err().0;
        let names: Vec<&str> = faults.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["EXPECTED_SOURCE", "PRODUCER_BASE_URL"]);
    }
}
