//! Dead letters of fetched records. They have no origin on a topic, and the header `pull`.

use rdkafka::message::{Header, OwnedHeaders};

use crate::clock::wall_ms;
use crate::extraction::Fault;
use crate::kafka::delivery::DeliveryError;
use crate::kafka::publisher::Publisher;

/// Maximum length of a header's text.
const MAX_TEXT_BYTES: usize = 1024;

/// A record that can never be stored.
#[derive(Debug)]
pub struct DeadLetter {
    /// The record, byte for byte.
    pub record: String,
    pub class: &'static str,
    pub reason: String,
}

impl DeadLetter {
    pub fn new(record: &str, fault: &Fault) -> Self {
        let mut reason = String::new();
        for violation in &fault.violations {
            if reason.len() >= MAX_TEXT_BYTES {
                break;
            }
            let separator = if reason.is_empty() { "" } else { "; " };
            reason.push_str(&format!("{separator}{violation}"));
        }
        truncate(&mut reason);
        Self { record: record.to_owned(), class: fault.class, reason }
    }

    /// Logs what became of `records` records, of which this is the first.
    pub fn log(&self, source: &str, records: u64, event: &'static str) {
        let (class, reason, bytes) = (self.class, &*self.reason, self.record.len());
        tracing::warn!(source, records, class, reason, bytes, "{event}");
    }

    /// Writes the dead letter to `topic` and waits for its delivery report.
    ///
    /// # Errors
    /// It is not known to be stored.
    pub async fn send(&self, kafka: &Publisher, topic: &str, source: &str) -> Result<(), DeliveryError> {
        let mut headers = OwnedHeaders::new();
        for (name, text) in [
            ("connector.name", "slipstream-producer"),
            ("task.id", "0"),
            ("stage", "pull"),
            ("class.name", "slipstream.producer"),
            ("exception.class.name", self.class),
            ("exception.message", &self.reason),
        ] {
            let key = format!("__connect.errors.{name}");
            headers = headers.insert(Header { key: &key, value: Some(text) });
        }
        headers = headers.insert(Header { key: "pull", value: Some(source) });
        kafka.send_dead_letter(topic, (self.record.as_bytes(), wall_ms(), headers)).await?;
        Ok(())
    }
}

fn truncate(text: &mut String) {
    let mut end = text.len().min(MAX_TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}
