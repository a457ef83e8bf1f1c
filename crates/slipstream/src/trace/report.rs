//! What was found, for people and for programs.

use std::fmt;

use bson::Document;
use events::Source;
use serde_json::{Value, json};

use super::scan::{Content, Found, Letter};
use super::state::State;
use crate::dead_letter::rfc3339;
use kafka::topic_reader::RecordPosition;
use service::plural::counted;

/// A record and what became of it.
#[derive(Debug)]
pub struct Traced {
    /// The record.
    pub found: Found,
    /// Where the group goes on in its partition.
    pub committed: Option<i64>,
    /// What became of it.
    pub state: State,
}

/// A document that belongs to the event.
#[derive(Debug)]
pub struct Stored {
    /// Names its collection.
    pub source: Source,
    /// What it was found by.
    pub filter: Document,
    /// The document.
    pub document: Document,
}

/// Everything that was found.
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
    pub letters: Vec<Letter>,
    /// Documents.
    pub documents: Vec<Stored>,
}

impl Report {
    /// Whether there is anything of the event.
    pub fn is_anywhere(&self) -> bool {
        !(self.traced.is_empty() && self.letters.is_empty() && self.documents.is_empty())
    }

    /// Dead letters whose records are no longer on the topic.
    fn orphans(&self) -> impl Iterator<Item = &Letter> {
        self.letters.iter().filter(|letter| {
            !self.traced.iter().any(|traced| letter.origin.as_ref() == Some(&traced.found.place))
        })
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let letter = |letter: &Letter| {
            json!({
                "at": letter.place.to_string(),
                "of": letter.origin.as_ref().map(RecordPosition::to_string),
                "reason": letter.reason,
            })
        };
        let stored = |stored: &Stored| json!({"database": self.database, "collection": stored.source.as_str(), "document": stored.document});
        json!({
            "id": self.id,
            "group": self.group,
            "records": self.traced.iter().map(Traced::json).collect::<Vec<_>>(),
            "dead_letters": self.letters.iter().map(letter).collect::<Vec<_>>(),
            "documents": self.documents.iter().map(stored).collect::<Vec<_>>(),
        })
    }
}

impl Traced {
    fn versions(&self) -> Option<(i64, i64)> {
        match &self.found.content {
            Content::Event(event) => Some((event.timestamp.get(), event.ingested_at.get())),
            _ => None,
        }
    }

    fn json(&self) -> Value {
        let RecordPosition { topic, partition, offset } = &self.found.place;
        json!({
            "topic": topic,
            "partition": partition,
            "offset": offset,
            "record_timestamp": self.found.record_ms,
            "timestamp": self.versions().map(|(timestamp, _)| timestamp),
            "ingested_at": self.versions().map(|(_, ingested_at)| ingested_at),
            "committed": self.committed,
            "state": self.state.name(),
            "detail": self.state.text(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_anywhere() {
            return write!(f, "event {} is nowhere: not on the topics, not in the database", self.id);
        }
        write!(f, "event {}: {}", self.id, counted(self.traced.len(), "record"))?;
        for traced in &self.traced {
            write!(f, "\n  {}", traced.found.place)?;
            if let Some((timestamp, ingested_at)) = traced.versions() {
                write!(f, "  timestamp {}, ingested_at {}", rfc3339(timestamp), rfc3339(ingested_at))?;
            }
            write!(f, "  {}", traced.state.text())?;
            if traced.state == State::Waiting {
                let at =
                    traced.committed.map_or_else(|| "its beginning".to_owned(), |offset| offset.to_string());
                write!(f, ": group {} is at {at}", self.group)?;
            }
        }
        for letter in self.orphans() {
            let origin = letter
                .origin
                .as_ref()
                .map_or_else(|| "an unknown place".to_owned(), RecordPosition::to_string);
            write!(f, "\n  {}  dead letter of {origin}: {}", letter.place, letter.reason)?;
        }
        for Stored { source, document, .. } in &self.documents {
            let document = serde_json::to_string(document).map_err(|_| fmt::Error)?;
            write!(f, "\ndocument in {}.{source}: {document}", self.database)?;
        }
        Ok(())
    }
}
