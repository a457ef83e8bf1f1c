//! Properties of every input: an accepted event can be stored, its payload is unchanged, and no
//! input causes a panic.

use bson::Document;
use events::{
    Decoded, Event, EventId, Millis, Payload, RecordView, RequestError, Rules, StorableEvent, decode,
    parse_request,
};
use proptest::{collection::vec, prelude::*};

use crate::payloads::{assert_holds_payload, object};

fn value_of(body: &str, ingested_at: i64) -> Result<Vec<u8>, RequestError> {
    let mut draft = parse_request(body.as_bytes(), &Rules::default())?;
    let id = draft.id.take().unwrap_or(EventId::new("generated").unwrap());
    Ok(Event::new(draft, id, Millis::new(ingested_at).unwrap(), "1.0.0").to_json())
}

fn stored(value: &[u8]) -> StorableEvent {
    match decode(&RecordView { key: None, value, timestamp: None }, |_| true) {
        Ok(Decoded::Event(event)) => event,
        other => panic!("accepted but not stored: {other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_accepted_payload_is_stored_unchanged(payload in object(), ingested_at in 0..=Millis::MAX.get()) {
        let body = format!(r#"{{"source":"s","payload":{payload}}}"#);
        match value_of(&body, ingested_at) {
            Ok(value) => {
                let text = std::str::from_utf8(&value).unwrap();
                let verbatim = format!(r#""payload":{payload},"ingested_at":{ingested_at},"#);
                prop_assert!(text.contains(&verbatim), "{}", text);
                let event = stored(&value);
                prop_assert_eq!(event.ingested_at.get(), ingested_at);
                assert_holds_payload(&Document::try_from(event.document.clone()).unwrap(), &payload);
                prop_assert_eq!(stored(&value), event);
            }
            Err(RequestError::Invalid(violations)) => {
                let alone = Payload::parse(&payload).unwrap_err();
                prop_assert_eq!(violations, alone);
            }
            Err(error) => prop_assert!(false, "{:?}", error),
        }
    }

    #[test]
    fn a_rejected_payload_is_poison_in_a_record(payload in object()) {
        let value = format!(r#"{{"id":"a","timestamp":1,"source":"s","payload":{payload},"ingested_at":1}}"#);
        let record = RecordView { key: None, value: value.as_bytes(), timestamp: None };
        prop_assert_eq!(decode(&record, |_| true).is_ok(), Payload::parse(&payload).is_ok());
    }

    #[test]
    fn a_request_with_any_fields_is_accepted_or_rejected(
        fields in vec(("(id|timestamp|source|payload|x|ingested_at)", object()), 0..6),
    ) {
        let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name:?}:{value}")).collect();
        let body = format!("{{{}}}", fields.join(","));
        prop_assert!(matches!(value_of(&body, 1), Err(RequestError::Invalid(_))), "no source is an object");
        let record = RecordView { key: Some(b"k"), value: body.as_bytes(), timestamp: Some(1) };
        prop_assert!(decode(&record, |_| true).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(value in vec(any::<u8>(), 0..200), key in vec(any::<u8>(), 0..20), ms in any::<i64>()) {
        let record = RecordView { key: Some(&key), value: &value, timestamp: Some(ms) };
        let _ = decode(&record, |_| true);
        let _ = parse_request(&value, &Rules::default());
    }

    #[test]
    fn text_that_is_almost_an_event_never_panics(payload in object(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut value = format!(r#"{{"id":"a","timestamp":"2024-10-27T03:33:20Z","source":"s","payload":{payload}}}"#).into_bytes();
        let at = at.index(value.len());
        value[at] = byte;
        let record = RecordView { key: Some(b"k"), value: &value, timestamp: Some(1) };
        if let Ok(Decoded::Event(event)) = decode(&record, |_| true) {
            prop_assert!(Document::try_from(event.document).is_ok());
        }
        let _ = parse_request(&value, &Rules::default());
    }

    #[test]
    fn any_timestamp_survives_as_text(ms in 0..=Millis::MAX.get()) {
        let iso = Millis::new(ms).unwrap().iso();
        let value = format!(r#"{{"source":"s","payload":{{}},"timestamp":"{iso}"}}"#);
        let record = RecordView { key: Some(b"k"), value: value.as_bytes(), timestamp: Some(1) };
        let Ok(Decoded::Event(event)) = decode(&record, |_| true) else { panic!("{iso} was rejected") };
        prop_assert_eq!(event.timestamp.get(), ms);
    }
}

#[test]
fn some_generated_payloads_are_accepted_and_some_rejected() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let accepted = (0..200)
        .filter(|_| Payload::parse(&object().new_tree(&mut runner).unwrap().current()).is_ok())
        .count();
    assert!((20..180).contains(&accepted), "{accepted} of 200");
}

// The sample event of the original system becomes its sample document, with corrected ISO texts.

const EVENT: &str = include_str!("../../fixtures/event.json");
const DOCUMENT: &str = include_str!("../../fixtures/document.json");

fn document(value: &[u8]) -> Document {
    let record = RecordView { key: Some(b"3F28BC"), value, timestamp: None };
    match decode(&record, |source| source == "adsbdb") {
        Ok(Decoded::Event(event)) => Document::try_from(event.document).unwrap(),
        other => panic!("an event expected, not {other:?}"),
    }
}

fn sample_document() -> Document {
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
