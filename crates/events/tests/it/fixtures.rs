//! The sample event of the original system becomes its sample document, with corrected ISO texts.

use events::{Decoded, Event, EventId, Millis, RecordView, Rules, decode, parse_request};

const EVENT: &str = include_str!("../../fixtures/event.json");
const DOCUMENT: &str = include_str!("../../fixtures/document.json");

fn document(value: &[u8]) -> bson::Document {
    let record = RecordView { key: Some(b"3F28BC"), value, timestamp: None };
    match decode(&record, |source| source == "adsbdb") {
        Ok(Decoded::Event(event)) => bson::Document::try_from(event.document).unwrap(),
        other => panic!("an event expected, not {other:?}"),
    }
}

fn sample_document() -> bson::Document {
    serde_json::from_str(DOCUMENT).unwrap()
}

#[test]
fn the_sample_event_becomes_the_sample_document() {
    let document = document(EVENT.as_bytes());
    let expected = sample_document();
    assert_eq!(document, expected);
    assert!(document.keys().is_sorted_by_key(|key| DOCUMENT.find(&format!("\"{key}\":"))), "{document}");
}

#[test]
fn the_sample_request_becomes_the_sample_document() {
    let mut body: serde_json::Value = serde_json::from_str(EVENT).unwrap();
    body.as_object_mut().unwrap().retain(|name, _| name != "ingested_at" && name != "api_version");
    let draft = parse_request(body.to_string().as_bytes(), &Rules::default()).unwrap();
    let ingested_at = Millis::new(1_730_000_000_100).unwrap();
    let event = Event::new(draft, EventId::new("3F28BC").unwrap(), ingested_at, "1.0.0");
    assert_eq!(document(&event.to_json()), sample_document());
}
