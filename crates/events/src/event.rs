//! The event as the topic holds it.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::{id::EventId, millis::Millis, payload::Payload, request::Draft, source::Source};

/// An accepted event. Whatever it holds can be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The record's key.
    pub id: EventId,
    /// When it happened.
    pub timestamp: Millis,
    /// Where it comes from.
    pub source: Source,
    /// What happened.
    pub payload: Payload,
    /// When the producer took it: the record's timestamp.
    pub ingested_at: Millis,
    /// API_VERSION of the producer.
    pub api_version: String,
}

impl Event {
    /// The event that a request asks for. The draft's own id is not used: `id` is the one that was decided on. A draft
    /// without a timestamp happened at `ingested_at`.
    pub fn new(draft: Draft, id: EventId, ingested_at: Millis, api_version: &str) -> Self {
        let Draft { id: _, timestamp, source, payload } = draft;
        let timestamp = timestamp.unwrap_or(ingested_at);
        Self { id, timestamp, source, payload, ingested_at, api_version: api_version.to_owned() }
    }

    /// The record's value: compact JSON with the fields in the order of the contract, the payload byte for byte.
    #[expect(clippy::expect_used, reason = "texts, integers and raw JSON always serialise into memory")]
    pub fn to_json(&self) -> Vec<u8> {
        let value = RecordValue {
            id: self.id.as_str(),
            timestamp: self.timestamp.get(),
            source: self.source.as_str(),
            payload: self.payload.raw(),
            ingested_at: self.ingested_at.get(),
            api_version: &self.api_version,
        };
        serde_json::to_vec(&value).expect("an event serialises")
    }
}

/// The fields in the order of the contract.
#[derive(Serialize)]
struct RecordValue<'e> {
    id: &'e str,
    timestamp: i64,
    source: &'e str,
    payload: &'e RawValue,
    ingested_at: i64,
    api_version: &'e str,
}

#[cfg(test)]
mod tests {
    use super::Event;
    use crate::{Draft, EventId, Millis, Payload, Source};

    #[test]
    fn the_value_is_compact_ordered_and_keeps_the_payload() {
        let draft = Draft {
            id: None,
            timestamp: None,
            source: Source::new("manual").unwrap(),
            payload: Payload::parse("{ \"b\": 1.50,\n \"a\": \"\\u0041\" }").unwrap(),
        };
        let event = Event::new(draft, EventId::new("a\"é").unwrap(), Millis::new(5).unwrap(), "1.0.0");
        assert_eq!(event.timestamp, event.ingested_at);
        assert_eq!(
            String::from_utf8(event.to_json()).unwrap(),
            "{\"id\":\"a\\\"é\",\"timestamp\":5,\"source\":\"manual\",\
             \"payload\":{ \"b\": 1.50,\n \"a\": \"\\u0041\" },\"ingested_at\":5,\"api_version\":\"1.0.0\"}"
        );
    }
}
