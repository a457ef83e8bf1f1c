//! Forms the next batch of a worker from the records that have arrived, in order and within limits.
//! No record waits for a batch to fill.

use std::collections::{BTreeMap, VecDeque};

use events::{Poison, Source, StorableEvent};

use crate::kafka::record::Record;
use crate::partition::decision::{Decision, ExpectedSources};

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(offset: usize, padding: usize) -> Record {
        let value = format!(
            r#"{{"id":"{offset}","source":"s","timestamp":1,"ingested_at":1,"payload":{{"p":"{}"}}}}"#,
            "x".repeat(padding)
        );
        Record::new(offset as i64, Some(1), None, Some(value.as_bytes()), std::iter::empty)
    }

    fn size(entry: &Entry) -> usize {
        match &entry.decision {
            Decision::Store(event) => event.document.as_bytes().len() + STATEMENT_BYTES,
            _ => 0,
        }
    }

    proptest! {
        #[test]
        fn batches_keep_the_order_and_are_as_full_as_the_limits_allow(
            paddings in prop::collection::vec(0_usize..3000, 1..40),
            arrivals in prop::collection::vec(1_usize..10, 1..10),
            records in 1_usize..8,
            bytes in 1_usize..8000,
        ) {
            let limits = BatchLimits { records, bytes };
            let mut input = paddings.iter().enumerate().map(|(offset, &padding)| record(offset, padding));
            let mut batcher = Batcher::default();
            let mut seen = Vec::new();
            for arrived in arrivals.into_iter().cycle() {
                batcher.add(input.by_ref().take(arrived));
                let waited = batcher.waiting();
                let batch = batcher.next(limits, &ExpectedSources::All);
                if waited == 0 { break }
                let taken = batch.entries.len();
                let total: usize = batch.entries.iter().map(size).sum();
                prop_assert!(taken >= 1 && taken <= records);
                prop_assert!(total <= bytes || taken == 1);
                if let Some(next) = batcher.waiting.front().filter(|_| taken < records) {
                    let next = Entry { record: next.clone(), decision: Decision::of(next, &ExpectedSources::All) };
                    prop_assert!(total + size(&next) > bytes, "one more record would have fitted");
                }
                seen.extend(batch.entries.iter().map(|entry| entry.record.offset));
            }
            prop_assert_eq!(seen, (0..paddings.len() as i64).collect::<Vec<_>>());
        }
    }
}
