//! `slipstream dedupe`: clears the way for a collection's unique index. Of the documents that share a key the newest
//! stays; without `--apply` nothing is changed. It may end at any moment, be run again at any time, and run while
//! others write.

mod config;
mod cut;
mod extended_json;
mod file;
mod removal;
mod report;
mod row;
mod target;

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::timeout;

use crate::cli::DedupeOptions;
use crate::stdout;
pub use config::{Config, Settings, first_source};
use file::Kept;
use kafka::BoxError;
use removal::{Done, Removal};
use report::{Example, Found, Report};
use row::{Place, Runs};
pub use target::{Indexes, Target};

/// Documents that change under a pass are looked at again, so often.
const PASSES: usize = 3;

/// Finds what is in the way of the unique index and, with `--apply`, clears it away. The exit code is 0 if the way is
/// clear, 1 if it is not.
///
/// # Errors
/// A wrong configuration, a file that cannot be written, or a server that does not answer or refuses.
pub async fn dedupe(
    options: DedupeOptions,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<ExitCode, BoxError> {
    let target = Target::new(Config::new(options.collection, environment)?).await?;
    let (index, building) = target.obstacle().await?;
    let mut file = options.out.as_deref().map(Kept::create).transpose()?;
    let found = pass(&target, file.as_mut(), options.show).await;
    let outcome = match (found, &mut file) {
        (Ok((found, Some(done))), Some(file)) => {
            again(&target, file, done).await.map(|done| (found, Some(done)))
        }
        (found, _) => found,
    };
    let path = file.as_ref().map(|file| file.path().display().to_string());
    file.map(Kept::finish).transpose()?;
    let (found, done) = outcome?;
    if let Some(index) = index.as_ref().filter(|index| options.apply && index.dispensable) {
        target.drop_index(&index.name).await?;
    }
    let (database, collection) = target.names();
    let report = Report {
        names: (database.to_owned(), collection.to_owned()),
        fields: target.keys.fields().map(str::to_owned).collect(),
        found,
        index,
        building,
        done: done.zip(path),
    };
    let text = if options.json { report.json().to_string() } else { report.to_string() };
    stdout::write_line(text)?;
    Ok(if report.is_clear() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How many documents are in the way of the unique index. Each reply of the server may take `limit`.
///
/// # Errors
/// The server does not answer in time (the error is then [`Elapsed`](tokio::time::error::Elapsed)), or refuses.
pub async fn in_the_way(target: &Target, limit: Duration) -> Result<u64, BoxError> {
    let (mut runs, mut in_the_way) = (Runs::default(), 0);
    let mut rows = timeout(limit, target.sorted()).await??;
    while let Some(row) = timeout(limit, rows.next()).await?? {
        in_the_way += u64::from(matches!(runs.place(row), Place::InTheWay { .. }));
    }
    Ok(in_the_way)
}

/// Reads the collection once; with a file, removes what is in the way.
async fn pass(
    target: &Target,
    file: Option<&mut Kept>,
    show: usize,
) -> Result<(Found, Option<Done>), BoxError> {
    let mut removal = file.map(|file| Removal::new(target, file));
    let (mut runs, mut found, mut documents) = (Runs::default(), Found::default(), 1);
    let mut rows = target.sorted().await?;
    while let Some(row) = rows.next().await? {
        match runs.place(row) {
            Place::Newest => documents = 1,
            Place::NotJudged => found.lists += 1,
            Place::InTheWay { row, newest } => {
                documents += 1;
                found.in_the_way += 1;
                if documents == 2 {
                    found.keys += 1;
                    if found.examples.len() < show {
                        found.examples.push(Example { newest: (*newest).clone(), documents });
                    }
                } else if found.keys == found.examples.len() as u64
                    && let Some(example) = found.examples.last_mut()
                {
                    example.documents = documents;
                }
                if let Some(removal) = &mut removal {
                    removal.add(*row, newest).await?;
                }
            }
        }
    }
    let Some(mut removal) = removal else { return Ok((found, None)) };
    removal.finish().await?;
    Ok((found, Some(removal.done)))
}

/// Passes again while documents changed under the last.
async fn again(target: &Target, file: &mut Kept, mut done: Done) -> Result<Done, BoxError> {
    for _ in 1..PASSES {
        if done.changed == 0 {
            break;
        }
        if let (_, Some(next)) = pass(target, Some(&mut *file), 0).await? {
            done = Done { removed: done.removed + next.removed, ..next };
        }
    }
    Ok(done)
}
