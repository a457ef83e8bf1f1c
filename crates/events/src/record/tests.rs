//! Records of other producers, and records that can never be stored.

use bson::{Document, doc};

use super::{Decoded, Poison, RecordView, StorableEvent, decode};

const KEY: Option<&[u8]> = Some(b"key");

fn record(value: &str) -> RecordView<'_> {
    RecordView { key: KEY, value: value.as_bytes(), timestamp: Some(7000) }
}

fn event(record: &RecordView<'_>) -> StorableEvent {
    match decode(record, |source| source == "s") {
        Ok(Decoded::Event(event)) => event,
        other => panic!("an event expected, not {other:?}"),
    }
}

fn document(value: &str) -> Document {
    Document::try_from(event(&record(value)).document).unwrap()
}

fn poisoned(record: &RecordView<'_>) -> Poison {
    decode(record, |source| source == "s").expect_err("poison expected")
}

#[test]
fn absent_fields_come_from_the_record() {
    let event = event(&record(r#"{"source":"s","payload":{"a":1},"id":null,"ingested_at":null}"#));
    assert_eq!(event.id.as_str(), "key");
    assert_eq!((event.timestamp.get(), event.ingested_at.get()), (7000, 7000));
    let expected = doc! {
        "a": 1_i32, "event_id": "key", "event_timestamp": 7000_i64, "ingested_at": 7000_i64,
        "event_timestamp_iso": "1970-01-01T00:00:07.000Z", "ingested_at_iso": "1970-01-01T00:00:07.000Z",
    };
    assert_eq!(Document::try_from(event.document).unwrap(), expected);
}

#[test]
fn fields_absent_from_value_and_record_are_named() {
    let value = br#"{"source":"s","payload":{}}"#;
    let poison = poisoned(&RecordView { key: None, value, timestamp: None });
    assert_eq!((poison.stage, poison.class), ("decode", "InvalidEnvelope"));
    for field in ["id: ", "timestamp: ", "ingested_at: "] {
        assert!(poison.reason.contains(field), "{}", poison.reason);
    }
    for key in [&b"\xff"[..], b"", b"a\n"] {
        let poison = poisoned(&RecordView { key: Some(key), value, timestamp: Some(1) });
        assert!(poison.reason.starts_with("id: "), "{}", poison.reason);
    }
    let poison = poisoned(&RecordView { key: KEY, value, timestamp: Some(-1) });
    assert!(poison.reason.starts_with("timestamp: "), "{}", poison.reason);
}

#[test]
fn integer_times_are_milliseconds_and_text_is_rfc_3339() {
    let value =
        r#"{"source":"s","payload":{},"timestamp":1730000000,"ingested_at":"2024-10-27T03:33:20.1Z"}"#;
    let event = event(&record(value));
    assert_eq!((event.timestamp.get(), event.ingested_at.get()), (1_730_000_000, 1_730_000_000_100));
    let poison = poisoned(&record(r#"{"source":"s","payload":{},"timestamp":1.5}"#));
    assert!(poison.reason.starts_with("timestamp: "), "{}", poison.reason);
}

#[test]
fn unknown_fields_of_the_envelope_are_kept() {
    let document =
        document(r#"{"v":[1],"source":"s","payload":{"envelope_extra":1},"a.b":{"$c":"$d"},"v":2}"#);
    assert_eq!(document.get_document("envelope_extra").unwrap(), &doc! { "a.b": { "$c": "$d" }, "v": 2_i32 });
    assert_eq!(document.get_document("payload_conflicts").unwrap(), &doc! { "envelope_extra": 1_i32 });
}

#[test]
fn an_unexpected_source_is_skipped_despite_other_violations() {
    let deep = "[".repeat(1000) + &"]".repeat(1000);
    for value in [
        r#"{"source":"other"}"#,
        r#"{"source":"not a name","payload":1e9999}"#,
        r#"{"source":"s","source":"other","id":{}}"#,
        &format!(r#"{{"payload":{deep},"source":"o\u0074her","timestamp":"\ud800"}}"#),
    ] {
        let decoded = decode(&record(value), |source| source == "s");
        assert!(matches!(decoded, Ok(Decoded::OtherSource(_))), "{value}: {decoded:?}");
    }
}

#[test]
fn a_record_whose_source_cannot_be_read_is_poison() {
    for value in [
        r#"{"payload":{}}"#,
        r#"{"source":5,"payload":{}}"#,
        r#"{"source":null,"payload":{}}"#,
        r#"{"source":"\ud800","payload":{}}"#,
        r#"{"source":"system.a","payload":{}}"#,
        r#"{"source":"a.system.b","payload":{}}"#,
        r#"{"source":"a.","payload":{}}"#,
        r#"{"source":"a..b","payload":{}}"#,
    ] {
        let poison = decode(&record(value), |_| true).expect_err("poison expected");
        assert_eq!((poison.stage, poison.class), ("decode", "InvalidEnvelope"), "{value}");
        assert!(poison.reason.starts_with("source: "), "{}", poison.reason);
    }
}

#[test]
fn a_value_that_is_not_a_json_object_is_poison() {
    for (value, class) in [
        (&b""[..], "EmptyValue"),
        (b" ", "InvalidJson"),
        (b"{\"source\":\"other\"", "InvalidJson"),
        (b"{\"source\":\"other\",\"a\":\"\xff\"}", "InvalidJson"),
        (b"[1]", "InvalidEnvelope"),
    ] {
        let poison = poisoned(&RecordView { key: KEY, value, timestamp: Some(1) });
        assert_eq!((poison.stage, poison.class), ("decode", class));
        assert_eq!(poison.to_string(), poison.reason);
    }
}

#[test]
fn a_value_that_cannot_be_stored_is_poison_with_its_path() {
    for (value, reason) in [
        (r#"{"source":"s","payload":{"a":[1e9999]}}"#, "payload.a[0]: "),
        (r#"{"source":"s","payload":{},"b":{"c\u0000":1}}"#, "b.c\0: "),
        (r#"{"source":"s","payload":[]}"#, "payload: "),
    ] {
        let poison = poisoned(&record(value));
        assert_eq!((poison.stage, poison.class), ("document", "Unstorable"), "{value}");
        assert!(poison.reason.starts_with(reason), "{}", poison.reason);
    }
}

#[test]
fn an_invalid_envelope_is_poison_with_all_violations() {
    let value = r#"{"source":"s","id":true,"timestamp":[],"api_version":1,"payload":{"x":1e9999},"id":"b","id":"\ud800"}"#;
    let poison = poisoned(&record(value));
    assert_eq!((poison.stage, poison.class), ("decode", "InvalidEnvelope"));
    for part in
        ["id: Input", "timestamp: ", "api_version: ", "id: Field should be given only once", "payload.x: "]
    {
        assert!(poison.reason.contains(part), "{part} not in {}", poison.reason);
    }
}

#[test]
fn a_reason_has_at_most_1_kib() {
    let value = format!(r#"{{"source":"s","payload":{{"a":[{}1e9999]}}}}"#, "1e9999,".repeat(5000));
    assert!(poisoned(&record(&value)).reason.len() <= 1024);
}
