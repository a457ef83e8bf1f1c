//! Removes documents that are in the way, a batch at a time. A document is removed only after it is in the file and on
//! the disk, only while the newer one of its key is still there, and only as it stands in the file. So an end at any
//! moment, and others that write meanwhile, cost at most another run.

use std::sync::Arc;

use bson::{Bson, Document, RawDocumentBuf};

use super::file::Kept;
use super::row::Row;
use super::target::Target;
use kafka::BoxError;

/// Documents that are looked at together.
const BATCH_DOCUMENTS: usize = 500;

/// Bytes of documents that are written, synced and removed together.
const BATCH_BYTES: usize = 4 << 20;

/// A removal under way.
#[derive(Debug)]
pub struct Removal<'a> {
    target: &'a Target,
    file: &'a mut Kept,
    batch: Vec<(Row, Arc<Row>)>,
    /// What was done so far.
    pub done: Done,
}

/// What became of the documents in the way.
#[derive(Debug, Clone, Copy, Default)]
pub struct Done {
    /// In the file, and gone from the collection.
    pub removed: u64,
    /// Left where they are: they, or the newest of their key, changed meanwhile.
    pub changed: u64,
    /// Left where they are: Extended JSON cannot hold them.
    pub unwritable: u64,
}

impl<'a> Removal<'a> {
    /// From `target` to `file`.
    pub fn new(target: &'a Target, file: &'a mut Kept) -> Self {
        Self { target, file, batch: Vec::new(), done: Done::default() }
    }

    /// Has `row`, older than `newest`, removed with one of the next batches.
    ///
    /// # Errors
    /// The server does not answer or refuses, or the file cannot be written.
    pub async fn add(&mut self, row: Row, newest: Arc<Row>) -> Result<(), BoxError> {
        self.batch.push((row, newest));
        if self.batch.len() < BATCH_DOCUMENTS { Ok(()) } else { self.finish().await }
    }

    /// Removes what was added and is left.
    ///
    /// # Errors
    /// As [`Removal::add`].
    pub async fn finish(&mut self) -> Result<(), BoxError> {
        let batch = std::mem::take(&mut self.batch);
        let target = self.target;
        let (mut bytes, mut documents, mut gone) = (0, Vec::new(), batch.len() as u64);
        for cursor in target.documents(batch.iter().map(|(row, _)| row.id.clone()).collect()) {
            let mut cursor = cursor.await?;
            while let Some(document) = cursor.next().await? {
                gone = gone.saturating_sub(1);
                bytes += RawDocumentBuf::try_from(&document)?.as_bytes().len();
                documents.push(document);
                if bytes >= BATCH_BYTES {
                    self.move_out(std::mem::take(&mut documents), &batch).await?;
                    bytes = 0;
                }
            }
        }
        self.done.changed += gone;
        self.move_out(documents, &batch).await
    }

    /// Writes and removes those of `documents` that are still what they were to their newest.
    async fn move_out(
        &mut self,
        documents: Vec<Document>,
        batch: &[(Row, Arc<Row>)],
    ) -> Result<(), BoxError> {
        // Asked after the documents were read: one that changed in between is not removed, as it is no longer what
        // was read.
        let unchanged = self.unchanged(&documents, batch).await?;
        let mut written = Vec::with_capacity(documents.len());
        for document in documents {
            if !unchanged.iter().any(|id| Some(*id) == document.get("_id")) {
                self.done.changed += 1;
            } else if self.file.write(&document)? {
                written.push(document);
            } else {
                self.done.unwritable += 1;
            }
        }
        if written.is_empty() {
            return Ok(());
        }
        self.file.sync()?;
        let removed = self.target.remove(&written).await?;
        self.done.removed += removed;
        self.done.changed += (written.len() as u64).saturating_sub(removed);
        Ok(())
    }

    /// The `_id`s of those of `documents` that are as old as they were, while their newest is as new as it was.
    async fn unchanged<'b>(
        &self,
        documents: &[Document],
        batch: &'b [(Row, Arc<Row>)],
    ) -> Result<Vec<&'b Bson>, BoxError> {
        let asked = |row: &Row| documents.iter().any(|document| document.get("_id") == Some(&row.id));
        let pairs: Vec<&(Row, Arc<Row>)> = batch.iter().filter(|(row, _)| asked(row)).collect();
        let mut newest: Vec<Bson> = pairs.iter().map(|(_, newest)| newest.id.clone()).collect();
        // The documents of a key follow one another.
        newest.dedup();
        let ids = pairs.iter().map(|(row, _)| row.id.clone()).chain(newest);
        let now = self.target.named(ids.collect()).await?;
        let same = |row: &Row| now.contains(row);
        Ok(pairs
            .into_iter()
            .filter(|(row, newest)| same(row) && same(newest))
            .map(|(row, _)| &row.id)
            .collect())
    }
}
