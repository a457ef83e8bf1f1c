//! `slipstream dedupe`: removes duplicates that prevent a collection's unique index. The newest
//! document of each key stays. Without `--apply` nothing is changed. The command can be interrupted
//! and repeated at any time, and run while others write.

mod backup_file;
mod collection;
mod config;
mod duplicates;
mod removal;
mod report;

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::timeout;

use crate::cli::DedupeOptions;
use crate::output;
use backup_file::BackupFile;
pub use collection::{Indexes, KeyedCollection};
pub use config::{Config, Settings, first_source};
use duplicates::{Classification, DuplicateFinder};
use kafka::BoxError;
use removal::{Removal, RemovalCounts};
use report::{Example, Findings, Report};

/// Maximum number of passes; a further pass is for documents that changed during the last one.
const MAX_PASSES: usize = 3;

/// Finds duplicates and, with `--apply`, removes them. The exit code is 0 if the unique index can
/// be built, else 1.
///
/// # Errors
/// A wrong configuration, a file that cannot be written, or an error of the server.
pub async fn dedupe(
    options: DedupeOptions,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<ExitCode, BoxError> {
    let collection = KeyedCollection::new(Config::new(options.collection, environment)?).await?;
    let (index, building) = collection.conflicting_index().await?;
    let mut file = options.out.as_deref().map(BackupFile::create).transpose()?;
    let first_pass = pass(&collection, file.as_mut(), options.show).await;
    let outcome = match (first_pass, &mut file) {
        (Ok((findings, Some(counts))), Some(file)) => {
            repeat_passes(&collection, file, counts).await.map(|counts| (findings, Some(counts)))
        }
        (first_pass, _) => first_pass,
    };
    let path = file.as_ref().map(|file| file.path().display().to_string());
    file.map(BackupFile::finish).transpose()?;
    let (findings, counts) = outcome?;
    if let Some(index) = index.as_ref().filter(|index| options.apply && index.is_redundant) {
        collection.drop_index(&index.name).await?;
    }
    let (database, name) = collection.names();
    let report = Report {
        names: (database.to_owned(), name.to_owned()),
        fields: collection.keys.fields().map(str::to_owned).collect(),
        findings,
        index,
        building,
        removal: counts.zip(path),
    };
    let text = if options.json { report.json().to_string() } else { report.to_string() };
    output::write_line(text)?;
    Ok(if report.is_clear() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Counts the duplicates. Each reply of the server may take `reply_timeout`.
///
/// # Errors
/// The server returns an error or no reply; the latter is [`Elapsed`](tokio::time::error::Elapsed).
pub async fn count_duplicates(
    collection: &KeyedCollection,
    reply_timeout: Duration,
) -> Result<u64, BoxError> {
    let (mut finder, mut duplicates) = (DuplicateFinder::default(), 0);
    let mut rows = timeout(reply_timeout, collection.sorted()).await??;
    while let Some(row) = timeout(reply_timeout, rows.next()).await?? {
        duplicates += u64::from(matches!(finder.classify(row), Classification::Duplicate { .. }));
    }
    Ok(duplicates)
}

/// Reads the collection once; with a file, removes the duplicates.
async fn pass(
    collection: &KeyedCollection,
    file: Option<&mut BackupFile>,
    show: usize,
) -> Result<(Findings, Option<RemovalCounts>), BoxError> {
    let mut removal = file.map(|file| Removal::new(collection, file));
    let (mut finder, mut findings, mut documents) = (DuplicateFinder::default(), Findings::default(), 1);
    let mut rows = collection.sorted().await?;
    while let Some(row) = rows.next().await? {
        match finder.classify(row) {
            Classification::Newest => documents = 1,
            Classification::NotCompared => findings.not_compared += 1,
            Classification::Duplicate { row, newest } => {
                documents += 1;
                findings.duplicates += 1;
                if documents == 2 {
                    findings.keys += 1;
                    if findings.examples.len() < show {
                        findings.examples.push(Example { newest: (*newest).clone(), documents });
                    }
                } else if findings.keys == findings.examples.len() as u64
                    && let Some(example) = findings.examples.last_mut()
                {
                    example.documents = documents;
                }
                if let Some(removal) = &mut removal {
                    removal.add(*row, newest).await?;
                }
            }
        }
    }
    let Some(mut removal) = removal else { return Ok((findings, None)) };
    removal.finish().await?;
    Ok((findings, Some(removal.counts)))
}

/// Repeats the pass while documents changed during the last one.
async fn repeat_passes(
    collection: &KeyedCollection,
    file: &mut BackupFile,
    mut counts: RemovalCounts,
) -> Result<RemovalCounts, BoxError> {
    for _ in 1..MAX_PASSES {
        if counts.changed == 0 {
            break;
        }
        if let (_, Some(next)) = pass(collection, Some(&mut *file), 0).await? {
            counts = RemovalCounts { removed: counts.removed + next.removed, ..next };
        }
    }
    Ok(counts)
}
