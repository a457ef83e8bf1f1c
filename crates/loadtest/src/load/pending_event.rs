//! An event that has no final outcome yet: each attempt has the same id and the same body. The
//! outcomes of its attempts are recorded here.

use super::response::{AttemptOutcome, Receipt};
use crate::ledger::{Header, Line, Outcome, hash, id_of};
use crate::workload::Event;

/// An event and its attempts so far.
#[derive(Debug, Clone)]
pub struct PendingEvent {
    /// The event.
    pub event: Event,
    /// Its id.
    pub id: String,
    /// The request body of each attempt.
    pub body: String,
    hash: String,
    attempts: u32,
    status: Option<u16>,
    unconfirmed: Vec<i64>,
    interrupted: Vec<i64>,
}

impl PendingEvent {
    /// Generates the body of an event; nothing is sent.
    pub fn new(header: &Header, event: Event) -> Self {
        let text = header.workload.payload(event.n).text;
        let hash = hash(&text);
        let id = id_of(&header.run, event.key);
        // Neither ids nor sources contain characters that JSON escapes.
        let body = format!(
            r#"{{"id":"{id}","timestamp":{},"source":"{}","payload":{text}}}"#,
            event.timestamp, header.source
        );
        let (unconfirmed, interrupted) = (Vec::new(), Vec::new());
        Self { event, id, body, hash, attempts: 0, status: None, unconfirmed, interrupted }
    }

    /// Records an attempt that ended at `now_ms`.
    pub fn record_attempt(&mut self, status: Option<u16>, outcome: &AttemptOutcome, now_ms: i64) {
        self.attempts += 1;
        self.status = status;
        match (outcome, status) {
            (AttemptOutcome::Unknown, Some(504)) => self.unconfirmed.push(now_ms),
            (AttemptOutcome::Unknown, _) => self.interrupted.push(now_ms),
            _ => {}
        }
    }

    /// Makes the ledger line of an event in its final state. `receipt` is that of a 202.
    pub fn into_line(self, receipt: Option<Receipt>) -> Line {
        let may_be_stored = !(self.unconfirmed.is_empty() && self.interrupted.is_empty());
        let outcome = match (&receipt, may_be_stored) {
            (Some(_), _) => Outcome::Accepted,
            (None, true) => Outcome::Unknown,
            (None, false) => Outcome::Rejected,
        };
        let partition = receipt.as_ref().map(|receipt| receipt.partition);
        let Receipt { ingested_at, topic, offset, .. } = receipt.unwrap_or_default();
        Line {
            n: self.event.n,
            id: self.id,
            timestamp: self.event.timestamp,
            ingested_at,
            hash: self.hash,
            outcome,
            status: self.status,
            topic,
            partition,
            offset,
            attempts: self.attempts,
            unconfirmed: self.unconfirmed,
            interrupted: self.interrupted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{Events, Workload};

    fn pending() -> PendingEvent {
        let workload = Workload { seed: 1, keys: 3, superseded_ppm: 0, hostile_ppm: 0 };
        let header =
            Header { run: "r".into(), source: "s".into(), started_at: 0, workload, api_version: None };
        PendingEvent::new(&header, Events::new(workload).next().unwrap())
    }

    #[test]
    fn a_rejection_after_an_unknown_outcome_leaves_the_outcome_unknown() {
        let mut event = pending();
        event.record_attempt(Some(504), &AttemptOutcome::Unknown, 5);
        event.record_attempt(None, &AttemptOutcome::Unknown, 6);
        event.record_attempt(Some(413), &AttemptOutcome::Rejected, 7);
        let line = event.clone().into_line(None);
        assert_eq!((line.outcome, line.status, line.attempts), (Outcome::Unknown, Some(413), 3));
        assert_eq!((line.unconfirmed, line.interrupted), (vec![5], vec![6]));
        assert_eq!(event.into_line(Some(Receipt::default())).outcome, Outcome::Accepted);
    }

    #[test]
    fn an_event_that_no_attempt_can_have_stored_is_rejected() {
        let mut event = pending();
        event.record_attempt(Some(503), &AttemptOutcome::Retryable, 5);
        event.record_attempt(None, &AttemptOutcome::Retryable, 6);
        let line = event.into_line(None);
        assert_eq!((line.outcome, line.status, line.partition), (Outcome::Rejected, None, None));
        assert_eq!(line.hash.len(), 64);
    }
}
