//! What became of a record. Pure: from the record, the dead letters, the group's offset and the stored document.

use bson::{Bson, Document};
use events::StorableEvent;

use super::scan::{Content, Found, Letter};

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Its document is there, as it says.
    Stored,
    /// A newer event's document is there.
    Superseded,
    /// The group has not finished it.
    Waiting,
    /// A dead letter stands for it; the reason.
    DeadLettered(String),
    /// Not for this consumer; why.
    Skipped(String),
    /// Finished, but what it should have left is not there; what that is.
    Missing(String),
}

impl State {
    /// One word, for programs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Superseded => "superseded",
            Self::Waiting => "waiting",
            Self::DeadLettered(_) => "dead_lettered",
            Self::Skipped(_) => "skipped",
            Self::Missing(_) => "missing",
        }
    }

    /// In words.
    pub fn text(&self) -> String {
        match self {
            Self::Stored => "stored".into(),
            Self::Superseded => "superseded by a newer event".into(),
            Self::Waiting => "waits for the consumer".into(),
            Self::DeadLettered(reason) => format!("dead-lettered: {reason}"),
            Self::Skipped(why) => format!("skipped: {why}"),
            Self::Missing(what) => format!("MISSING: {what}"),
        }
    }
}

/// Judges a record. `committed` is where the group goes on in its partition; `document` the one of its key.
pub fn of(found: &Found, letters: &[Letter], committed: Option<i64>, document: Option<&Document>) -> State {
    if let Some(letter) = letters.iter().find(|letter| letter.origin.as_ref() == Some(&found.place)) {
        return State::DeadLettered(letter.reason.clone());
    }
    let finished = committed.is_some_and(|committed| found.place.offset < committed);
    match &found.content {
        Content::OtherSource(source) => State::Skipped(format!("source {source} is not expected")),
        Content::Null => State::Skipped("its value is null".into()),
        Content::Event(event) => of_event(event, finished, document),
        Content::Poison(_) if !finished => State::Waiting,
        Content::Poison(poison) => {
            State::Missing(format!("it can never be stored ({poison}), and its dead letter is not there"))
        }
    }
}

fn of_event(event: &StorableEvent, finished: bool, document: Option<&Document>) -> State {
    let stored = document.map(|document| {
        let field = |name: &str| rank(document.get(name));
        (field("event_timestamp"), field("ingested_at"))
    });
    let own = (event.timestamp.get() as f64, event.ingested_at.get() as f64);
    match stored {
        Some(stored) if stored == own => State::Stored,
        Some(stored) if stored > own => State::Superseded,
        _ if !finished => State::Waiting,
        Some(_) => State::Missing("the stored document is older: somebody put it back".into()),
        None => {
            State::Missing("it was finished, and no document of its key is there: somebody removed it".into())
        }
    }
}

/// As the consumer's guard compares: a missing field and null are below every number, other types above.
fn rank(value: Option<&Bson>) -> f64 {
    match value {
        None | Some(Bson::Null) => f64::NEG_INFINITY,
        Some(Bson::Int32(number)) => f64::from(*number),
        Some(Bson::Int64(number)) => *number as f64,
        Some(Bson::Double(number)) => *number,
        Some(_) => f64::INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;
    use events::{Decoded, RecordView, decode};
    use kafka::topic_reader::RecordPosition;

    fn found(value: &[u8]) -> Found {
        let view = RecordView { key: Some(b"k"), value, timestamp: Some(5) };
        let content = match decode(&view, |source| source == "adsbdb") {
            Ok(Decoded::Event(event)) => Content::Event(Box::new(event)),
            Ok(Decoded::OtherSource(source)) => Content::OtherSource(source),
            Err(poison) => Content::Poison(poison),
        };
        let place = RecordPosition { topic: "t".into(), partition: 0, offset: 7 };
        Found { place, record_ms: Some(5), content }
    }

    #[test]
    fn an_event_is_where_its_document_and_the_offset_say() {
        let event = found(br#"{"source":"adsbdb","timestamp":5,"ingested_at":6,"payload":{}}"#);
        let document = |timestamp: i64, ingested_at: i64| {
            doc! { "event_timestamp": timestamp, "ingested_at": ingested_at }
        };
        let state =
            |committed, document: Option<Document>| of(&event, &[], committed, document.as_ref()).name();
        assert_eq!(state(Some(7), Some(document(5, 6))), "stored");
        assert_eq!(state(Some(8), Some(document(5, 7))), "superseded");
        assert_eq!(state(Some(7), Some(document(5, 5))), "waiting");
        assert_eq!(state(None, None), "waiting");
        assert_eq!(state(Some(8), None), "missing");
        assert_eq!(state(Some(8), Some(doc! {})), "missing");
    }

    #[test]
    fn what_is_not_to_be_stored_is_told_with_its_reason() {
        let other = found(br#"{"source":"other","payload":7}"#);
        assert_eq!(of(&other, &[], Some(8), None), State::Skipped("source other is not expected".into()));
        let poison = found(b"no JSON");
        assert_eq!(of(&poison, &[], Some(7), None), State::Waiting);
        assert_eq!(of(&poison, &[], Some(8), None).name(), "missing");
        let letter =
            Letter { place: poison.place.clone(), origin: Some(poison.place.clone()), reason: "why".into() };
        assert_eq!(of(&poison, &[letter], Some(8), None), State::DeadLettered("why".into()));
    }
}
