//! What becomes of one record. Pure: the same record gives the same answer, whenever and wherever it is read.

use std::collections::BTreeSet;

use events::{Decoded, Poison, RecordView, Source, StorableEvent, decode};

use crate::record::Record;

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
mod tests {
    use super::*;

    fn step(value: Option<&[u8]>) -> Step {
        let record = Record::new(0, Some(5), Some(b"k"), value, std::iter::empty);
        Step::of(&record, &Expected::Of([Source::new("adsbdb").unwrap()].into()))
    }

    #[test]
    fn a_null_value_is_skipped_and_an_empty_one_is_a_dead_letter() {
        assert!(matches!(step(None), Step::Skip));
        assert!(matches!(step(Some(b"")), Step::DeadLetter(_)));
    }

    #[test]
    fn another_source_is_skipped_whatever_else_is_wrong_with_it() {
        assert!(matches!(step(Some(br#"{"source":"other","payload":7}"#)), Step::Skip));
        assert!(matches!(step(Some(br#"{"source":"adsbdb","payload":7}"#)), Step::DeadLetter(_)));
        assert!(matches!(step(Some(br#"{"source":"adsbdb","payload":{}}"#)), Step::Store(_)));
    }
}
