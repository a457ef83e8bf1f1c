//! The consumer stores a record as it was sent, for any record and any pointers to its id, its
//! timestamp and its payload.

use std::path::Path;

use bson::Document;
use events::{Decoded, Event, Millis, Payload, RecordView, StorableEvent, decode};
use producer::extraction::{Extraction, extract};
use proptest::collection::vec;
use proptest::prelude::*;
use sources::{Context, Sources};

use crate::payloads::{assert_holds_payload, object};

/// One step to a value: the key of an object, or the index in an array.
#[derive(Debug, Clone)]
enum Step {
    /// The key, whether it is written with escapes, and whether an earlier member has it too.
    Key(String, bool, bool),
    Index(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let key = prop_oneof![
        any::<[char; 2]>().prop_map(|chars| chars.iter().collect()),
        "[a-z~/$.0-9{}]{0,4}",
        Just("_id".to_owned()),
    ];
    prop_oneof![
        4 => (key, any::<bool>(), any::<bool>()).prop_map(|(key, escaped, twice)| Step::Key(key, escaped, twice)),
        1 => (0_usize..4).prop_map(Step::Index),
    ]
}

/// A JSON string, each character as an escape if `escaped`.
fn string(text: &str, escaped: bool) -> String {
    if !escaped {
        return serde_json::to_string(text).unwrap();
    }
    let units: String = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
    format!("\"{units}\"")
}

/// A JSON value that has `value` at these steps, between values that are `noise`.
fn embed(value: String, steps: &[Step], noise: &str) -> String {
    steps.iter().rev().fold(value, |inner, step| match step {
        Step::Key(key, escaped, twice) => {
            let key = string(key, *escaped);
            let earlier = if *twice { format!("{key}:{noise},") } else { String::new() };
            // No escape of a step has this key.
            format!("{{ {earlier}{key} : {inner},\n\"some other key\":{noise}}}")
        }
        Step::Index(index) => format!("[{}{inner} , {noise}]", format!("{noise},").repeat(*index)),
    })
}

/// The JSON Pointer of these steps as a YAML text. Each character is written as an escape.
fn pointer(first: &str, steps: &[Step]) -> String {
    let mut text = format!("/{first}");
    for step in steps {
        match step {
            Step::Key(key, ..) => text += &format!("/{}", key.replace('~', "~0").replace('/', "~1")),
            Step::Index(index) => text += &format!("/{index}"),
        }
    }
    // Twice, because `${NAME}` takes a variable.
    let text = text.replace('$', "$$");
    let escapes: String = text.chars().map(|char| format!("\\U{:08x}", u32::from(char))).collect();
    format!("\"{escapes}\"")
}

/// The JSON of an id, and the id that it means.
fn id() -> impl Strategy<Value = (String, String)> {
    let text = ("\\PC{1,12}", any::<bool>()).prop_map(|(text, escaped)| (string(&text, escaped), text));
    let number = "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,9})?([eE][+-]?[0-9]{1,3})?";
    let number = number.prop_map(|number| (number.clone(), if number == "-0" { "0".into() } else { number }));
    prop_oneof![text, number]
}

/// The JSON of a time in milliseconds, and the time.
fn time() -> impl Strategy<Value = (String, i64)> {
    (0..=Millis::MAX.get(), 0..4).prop_map(|(ms, form)| {
        let json = match form {
            0 => ms.to_string(),
            1 => format!("\"{ms}\""),
            2 => format!("{ms}.999"),
            _ => format!("{ms}00e-2"),
        };
        (json, ms)
    })
}

fn payload() -> impl Strategy<Value = String> {
    // A payload has at most 90 levels.
    let deep = (1_usize..100).prop_map(|depth| "{\"a\":[".repeat(depth / 2) + &"]}".repeat(depth / 2));
    let deep = deep.prop_filter("an object", |text| !text.is_empty());
    prop_oneof![9 => object(), 1 => deep]
}

/// The event that the consumer stores.
fn stored(extraction: Extraction) -> (String, StorableEvent) {
    let Extraction { event, id, .. } = extraction;
    let event = Event::new(event, id, Millis::new(5).unwrap(), "1.0.0");
    let value = event.to_json();
    let key = Some(event.id.as_str().as_bytes());
    match decode(&RecordView { key, value: &value, timestamp: Some(5) }, |source| source == "s") {
        Ok(Decoded::Event(stored)) => (String::from_utf8(value).unwrap(), stored),
        other => panic!("accepted but not stored: {other:?}"),
    }
}

fn source(event: &str) -> Sources {
    let text = format!("sources:\n  s:\n    push: {{}}\n    event: {event}\n");
    Sources::parse("f", &text, Path::new("."), &|_| None).unwrap_or_else(|faults| panic!("{faults}: {text}"))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_stored_of_any_record_equals_what_was_sent(
        (id_json, id) in id(),
        (time_json, time) in time(),
        payload in payload(),
        noise in object(),
        paths in [vec(step(), 0..5), vec(step(), 0..5), vec(step(), 0..5)],
        around in "[ \n\r\t]{0,2}",
    ) {
        let values = [id_json, time_json, payload.clone()];
        let members: Vec<String> = values.into_iter().zip(&paths).zip(["i", "t", "p"])
            .map(|((value, path), name)| format!("\"{name}\":{noise},\"{name}\":{}", embed(value, path, &noise)))
            .collect();
        let record = format!("{around}{{{}}}{around}", members.join(",\n"));
        let [to_id, to_time, to_payload] = [("i", 0), ("t", 1), ("p", 2)].map(|(name, at)| pointer(name, &paths[at]));
        let rules = format!("id: {to_id}, timestamp: {{from: {to_time}, unit: ms}}");
        let extracted = |event: &str| {
            extract(source(event).get("s").unwrap(), &record, Context::default(), Millis::new(1).unwrap())
        };
        for (event, sent) in [
            (format!("{{{rules}, payload: {to_payload}}}"), payload.trim()),
            (format!("{{{rules}}}"), record.trim()),
        ] {
            let extracted = extracted(&event);
            let Ok(extraction) = extracted else {
                let fault = extracted.unwrap_err();
                prop_assert!(Payload::parse(sent).is_err(), "{:?}", fault);
                continue;
            };
            let (value, event) = stored(extraction);
            prop_assert!(value.contains(&format!(r#""payload":{sent},"ingested_at":5,"#)), "{}", value);
            prop_assert_eq!((event.id.as_str(), event.timestamp.get()), (&*id, time));
            let document = Document::try_from(event.document).unwrap();
            prop_assert_eq!(document.get_str("event_id").unwrap(), &id);
            prop_assert_eq!(document.get_i64("event_timestamp").unwrap(), time);
            assert_holds_payload(&document, sent);
        }
    }
}
