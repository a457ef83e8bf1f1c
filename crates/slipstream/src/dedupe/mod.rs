//! `slipstream dedupe`: removes duplicates that prevent a collection's unique index. The newest
//! document of each key stays. Without `--apply` nothing is changed. The command can be interrupted
//! and repeated at any time, and run while others write.

mod collection;
mod duplicates;
mod removal;

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use bson::{Bson, Document};
use collection::ConflictingIndex;
#[cfg(test)]
pub use collection::Settings;
pub use collection::{Config, Indexes, KeyedCollection, first_source};
use duplicates::{Classification, DuplicateFinder, Row};
use kafka::BoxError;
use removal::{BackupFile, Removal, RemovalCounts};
use serde_json::{Value, json};
use service::plural::{counted, counted_with};
use tokio::time::timeout;

use crate::cli::DedupeOptions;
use crate::output;

/// Maximum number of passes; a further pass is for documents that changed during the last one.
const MAX_PASSES: usize = 3;

/// Finds duplicates and, with `--apply`, removes them. The exit code is 0 if the unique index can
/// be built, else 1.
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

/// The findings of one pass over the collection.
#[derive(Debug, Default)]
pub struct Findings {
    /// Keys with several documents.
    pub keys: u64,
    /// Documents that are older than the newest of their key.
    pub duplicates: u64,
    /// Documents that were not compared, because a key field contains an array.
    pub not_compared: u64,
    /// The first of these keys.
    pub examples: Vec<Example>,
}

/// A key with several documents.
#[derive(Debug)]
pub struct Example {
    /// The newest document, which stays.
    pub newest: Row,
    /// Number of documents with the key.
    pub documents: u64,
}

/// The report.
#[derive(Debug)]
pub struct Report {
    /// Database and collection.
    pub names: (String, String),
    /// Key fields.
    pub fields: Vec<String>,
    /// The findings of the first pass.
    pub findings: Findings,
    /// An index that prevents the unique index.
    pub index: Option<ConflictingIndex>,
    /// The name of the unique index, while the server builds it.
    pub building: Option<String>,
    /// With `--apply`: the counts and the backup file.
    pub removal: Option<(RemovalCounts, String)>,
}

impl Report {
    /// Whether the unique index can be built, as far as this command can find out.
    pub fn is_clear(&self) -> bool {
        match &self.removal {
            Some((counts, _)) => {
                counts.changed + counts.unwritable == 0
                    && self.index.as_ref().is_none_or(|index| index.is_redundant)
            }
            None => self.findings.duplicates == 0 && self.index.is_none(),
        }
    }

    /// The report as JSON.
    pub fn json(&self) -> Value {
        let removal = self.removal.as_ref();
        let (counts, file) =
            removal.map_or((RemovalCounts::default(), None), |(counts, file)| (*counts, Some(file)));
        let example = |example: &Example| {
            json!({
                "key": self.key(&example.newest),
                "documents": example.documents,
                "kept": example.newest.id,
            })
        };
        json!({
            "database": self.names.0,
            "collection": self.names.1,
            "upsert_keys": self.fields,
            "applied": self.removal.is_some(),
            "clear": self.is_clear(),
            "keys": self.findings.keys,
            "documents": self.findings.keys + self.findings.duplicates,
            "in_the_way": self.findings.duplicates,
            "removed": counts.removed,
            "changed_meanwhile": counts.changed,
            "unwritable": counts.unwritable,
            "not_judged": self.findings.not_compared,
            "index_in_the_way": self.index.as_ref().map(|index| index.name.as_str()),
            "index_being_built": self.building,
            "file": file,
            "examples": self.findings.examples.iter().map(example).collect::<Vec<_>>(),
        })
    }

    fn key(&self, row: &Row) -> Bson {
        let values = row.key.iter().map(|value| value.clone().unwrap_or(Bson::Null));
        Bson::Document(self.fields.iter().cloned().zip(values).collect::<Document>())
    }

    fn write_findings(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Findings { keys, duplicates, .. } = self.findings;
        let fields = self.fields.join(",");
        if duplicates == 0 {
            return writeln!(f, "no duplicate values of {fields}");
        }
        writeln!(
            f,
            "duplicate values of {fields}: {keys}; duplicate documents: {duplicates} of {}",
            keys + duplicates
        )?;
        for Example { newest, documents } in &self.findings.examples {
            let [timestamp, ingested_at] = newest.version.each_ref().map(|value| text(value.as_ref()));
            writeln!(
                f,
                "  {}: {}, the newest is {} (event_timestamp {timestamp}, ingested_at {ingested_at})",
                self.key(newest),
                counted(*documents, "document"),
                newest.id
            )?;
        }
        match keys - self.findings.examples.len() as u64 {
            0 => Ok(()),
            more => writeln!(f, "  and {more} more"),
        }
    }

    fn write_index(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.building {
            writeln!(f, "index {name} is being built; the build fails if there are duplicates at its end")?;
        }
        let Some(index) = &self.index else { return Ok(()) };
        let name = &index.name;
        match (index.is_redundant, self.removal.is_some()) {
            (true, false) => {
                writeln!(f, "index {name} is not unique and prevents the unique index: --apply drops it")
            }
            (true, true) => writeln!(f, "index {name}, which was not unique, was dropped"),
            (false, _) => writeln!(
                f,
                "index {name} prevents the unique index, and other queries may need its options: drop it manually, \
                 db.getSiblingDB({:?}).getCollection({:?}).dropIndex({name:?})",
                self.names.0, self.names.1
            ),
        }
    }

    fn write_outcome(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((counts, file)) = &self.removal else {
            return match self.is_clear() {
                true => write!(f, "the unique index can be built"),
                false => write!(
                    f,
                    "nothing was changed; --apply --out FILE keeps the newest document of each value, and moves the \
                     others to the file"
                ),
            };
        };
        if counts.removed > 0 {
            let were = counted_with(counts.removed, "document", ["was", "were"]);
            writeln!(f, "{were} removed and written to {file}")?;
        }
        if counts.changed > 0 {
            let changed = counted(counts.changed, "document");
            writeln!(f, "not removed, because changed meanwhile: {changed}; run it again with another file")?;
        }
        if counts.unwritable > 0 {
            let have = counted_with(counts.unwritable, "document", ["has", "have"]);
            writeln!(
                f,
                "{have} fields that look like Extended JSON, which the backup file cannot hold: copy and remove manually"
            )?;
        }
        match self.is_clear() {
            true => write!(f, "the unique index can be built; the consumer builds it"),
            false => write!(f, "the unique index cannot be built yet"),
        }
    }
}

fn text(value: Option<&Bson>) -> String {
    value.map_or_else(|| "absent".to_owned(), ToString::to_string)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}: ", self.names.0, self.names.1)?;
        self.write_findings(f)?;
        if self.findings.not_compared > 0 {
            writeln!(
                f,
                "not compared, because a key field contains an array: {}",
                counted(self.findings.not_compared, "document")
            )?;
        }
        self.write_index(f)?;
        self.write_outcome(f)
    }
}
