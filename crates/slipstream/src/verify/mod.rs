//! `slipstream verify`: judges by a ledger whether the pipeline kept its promises. For each id that was accepted there is
//! exactly one document; it holds the newest accepted event, or a newer one whose outcome the client never learnt; every
//! field is what was sent; nothing is there that was never sent. It reads and changes nothing.

mod catch_up;
mod document;
mod gone;
mod judge;
mod letters;
mod options;
mod progress;
mod report;
mod sent;

use std::path::Path;
use std::process::ExitCode;

use bson::{Document, doc};
use service::ConfigErrors;

use crate::load::ledger::{Header, Lines};
use crate::mongo::Mongo;
use crate::{Failure, out};
use catch_up::catch_up;
use judge::Judge;
use letters::Letters;
pub use options::{VerifyOptions, Wait};
use progress::Progress;
pub use report::{Finding, Ledgered, Report, Verdict};

/// The exit code where records wait, so that there is no verdict on them yet.
const UNFINISHED: u8 = 3;

/// Judges, and tells. The exit code is 0 only if all is as it must be, 1 if something is not, and 3 if nothing is wrong so
/// far but records wait.
///
/// # Errors
/// A wrong configuration, a ledger that cannot be judged, or a server that does not answer.
pub async fn verify(
    options: VerifyOptions,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<ExitCode, Failure> {
    let config = consumer::Config::from_environment(environment)?;
    let report = Report {
        expected_dead_letters: options.expect_dead_letters,
        ..judge(&config, &options.ledger, options.wait, Progress::start(options.json)).await?
    };
    let text = if options.json { report.json().to_string() } else { report.to_string() };
    out::line(text)?;
    Ok(match report.verdict() {
        Verdict::Well => ExitCode::SUCCESS,
        Verdict::Wrong => ExitCode::FAILURE,
        Verdict::Unfinished => ExitCode::from(UNFINISHED),
    })
}

/// Waits for the group as `wait` says, and judges.
async fn judge(
    config: &consumer::Config,
    ledger: &Path,
    wait: Wait,
    progress: Progress,
) -> Result<Report, Failure> {
    let (header, lines) = Lines::open(ledger)?;
    refuse(config, &header)?;
    let ends = judge::ends(lines, &config.topics)?;
    let waiting = catch_up(config, &ends, wait, progress).await?;
    let (of, run) = (config.clone(), header.run.clone());
    let letters = tokio::task::spawn_blocking(move || Letters::read(&of, &run)).await??;
    let (_, lines) = Lines::open(ledger)?;
    let mut judge = Judge::new(header.clone(), lines, letters, (&waiting, &config.topics))?;
    documents(config, &header, |document| judge.document(document)).await?;
    let (of, owed, (header, lines)) = (config.clone(), judge.owed(), Lines::open(ledger)?);
    let collection = format!("{}.{}", config.store.database, header.source);
    let gone = tokio::task::spawn_blocking(move || gone::gone(&of, &header, lines, &owed)).await??;
    Ok(Report {
        waiting: waiting.records(),
        per_second: waiting.per_second,
        collection,
        ..judge.finish(&gone)
    })
}

/// Where the pipeline is told to do something else with the events, there is nothing to judge.
fn refuse(config: &consumer::Config, header: &Header) -> Result<(), ConfigErrors> {
    let keys = &config.store.upsert_keys;
    let source = &header.source;
    let mut faults = Vec::new();
    if !keys.is_event_id() {
        let why = format!("{keys} makes a document unique, and verify can judge by event_id only");
        faults.push(("UPSERT_KEYS".to_owned(), why));
    }
    if !config.expected.contains(source) {
        let why = format!("the events of the ledger are of source {source}, which is not stored");
        faults.push(("EXPECTED_SOURCE".to_owned(), why));
    }
    if faults.is_empty() { Ok(()) } else { Err(ConfigErrors(faults)) }
}

/// Every document whose id begins as the run's.
async fn documents(
    config: &consumer::Config,
    header: &Header,
    mut each: impl FnMut(&Document),
) -> Result<(), Failure> {
    let mongo = Mongo::open(&config.store.uri, &config.store.database).await?;
    let collection = mongo.database.collection::<Document>(&header.source);
    // The range of texts that begin with the run and a `-`: a `.` comes next. An index can be used for it.
    let of_the_run =
        doc! { "event_id": { "$gte": format!("{}-", header.run), "$lt": format!("{}.", header.run) } };
    let mut cursor = mongo.in_time(collection.find(of_the_run)).await?;
    while mongo.in_time(cursor.advance()).await? {
        // Not through serde, which takes a field of the form of Extended JSON for a value of that type.
        each(&Document::try_from(cursor.current())?);
    }
    Ok(())
}

/// The key of an id of the run; `None` if it is not one.
fn key_of(run: &str, id: &str) -> Option<u64> {
    let digits = id.strip_prefix(run)?.strip_prefix('-')?;
    let key: u64 = digits.parse().ok()?;
    (key.to_string() == digits).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_of_the_run_only_in_the_one_form_that_it_is_sent_in() {
        assert_eq!(key_of("load-1", "load-1-17"), Some(17));
        assert_eq!(key_of("load-1", "load-1-0"), Some(0));
        for other in ["load-1-017", "load-1-+17", "load-1-", "load-1-x", "load-1", "load-2-17", ""] {
            assert_eq!(key_of("load-1", other), None, "{other}");
        }
    }
}
