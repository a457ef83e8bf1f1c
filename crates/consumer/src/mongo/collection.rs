//! A collection that was written to. It is ready once the server confirmed its unique
//! index. Workers that need the same collection wait for one attempt; other collections are not
//! delayed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bson::RawDocument;
use service::tasks::lock;
use service::time::Backoff;
use sources::deletes_collection;

use super::connection::Connection;
use super::error::{CallError, TransientError};
use super::index::{IndexSpec, indexes_of};
use super::key::UpsertKeys;
use crate::configured_sources::SourceStore;

/// Time between two confirmations of the indexes. An operator can drop an index while the consumer
/// runs; it is then built again before the next write.
const INDEX_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// A build without a reply is reported after this time. The build on an empty collection takes
/// less.
const BUILD_REPORT_DELAY: Duration = Duration::from_secs(1);

/// A blocked collection is reported for this time after the last attempt of a worker. A waiting
/// worker retries every second.
const BLOCK_REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum backoff of an index build that fails, because each build reads the whole collection.
const MAX_BUILD_BACKOFF: Duration = Duration::from_secs(30);

/// Maximum deadline of an index build. It doubles after each timeout.
const MAX_BUILD_DEADLINE: Duration = Duration::from_secs(3600);

/// InvalidNamespace: the server rejects the name of the database or of the collection.
const INVALID_NAMESPACE: i32 = 73;
/// DatabaseDifferCase: a database with the same name in another case exists.
const DATABASE_DIFFER_CASE: i32 = 13297;
/// CommandNotSupportedOnView.
const NOT_SUPPORTED_ON_VIEW: i32 = 166;

/// The collection of a command, and how the command is sent.
#[derive(Clone, Copy)]
pub(super) struct CallContext<'a> {
    pub(super) connection: &'a Connection,
    pub(super) keys: &'a UpsertKeys,
    /// The write concern of the URI.
    pub(super) write_concern: &'a RawDocument,
    pub(super) collection: &'a Collection,
    /// Maximum bytes of a command with several events.
    pub(super) command_bytes: usize,
    pub(super) deadline: Duration,
}

/// One collection.
#[derive(Debug, Default)]
pub(super) struct Collection {
    pub(super) name: String,
    /// The fields that identify a document.
    pub(super) keys: UpsertKeys,
    /// The indexes of the sources file.
    pub(super) extra_indexes: Vec<IndexSpec>,
    /// Whether the sources file has the collection, which must then have been written under the
    /// same keys.
    pub(super) is_configured: bool,
    /// Where deletes are remembered, if events of the collection delete.
    pub(super) tombstones: Option<TombstoneStore>,
    state: Mutex<CollectionState>,
    index_lock: tokio::sync::Mutex<IndexAttempts>,
}

/// The collection that has the tombstones of another one.
#[derive(Debug)]
pub(super) struct TombstoneStore {
    pub(super) name: String,
    /// How long a tombstone is kept after it was written.
    pub(super) kept_for: Duration,
}

impl TombstoneStore {
    pub(super) fn kept_ms(&self) -> i64 {
        i64::try_from(self.kept_for.as_millis()).unwrap_or(i64::MAX)
    }
}

#[derive(Debug, Default)]
pub(super) struct CollectionState {
    /// When the indexes were last confirmed.
    confirmed_at: Option<Instant>,
    /// Why they cannot be built.
    blocked: Option<String>,
    /// Why writes are rejected although the indexes were confirmed.
    writes_rejected: Option<String>,
    /// Why commands of deletes are rejected, by collection and command.
    deletes_rejected: BTreeMap<(String, &'static str), String>,
    /// The index whose build has no reply yet, and the time of the call.
    building: Option<(Instant, String)>,
    /// The number of workers that wait for the indexes.
    waiting: usize,
    /// When a worker last needed the indexes.
    last_needed: Option<Instant>,
    /// A look-up index that failed is not built again, because each attempt reads the whole
    /// collection.
    pub(super) lookup_indexes_given_up: bool,
    /// The collections and names of extra indexes that failed, for the same reason.
    pub(super) extra_indexes_given_up: BTreeSet<(String, String)>,
    /// Whether several events of a key may be merged into one write. They may not if the collection
    /// has rules by which the server could reject one of the events and accept another.
    pub(super) merges_events: bool,
    /// The number of written events.
    written: u64,
    /// Decides which command is sent first.
    pub(super) write_strategy: WriteStrategy,
}

/// Counts a worker as waiting until it is dropped.
struct WaitingGuard<'a>(&'a Collection);

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        let mut status = self.0.state();
        status.waiting -= 1;
        status.last_needed = Some(Instant::now());
    }
}

