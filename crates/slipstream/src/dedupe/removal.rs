//! Removes duplicates in batches. A document is removed only if it is synced to the backup file,
//! the newest document of its key still exists, and it did not change. An interruption or a
//! concurrent write therefore costs at most another run.

use std::sync::Arc;

use bson::{Bson, Document, RawDocumentBuf};

use super::backup_file::BackupFile;
use super::collection::KeyedCollection;
use super::duplicates::Row;
use kafka::BoxError;

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
    ///
    /// # Errors
    /// The server returns an error or no reply, or the file cannot be written.
    pub async fn add(&mut self, row: Row, newest: Arc<Row>) -> Result<(), BoxError> {
        self.batch.push((row, newest));
        if self.batch.len() < MAX_BATCH_DOCUMENTS { Ok(()) } else { self.finish().await }
    }

    /// Removes the current batch.
    ///
    /// # Errors
    /// As [`Removal::add`].
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
