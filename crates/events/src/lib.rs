//! The event: its schema, its rules, its JSON and its BSON form. No I/O, no async.
//!
//! Guarantee: **what is accepted can be stored.** [`parse_request`] and [`Payload::parse`] (the producer) and
//! [`decode`] (the consumer) judge a payload with one and the same function, the one that builds the document. So an
//! event that the producer accepted never becomes a dead letter because of its content.
//!
//! ```
//! use events::{Event, EventId, Millis, RecordView, Rules};
//!
//! let body = br#"{"id":"3F28BC","source":"adsbdb","payload":{"mode_s":"3F28BC"}}"#;
//! let mut draft = events::parse_request(body, &Rules::default()).expect("a valid event");
//! let id = draft.id.take().unwrap_or(EventId::new("generated").expect("a valid id"));
//! let now = Millis::new(1_730_000_000_100).expect("a year below 10000");
//! let value = Event::new(draft, id, now, "1.0.0").to_json();
//!
//! let record = RecordView { key: Some(b"3F28BC"), value: &value, timestamp: Some(now.get()) };
//! let events::Decoded::Event(event) = events::decode(&record, |source| source == "adsbdb").expect("storable")
//! else { panic!("another source") };
//! assert_eq!(event.document.get_str("event_timestamp_iso").unwrap(), "2024-10-27T03:33:20.100Z");
//! ```
//!
//! Choices that the contract leaves open:
//!
//! - `null` as `id`, `timestamp`, `ingested_at` or `api_version` is the same as leaving the field out.
//! - The payload object itself is nesting level 1; 90 levels are accepted. A value that a later duplicate key replaces
//!   is judged like any other.
//! - `-0` is the integer 0; `-0.0` is the double -0.0.
//! - At most 100 faults are listed one by one; one more says how many are left. Names in a fault are cut at 256
//!   characters, so that a small body cannot ask for a large answer.
//! - A real number as timestamp of a Kafka record is refused: whether it means seconds or milliseconds is a guess.
//! - A foreign record without `api_version` becomes a document without that field.

mod convert;
mod cursor;
mod document;
mod envelope;
mod event;
mod fault;
mod field;
mod id;
mod json;
mod members;
mod millis;
mod number;
mod payload;
mod record;
mod request;
mod source;
mod timestamp;
mod writer;

pub use event::Event;
pub use fault::{Fault, Loc};
pub use id::{EventId, derived_object_id};
pub use millis::Millis;
pub use payload::{Payload, aircraft_id};
pub use record::{Decoded, Poison, RecordView, StorableEvent, decode};
pub use request::{Draft, Refusal, Rules, parse_request};
pub use source::Source;