/// Attempts to have the indexes ready. The index lock around it lets one attempt run at a time.
#[derive(Debug)]
struct IndexAttempts {
    backoff: Backoff,
    doublings: u32,
    failed: Option<(Instant, NotReady)>,
    not_before: Option<Instant>,
}

impl Default for IndexAttempts {
    fn default() -> Self {
        let backoff = Backoff::new(Duration::from_secs(1), MAX_BUILD_BACKOFF);
        Self { backoff, doublings: 0, failed: None, not_before: None }
    }
}

/// Why a collection is not ready.
#[derive(Debug, Clone)]
pub(super) enum NotReady {
    /// A transient error: retry with the batch.
    Transient(TransientError),
    /// An index is being built: the records wait.
    Building(String),
    /// An operator has to act: the cause and the remedy.
    Blocked(String),
}

impl From<NotReady> for TransientError {
    fn from(not_ready: NotReady) -> Self {
        match not_ready {
            NotReady::Transient(error) => error,
            NotReady::Building(reason) | NotReady::Blocked(reason) => Self::new(reason),
        }
    }
}

impl CollectionState {
    /// No index is being built that writes wait for.
    pub(super) fn index_build_ended(&mut self) {
        self.building = None;
    }
}

impl Collection {
    pub(super) fn new(store: SourceStore) -> Self {
        let extra_indexes = indexes_of(&store);
        let SourceStore { collection, keys, tombstones, is_configured, .. } = store;
        let name = deletes_collection(&collection);
        let tombstones = tombstones.map(|kept_for| TombstoneStore { name, kept_for });
        Self { name: collection, keys, extra_indexes, is_configured, tombstones, ..Self::default() }
    }

    /// Runs `attempt` unless the indexes were confirmed lately. Its arguments are the deadline of a
    /// build, and whether the previous attempt succeeded.
    pub(super) async fn ensure_indexes<F>(
        &self,
        deadline: Duration,
        attempt: impl FnOnce(Duration, bool) -> F,
    ) -> Result<(), TransientError>
    where
        F: Future<Output = Result<(), NotReady>>,
    {
        let called_at = Instant::now();
        if self.is_confirmed(called_at) {
            return Ok(());
        }
        self.state().waiting += 1;
        let _waiting = WaitingGuard(self);
        let mut attempts = self.index_lock.lock().await;
        let now = Instant::now();
        if self.is_confirmed(now) {
            return Ok(());
        }
        if let Some((failed_at, not_ready)) = &attempts.failed
            && (*failed_at > called_at || attempts.not_before.is_some_and(|not_before| now < not_before))
        {
            return Err(not_ready.clone().into());
        }
        let build_deadline = deadline.saturating_mul(1 << attempts.doublings.min(16)).min(MAX_BUILD_DEADLINE);
        let confirmed = {
            let mut status = self.state();
            if attempts.doublings == 0 {
                // An attempt that was aborted did not reset this.
                status.building = None;
            }
            status.confirmed_at.is_some()
        };
        match attempt(build_deadline.max(deadline), confirmed).await {
            Ok(()) => {
                if attempts.doublings > 0 {
                    tracing::info!(collection = self.name, "index build finished");
                }
                *attempts = IndexAttempts::default();
                let mut status = self.state();
                status.confirmed_at = Some(Instant::now());
                (status.blocked, status.building) = (None, None);
                Ok(())
            }
            Err(not_ready) => {
                self.record_failure(&mut attempts, &not_ready);
                Err(not_ready.into())
            }
        }
    }

