//! What becomes of one record. Pure: the same record gives the same answer, whenever and wherever it is read.

use std::collections::BTreeSet;

use events::{Decoded, Poison, RecordView, Source, StorableEvent, decode};

use crate::kafka::record::Record;

/// The sources whose events are stored.
#[derive(Debug, Clone)]
pub enum Expected {
    /// Every source.
    Any,
    /// These.
    Of(BTreeSet<Source>),
}

impl Expected {
    /// Whether events of `source` are stored.
    pub fn takes(&self, source: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Of(sources) => sources.iter().any(|expected| expected.as_str() == source),
        }
    }
}

/// What is to be done with a record.
#[derive(Debug)]
pub enum Step {
    /// It is an event; write its document.
    Store(StorableEvent),
    /// A tombstone, or an event of a source that is not ours: count it.
    Skip,
    /// It can never be stored.
    DeadLetter(Poison),
}

impl Step {
    /// Decides on `record`.
    pub fn of(record: &Record, expected: &Expected) -> Self {
        let Some(value) = record.value() else { return Self::Skip };
        let view = RecordView { key: record.key(), value, timestamp: record.timestamp };
        match decode(&view, |source| expected.takes(source)) {
            Ok(Decoded::Event(event)) => Self::Store(event),
            Ok(Decoded::OtherSource(_)) => Self::Skip,
            Err(poison) => Self::DeadLetter(poison),
        }
    }
}

#[cfg(test)]
mod tests;
