//! What the guard compares: `(event_timestamp, ingested_at)`, in the order of BSON.

use bson::{Bson, Document};
use events::StorableEvent;

/// How new an event or a stored document is. Timestamps are far below 2^53, so a double holds each exactly.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub(super) struct Version(f64, f64);

impl Version {
    pub(super) fn of(event: &StorableEvent) -> Self {
        Self::at(event.timestamp.get(), event.ingested_at.get())
    }

    pub(super) fn at(timestamp: i64, ingested_at: i64) -> Self {
        Self(timestamp as f64, ingested_at as f64)
    }

    /// That of a stored document, whoever wrote it.
    pub(super) fn read(document: &Document) -> Self {
        Self(rank(document.get("event_timestamp")), rank(document.get("ingested_at")))
    }
}

/// A missing field and null are below every number, other types above.
fn rank(value: Option<&Bson>) -> f64 {
    match value {
        None | Some(Bson::Null | Bson::Undefined | Bson::MinKey) => f64::NEG_INFINITY,
        Some(Bson::Int32(number)) => f64::from(*number),
        Some(Bson::Int64(number)) => *number as f64,
        Some(Bson::Double(number)) if number.is_nan() => f64::NEG_INFINITY,
        Some(Bson::Double(number)) => *number,
        Some(Bson::Decimal128(number)) => number.to_string().parse().unwrap_or(f64::INFINITY),
        Some(_) => f64::INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    #[test]
    fn versions_compare_as_the_server_compares_the_fields() {
        let version = |document: Document| Version::read(&document);
        let pair = |timestamp: i64, ingested: i64| {
            version(doc! { "event_timestamp": timestamp, "ingested_at": ingested })
        };
        assert!(version(doc! {}) < pair(0, 0));
        assert!(version(doc! { "event_timestamp": null }) < pair(0, 0));
        assert!(version(doc! { "event_timestamp": 5 }) < pair(5, 0));
        assert!(version(doc! { "event_timestamp": 5.5 }) > pair(5, 9));
        assert!(version(doc! { "event_timestamp": "5" }) > pair(253_402_300_799_999, 0));
        assert!(pair(5, 6) > pair(5, 5) && pair(6, 0) > pair(5, 9) && pair(5, 5) == pair(5, 5));
        let decimal: bson::Decimal128 = "5.5".parse().expect("a decimal");
        assert!(version(doc! { "event_timestamp": decimal }) > pair(5, 9));
    }
}
