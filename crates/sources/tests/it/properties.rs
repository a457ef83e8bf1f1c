//! Properties of whole sources.

use std::path::Path;

use events::Millis;
use proptest::prelude::*;
use sources::{Answer, Context, Records, Sources};

use crate::source;

const EXAMPLE: &str = include_str!("../../../../examples/sources.yaml");

/// A JSON number in any spelling, with up to 40 digits.
fn number() -> impl Strategy<Value = String> {
    "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?"
}

/// JSON text in any spelling.
fn json() -> impl Strategy<Value = String> {
    let string = any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap());
    let escaped = Just(r#""\\u00e9\\ud83d\\ude00\\/""#.to_owned());
    let leaf = prop_oneof![number(), string, escaped, Just("null".to_owned()), Just("true".to_owned())];
    leaf.prop_recursive(4, 32, 5, |inner| {
        let key = any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap());
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(|items| format!("[ {} ]", items.join(" , "))),
            prop::collection::vec((key, inner), 0..5).prop_map(|members| {
                let members: Vec<String> =
                    members.iter().map(|(key, value)| format!("{key} : {value}")).collect();
                format!("{{{}}}", members.join(",\n"))
            }),
        ]
    })
}

proptest! {
    #[test]
    fn the_parts_of_an_event_are_what_was_sent(
        value in json(),
        id in "[^\\p{Cc}]{1,100}",
        ms in 0_i64..=253_402_300_799_999,
        decimals in number(),
    ) {
        let id_json = serde_json::to_string(&id).unwrap();
        let record = format!(r#"{{"a":{{"id":{id_json}, "at" : {ms}}},"b":[{value},{decimals}]}}"#);
        let now = Millis::new(0).unwrap();
        let mapped = source("push: {}\nevent: {id: /a/id, timestamp: {from: /a/at, unit: ms}}").unwrap();
        let extracted = mapped.get("s").unwrap().extract(&record, Context::default(), now).unwrap();
        prop_assert_eq!(extracted.id.as_str(), &id);
        prop_assert_eq!(extracted.timestamp.get(), ms);
        prop_assert_eq!(extracted.payload.as_ref(), &record);
        let part = source("push: {}\nevent: {id: {join: [/a/id, /b/1], with: ' '}, payload: /b/0}").unwrap();
        let extracted = part.get("s").unwrap().extract(&record, Context::default(), now);
        prop_assert_eq!(extracted.as_ref().map(|extracted| extracted.payload.as_ref()), Ok(value.as_str()));
        let decimals = if decimals == "-0" { "0" } else { &decimals };
        prop_assert_eq!(extracted.unwrap().id.to_string(), format!("{id} {decimals}"));
    }

    #[test]
    fn the_records_of_an_answer_are_what_was_sent(items in prop::collection::vec(json(), 0..8), at in 0_i64..9_999_999) {
        let answer = format!(r#"{{"at":{at},"list":[{}]}}"#, items.join(" ,\n"));
        let mapped = source(
            "pull: {url: \"http://a\", records: /list}\nevent: {id: {else: uuid}, timestamp: {answer: /at}}",
        ).unwrap();
        let records = Records::List(sources::Pointer::parse("/list").unwrap());
        let around = Answer::new(&answer);
        let found: Vec<&str> = records.of(&answer).unwrap().map(|record| record.text).collect();
        prop_assert_eq!(&found, &items);
        for record in found {
            let context = Context { answer: Some(&around), key: None };
            let extracted = mapped.get("s").unwrap().extract(record, context, Millis::new(1).unwrap()).unwrap();
            prop_assert_eq!(extracted.payload.as_ref(), record);
            prop_assert_eq!(extracted.timestamp.get(), at * 1000);
        }
    }

    #[test]
    fn a_changed_file_is_read_or_has_faults_with_positions(
        at in 0..EXAMPLE.len(),
        removed in 0_usize..40,
        added in prop_oneof![".{0,8}", Just("&a *a".to_owned()), Just("\n    ".to_owned()), "[\\[\\]{}:,#'\"$-]{0,4}"],
    ) {
        let mut bytes = EXAMPLE.as_bytes().to_vec();
        let end = (at + removed).min(bytes.len());
        bytes.splice(at..end, added.bytes());
        let text = String::from_utf8_lossy(&bytes);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
        if let Err(faults) = Sources::parse("f", &text, &folder, &|_| None) {
            prop_assert!(faults.count() > 0);
            for fault in faults.iter() {
                prop_assert!(fault.at.line > 0 && fault.at.column > 0, "{:?}", fault);
                prop_assert!(!fault.message.is_empty());
            }
        }
    }
}
