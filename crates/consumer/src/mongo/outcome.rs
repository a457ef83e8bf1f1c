//! What became of a batch: each of its events is counted, rejected or unfinished, and only one of these.

/// What [`Store::apply`](super::store::Store::apply) did. Each index of its events is told exactly once: inside `counts`, in
/// `rejected`, or in `unfinished`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Events that are finished: written with the write concern, or superseded.
    pub counts: Counts,
    /// Events that the server will never take, by ascending index.
    pub rejected: Vec<Rejected>,
    /// Indexes of events that are to be tried again, ascending.
    pub unfinished: Vec<usize>,
    /// Those of `unfinished` that the server refused with a code that is in no list of ours, by
    /// themselves or alone in a command, so that nobody can say whether waiting helps.
    pub strange: Vec<Rejected>,
    /// Why `unfinished` is not empty.
    pub trouble: Option<Trouble>,
    /// All events that were written to the collection so far, by whoever shares the store.
    pub written: u64,
}

/// How the finished events ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// A new document.
    pub inserted: u64,
    /// A document that changed.
    pub updated: u64,
    /// A document that was the same already, as after a replay.
    pub unchanged: u64,
    /// The stored document is newer and stays.
    pub stale: u64,
}

impl Counts {
    /// All finished events.
    pub fn total(&self) -> u64 {
        self.inserted + self.updated + self.unchanged + self.stale
    }
}

/// An event that can never be stored as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Which of the events.
    pub index: usize,
    /// The server's error code.
    pub code: i32,
    /// The code's name, as in `DocumentValidationFailure`.
    pub class: String,
    /// The server's words. They may quote values of the document, so they belong into a dead letter, not into a log.
    pub reason: String,
}

/// Why events are unfinished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// The cause in words, without values of documents.
    pub reason: String,
    /// A deadline passed: a smaller batch may fit into it, or more time help.
    pub timed_out: bool,
}

impl Trouble {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), timed_out: false }
    }
}

impl Applied {
    /// Nothing was tried: all `events` are unfinished.
    pub(super) fn nothing(events: usize, trouble: Trouble) -> Self {
        Self { unfinished: (0..events).collect(), trouble: Some(trouble), ..Self::default() }
    }
}
