//! Removes duplicates in batches. A document is removed only if it is synced to the backup file,
//! the newest document of its key still exists, and it did not change. An interruption or a
//! concurrent write therefore costs at most another run.
//!
//! The backup file has one document per line, in canonical Extended JSON v2, which `mongoimport`
//! reads. A document is written only if its line reads back to the same bytes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bson::{Bson, Document, RawDocumentBuf};
use kafka::BoxError;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::collection::KeyedCollection;
use super::duplicates::Row;

/// Maximum number of documents in a batch.
const MAX_BATCH_DOCUMENTS: usize = 500;

/// Size of the documents that are written, synced and removed together.
const MAX_BATCH_BYTES: usize = 4 << 20;

/// Removes duplicates.
#[derive(Debug)]
pub struct Removal<'a> {
    collection: &'a KeyedCollection,
    file: &'a mut BackupFile,
    batch: Vec<(Row, Arc<Row>)>,
    /// Counts so far.
    pub counts: RemovalCounts,
}

/// The outcomes of duplicates.
#[derive(Debug, Clone, Copy, Default)]
pub struct RemovalCounts {
    /// Removed, and in the backup file.
    pub removed: u64,
    /// Not removed, because they or the newest document of their key changed.
    pub changed: u64,
    /// Not removed, because Extended JSON cannot represent them.
    pub unwritable: u64,
}

impl<'a> Removal<'a> {
    /// Removes from `collection` and writes to `file`.
    pub fn new(collection: &'a KeyedCollection, file: &'a mut BackupFile) -> Self {
        Self { collection, file, batch: Vec::new(), counts: RemovalCounts::default() }
    }

    /// Adds `row`, a duplicate of `newest`, to the batch.
    pub async fn add(&mut self, row: Row, newest: Arc<Row>) -> Result<(), BoxError> {
        self.batch.push((row, newest));
        if self.batch.len() < MAX_BATCH_DOCUMENTS { Ok(()) } else { self.finish().await }
    }

    /// Removes the current batch.
    pub async fn finish(&mut self) -> Result<(), BoxError> {
        let batch = std::mem::take(&mut self.batch);
        let collection = self.collection;
        let (mut bytes, mut documents, mut missing) = (0, Vec::new(), batch.len() as u64);
        for cursor in collection.documents(batch.iter().map(|(row, _)| row.id.clone()).collect()) {
            let mut cursor = cursor.await?;
            while let Some(document) = cursor.next().await? {
                missing = missing.saturating_sub(1);
                bytes += RawDocumentBuf::try_from(&document)?.as_bytes().len();
                documents.push(document);
                if bytes >= MAX_BATCH_BYTES {
                    self.move_out(std::mem::take(&mut documents), &batch).await?;
                    bytes = 0;
                }
            }
        }
        self.counts.changed += missing;
        self.move_out(documents, &batch).await
    }

    /// Writes and removes those of `documents` that are still duplicates.
    async fn move_out(
        &mut self,
        documents: Vec<Document>,
        batch: &[(Row, Arc<Row>)],
    ) -> Result<(), BoxError> {
        // Checked after the documents were read: one that changed since then is not removed,
        // because it differs from the one that was read.
        let unchanged = self.unchanged(&documents, batch).await?;
        let mut written = Vec::with_capacity(documents.len());
        for document in documents {
            if !unchanged.iter().any(|id| Some(*id) == document.get("_id")) {
                self.counts.changed += 1;
            } else if self.file.write(&document)? {
                written.push(document);
            } else {
                self.counts.unwritable += 1;
            }
        }
        if written.is_empty() {
            return Ok(());
        }
        self.file.sync()?;
        let removed = self.collection.remove(&written).await?;
        self.counts.removed += removed;
        self.counts.changed += (written.len() as u64).saturating_sub(removed);
        Ok(())
    }

    /// The `_id`s of those of `documents` whose version and whose newest document did not change.
    async fn unchanged<'b>(
        &self,
        documents: &[Document],
        batch: &'b [(Row, Arc<Row>)],
    ) -> Result<Vec<&'b Bson>, BoxError> {
        let is_wanted = |row: &Row| documents.iter().any(|document| document.get("_id") == Some(&row.id));
        let pairs: Vec<&(Row, Arc<Row>)> = batch.iter().filter(|(row, _)| is_wanted(row)).collect();
        let mut newest: Vec<Bson> = pairs.iter().map(|(_, newest)| newest.id.clone()).collect();
        // The documents of a key are adjacent.
        newest.dedup();
        let ids = pairs.iter().map(|(row, _)| row.id.clone()).chain(newest);
        let current = self.collection.rows_by_id(ids.collect()).await?;
        let is_unchanged = |row: &Row| current.contains(row);
        Ok(pairs
            .into_iter()
            .filter(|(row, newest)| is_unchanged(row) && is_unchanged(newest))
            .map(|(row, _)| &row.id)
            .collect())
    }
}

/// The file, created by this run.
#[derive(Debug)]
pub struct BackupFile {
    path: PathBuf,
    file: BufWriter<File>,
    lines: u64,
}

