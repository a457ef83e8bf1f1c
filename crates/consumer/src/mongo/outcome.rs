//! The outcome of a batch: each of its events is counted, rejected or unfinished, and only one of
//! these.

use super::error::TransientError;

/// The result of [`Store::apply`](super::store::Store::apply). Each index of an event appears
/// exactly once: within `counts`, in `rejected` or in `unfinished`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct BatchOutcome {
    /// Finished events: written with the write concern, or superseded.
    pub counts: Counts,
    /// Events that the server will never accept, by ascending index.
    pub rejected: Vec<Rejected>,
    /// Indexes of the events to retry, ascending.
    pub unfinished: Vec<usize>,
    /// The events of `unfinished` that the server rejected with an unlisted code, in a statement or
    /// a command of their own. Whether a retry helps is unknown.
    pub unlisted: Vec<Rejected>,
    /// Why `unfinished` is not empty.
    pub error: Option<TransientError>,
    /// Events written to the collection so far, by all users of the store.
    pub written: u64,
}

/// Finished events by outcome.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// The document is new.
    pub inserted: u64,
    /// The document changed.
    pub updated: u64,
    /// The document was the same already, as after a replay.
    pub unchanged: u64,
    /// The stored document is newer and was kept.
    pub superseded: u64,
}

impl Counts {
    /// The number of finished events.
    pub fn total(&self) -> u64 {
        self.inserted + self.updated + self.unchanged + self.superseded
    }
}

/// An event that the server rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The index of the event in its batch.
    pub index: usize,
    /// The server's error code.
    pub code: i32,
    /// The name of the code, such as `DocumentValidationFailure`.
    pub code_name: String,
    /// The server's message. It may quote values of the document, so it belongs into a dead letter
    /// and not into a log.
    pub reason: String,
}

impl BatchOutcome {
    /// No event was written: all `events` are unfinished.
    pub(super) fn unfinished(events: usize, error: TransientError) -> Self {
        Self { unfinished: (0..events).collect(), error: Some(error), ..Self::default() }
    }
}
