//! Decides what to do with a record: store, skip or dead-letter. The decision depends only on the
//! record and the configuration, so every read of a record gives the same result.

use std::collections::BTreeSet;

use events::{Decoded, Poison, RecordView, Source, StorableEvent, decode};

use crate::kafka::record::Record;

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
