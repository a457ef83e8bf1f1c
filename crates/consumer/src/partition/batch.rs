//! Decides what to do with each record, and forms the next batch of a worker from the records that
//! have arrived, in order and within limits. No record waits for a batch to fill.
//!
//! The decision to store, skip or dead-letter a record depends only on the record and the
//! configuration, so every read of a record gives the same result.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use events::{Decoded, Poison, RecordView, Source, StorableEvent, decode};

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

/// Records that are processed together, in the order of the partition.
#[derive(Debug, Default)]
pub struct Batch {
    pub entries: Vec<Entry>,
}

impl Batch {
    /// Indexes of the events by source, each in the order of the partition.
    pub fn by_source(&self) -> BTreeMap<&Source, Vec<usize>> {
        let mut groups: BTreeMap<&Source, Vec<usize>> = BTreeMap::new();
        for (index, entry) in self.entries.iter().enumerate() {
            if let Decision::Store(event) = &entry.decision {
                groups.entry(&event.source).or_default().push(index);
            }
        }
        groups
    }

    /// Indexes of the skipped records.
    pub fn skipped(&self) -> Vec<usize> {
        let skipped = |entry: &Entry| matches!(entry.decision, Decision::Skip);
        self.entries.iter().enumerate().filter(|(_, entry)| skipped(entry)).map(|(index, _)| index).collect()
    }

    /// Indexes of the poison records, with the reason.
    pub fn poison(&self) -> impl Iterator<Item = (usize, &Poison)> {
        self.entries.iter().enumerate().filter_map(|(index, entry)| match &entry.decision {
            Decision::DeadLetter(poison) => Some((index, poison)),
            _ => None,
        })
    }

    /// The event at `index`, unless the record is skipped or poison.
    pub fn event(&self, index: usize) -> Option<&StorableEvent> {
        match &self.entries.get(index)?.decision {
            Decision::Store(event) => Some(event),
            _ => None,
        }
    }
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

    /// Forms the next batch. It is empty only if no record waits.
    pub fn next(&mut self, limits: BatchLimits, expected: &ExpectedSources) -> Batch {
        let mut batch = Batch::default();
        let mut bytes = 0_usize;
        while batch.entries.len() < limits.records.max(1)
            && let Some(record) = self.waiting.pop_front()
        {
            let decision = Decision::of(&record, expected);
            if let Decision::Store(event) = &decision {
                bytes += event.document.as_bytes().len() + STATEMENT_BYTES;
            }
            if bytes > limits.bytes && !batch.entries.is_empty() {
                self.waiting.push_front(record);
                break;
            }
            batch.entries.push(Entry { record, decision });
        }
        batch
    }
}

/// The sources whose events are stored (EXPECTED_SOURCE).
#[derive(Debug, Clone)]
pub enum ExpectedSources {
    /// Every source (`*`).
    All,
    /// Only these sources.
    Listed(BTreeSet<Source>),
}

impl ExpectedSources {
    /// Whether events of `source` are stored.
    pub fn contains(&self, source: &str) -> bool {
        match self {
            Self::All => true,
            Self::Listed(sources) => sources.iter().any(|expected| expected.as_str() == source),
        }
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
        match decode(&view, |source| expected.contains(source)) {
            Ok(Decoded::Event(event)) => Self::Store(event),
            Ok(Decoded::OtherSource(_)) => Self::Skip,
            Err(poison) => Self::DeadLetter(poison),
        }
    }
}

#[cfg(test)]
mod tests;
