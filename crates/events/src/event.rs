//! The event as the topic holds it.

use serde::Serialize;

use crate::{id::EventId, millis::Millis, payload::Payload, request::Draft, source::Source};

/// About what a value has beside its payload, in bytes.
const ENVELOPE_BYTES: usize = 256;

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
    pub fn to_json(&self) -> Vec<u8> {
        let payload = self.payload.as_str();
        let mut value = Vec::with_capacity(payload.len() + ENVELOPE_BYTES);
        put(&mut value, "{\"id\":", self.id.as_str());
        put(&mut value, ",\"timestamp\":", &self.timestamp.get());
        put(&mut value, ",\"source\":", self.source.as_str());
        value.extend_from_slice(b",\"payload\":");
        // Known to be JSON, and read once more by nobody.
        value.extend_from_slice(payload.as_bytes());
        put(&mut value, ",\"ingested_at\":", &self.ingested_at.get());
        put(&mut value, ",\"api_version\":", self.api_version.as_str());
        value.push(b'}');
        value
    }
}

fn put(json: &mut Vec<u8>, before: &str, value: &(impl Serialize + ?Sized)) {
    json.extend_from_slice(before.as_bytes());
    // Texts and integers have a JSON form, and memory does not refuse it.
    _ = serde_json::to_writer(json, value);
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
