//! The event as stored in the topic.

use serde::Serialize;

use crate::{id::EventId, millis::Millis, payload::Payload, request::Draft, source::Source};

/// Approximate bytes of a record value besides the payload.
const ENVELOPE_BYTES: usize = 256;

/// An accepted event. It can always be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The record's key.
    pub id: EventId,
    /// When the event happened.
    pub timestamp: Millis,
    /// The origin of the event.
    pub source: Source,
    /// The content of the event.
    pub payload: Payload,
    /// When the producer accepted the event. It is also the record's timestamp.
    pub ingested_at: Millis,
    /// API_VERSION of the producer.
    pub api_version: String,
}

impl Event {
    /// Builds the event of a request. `id` replaces the draft's own id. If the draft has no
    /// timestamp, it is `ingested_at`.
    pub fn new(draft: Draft, id: EventId, ingested_at: Millis, api_version: &str) -> Self {
        let Draft { id: _, timestamp, source, payload } = draft;
        let timestamp = timestamp.unwrap_or(ingested_at);
        Self { id, timestamp, source, payload, ingested_at, api_version: api_version.to_owned() }
    }

    /// The value of the record: compact JSON with the fields in the order of the contract, and the
    /// payload byte for byte.
    pub fn to_json(&self) -> Vec<u8> {
        let payload = self.payload.as_str();
        let mut value = Vec::with_capacity(payload.len() + ENVELOPE_BYTES);
        put(&mut value, "{\"id\":", self.id.as_str());
        put(&mut value, ",\"timestamp\":", &self.timestamp.get());
        put(&mut value, ",\"source\":", self.source.as_str());
        value.extend_from_slice(b",\"payload\":");
        // The payload is valid JSON and is not parsed again.
        value.extend_from_slice(payload.as_bytes());
        put(&mut value, ",\"ingested_at\":", &self.ingested_at.get());
        put(&mut value, ",\"api_version\":", self.api_version.as_str());
        value.push(b'}');
        value
    }
}

fn put(json: &mut Vec<u8>, before: &str, value: &(impl Serialize + ?Sized)) {
    json.extend_from_slice(before.as_bytes());
    // Serializing text and integers into memory cannot fail.
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
