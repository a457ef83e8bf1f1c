//! An event on its way: the same id and the same body in every attempt, and what the attempts came to.

use sha2::{Digest, Sha256};

use super::answer::{Outcome, Place};
use super::event::Event;
use super::ledger::{Answer, Header, Line};

/// The event and its attempts so far.
#[derive(Debug, Clone)]
pub struct Sending {
    /// The event.
    pub event: Event,
    /// Its id.
    pub id: String,
    /// What is sent, each time.
    pub body: String,
    hash: String,
    attempts: u32,
    status: Option<u16>,
    unconfirmed: Vec<i64>,
    cut: Vec<i64>,
}

/// The id of a key.
pub fn id_of(run: &str, key: u64) -> String {
    format!("{run}-{key}")
}

/// SHA-256 in hex.
pub fn hex(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Sending {
    /// Not sent yet.
    pub fn new(header: &Header, event: Event) -> Self {
        let text = header.mix.payload(event.n).text;
        let hash = hex(&text);
        let id = id_of(&header.run, event.key);
        // Neither an id nor a source has a character that JSON escapes.
        let body = format!(
            r#"{{"id":"{id}","timestamp":{},"source":"{}","payload":{text}}}"#,
            event.timestamp, header.source
        );
        Self { event, id, body, hash, attempts: 0, status: None, unconfirmed: Vec::new(), cut: Vec::new() }
    }

    /// An attempt ended at `now_ms`.
    pub fn note(&mut self, status: Option<u16>, outcome: &Outcome, now_ms: i64) {
        self.attempts += 1;
        self.status = status;
        match (outcome, status) {
            (Outcome::Unknown, Some(504)) => self.unconfirmed.push(now_ms),
            (Outcome::Unknown, _) => self.cut.push(now_ms),
            _ => {}
        }
    }

    /// Nothing more is done for it: its line. `place` is what a 202 said.
    pub fn finish(self, place: Option<Place>) -> Line {
        let maybe_stored = !(self.unconfirmed.is_empty() && self.cut.is_empty());
        let answer = match (&place, maybe_stored) {
            (Some(_), _) => Answer::Accepted,
            (None, true) => Answer::Unknown,
            (None, false) => Answer::Refused,
        };
        let partition = place.as_ref().map(|place| place.partition);
        let Place { ingested_at, topic, offset, .. } = place.unwrap_or_default();
        Line {
            n: self.event.n,
            id: self.id,
            timestamp: self.event.timestamp,
            ingested_at,
            hash: self.hash,
            answer,
            status: self.status,
            topic,
            partition,
            offset,
            attempts: self.attempts,
            unconfirmed: self.unconfirmed,
            cut: self.cut,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::{Events, Mix};
    use super::*;

    fn sending() -> Sending {
        let mix = Mix { seed: 1, keys: 3, stale_ppm: 0, hostile_ppm: 0 };
        let header = Header { run: "r".into(), source: "s".into(), started_at: 0, mix, api_version: None };
        Sending::new(&header, Events::new(mix).next())
    }

    #[test]
    fn an_attempt_that_may_have_stored_it_is_not_forgotten_by_a_later_refusal() {
        let mut one = sending();
        one.note(Some(504), &Outcome::Unknown, 5);
        one.note(None, &Outcome::Unknown, 6);
        one.note(Some(413), &Outcome::Refused, 7);
        let line = one.clone().finish(None);
        assert_eq!((line.answer, line.status, line.attempts), (Answer::Unknown, Some(413), 3));
        assert_eq!((line.unconfirmed, line.cut), (vec![5], vec![6]));
        assert_eq!(one.finish(Some(Place::default())).answer, Answer::Accepted);
    }

    #[test]
    fn an_event_that_nobody_can_have_stored_is_refused() {
        let mut one = sending();
        one.note(Some(503), &Outcome::Later, 5);
        one.note(None, &Outcome::Later, 6);
        let line = one.finish(None);
        assert_eq!((line.answer, line.status, line.partition), (Answer::Refused, None, None));
        assert_eq!(line.hash.len(), 64);
    }
}