    fn record_failure(&self, attempts: &mut IndexAttempts, not_ready: &NotReady) {
        attempts.failed = Some((Instant::now(), not_ready.clone()));
        attempts.not_before = None;
        let mut status = self.state();
        match not_ready {
            NotReady::Building(reason) => {
                if attempts.doublings == 0 {
                    tracing::warn!(reason, "records wait for an index build");
                }
                attempts.doublings += 1;
                (status.confirmed_at, status.blocked) = (None, None);
            }
            NotReady::Transient(_) => status.building = None,
            NotReady::Blocked(reason) => {
                attempts.not_before = Some(Instant::now() + attempts.backoff.next_delay());
                (status.confirmed_at, status.building) = (None, None);
                if status.blocked.replace(reason.clone()).is_none() {
                    tracing::error!(reason, "collection is blocked");
                }
            }
        }
    }

    /// Records that `createIndexes` was sent for this index.
    pub(super) fn index_build_requested(&self, index: &str) {
        let mut status = self.state();
        if status.building.as_ref().is_none_or(|(_, building)| building != index) {
            status.building = Some((Instant::now(), index.to_owned()));
        }
    }

    /// Records a rejection that means that the server accepts no writes to this namespace.
    pub(super) fn note_rejection(&self, code: i32, message: &str) {
        let Some(reason) = namespace_rejection(&self.name, code, message) else { return };
        let mut status = self.state();
        (status.confirmed_at, status.last_needed) = (None, Some(Instant::now()));
        if status.writes_rejected.replace(reason.clone()).is_none() {
            tracing::error!(reason, "collection is blocked");
        }
    }

    /// Calls [`Collection::note_rejection`] for a call that the server rejected.
    pub(super) fn note_error(&self, error: &CallError) {
        if let CallError::Rejected(error) = error {
            self.note_rejection(error.code, &error.message);
        }
    }

    /// Records an error of a command of deletes that an operator has to remove: a missing right, or
    /// the name or the kind of the collection.
    pub(super) fn note_delete_error(
        &self,
        name: &str,
        command: &'static str,
        error: &CallError,
        database: &str,
    ) {
        let reason = match error {
            CallError::Unauthorized(why) => Some(missing_right(name, command, why, database)),
            CallError::Rejected(error) => namespace_rejection(name, error.code, &error.message),
            _ => None,
        };
        let Some(reason) = reason else { return };
        let mut status = self.state();
        status.last_needed = Some(Instant::now());
        if !matches!(error, CallError::Unauthorized(_)) {
            status.confirmed_at = None;
        }
        if status.deletes_rejected.insert((name.to_owned(), command), reason.clone()).is_none() {
            tracing::error!(reason, "collection is blocked");
        }
    }

    /// Records that a command of deletes was accepted.
    pub(super) fn delete_accepted(&self, name: &str, command: &'static str) {
        let mut status = self.state();
        if !status.deletes_rejected.is_empty() {
            status.deletes_rejected.remove(&(name.to_owned(), command));
        }
    }

    /// Why the records of workers wait.
    pub(super) fn block_reason(&self, now: Instant) -> Option<String> {
        let status = self.state();
        let needed_lately = status
            .last_needed
            .is_some_and(|needed| now.saturating_duration_since(needed) < BLOCK_REPORT_TIMEOUT);
        if status.waiting == 0 && !needed_lately {
            return None;
        }
        let rejected = status.writes_rejected.as_ref().or(status.deletes_rejected.values().next());
        let blocked = status.blocked.as_ref().or(rejected).cloned();
        blocked.or_else(|| {
            let (since, index) = status.building.as_ref()?;
            let elapsed = now.saturating_duration_since(*since);
            (elapsed >= BUILD_REPORT_DELAY).then(|| build_in_progress(&self.name, index, elapsed))
        })
    }

