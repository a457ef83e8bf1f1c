//! Schema, validation rules, JSON form and BSON form of an event. No I/O, no async.
//!
//! Guarantee: **an accepted payload can be stored.** One function validates a payload and builds
//! its document. The producer calls it through [`parse_request`] and [`Payload::parse`], the
//! consumer through [`decode`]. An event that the producer accepted is therefore never
//! dead-lettered because of its content.
//!
//! ```
//! use events::{Event, EventId, Millis, RecordView, Rules};
//!
//! let body = br#"{"id":"3F28BC","source":"adsbdb","payload":{"mode_s":"3F28BC"}}"#;
//! let mut event = events::parse_request(body, &Rules::default()).expect("a valid event");
//! let id = event.id.take().unwrap_or(EventId::new("generated").expect("a valid id"));
//! let now = Millis::new(1_730_000_000_100).expect("a year below 10000");
//! let value = Event::new(event, id, now, "1.0.0").to_json();
//!
//! let record = RecordView { key: Some(b"3F28BC"), value: &value, timestamp: Some(now.get()) };
//! let decoded = events::decode(&record, |source| source == "adsbdb").expect("storable");
//! let events::Decoded::Event(event) = decoded else { panic!("another source") };
//! assert_eq!(event.document.get_str("event_timestamp_iso").unwrap(), "2024-10-27T03:33:20.100Z");
//! ```
//!
//! Rules that the contract does not state:
//!
//! - `null` as `id`, `timestamp`, `ingested_at` or `api_version` means that the field is absent.
//! - The payload object itself is nesting level 1; 90 levels are accepted. A value that a later
//!   duplicate key replaces is validated too.
//! - `-0` is the integer 0; `-0.0` is the double -0.0.
//! - At most 100 violations are listed; one more entry counts the others. Names in a violation are
//!   cut at 256 characters, so that a small body cannot cause a large response.
//! - A real number as timestamp in a Kafka record is a violation, because its unit would be a
//!   guess.
//! - A record of another producer without `api_version` becomes a document without that field.

mod document;
mod fields;
mod json;
mod record;
mod request;
mod validation;

pub use document::is_reserved_field;
pub use fields::{
    EventId, Millis, Source, Unit, derived_object_id, timestamp_from_json, timestamp_from_number,
    timestamp_from_text,
};
pub use json::{Cursor, unescape};
pub use record::{
    Decoded, DocumentOptions, EXPIRES_AT, Operation, Poison, RecordView, StorableEvent, decode, decode_with,
};
pub use request::{Event, NewEvent, Payload, RequestError, Rules, aircraft_id, parse_json, parse_request};
pub use validation::{Loc, Violation};
