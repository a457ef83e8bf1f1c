//! `slipstream load`: sends events to a producer and prints a summary. It reads the poller's
//! variables, which describe how to reach the producer, and EXPECTED_SOURCE for the source.
//! `slipstream verify`: compares a ledger of `load` with the documents and the dead letters.

use std::path::Path;
use std::process::ExitCode;

use events::Source;
use kafka::BoxError;
use loadtest::load::Target;
use loadtest::verify::{VerifyResult, run};
use loadtest::{LoadOptions, VerifyOptions};
use service::{ConfigErrors, ConfigReader, Kind};
use sources::Sources;

use crate::dedupe::first_source;
use crate::output;

service::settings! {
    /// The variables besides the poller's.
    pub struct Settings {
        /// The first source is that of the events, unless the command line names one.
        expected_source: Kind::Default("adsbdb"),
        /// File with the sources. Events in envelopes go only to sources with `envelope: true`.
        sources_file: Kind::Optional("every setting is as without a file"),
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
    let file = check.optional("sources_file", s.sources_file.as_ref(), |path| {
        Sources::load(Path::new(path), environment).map_err(|faults| format!("is wrong:\n{faults}"))
    });
    let file = file.flatten();
    let source = match (source, &file) {
        (Some(source), _) => Some(source),
        (None, Some(file)) if s.expected_source.is_none() => first_in_envelopes(file, &mut check),
        (None, _) => check.value("expected_source", s.expected_source.as_ref(), first_source("--source")),
    };
    if let Some(source) = &source
        && let Some(configured) = file.as_ref().and_then(|file| file.get(source.as_str()))
        && !configured.envelope
    {
        let why =
            format!("{source} does not accept events in envelopes, which load sends: {ENVELOPE_REMEDY}");
        check.add_error("SOURCES_FILE", why);
    }
    let producer = poller::Config::from_environment(environment.iter().cloned()).map_err(|faults| {
        faults.0.into_iter().for_each(|(name, problem)| check.add_error(&name, problem));
    });
    let target = (|| Some(Target { producer: producer.ok()?, source: source? }))();
    check.finish(target)
}

const ENVELOPE_REMEDY: &str = "set `envelope: true` for a source, and name it with --source";

/// The first source of the file that accepts events in envelopes.
fn first_in_envelopes(file: &Sources, check: &mut ConfigReader) -> Option<Source> {
    let found = file.iter().find(|source| source.envelope).map(|source| source.name.clone());
    if found.is_none() {
        let why =
            format!("has no source that accepts events in envelopes, which load sends: {ENVELOPE_REMEDY}");
        check.add_error("SOURCES_FILE", why);
    }
    found
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

    #[test]
    fn the_source_of_a_file_must_accept_envelopes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sources.yaml");
        let chosen = |text: &str, source: Option<&str>| {
            std::fs::write(&path, text).unwrap();
            let file = ("SOURCES_FILE".to_owned(), path.display().to_string());
            let environment = [("PRODUCER_BASE_URL".to_owned(), "http://p:8080".to_owned()), file];
            target(source.map(|name| Source::new(name).unwrap()), &environment)
        };
        let both = "sources: {a: {push: {}, event: {id: /id}}, b: {envelope: true}}";
        assert_eq!(chosen(both, None).unwrap().source.as_str(), "b");
        assert_eq!(chosen(both, Some("other")).unwrap().source.as_str(), "other");
        for (text, source) in [(both, Some("a")), ("sources: {a: {push: {}, event: {id: /id}}}", None)] {
            let faults = chosen(text, source).unwrap_err();
            assert!(faults.to_string().contains("envelope: true"), "{faults}");
        }
    }
}
