//! The next write of a lane: what has arrived, in order, up to a number of records and of bytes. Nothing waits for a
//! batch to fill.

use std::collections::{BTreeMap, VecDeque};

use events::{Poison, Source, StorableEvent};

use crate::kafka::record::Record;
use crate::partition::decision::{Expected, Step};

/// What one statement adds to its document's bytes, about: filter, guard and names.
const STATEMENT_BYTES: usize = 512;

/// Bounds of one batch. A single record may exceed the bytes; it is then alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most records.
    pub records: usize,
    /// Most bytes of encoded BSON, statements included.
    pub bytes: usize,
}

/// A record and what is to be done with it.
#[derive(Debug)]
pub struct Entry {
    /// As it came; a dead letter repeats it.
    pub record: Record,
    /// What is to be done.
    pub step: Step,
}

/// Records in hand, in the order of the partition.
#[derive(Debug, Default)]
pub struct Batch {
    /// The records.
    pub entries: Vec<Entry>,
}

impl Batch {
    /// Places of the events, by source, each in the order of the partition.
    pub fn by_source(&self) -> BTreeMap<&Source, Vec<usize>> {
        let mut groups: BTreeMap<&Source, Vec<usize>> = BTreeMap::new();
        for (index, entry) in self.entries.iter().enumerate() {
            if let Step::Store(event) = &entry.step {
                groups.entry(&event.source).or_default().push(index);
            }
        }
        groups
    }

    /// Places of the records that are only counted.
    pub fn skipped(&self) -> Vec<usize> {
        let skipped = |entry: &Entry| matches!(entry.step, Step::Skip);
        self.entries.iter().enumerate().filter(|(_, entry)| skipped(entry)).map(|(index, _)| index).collect()
    }

    /// Places of the records that can never be stored, and why.
    pub fn poison(&self) -> impl Iterator<Item = (usize, &Poison)> {
        self.entries.iter().enumerate().filter_map(|(index, entry)| match &entry.step {
            Step::DeadLetter(poison) => Some((index, poison)),
            _ => None,
        })
    }

    /// The event at `index`, if it is one.
    pub fn event(&self, index: usize) -> Option<&StorableEvent> {
        match &self.entries.get(index)?.step {
            Step::Store(event) => Some(event),
            _ => None,
        }
    }
}

/// Forms batches; keeps what did not fit for the next one.
#[derive(Debug, Default)]
pub struct Batcher {
    waiting: VecDeque<Record>,
}

impl Batcher {
    /// How many records were taken from the inbox and wait here.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Their bytes of memory.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting.iter().map(Record::cost_bytes).sum()
    }

    /// Adds what has arrived.
    pub fn add(&mut self, records: impl IntoIterator<Item = Record>) {
        self.waiting.extend(records);
    }

    /// The next batch; empty only if nothing waits.
    pub fn next(&mut self, limits: Limits, expected: &Expected) -> Batch {
        let mut batch = Batch::default();
        let mut bytes = 0_usize;
        while batch.entries.len() < limits.records.max(1)
            && let Some(record) = self.waiting.pop_front()
        {
            let step = Step::of(&record, expected);
            if let Step::Store(event) = &step {
                bytes += event.document.as_bytes().len() + STATEMENT_BYTES;
            }
            if bytes > limits.bytes && !batch.entries.is_empty() {
                self.waiting.push_front(record);
                break;
            }
            batch.entries.push(Entry { record, step });
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
        match &entry.step {
            Step::Store(event) => event.document.as_bytes().len() + STATEMENT_BYTES,
            _ => 0,
        }
    }

    proptest! {
        #[test]
        fn batches_are_the_input_in_order_as_full_as_the_limits_allow(
            paddings in prop::collection::vec(0_usize..3000, 1..40),
            arrivals in prop::collection::vec(1_usize..10, 1..10),
            records in 1_usize..8,
            bytes in 1_usize..8000,
        ) {
            let limits = Limits { records, bytes };
            let mut input = paddings.iter().enumerate().map(|(offset, &padding)| record(offset, padding));
            let mut batcher = Batcher::default();
            let mut seen = Vec::new();
            for arrived in arrivals.into_iter().cycle() {
                batcher.add(input.by_ref().take(arrived));
                let waited = batcher.waiting();
                let batch = batcher.next(limits, &Expected::Any);
                if waited == 0 { break }
                let taken = batch.entries.len();
                let total: usize = batch.entries.iter().map(size).sum();
                prop_assert!(taken >= 1 && taken <= records);
                prop_assert!(total <= bytes || taken == 1);
                if let Some(next) = batcher.waiting.front().filter(|_| taken < records) {
                    let next = Entry { record: next.clone(), step: Step::of(next, &Expected::Any) };
                    prop_assert!(total + size(&next) > bytes, "there was room for one more");
                }
                seen.extend(batch.entries.iter().map(|entry| entry.record.offset));
            }
            prop_assert_eq!(seen, (0..paddings.len() as i64).collect::<Vec<_>>());
        }
    }
}