    fn is_confirmed(&self, now: Instant) -> bool {
        self.state().confirmed_at.is_some_and(|at| now.saturating_duration_since(at) < INDEX_CHECK_INTERVAL)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, CollectionState> {
        lock(&self.state)
    }

    /// Adds to the number of written events and returns the sum.
    pub(super) fn add_written(&self, events: u64) -> u64 {
        let mut state = self.state();
        if events > 0 {
            state.writes_rejected = None;
        }
        state.written += events;
        state.written
    }
}

fn build_in_progress(collection: &str, index: &str, elapsed: Duration) -> String {
    format!(
        "collection {collection}: writes are paused: index {index} is being built (no reply to createIndexes for {} s)",
        elapsed.as_secs()
    )
}

/// The reason and the remedy if `code` means that the server accepts no writes to this namespace.
pub(super) fn namespace_rejection(collection: &str, code: i32, message: &str) -> Option<String> {
    let cause = match code {
        INVALID_NAMESPACE | DATABASE_DIFFER_CASE => "the server rejects its name",
        NOT_SUPPORTED_ON_VIEW => "it is a view",
        _ => return None,
    };
    Some(cannot_be_written(collection, &format!("{cause} ({message})")))
}

/// The reason and the remedy for a collection whose kind or name does not allow writes.
pub(super) fn cannot_be_written(collection: &str, cause: &str) -> String {
    format!(
        "collection {collection}: writes are paused: {cause}. Rename or drop it, set another MONGODB_DB, or leave the \
         source out of EXPECTED_SOURCE, which skips its records"
    )
}

/// The reason and the remedy if the user may not send `command` to the collection.
fn missing_right(collection: &str, command: &str, why: &str, database: &str) -> String {
    format!(
        "collection {collection}: writes are paused: the user of MONGODB_URI may not send {command} to it ({why}). Grant \
         the user the role readWrite on the database {database}"
    )
}

/// Updates are sent first while the share of existing documents is above this value.
const UPDATES_FIRST_ABOVE: f64 = 0.75;
/// Inserts are sent first again below this value. Between the two values, inserts first and updates
/// first cost about the same (figures:
/// `docs/adr/0001-choose-the-first-command-by-recent-replies.md`).
const INSERTS_FIRST_BELOW: f64 = 0.5;
/// So many events have the same weight as all events before them.
const MEMORY_EVENTS: f64 = 500.0;

/// The write strategy of a collection: whether updates or inserts are sent first. It follows the
/// share of events that found an existing document. It changes only the cost of a batch, never its
/// outcome.
#[derive(Debug, Default)]
pub(super) struct WriteStrategy {
    existing_share: f64,
    /// Whether the document of an event is more likely to exist.
    pub(super) updates_first: bool,
}

impl WriteStrategy {
    /// Adds the observation that `existing` of `events` found a document. Nothing was known of
    /// these documents.
    pub(super) fn observe(&mut self, existing: usize, events: usize) {
        if events == 0 {
            return;
        }
        let share = existing as f64 / events as f64;
        let weight = events as f64 / (events as f64 + MEMORY_EVENTS);
        self.existing_share += (share - self.existing_share) * weight;
        let threshold = if self.updates_first { INSERTS_FIRST_BELOW } else { UPDATES_FIRST_ABOVE };
        self.updates_first = self.existing_share > threshold;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strategy_follows_the_majority_and_few_events_do_not_change_it() {
        let mut strategy = WriteStrategy::default();
        assert!(!strategy.updates_first, "inserts first by default");
        strategy.observe(0, 0);
        for _ in 0..3 {
            strategy.observe(1000, 1000);
        }
        assert!(strategy.updates_first);
        strategy.observe(0, 100);
        assert!(strategy.updates_first);
        for _ in 0..3 {
            strategy.observe(0, 1000);
        }
        assert!(!strategy.updates_first);
        (0..5000).for_each(|_| strategy.observe(1, 1));
        assert!(strategy.updates_first, "single events count as well");
    }
}
