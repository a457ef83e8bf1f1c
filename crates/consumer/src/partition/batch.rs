//! Decides what to do with each record, and forms the next batch of a worker from the records that
//! have arrived, in order and within limits. No record waits for a batch to fill.
//!
//! The decision to store, skip or dead-letter a record depends only on the record and the
//! configuration, so every read of a record gives the same result.

use std::collections::VecDeque;

use events::{Decoded, Poison, RecordView, StorableEvent};

use crate::configured_sources::ExpectedSources;
use crate::kafka::record::Record;

/// Approximate bytes that a statement adds to its document: filter, guard and names.
const STATEMENT_BYTES: usize = 512;

/// Limits of one batch. A record that exceeds the bytes alone forms a batch of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Maximum number of records.
    pub records: usize,
    /// Maximum bytes of encoded BSON, including statements.
    pub bytes: usize,
}

/// A record with the decision about it.
#[derive(Debug)]
pub struct Entry {
    /// The unchanged record, which a dead letter repeats.
    pub record: Record,
    pub decision: Decision,
}

/// Forms batches and keeps the records that did not fit for the next one.
#[derive(Debug, Default)]
pub struct Batcher {
    waiting: VecDeque<Record>,
}

impl Batcher {
    /// Number of records that were taken from the queue and wait here.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Memory of the waiting records.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting.iter().map(Record::memory_bytes).sum()
    }

    /// Adds records in the order of the partition.
    pub fn add(&mut self, records: impl IntoIterator<Item = Record>) {
        self.waiting.extend(records);
    }

    /// Forms the next batch, in the order of the partition. It is empty only if no record waits.
    pub fn next(&mut self, limits: BatchLimits, expected: &ExpectedSources) -> Vec<Entry> {
        let mut batch: Vec<Entry> = Vec::new();
        let mut bytes = 0_usize;
        while batch.len() < limits.records.max(1)
            && let Some(record) = self.waiting.pop_front()
        {
            let decision = Decision::of(&record, expected);
            if let Decision::Store(event) = &decision {
                bytes += event.document.as_bytes().len() + STATEMENT_BYTES;
            }
            if bytes > limits.bytes && !batch.is_empty() {
                self.waiting.push_front(record);
                break;
            }
            batch.push(Entry { record, decision });
        }
        batch
    }
}

/// What to do with a record.
#[derive(Debug)]
pub enum Decision {
    /// Write the document of this event.
    Store(StorableEvent),
    /// Count a tombstone or an event of a source that is not expected.
    Skip,
    /// The record can never be stored.
    DeadLetter(Poison),
}

impl Decision {
    pub fn of(record: &Record, expected: &ExpectedSources) -> Self {
        let Some(value) = record.value() else { return Self::Skip };
        let view = RecordView { key: record.key(), value, timestamp: record.timestamp };
        match expected.decode(&view) {
            Ok(Decoded::Event(event)) => Self::Store(event),
            Ok(Decoded::OtherSource(_)) => Self::Skip,
            Err(poison) => Self::DeadLetter(poison),
        }
    }
}

#[cfg(test)]
mod tests;
