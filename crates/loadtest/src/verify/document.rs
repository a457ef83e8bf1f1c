//! The expected document of an event, made with code that is independent of the pipeline's, and its
//! differences from the stored document.

use std::collections::BTreeSet;

use bson::{Bson, Document};

/// Reserved names at the top level of a document.
const RESERVED: [&str; 9] = [
    "_id",
    "event_id",
    "event_timestamp",
    "ingested_at",
    "api_version",
    "event_timestamp_iso",
    "ingested_at_iso",
    "payload_conflicts",
    "envelope_extra",
];

/// The fields of a document besides the payload.
#[derive(Debug, Clone, Copy)]
pub struct Metadata<'a> {
    /// Event id.
    pub id: &'a str,
    /// Event timestamp.
    pub timestamp: i64,
    /// Time at which the producer received the event.
    pub ingested_at: i64,
    /// API_VERSION of the producer.
    pub api_version: &'a str,
}

/// The expected document of an event, without `_id`.
pub fn expected_document(payload: Document, metadata: Metadata<'_>) -> Document {
    let (conflicts, mut document): (Document, Document) =
        payload.into_iter().partition(|(name, _)| RESERVED.contains(&name.as_str()));
    if !conflicts.is_empty() {
        document.insert("payload_conflicts", conflicts);
    }
    document.insert("event_id", metadata.id);
    document.insert("event_timestamp", metadata.timestamp);
    document.insert("ingested_at", metadata.ingested_at);
    document.insert("api_version", metadata.api_version);
    document.insert("event_timestamp_iso", iso(metadata.timestamp));
    document.insert("ingested_at_iso", iso(metadata.ingested_at));
    document
}

/// The names of the fields that differ in the stored document.
pub fn differences(expected: &Document, stored: &Document) -> Vec<String> {
    let names: BTreeSet<&String> = expected.keys().chain(stored.keys()).collect();
    let differs = |name: &&String| match (expected.get(name.as_str()), stored.get(name.as_str())) {
        (Some(expected), Some(stored)) => !is_equal(expected, stored),
        (None, Some(Bson::ObjectId(_))) => name.as_str() != "_id",
        _ => true,
    };
    names.into_iter().filter(differs).cloned().collect()
}

/// Whether two values are equal in type, value, order of fields and sign of zeros.
fn is_equal(one: &Bson, other: &Bson) -> bool {
    match (one, other) {
        (Bson::Double(one), Bson::Double(other)) => one.to_bits() == other.to_bits(),
        (Bson::Array(one), Bson::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_equal(one, other))
        }
        (Bson::Document(one), Bson::Document(other)) => {
            let fields = one.iter().zip(other);
            one.len() == other.len() && { fields }
                .all(|((a, one), (b, other))| a == b && is_equal(one, other))
        }
        (one, other) => one == other,
    }
}

fn iso(epoch_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(epoch_ms)
        .map_or_else(|_| "out of range".to_owned(), |time| format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{doc, oid::ObjectId};
    use events::{Decoded, RecordView, decode};

    fn document(payload: Document) -> Document {
        let metadata = Metadata {
            id: "e",
            timestamp: 1_730_000_000_000,
            ingested_at: 1_730_000_000_120,
            api_version: "1",
        };
        expected_document(payload, metadata)
    }

    #[test]
    fn the_expected_document_equals_that_of_the_pipeline() {
        let value = br#"{"id":"e","timestamp":1730000000000,"source":"s","payload":{"a":1,"_id":[2],"payload_conflicts":3},
            "ingested_at":1730000000120,"api_version":"1"}"#;
        let view = RecordView { key: Some(b"e"), value, timestamp: Some(0) };
        let Ok(Decoded::Event(event)) = decode(&view, |_| true) else { panic!("an event") };
        let right = Document::try_from(event.document).unwrap();
        assert_eq!(document(doc! { "a": 1, "_id": [2], "payload_conflicts": 3 }), right);
    }

    #[test]
    fn a_difference_of_any_kind_has_the_name_of_its_field() {
        let payload = doc! { "i": 1, "zero": [0.0], "d": { "a": 1, "b": 2 } };
        let stored = |change: &dyn Fn(&mut Document)| {
            let mut stored = document(payload.clone());
            stored.insert("_id", ObjectId::new());
            change(&mut stored);
            differences(&document(payload.clone()), &stored).join(" ")
        };
        assert_eq!(stored(&|_| {}), "");
        assert_eq!(stored(&|stored| drop(stored.insert("i", 1_i64))), "i");
        assert_eq!(stored(&|stored| drop(stored.insert("zero", vec![-0.0]))), "zero");
        assert_eq!(stored(&|stored| drop(stored.insert("d", doc! { "b": 2, "a": 1 }))), "d");
        assert_eq!(stored(&|stored| drop(stored.insert("d", doc! { "a": 1 }))), "d");
        assert_eq!(stored(&|stored| drop(stored.remove("d"))), "d");
        assert_eq!(stored(&|stored| drop(stored.insert("new", 1))), "new");
        assert_eq!(stored(&|stored| drop(stored.insert("_id", "e"))), "_id");
        assert_eq!(stored(&|stored| drop(stored.insert("api_version", "2"))), "api_version");
        assert_eq!(stored(&|stored| drop(stored.insert("ingested_at_iso", "now"))), "ingested_at_iso");
    }
}
