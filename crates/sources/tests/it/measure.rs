//! Costs of a record, for people: `cargo test -p sources --release -- --ignored --nocapture measure`.

use std::time::Instant;

use events::Millis;
use sources::{Context, Filter, Input, Schema};

use crate::source;

const RECORD: &str = r#"{"mode_s":"3F28BC","type":"A320 214","icao_type":"A320","manufacturer":"Airbus","registration":"D-ABCD","registered_owner_country_iso_name":"DE","registered_owner_country_name":"Germany","registered_owner_operator_flag_code":"DLH","registered_owner":"Lufthansa","url_photo":"https://airport-data.com/images/aircraft/001/572/001572354.jpg","url_photo_thumbnail":"https://airport-data.com/images/aircraft/thumbnails/001/572/1.jpg","seen":1795898300.456}"#;

/// Filters with the input on which their functions do most work, made of this many values.
type Case = (&'static str, fn(usize) -> String);

const FILTERS: &[Case] = &[
    ("add", |count| list("[1]", count)),
    ("add", |count| list("\"ab\"", count)),
    ("join(\",\")", |count| list("\"ab\"", count)),
    ("map({(.key): .value}) | add", entries),
    ("from_entries", entries),
    ("with_entries(select(.value > 5))", object),
    ("sort", |count| list("[1]", count)),
    ("group_by(.)", |count| list("[1]", count)),
    ("del(.[])", |count| list("1", count)),
    (". - [1]", |count| list("1", count)),
    ("split(\",\")", |count| format!("\"{}\"", "a,".repeat(count))),
    ("gsub(\"a\"; \"b\")", |count| format!("\"{}\"", "a,".repeat(count))),
    ("gsub(\"\"; \"b\")", |count| format!("\"{}\"", "a,".repeat(count))),
    ("sub(\"(a,)*$\"; \"b\")", |count| format!("\"{}\"", "a,".repeat(count))),
    ("map(test(\"^A[a-z]+$\"))", |count| list("\"\"", count)),
    ("test(\"(a*)*b\")", |count| format!("\"{}\"", "a,".repeat(count))),
];

fn list(item: &str, count: usize) -> String {
    format!("[{}]", vec![item; count].join(","))
}

fn entries(count: usize) -> String {
    let entries = (0..count).map(|number| format!(r#"{{"key":"k{number}","value":{number}}}"#));
    format!("[{}]", entries.collect::<Vec<_>>().join(","))
}

fn object(count: usize) -> String {
    let members = (0..count).map(|number| format!(r#""k{number}":{number}"#));
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

#[test]
#[ignore = "prints times, and asserts nothing"]
fn measure_whether_functions_are_linear() {
    for (text, make) in FILTERS {
        let filter = Filter::parse(text).unwrap();
        let times = [5_000, 20_000].map(|count| {
            let json = make(count);
            let start = Instant::now();
            filter.apply(&Input::new(&json, None)).unwrap();
            start.elapsed().as_millis()
        });
        eprintln!("{text}: {} ms for 5,000 values, {} ms for 20,000", times[0], times[1]);
    }
}

fn micros(name: &str, mut run: impl FnMut()) {
    const ROUNDS: u32 = 20_000;
    (0..ROUNDS / 10).for_each(|_| run());
    let start = Instant::now();
    (0..ROUNDS).for_each(|_| run());
    let micros = start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS);
    eprintln!("{name}: {micros:.2} µs");
}

#[test]
#[ignore = "prints times, and asserts nothing"]
fn measure_the_costs_of_a_record() {
    let now = Millis::new(1_800_000_000_000).unwrap();
    for (name, event) in [
        ("two pointers", "{id: /mode_s, timestamp: /seen}"),
        ("a join of three pointers", "{id: {join: [/mode_s, /icao_type, /seen]}}"),
        (
            "two pointers and a jq payload",
            "{id: /mode_s, timestamp: /seen, payload: '{id: .mode_s, type, owner: .registered_owner, ms: (.seen * 1000 | floor)}'}",
        ),
        ("jq for id, time and payload", "{id: .mode_s, timestamp: .seen, payload: '. + {at: .seen}'}"),
    ] {
        let sources =
            source(&format!("push: {{}}\nevent: {event}")).unwrap_or_else(|faults| panic!("{faults}"));
        let source = sources.get("s").unwrap();
        micros(name, || {
            std::hint::black_box(
                source.extract(std::hint::black_box(RECORD), Context::default(), now).unwrap(),
            );
        });
    }
    micros("serde_json's check of the record", || {
        let raw: &serde_json::value::RawValue = serde_json::from_str(std::hint::black_box(RECORD)).unwrap();
        std::hint::black_box(raw);
    });
    micros("the payload's validation", || {
        std::hint::black_box(events::Payload::parse(std::hint::black_box(RECORD)).unwrap());
    });
    let properties = (0..20).map(|number| format!(r#""p{number}":{{"type":"string","maxLength":20}}"#));
    let properties = properties.collect::<Vec<_>>().join(",");
    let schema =
        Schema::parse(&format!(r#"{{"type":"object","required":["p0"],"properties":{{{properties}}}}}"#))
            .unwrap();
    let members =
        (0..20).map(|number| format!(r#""p{number}":"value {number}""#)).collect::<Vec<_>>().join(",");
    let record = format!("{{{members}}}");
    micros("a schema of 20 properties", || {
        assert!(schema.faults(std::hint::black_box(&record)).is_empty());
    });
}
