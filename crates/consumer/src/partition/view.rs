//! What health, metrics and the lag's follower see of a lane.

use std::sync::Arc;
use std::time::Duration;

use crate::kafka::record::Record;
use crate::partition::progress::Progress;
use crate::partition::queue::{Bound, Inbox};

/// A lane, as one sees it from outside.
#[derive(Debug, Clone)]
pub struct View {
    /// How far it has come.
    pub progress: Arc<Progress>,
    /// What it has yet to take in hand.
    pub inbox: Arc<Inbox>,
}

impl View {
    /// A record comes; whether the inbox's bound is reached.
    pub fn push(&self, record: Record, bound: Bound) -> bool {
        self.progress.read(record.offset);
        self.inbox.push(record, bound, || self.progress.wakes())
    }

    /// For how long, at `now`, nothing was finished while records wait; `None` if none does.
    pub fn still_for(&self, now: std::time::Instant) -> Option<Duration> {
        (self.progress.in_hand() > 0 || self.inbox.len() > 0).then(|| self.progress.still_for(now))
    }
}
