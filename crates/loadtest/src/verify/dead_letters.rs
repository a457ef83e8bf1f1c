//! The dead letters of a run. An event counts once, however often it was dead-lettered.

use std::collections::HashSet;

use kafka::BoxError;
use kafka::dead_letter_headers::{error_header, origin};
use kafka::topic_reader::{CONTINUE, RecordPosition, TopicReader};
use rdkafka::Message;
use rdkafka::message::BorrowedMessage;
use serde::Deserialize;
use service::json::object;

use super::report::Finding;
use crate::ledger::key_of;

/// The dead letters of a run.
#[derive(Debug, Default)]
pub struct DeadLetters {
    /// The events, by key and timestamp.
    events: HashSet<(u64, i64)>,
    /// Records of the run that are not events, by their positions.
    others: HashSet<RecordPosition>,
    /// Their number, and examples with their reasons.
    pub finding: Finding,
}

#[derive(Deserialize)]
struct Value {
    id: String,
    timestamp: i64,
}

impl DeadLetters {
    /// Reads the dead-letter topics to their end.
    ///
    /// # Errors
    /// Kafka is unavailable.
    pub fn read(config: &consumer::Config, run: &str) -> Result<Self, BoxError> {
        let reader = TopicReader::new(&config.kafka_broker, &config.properties, "slipstream-verify");
        let mut dead_letters = Self::default();
        for spec in config.topic_specs().iter().filter(|spec| spec.is_dead_letter_topic()) {
            reader.read(&spec.name, None, |message| {
                dead_letters.add(run, message);
                CONTINUE
            })?;
        }
        Ok(dead_letters)
    }

    /// Whether the event with this key and timestamp is a dead letter.
    pub fn contains(&self, key: u64, timestamp: i64) -> bool {
        self.events.contains(&(key, timestamp))
    }

    fn add(&mut self, run: &str, message: &BorrowedMessage<'_>) {
        let key = message.key().and_then(|key| std::str::from_utf8(key).ok()).unwrap_or_default();
        if !key.strip_prefix(run).is_some_and(|rest| rest.starts_with('-')) {
            return;
        }
        let event = message.payload().and_then(|value| event(run, value));
        let is_new = match event {
            Some(event) => self.events.insert(event),
            None => self.others.insert(origin(message).unwrap_or_else(|| RecordPosition::of(message))),
        };
        if is_new {
            let reason = error_header(message, "exception.message");
            let reason = reason.as_deref().unwrap_or("the dead letter has no reason");
            self.finding.add(|| format!("{key}: {reason}"));
        }
    }
}

/// Key and timestamp of the event in a record's value.
fn event(run: &str, value: &[u8]) -> Option<(u64, i64)> {
    let value: Value = object(value).ok()?;
    Some((key_of(run, &value.id)?, value.timestamp))
}

#[cfg(test)]
mod tests {
    use super::event;

    #[test]
    fn an_event_is_read_only_from_an_object() {
        assert_eq!(event("r", br#"{"id":"r-3","timestamp":8}"#), Some((3, 8)));
        assert_eq!(event("r", br#"["r-3",8]"#), None);
    }
}