impl BackupFile {
    /// Creates the file. Only its owner can read it, because it contains user data.
    pub fn create(path: &Path) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(named)?;
        // The directory entry must also survive a power failure.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all()).map_err(named)?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file), lines: 0 })
    }

    /// Writes a document. Returns `false` and writes nothing if Extended JSON cannot represent it,
    /// for example because a field has the form of an Extended JSON type.
    pub fn write(&mut self, document: &Document) -> io::Result<bool> {
        let line = canonical(document)?;
        if !reads_back(&line, document) {
            return Ok(false);
        }
        self.file.write_all(line.as_bytes())?;
        self.file.write_all(b"\n")?;
        self.lines += 1;
        Ok(true)
    }

    /// Syncs everything written to the disk.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().sync_all()
    }

    /// Closes the file. An empty file is removed.
    pub fn finish(self) -> io::Result<()> {
        if self.lines == 0 { fs::remove_file(&self.path) } else { Ok(()) }
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A document in canonical Extended JSON v2, as one line: it keeps the type of every number and the
/// order of the fields.
fn canonical(document: &Document) -> serde_json::Result<String> {
    serde_json::to_string(&Fields(document))
}

struct Fields<'a>(&'a Document);

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, Value(value))))
    }
}

struct Value<'a>(&'a Bson);

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Bson::Document(document) => Fields(document).serialize(serializer),
            Bson::Array(values) => serializer.collect_seq(values.iter().map(Value)),
            Bson::Int32(number) => typed(serializer, "$numberInt", &number.to_string()),
            Bson::Int64(number) => typed(serializer, "$numberLong", &number.to_string()),
            Bson::Double(number) => typed(serializer, "$numberDouble", &double(*number)),
            // bson itself writes the types without a JSON form as Extended JSON.
            value => value.serialize(serializer),
        }
    }
}

fn typed<S: Serializer>(serializer: S, name: &str, text: &str) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry(name, text)?;
    map.end()
}

fn double(number: f64) -> String {
    if number.is_infinite() {
        return if number > 0.0 { "Infinity".into() } else { "-Infinity".into() };
    }
    format!("{number:?}")
}

fn reads_back(line: &str, document: &Document) -> bool {
    let Ok(read) = serde_json::from_str::<Document>(line) else { return false };
    let bytes = |document: &Document| RawDocumentBuf::try_from(document).map(|raw| raw.as_bytes().to_vec());
    matches!((bytes(&read), bytes(document)), (Ok(read), Ok(written)) if read == written)
}

#[cfg(test)]
mod tests {
    use bson::doc;
    use bson::oid::ObjectId;

    use super::*;

    #[test]
    fn extended_json_keeps_the_types_of_numbers_and_the_order_of_fields() {
        let text = canonical(&doc! {
            "z": 1, "a": 1_i64, "r": [1.0, 1e300, -0.0, f64::INFINITY, f64::NAN], "t": true, "n": null, "d": { "$x": "y" },
            "when": bson::DateTime::from_millis(5),
        });
        let right = concat!(
            r#"{"z":{"$numberInt":"1"},"a":{"$numberLong":"1"},"r":[{"$numberDouble":"1.0"},{"$numberDouble":"1e300"},"#,
            r#"{"$numberDouble":"-0.0"},{"$numberDouble":"Infinity"},{"$numberDouble":"NaN"}],"t":true,"n":null,"#,
            r#""d":{"$x":"y"},"when":{"$date":{"$numberLong":"5"}}}"#,
        );
        assert_eq!(text.unwrap(), right);
    }

    #[test]
    fn a_line_keeps_every_type_and_the_order_of_a_document() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let mut file = BackupFile::create(&path).unwrap();
        let decimal: bson::Decimal128 = "1.10".parse().unwrap();
        let document = doc! {
            "_id": ObjectId::new(), "z": 1, "a": 2_i64, "r": 1.0, "n": f64::NAN, "d": decimal, "when": bson::DateTime::now(),
            "$set": { "a.b": "$c" }, "": null, "list": [true, { "x": 1 }],
        };
        assert!(file.write(&document).unwrap());
        file.sync().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(r#""z":{"$numberInt":"1"},"a":{"$numberLong":"2"}"#), "{text}");
        assert!(reads_back(text.trim_end(), &document));
        assert!(!reads_back(text.trim_end(), &doc! { "z": 1 }));
    }

    #[test]
    fn a_document_that_reads_back_differently_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let mut file = BackupFile::create(&path).unwrap();
        assert!(!file.write(&doc! { "a": { "$oid": "690a0b0c0d0e0f1011121314" } }).unwrap());
        assert!(!file.write(&doc! { "a": { "$numberInt": "x" } }).unwrap());
        file.finish().unwrap();
        assert!(!path.exists(), "an empty file is removed");
    }

    #[test]
    fn an_existing_file_is_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        fs::write(&path, "precious").unwrap();
        assert!(BackupFile::create(&path).unwrap_err().to_string().contains("f: "));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
