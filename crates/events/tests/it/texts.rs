//! Generates unusual JSON objects: white space, escapes, duplicate keys, long numbers.

use proptest::{collection::vec, prelude::*, sample::select, string::string_regex};

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
