//! The verifier: compares a ledger with the documents in MongoDB and with the dead letters. Each
//! accepted id must have exactly one document. It holds the newest accepted event, or a newer one
//! with an unknown outcome. Every field equals what was sent, and there are no other documents. The
//! verifier changes nothing.

mod catch_up;
mod compare;
mod dead_letters;
mod document;
mod report;
mod versions;

use std::path::Path;

use bson::{Document, doc};
use kafka::BoxError;
use service::ConfigErrors;

use crate::ledger::{Header, Lines};
use crate::mongo::Mongo;
use crate::options::{VerifyOptions, Wait};
use crate::progress::{PlainLines, Progress};
use catch_up::catch_up;
use compare::{Comparison, end_offsets, find_gone};
use dead_letters::DeadLetters;
pub use document::{Metadata, differences, expected_document};
pub use report::{Finding, LedgerCounts, Report, VerifyResult};

/// Waits for the consumer as the options say, then compares. Progress goes to stdout, with `json`
/// to stderr.
///
/// # Errors
/// A configuration or a ledger that cannot be verified, or a server that does not answer.
pub async fn run(config: &consumer::Config, options: &VerifyOptions) -> Result<Report, BoxError> {
    let plain = if options.json { PlainLines::Stderr } else { PlainLines::Stdout };
    let report = compare(config, &options.ledger, options.wait, Progress::start(None, plain)).await?;
    Ok(Report { expected_dead_letters: options.expect_dead_letters, ..report })
}

async fn compare(
    config: &consumer::Config,
    ledger: &Path,
    wait: Wait,
    progress: Progress,
) -> Result<Report, BoxError> {
    let (header, lines) = Lines::open(ledger)?;
    check_config(config, &header)?;
    let ends = end_offsets(lines, &config.topics)?;
    let backlog = catch_up(config, &ends, wait, progress).await?;
    let (owned_config, run) = (config.clone(), header.run.clone());
    let read = tokio::task::spawn_blocking(move || DeadLetters::read(&owned_config, &run));
    let dead_letters = read.await??;
    let (_, lines) = Lines::open(ledger)?;
    let mut comparison = Comparison::new(header.clone(), lines, dead_letters, (&backlog, &config.topics))?;
    documents(config, &header, |document| comparison.compare_document(document)).await?;
    let (owned_config, lacking) = (config.clone(), comparison.lacking());
    let (header, lines) = Lines::open(ledger)?;
    let collection = format!("{}.{}", config.store.database, header.source);
    let find = tokio::task::spawn_blocking(move || find_gone(&owned_config, &header, lines, &lacking));
    let gone = find.await??;
    Ok(Report {
        waiting: backlog.records(),
        per_second: backlog.per_second,
        collection,
        ..comparison.finish(&gone)
    })
}

/// Rejects a configuration with which the pipeline stores other documents.
fn check_config(config: &consumer::Config, header: &Header) -> Result<(), ConfigErrors> {
    let keys = &config.store.upsert_keys;
    let source = &header.source;
    let mut faults = Vec::new();
    if !keys.is_event_id() {
        let why = format!("is {keys}; verify requires event_id");
        faults.push(("UPSERT_KEYS".to_owned(), why));
    }
    if !config.expected.contains(source) {
        let why = format!("does not contain the ledger's source {source}, which is therefore not stored");
        faults.push(("EXPECTED_SOURCE".to_owned(), why));
    }
    if faults.is_empty() { Ok(()) } else { Err(ConfigErrors(faults)) }
}

/// Reads every document whose id has the run's prefix.
async fn documents(
    config: &consumer::Config,
    header: &Header,
    mut each: impl FnMut(&Document),
) -> Result<(), BoxError> {
    let mongo = Mongo::open(&config.store.uri, &config.store.database).await?;
    let collection = mongo.database.collection::<Document>(&header.source);
    // The range of texts that begin with the run and a `-`; the next character is `.`. The server
    // can use an index for it.
    let of_the_run =
        doc! { "event_id": { "$gte": format!("{}-", header.run), "$lt": format!("{}.", header.run) } };
    let mut cursor = mongo.with_timeout(collection.find(of_the_run)).await?;
    while mongo.with_timeout(cursor.advance()).await? {
        // Not through serde: it converts a field in the form of Extended JSON to another type.
        each(&Document::try_from(cursor.current())?);
    }
    Ok(())
}
