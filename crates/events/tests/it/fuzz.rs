//! Inputs of the corpus and mutations of them. Each is an event that can be stored, or is rejected
//! with a reason.

use bson::Document;
use events::{
    Decoded, Event, EventId, Millis, RecordView, RequestError, Rules, StorableEvent, decode, parse_request,
};
use proptest::prelude::*;

use crate::kept::{kept, near, shown};

/// MongoDB's maximum size of a document.
const DOCUMENT_BYTES: usize = 16 << 20;

/// Asserts that `event` can be stored and has the source of its document.
fn assert_storable(event: &StorableEvent, input: &[u8]) {
    let document = Document::try_from(event.document.clone())
        .unwrap_or_else(|error| panic!("{error}: {}", shown(input)));
    assert!(event.document.as_bytes().len() <= DOCUMENT_BYTES, "{}", shown(input));
    assert_eq!(document.get_str("event_id").unwrap(), event.id.as_str(), "{}", shown(input));
    assert_eq!(document.get_i64("event_timestamp").unwrap(), event.timestamp.get(), "{}", shown(input));
    assert_eq!(document.get_i64("ingested_at").unwrap(), event.ingested_at.get(), "{}", shown(input));
    assert!(document.get("_id").is_none(), "{}", shown(input));
}

/// Decodes a record with each kind of metadata. Returns whether it is an event.
fn decoded(value: &[u8]) -> bool {
    let record = RecordView { key: Some(b"k"), value, timestamp: Some(1_730_000_000_000) };
    let all = decode(&record, |_| true);
    assert_eq!(decode(&record, |_| true), all, "not the same twice: {}", shown(value));
    let none = decode(&record, |_| false);
    match (&all, &none) {
        (Ok(Decoded::Event(event)), Ok(Decoded::OtherSource(source))) => {
            assert_storable(event, value);
            assert_eq!(event.source.as_str(), source, "{}", shown(value));
        }
        // Nothing else is checked for a source that is not expected.
        (Err(poison), _) => {
            assert!(matches!(none, Ok(Decoded::OtherSource(_))) || none == all, "{}", shown(value));
            assert!((1..=1024).contains(&poison.reason.len()), "{poison:?}: {}", shown(value));
            assert!(matches!(poison.stage, "decode" | "document"), "{poison:?}: {}", shown(value));
        }
        other => panic!("{other:?}: {}", shown(value)),
    }
    all.is_ok()
}

/// Parses a body as the producer does and returns whether it is accepted. The consumer must store
/// an accepted body.
fn accepted(body: &[u8]) -> bool {
    let mut draft = match parse_request(body, &Rules::default()) {
        Ok(draft) => draft,
        Err(RequestError::Empty) => {
            assert!(body.trim_ascii().is_empty(), "{}", shown(body));
            return false;
        }
        Err(RequestError::NotJson { message, line, column, .. }) => {
            assert!(!message.is_empty() && line > 0 && column <= body.len() + 1, "{}", shown(body));
            return false;
        }
        Err(RequestError::Invalid(violations)) => {
            assert!((1..=101).contains(&violations.len()), "{}", shown(body));
            return false;
        }
    };
    let id = draft.id.take().unwrap_or(EventId::new("generated").unwrap());
    let (timestamp, source) = (draft.timestamp, draft.source.clone());
    let value = Event::new(draft, id.clone(), Millis::new(1_730_000_000_100).unwrap(), "1.0.0").to_json();
    let record = RecordView { key: None, value: &value, timestamp: None };
    let Ok(Decoded::Event(event)) = decode(&record, |_| true) else {
        panic!("accepted, but not stored: {}", shown(body))
    };
    assert_storable(&event, body);
    assert_eq!((&event.id, &event.source), (&id, &source), "{}", shown(body));
    assert!(timestamp.is_none_or(|timestamp| timestamp == event.timestamp), "{}", shown(body));
    true
}

#[test]
fn fuzz_every_corpus_record_is_an_event_or_poison_with_a_reason() {
    let kept = kept("record");
    let events = kept.iter().filter(|(_, value)| decoded(value)).count();
    assert!(events > 20 && kept.len() - events > 40, "{events} of {} are events", kept.len());
}

#[test]
fn fuzz_every_corpus_body_is_stored_or_rejected_with_a_reason() {
    let kept = kept("body");
    let events = kept.iter().filter(|(_, body)| accepted(body)).count();
    assert!(events > 20 && kept.len() - events > 40, "{events} of {} are accepted", kept.len());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fuzz_mutated_corpus_records_are_events_or_poison(value in near("record")) {
        decoded(&value);
    }

    #[test]
    fn fuzz_mutated_corpus_bodies_are_stored_or_rejected(body in near("body")) {
        accepted(&body);
    }
}
