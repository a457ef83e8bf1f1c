//! Removes documents that are in the way, a batch at a time. A document is removed only after it is in the file and on
//! the disk, only while the newer one of its key is still there, and only as it stands in the file. So an end at any
//! moment, and others that write meanwhile, cost at most another run.

use std::sync::Arc;

use bson::{Bson, Document, RawDocumentBuf};

use super::file::Kept;
use super::row::Row;
use super::target::Target;
use crate::Failure;

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
    pub async fn add(&mut self, row: Row, newest: Arc<Row>) -> Result<(), Failure> {
        self.batch.push((row, newest));
        if self.batch.len() < BATCH_DOCUMENTS { Ok(()) } else { self.finish().await }
    }

    /// Removes what was added and is left.
    ///
    /// # Errors
    /// As [`Removal::add`].
    pub async fn finish(&mut self) -> Result<(), Failure> {
        let batch = std::mem::take(&mut self.batch);
        let secured = self.secured(&batch).await?;
        self.done.changed += (batch.len() - secured.len()) as u64;
        let (mut bytes, mut documents) = (0, Vec::new());
        let mut rows = self.target.named(secured.iter().map(|row| row.id.clone()).collect(), true).await?;
        while let Some((row, document)) = rows.next().await? {
            let (Some(document), true) = (document, secured.contains(&&row)) else {
                self.done.changed += 1;
                continue;
            };
            bytes += RawDocumentBuf::try_from(&document)?.as_bytes().len();
            documents.push(document);
            if bytes >= BATCH_BYTES {
                self.move_out(std::mem::take(&mut documents)).await?;
                bytes = 0;
            }
        }
        self.move_out(documents).await
    }

    /// Those of `batch` whose newer document is still there, as new as it was.
    async fn secured<'b>(&self, batch: &'b [(Row, Arc<Row>)]) -> Result<Vec<&'b Row>, Failure> {
        let mut ids: Vec<Bson> = batch.iter().map(|(_, newest)| newest.id.clone()).collect();
        // The documents of a key follow one another.
        ids.dedup();
        let mut rows = self.target.named(ids, false).await?;
        let mut there = Vec::new();
        while let Some((row, _)) = rows.next().await? {
            there.push(row);
        }
        let is_there = |newest: &Row| there.contains(newest);
        Ok(batch.iter().filter(|(_, newest)| is_there(newest)).map(|(row, _)| row).collect())
    }

    async fn move_out(&mut self, documents: Vec<Document>) -> Result<(), Failure> {
        let mut written = Vec::with_capacity(documents.len());
        for document in documents {
            if self.file.write(&document)? {
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
}
