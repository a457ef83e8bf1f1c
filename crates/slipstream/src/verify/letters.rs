//! The dead letters of a run: its events that the pipeline says can never be stored. An event counts once, however often
//! it was dead-lettered.

use std::collections::HashSet;

use rdkafka::Message;
use rdkafka::message::BorrowedMessage;
use serde::Deserialize;
use service::json::object;

use super::key_of;
use super::report::Finding;
use crate::Failure;
use crate::letter::{added, origin};
use crate::scan::{NEXT, Place, Scan};

/// What was found.
#[derive(Debug, Default)]
pub struct Letters {
    /// The events, by key and time.
    events: HashSet<(u64, i64)>,
    /// Records of the run that are no events, by their places.
    others: HashSet<Place>,
    /// How many there are, and some of them with their reasons.
    pub finding: Finding,
}

#[derive(Deserialize)]
struct Value {
    id: String,
    timestamp: i64,
}

impl Letters {
    /// Reads the dead-letter topics to their end.
    ///
    /// # Errors
    /// Kafka does not answer.
    pub fn read(config: &consumer::Config, run: &str) -> Result<Self, Failure> {
        let scan = Scan::new(config, "slipstream-verify");
        let mut letters = Self::default();
        for spec in config.topic_specs().iter().filter(|spec| spec.is_dead_letter_topic()) {
            scan.read(&spec.name, None, |message| {
                letters.add(run, message);
                NEXT
            })?;
        }
        Ok(letters)
    }

    /// Whether the event of this key and time is among them.
    pub fn have(&self, key: u64, timestamp: i64) -> bool {
        self.events.contains(&(key, timestamp))
    }

    fn add(&mut self, run: &str, message: &BorrowedMessage<'_>) {
        let key = message.key().and_then(|key| std::str::from_utf8(key).ok()).unwrap_or_default();
        if !key.strip_prefix(run).is_some_and(|rest| rest.starts_with('-')) {
            return;
        }
        let event = message.payload().and_then(|value| event(run, value));
        let new = match event {
            Some(event) => self.events.insert(event),
            None => self.others.insert(origin(message).unwrap_or_else(|| Place::of(message))),
        };
        if new {
            let reason = added(message, "exception.message");
            let reason = reason.as_deref().unwrap_or("the dead letter does not say why");
            self.finding.add(|| format!("{key}: {reason}"));
        }
    }
}

/// Key and time of the event that a record's value is.
fn event(run: &str, value: &[u8]) -> Option<(u64, i64)> {
    let value: Value = object(value).ok()?;
    Some((key_of(run, &value.id)?, value.timestamp))
}

#[cfg(test)]
mod tests {
    use super::event;

    #[test]
    fn an_event_is_read_from_an_object_only() {
        assert_eq!(event("r", br#"{"id":"r-3","timestamp":8}"#), Some((3, 8)));
        assert_eq!(event("r", br#"["r-3",8]"#), None);
    }
}
