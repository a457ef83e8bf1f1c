//! The report of `trace`, as text and as JSON.

use std::fmt;

use bson::Document;
use events::Source;
use serde_json::{Value, json};

use super::outcome::RecordOutcome;
use super::search::{Content, FoundDeadLetter, FoundRecord};
use crate::output::rfc3339;
use kafka::topic_reader::RecordPosition;
use service::plural::counted;

/// A record and its outcome.
#[derive(Debug)]
pub struct Traced {
    /// The record.
    pub record: FoundRecord,
    /// The committed offset of its partition.
    pub committed: Option<i64>,
    /// Its outcome.
    pub outcome: RecordOutcome,
}

/// A document of the event.
#[derive(Debug)]
pub struct Stored {
    /// The name of its collection.
    pub source: Source,
    /// The query that found it.
    pub filter: Document,
    /// The document.
    pub document: Document,
}

/// The report.
#[derive(Debug)]
pub struct Report {
    /// The event's id.
    pub id: String,
    /// The consumer's group.
    pub group: String,
    /// The database.
    pub database: String,
    /// Records, in the order of the topic.
    pub traced: Vec<Traced>,
    /// Dead letters.
    pub dead_letters: Vec<FoundDeadLetter>,
    /// Documents.
    pub documents: Vec<Stored>,
}

impl Report {
    /// Whether anything was found.
    pub fn is_found(&self) -> bool {
        !(self.traced.is_empty() && self.dead_letters.is_empty() && self.documents.is_empty())
    }

    /// Dead letters whose records are no longer on the topic.
    fn orphans(&self) -> impl Iterator<Item = &FoundDeadLetter> {
        self.dead_letters.iter().filter(|dead_letter| {
            let origin = dead_letter.origin.as_ref();
            !self.traced.iter().any(|traced| origin == Some(&traced.record.position))
        })
    }

    /// The report as JSON.
    pub fn json(&self) -> Value {
        let dead_letter = |dead_letter: &FoundDeadLetter| {
            json!({
                "at": dead_letter.position.to_string(),
                "of": dead_letter.origin.as_ref().map(RecordPosition::to_string),
                "reason": dead_letter.reason,
            })
        };
        let stored = |stored: &Stored| json!({"database": self.database, "collection": stored.source.as_str(), "document": stored.document});
        json!({
            "id": self.id,
            "group": self.group,
            "records": self.traced.iter().map(Traced::json).collect::<Vec<_>>(),
            "dead_letters": self.dead_letters.iter().map(dead_letter).collect::<Vec<_>>(),
            "documents": self.documents.iter().map(stored).collect::<Vec<_>>(),
        })
    }
}

impl Traced {
    fn versions(&self) -> Option<(i64, i64)> {
        match &self.record.content {
            Content::Event(event) => Some((event.timestamp.get(), event.ingested_at.get())),
            _ => None,
        }
    }

    fn json(&self) -> Value {
        let RecordPosition { topic, partition, offset } = &self.record.position;
        json!({
            "topic": topic,
            "partition": partition,
            "offset": offset,
            "record_timestamp": self.record.timestamp_ms,
            "timestamp": self.versions().map(|(timestamp, _)| timestamp),
            "ingested_at": self.versions().map(|(_, ingested_at)| ingested_at),
            "committed": self.committed,
            "state": self.outcome.name(),
            "detail": self.outcome.text(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_found() {
            return write!(f, "event {} was not found on the topics or in the database", self.id);
        }
        write!(f, "event {}: {}", self.id, counted(self.traced.len(), "record"))?;
        for traced in &self.traced {
            write!(f, "\n  {}", traced.record.position)?;
            if let Some((timestamp, ingested_at)) = traced.versions() {
                write!(f, "  timestamp {}, ingested_at {}", rfc3339(timestamp), rfc3339(ingested_at))?;
            }
            write!(f, "  {}", traced.outcome.text())?;
            if traced.outcome == RecordOutcome::Waiting {
                let at =
                    traced.committed.map_or_else(|| "its beginning".to_owned(), |offset| offset.to_string());
                write!(f, ": group {} is at {at}", self.group)?;
            }
        }
        for dead_letter in self.orphans() {
            let origin = dead_letter
                .origin
                .as_ref()
                .map_or_else(|| "an unknown position".to_owned(), RecordPosition::to_string);
            write!(f, "\n  {}  dead letter of {origin}: {}", dead_letter.position, dead_letter.reason)?;
        }
        for Stored { source, document, .. } in &self.documents {
            let document = serde_json::to_string(document).map_err(|_| fmt::Error)?;
            write!(f, "\ndocument in {}.{source}: {document}", self.database)?;
        }
        Ok(())
    }
}
