//! `slipstream load`: sends events to a producer and prints a summary. It reads the poller's
//! variables, which describe how to reach the producer, and EXPECTED_SOURCE for the source.
//! `slipstream verify`: compares a ledger of `load` with the documents and the dead letters.

use std::process::ExitCode;

use events::{Source, Unit};
use kafka::BoxError;
use loadtest::load::Target;
use loadtest::verify::{VerifyResult, run};
use loadtest::{LoadOptions, RecordForm, VerifyOptions};
use service::{ConfigErrors, ConfigReader, Kind};
use sources::{EventMapping, IdCandidate, PayloadRule, Place, SOURCES_FILE, Secrets, Sources, TimeForm};

use crate::dedupe::first_source;
use crate::output;

service::settings! {
    /// The variables besides the poller's.
    pub struct Settings {
        /// The first source is that of the events, unless the command line names one.
        expected_source: Kind::Default("adsbdb"),
        /// File with the sources, which tells where the events of a source are sent, and in which form.
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
    let file = Sources::of_process(&mut check, s.sources_file.as_ref(), environment, Secrets::Skip);
    let file = file.flatten();
    let source = match (source, &file) {
        (Some(source), _) => Some(source),
        (None, Some(file)) if s.expected_source.is_none() => first_sendable(file, &mut check),
        (None, _) => check.value("expected_source", s.expected_source.as_ref(), first_source("--source")),
    };
    let form = source.as_ref().map(|source| {
        let configured = file.as_ref().and_then(|file| file.get(source.as_str()));
        configured.map_or(Ok(None), record_form)
    });
    let record = match form {
        Some(Err(why)) => {
            check.add_error(SOURCES_FILE, format!("{why}; {SENDABLE}"));
            None
        }
        Some(Ok(record)) => Some(record),
        None => None,
    };
    // Both read SOURCES_FILE; its faults are reported once.
    match (check.finish(source.zip(record)), poller::Config::from_environment(environment.iter().cloned())) {
        (Ok((source, record)), Ok(producer)) => Ok(Target { producer, source, record }),
        (source, producer) => {
            let mut errors = source.err().unwrap_or_default();
            errors.merge(producer.err().unwrap_or_default());
            Err(errors)
        }
    }
}

/// What load can send.
const SENDABLE: &str = "load sends events to sources with `envelope: true`, and records to sources with `push` that \
                        have no schema, a JSON Pointer as id, a JSON Pointer or nothing as timestamp, and no payload";

/// The first source of the file that load can send to.
fn first_sendable(file: &Sources, check: &mut ConfigReader) -> Option<Source> {
    let found = file.iter().find(|source| record_form(source).is_ok()).map(|source| source.name.clone());
    if found.is_none() {
        check.add_error(SOURCES_FILE, format!("has no source that load can send to; {SENDABLE}"));
    }
    found
}

/// The form of the records that a source accepts; `None` if it accepts events in envelopes.
///
/// # Errors
/// Why load cannot send to it.
fn record_form(source: &sources::Source) -> Result<Option<RecordForm>, String> {
    if source.envelope {
        return Ok(None);
    }
    let name = &source.name;
    let Some(EventMapping { id, timestamp, payload }) = source.event.as_ref().filter(|_| source.push) else {
        return Err(format!("{name} is fetched, so nothing can be sent to it"));
    };
    if source.schema.is_some() {
        return Err(format!("{name} has a schema, which generated records break"));
    }
    let id = match id.candidates.as_slice() {
        [IdCandidate::One(place)] => steps(place),
        _ => None,
    };
    let timestamp = match timestamp.places.as_slice() {
        [] => Some(None),
        [place] if is_in_millis(&timestamp.form) => steps(place).map(Some),
        _ => None,
    };
    let form = match (id, timestamp, payload) {
        (None, ..) => return Err(format!("the id of {name} is not one JSON Pointer into the record")),
        (_, None, _) => {
            return Err(format!("the timestamp of {name} is not one JSON Pointer to epoch milliseconds"));
        }
        (Some(id), Some(timestamp), PayloadRule::Record) => RecordForm { id, timestamp },
        _ => return Err(format!("the payload of {name} is not the record itself")),
    };
    if form.is_possible() {
        Ok(Some(form))
    } else {
        Err(format!("the id of {name} is the whole record, or the timestamp is at its place"))
    }
}

fn is_in_millis(form: &TimeForm) -> bool {
    matches!(form, TimeForm::Contract | TimeForm::Epoch(Unit::Millis))
}

/// The names of a pointer into the record.
fn steps(place: &Place) -> Option<Vec<String>> {
    let Place::Record(pointer) = place else { return None };
    let names = pointer.as_str().split('/').skip(1);
    Some(names.map(|name| name.replace("~1", "/").replace("~0", "~")).collect())
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
    fn the_form_of_the_records_is_that_of_the_source_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sources.yaml");
        let chosen = |sources: &str, source: Option<&str>| {
            std::fs::write(&path, format!("sources: {{{sources}}}")).unwrap();
            std::fs::write(folder.path().join("any.json"), "{}").unwrap();
            let file = ("SOURCES_FILE".to_owned(), path.display().to_string());
            let environment = [("PRODUCER_BASE_URL".to_owned(), "http://p:8080".to_owned()), file];
            target(source.map(|name| Source::new(name).unwrap()), &environment)
        };
        let form = |id: &[&str], timestamp: Option<&[&str]>| {
            let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            Some(RecordForm { id: names(id), timestamp: timestamp.map(names) })
        };
        let pull = "p: {pull: {url: 'http://h/'}, event: {id: /id}}";
        let both = format!("{pull}, a: {{push: {{}}, event: {{id: /id}}}}, b: {{envelope: true}}");
        let first = chosen(&both, None).unwrap();
        assert_eq!((first.source.as_str(), first.record), ("a", form(&["id"], None)));
        for name in ["b", "other"] {
            assert_eq!(chosen(&both, Some(name)).unwrap().record, None, "{name}");
        }
        for (event, wanted) in [
            ("id: /a~1b/c, timestamp: /a~1b/t", form(&["a/b", "c"], Some(&["a/b", "t"]))),
            ("id: [/no, {else: uuid}], timestamp: {from: /t, unit: ms}", form(&["no"], Some(&["t"]))),
        ] {
            let target = chosen(&format!("a: {{push: {{}}, event: {{{event}}}}}"), None);
            assert_eq!(target.unwrap_or_else(|why| panic!("{event}: {why}")).record, wanted);
        }
        for (source, why) in [
            (pull, "p is fetched"),
            ("p: {push: {}, event: {id: /id}, schema: any.json}", "p has a schema"),
            ("p: {push: {}, event: {id: [/id, /no]}}", "the id of p is not one JSON Pointer"),
            ("p: {push: {}, event: {id: .id}}", "the id of p is not one JSON Pointer"),
            (
                "p: {push: {}, event: {id: /id, timestamp: {from: /t, unit: s}}}",
                "the timestamp of p is not one",
            ),
            ("p: {push: {}, event: {id: /id, timestamp: [/t, /u]}}", "the timestamp of p is not one"),
            ("p: {push: {}, event: {id: /id, payload: /x}}", "the payload of p is not the record"),
            ("p: {push: {}, event: {id: /id, timestamp: /id/t}}", "the timestamp is at its place"),
        ] {
            let faults = chosen(source, Some("p")).unwrap_err().to_string();
            assert!(faults.contains(why) && faults.contains("envelope: true"), "{source}: {faults}");
            let faults = chosen(source, None).unwrap_err().to_string();
            assert!(faults.contains("has no source that load can send to"), "{source}: {faults}");
        }
    }
}
