//! Any payload, and an independent reader that compares it with its document. The tests of the
//! producer include this file.

use std::collections::BTreeMap;

use bson::{Bson, Document};
use proptest::{collection::vec, prelude::*, sample::select, string::string_regex};
use serde_json::value::RawValue;

// Unusual JSON objects: white space, escapes, duplicate keys, long numbers.

fn space() -> impl Strategy<Value = String> {
    string_regex("[ \n\r\t]{0,2}").unwrap()
}

/// A JSON number of any length, often outside int64 and double.
fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        40 => any::<i64>().prop_map(|integer| integer.to_string()),
        20 => (-1000_i32..1000).prop_map(|integer| integer.to_string()),
        20 => string_regex("-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?").unwrap(),
        10 => string_regex("-?[1-9][0-9]{0,33}0{0,10}").unwrap(),
        10 => string_regex("-?[1-9](\\.[0-9]{1,33})?[eE][+-]?[1-5]?[0-9]{3}").unwrap(),
        1 => string_regex("-?[1-9][0-9]{30,45}(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?").unwrap(),
        10 => any::<f64>().prop_filter("JSON has no NaN", |real| real.is_finite()).prop_map(|real| format!("{real:e}")),
    ]
}

/// A quoted string: with escapes, plain, with characters outside the basic plane, and sometimes
/// with half a surrogate pair.
fn string() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        60 => any::<char>().prop_map(|c| {
            let json = serde_json::to_string(&c.to_string()).unwrap();
            json[1..json.len() - 1].to_owned()
        }),
        20 => select(vec!["\\\"", "\\\\", "\\/", "\\b", "\\f", "\\n", "\\u0041", "\\u00e9", "\\ud83d\\ude00", "$", "."])
            .prop_map(str::to_owned),
        1 => select(vec!["\\u0000", "\\ud800"]).prop_map(str::to_owned),
    ];
    vec(piece, 0..6).prop_map(|pieces| format!("\"{}\"", pieces.concat()))
}

fn key() -> impl Strategy<Value = String> {
    let awkward = [
        "",
        "a",
        "b",
        "\\u0061",
        "a.b",
        "$set",
        "$",
        ".",
        "_id",
        "event_id",
        "event_timestamp",
        "ingested_at",
        "api_version",
        "payload_conflicts",
        "envelope_extra",
        "mode_s",
        "registration",
        "0",
        "é",
        "__proto__",
        "$serde_json::private::RawValue",
        "$serde_json::private::Number",
        "$numberLong",
        "$oid",
    ];
    prop_oneof![
        4 => select(awkward.to_vec()).prop_map(|key| format!("\"{key}\"")),
        1 => string(),
    ]
}

fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        1 => select(vec!["null", "true", "false"]).prop_map(str::to_owned),
        3 => number(),
        2 => string(),
    ];
    leaf.prop_recursive(4, 16, 4, |inner| {
        prop_oneof![
            object_of(inner.clone(), 4),
            (vec(inner, 0..4), space()).prop_map(|(items, space)| {
                format!("[{space}{}{space}]", items.join(&format!("{space},")))
            })
        ]
    })
}

fn object_of(inner: impl Strategy<Value = String>, members: usize) -> impl Strategy<Value = String> {
    (vec((key(), space(), inner), 0..=members), space()).prop_map(|(members, around)| {
        let members: Vec<String> = members
            .iter()
            .map(|(key, space, value)| format!("{space}{key}{space}:{space}{value}{space}"))
            .collect();
        format!("{{{around}{}}}", members.join(","))
    })
}

/// The text of a JSON object that often cannot be stored.
pub fn object() -> impl Strategy<Value = String> {
    object_of(value(), 18)
}

// An independent reader of a payload: with `serde_json`, level by level, with each number as its
// text.

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
