//! Reads a payload independently: with `serde_json`, level by level, with each number as its text.

use std::collections::BTreeMap;

use bson::{Bson, Document};
use serde_json::value::RawValue;

type Members<'t> = BTreeMap<String, &'t RawValue>;

/// Reserved names at the top level.
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

/// Asserts that the document has every value of the payload unchanged, and otherwise only the
/// metadata.
pub fn assert_holds_payload(document: &Document, payload: &str) {
    let members: Members<'_> = serde_json::from_str(payload).unwrap();
    let (conflicts, plain): (Members<'_>, Members<'_>) =
        members.into_iter().partition(|(key, _)| RESERVED.contains(&key.as_str()));
    let mut rest = document.clone();
    for (key, value) in &plain {
        assert_same(&rest.remove(key).unwrap_or_else(|| panic!("{key:?} is lost")), value.get());
    }
    match rest.remove("payload_conflicts") {
        Some(Bson::Document(kept)) => assert_same_members(&kept, &conflicts),
        None => assert!(conflicts.is_empty(), "conflicts are lost"),
        other => panic!("{other:?}"),
    }
    let metadata: Vec<&str> = rest.keys().map(String::as_str).collect();
    assert_eq!(metadata, &RESERVED[1..7]);
}

fn assert_same_members(document: &Document, members: &Members<'_>) {
    assert_eq!(document.len(), members.len());
    for (key, value) in members {
        assert_same(document.get(key).unwrap_or_else(|| panic!("{key:?} is lost")), value.get());
    }
}

fn assert_same(bson: &Bson, json: &str) {
    match bson {
        Bson::Null => assert_eq!(json, "null"),
        Bson::Boolean(boolean) => assert_eq!(json, boolean.to_string()),
        Bson::String(text) => assert_eq!(*text, serde_json::from_str::<String>(json).unwrap()),
        Bson::Document(document) => assert_same_members(document, &serde_json::from_str(json).unwrap()),
        Bson::Array(items) => {
            let expected: Vec<&RawValue> = serde_json::from_str(json).unwrap();
            assert_eq!(items.len(), expected.len());
            items.iter().zip(expected).for_each(|(item, expected)| assert_same(item, expected.get()));
        }
        Bson::Int32(0) => assert!(matches!(json, "0" | "-0"), "{json} is not 0"),
        Bson::Int32(integer) => assert_eq!(json, integer.to_string()),
        Bson::Int64(integer) => assert_eq!(json, integer.to_string()),
        Bson::Double(double) => {
            assert!(json.contains(['.', 'e', 'E']), "{json} is an integer");
            assert!(
                double.is_finite() && (*double != 0.0 || digits(json).1.is_empty()),
                "{json} became {double}"
            );
            assert_eq!(double.to_bits(), json.parse::<f64>().unwrap().to_bits());
        }
        Bson::Decimal128(decimal) => assert_eq!(digits(&decimal.to_string()), digits(json)),
        other => panic!("JSON has no {other:?}"),
    }
}

/// Sign, significant digits and power of ten: equal for equal numbers.
fn digits(text: &str) -> (bool, String, i64) {
    let text = text.to_ascii_lowercase();
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{}{fraction}", whole.trim_start_matches('-'));
    let exponent = exponent.parse::<i64>().unwrap() - i64::try_from(fraction.len()).unwrap();
    let kept = digits.trim_end_matches('0');
    let exponent = exponent + i64::try_from(digits.len() - kept.len()).unwrap();
    (text.starts_with('-'), kept.trim_start_matches('0').to_owned(), exponent)
}
