//! Writes events to MongoDB, one collection per source. [`Store`] is the only entry point of the
//! write path.
//!
//! Guarantees: a document changes only if the event's `(event_timestamp, ingested_at)` is not lower
//! than the stored pair (G3). An event is finished only if a reply confirmed it with the write
//! concern of the URI (G2). Every error of the server or the network becomes part of a
//! [`BatchOutcome`], which accounts for each event once.

mod collection;
mod command;
mod connection;
mod deletes;
mod error;
mod index;
mod index_build;
pub(crate) mod key;
mod plan;
mod reply;
mod uri;
mod write;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bson::RawDocumentBuf;
use events::{Source, StorableEvent};
use futures::future::join_all;
use service::Secret;
use service::tasks::lock;
use service::time::Backoff;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use collection::{CallContext, Collection};
use connection::Connection;
use deletes::write_with_deletes;
use index_build::IndexBuild;
use write::write_batch;

use crate::configured_sources::ExpectedSources;

pub use connection::{StoreState, read_hello};
pub use error::TransientError;
pub use index::{
    IndexState, index_state, missing_extra_indexes, needed_indexes, partial_filter, written_under_other_keys,
};
pub use key::UpsertKeys;
pub use reply::{BatchOutcome, Counts, Rejected};
pub use uri::{check_uri, ignored_options, usable_uri, write_concern};

/// Deadline of one call to the server.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// The deadline of a write is at most `2^MAX_DOUBLINGS` times the deadline of a call.
pub const MAX_DOUBLINGS: u32 = 6;

/// Maximum time between two attempts to prepare a collection. It is below the time for which a
/// blocked collection is reported.
const PREPARE_INTERVAL: Duration = Duration::from_secs(3);

/// When tombstones are examined again.
#[derive(Debug, Clone, Copy)]
pub struct RecheckTimes {
    /// Time between two examinations.
    pub interval: Duration,
    /// Ages at which a tombstone is examined. A command that was sent before the tombstone was
    /// written has usually ended at the first age. At the second, the time limit of the longest
    /// command has passed.
    pub ages: [Duration; 2],
    /// How old a tombstone may be that a consumer examines after its start.
    pub history: Duration,
}

impl Default for RecheckTimes {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            ages: [Duration::from_secs(30), Duration::from_mins(15)],
            history: Duration::from_hours(1),
        }
    }
}

/// Where events are stored, and by which keys.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The connection string, checked by [`check_uri`].
    pub uri: Secret,
    /// The database. Its collections are named after the sources.
    pub database: String,
    /// The fields that identify a document.
    pub upsert_keys: UpsertKeys,
    /// Maximum bytes of a command with several records.
    pub batch_max_bytes: usize,
}

/// The connection string is invalid.
#[derive(Debug, thiserror::Error)]
#[error("the MongoDB URI {0}")]
pub struct StoreSetupError(String);

/// The database. Clones share its state.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    connection: Connection,
    /// The collections that were written to.
    collections: Mutex<BTreeMap<Source, Arc<Collection>>>,
    /// UPSERT_KEYS.
    keys: UpsertKeys,
    /// Where and how each source is stored.
    expected: ExpectedSources,
    write_concern: RawDocumentBuf,
    command_bytes: usize,
    deadline: Duration,
}

impl Store {
    /// Creates a store whose calls have this `deadline`. The server may be unavailable.
    ///
    /// # Errors
    /// [`check_uri`] rejects the connection string.
    pub fn new(config: StoreConfig, deadline: Duration) -> Result<Self, StoreSetupError> {
        Self::with_sources(config, deadline, ExpectedSources::All)
    }

    /// As [`Store::new`], with the collections, keys and indexes of a sources file.
    ///
    /// # Errors
    /// [`check_uri`] rejects the connection string.
    pub fn with_sources(
        config: StoreConfig,
        deadline: Duration,
        expected: ExpectedSources,
    ) -> Result<Self, StoreSetupError> {
        let uri = check_uri(config.uri.expose()).map_err(StoreSetupError)?;
        for option in ignored_options(&uri) {
            tracing::warn!(option, "mongodb uri option ignored");
        }
        let inner = Inner {
            write_concern: write_concern(&uri).map_err(StoreSetupError)?,
            connection: Connection::new(uri, config.database),
            collections: Mutex::default(),
            keys: config.upsert_keys,
            expected,
            command_bytes: config.batch_max_bytes.min(command::MAX_COMMAND_BYTES),
            deadline,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Writes `events` of one source as if one after another in this order. The deadline of each
    /// command is doubled `doublings` times.
    pub async fn apply(&self, source: &Source, events: &[&StorableEvent], doublings: u32) -> BatchOutcome {
        if events.is_empty() {
            return BatchOutcome::default();
        }
        let deadline = self.inner.deadline;
        let collection = self.collection(source);
        if let Err(error) = self.ensure_indexes(&collection).await {
            // Nothing was written, so neither a smaller batch nor more time would help.
            return BatchOutcome::unfinished(events.len(), TransientError { timed_out: false, ..error });
        }
        let write_deadline = deadline.saturating_mul(1 << doublings.min(MAX_DOUBLINGS));
        let context = self.context(&collection, write_deadline);
        let mut outcome = match &collection.tombstones {
            None => write_batch(context, events).await,
            Some(tombstones) => write_with_deletes(context, tombstones, events).await,
        };
        outcome.written = collection.add_written(outcome.counts.total());
        outcome
    }

    async fn ensure_indexes(&self, collection: &Collection) -> Result<(), TransientError> {
        let deadline = self.inner.deadline;
        let attempt = |build_deadline, confirmed| {
            IndexBuild { context: self.context(collection, deadline), confirmed, build_deadline }.run()
        };
        collection.ensure_indexes(deadline, attempt).await
    }

    /// Prepares the collections of the sources file until `stop`, before their first events: checks
    /// the keys that they were written under, and builds their indexes. Each is tried until it is
    /// ready. [`Store::blocked`] meanwhile has the reason.
    pub async fn prepare(&self, stop: CancellationToken) {
        let Some(configured) = self.inner.expected.configured() else {
            return stop.cancelled().await;
        };
        let collections = configured.stored().map(|source| async move {
            let collection = self.collection(source);
            let mut backoff = Backoff::new(Duration::from_secs(1), PREPARE_INTERVAL);
            loop {
                // An outage is reported once, and the checks of all collections wait for its end.
                let mut state = self.state();
                if state.wait_for(|state| *state == StoreState::Ready).await.is_err() {
                    return;
                }
                if self.ensure_indexes(&collection).await.is_ok() {
                    return;
                }
                tokio::time::sleep(backoff.next_delay()).await;
            }
        });
        stop.run_until_cancelled(join_all(collections)).await;
        stop.cancelled().await;
    }

    /// Examines recent tombstones of each source once more, until `stop`. A consumer that was killed
    /// or lost its connection leaves commands that the server applies later, when nobody reads the
    /// tombstones after them.
    pub async fn watch_deletes(&self, times: RecheckTimes, stop: CancellationToken) {
        let stored = self.inner.expected.configured().into_iter().flat_map(|sources| sources.stored());
        let collections: Vec<_> = stored.map(|source| self.collection(source)).collect();
        let with_deletes = collections.iter().filter(|collection| collection.tombstones.is_some());
        let watches = with_deletes.map(|collection| self.watch_deletes_of(collection, times));
        stop.run_until_cancelled(join_all(watches)).await;
        stop.cancelled().await;
    }

    async fn watch_deletes_of(&self, collection: &Collection, times: RecheckTimes) {
        let before = |now: i64, age: Duration| now.saturating_sub_unsigned(age.as_millis() as u64);
        // The ends of the windows that were examined, by the server's clock.
        let mut examined = times.ages.map(|_| None);
        loop {
            tokio::time::sleep(times.interval).await;
            let mut state = self.state();
            if state.wait_for(|state| *state == StoreState::Ready).await.is_err() {
                return;
            }
            let hello = self.inner.connection.hello(self.inner.deadline).await;
            let Some(now) = hello.ok().and_then(|hello| hello.get_datetime("localTime").ok().copied()) else {
                continue;
            };
            for (examined, age) in examined.iter_mut().zip(times.ages) {
                let end = before(now.timestamp_millis(), age);
                let start = examined.unwrap_or_else(|| before(end, times.history));
                if self.recheck_deletes(collection, start..end).await.is_ok() {
                    *examined = Some(end);
                }
            }
        }
    }

    async fn recheck_deletes(
        &self,
        collection: &Collection,
        written: Range<i64>,
    ) -> Result<(), TransientError> {
        let Some(tombstones) = &collection.tombstones else { return Ok(()) };
        let context = self.context(collection, self.inner.deadline);
        let rechecked = deletes::recheck(context, tombstones, written).await?;
        let collection = &collection.name;
        if rechecked.removed > 0 {
            let documents = rechecked.removed;
            tracing::warn!(collection, documents, "documents of abandoned writes removed");
        }
        if rechecked.kept > 0 {
            let documents = rechecked.kept;
            tracing::error!(collection, documents, "documents of abandoned writes cannot be removed");
        }
        Ok(())
    }

    /// Examines all tombstones of `source` once more. Returns whether that succeeded.
    pub async fn recheck_all_deletes(&self, source: &Source) -> bool {
        self.recheck_deletes(&self.collection(source), 0..i64::MAX).await.is_ok()
    }

    /// Whether the server accepts a write to the collection of `source` now. The write changes
    /// nothing.
    pub async fn takes_writes(&self, source: &Source) -> bool {
        let collection = self.collection(source);
        self.context(&collection, self.inner.deadline).accepts_writes().await
    }

    fn collection(&self, source: &Source) -> Arc<Collection> {
        let mut collections = lock(&self.inner.collections);
        if let Some(collection) = collections.get(source) {
            return Arc::clone(collection);
        }
        let store = self.inner.expected.store_of(source, &self.inner.keys);
        let collection = Arc::new(Collection::new(store));
        collections.insert(source.clone(), Arc::clone(&collection));
        collection
    }

    fn context<'a>(&'a self, collection: &'a Collection, deadline: Duration) -> CallContext<'a> {
        CallContext {
            connection: &self.inner.connection,
            keys: &collection.keys,
            write_concern: &self.inner.write_concern,
            collection,
            command_bytes: self.inner.command_bytes,
            deadline,
        }
    }

    /// Whether the server replied to the last `hello`, even if a command failed.
    pub fn server_answers(&self) -> bool {
        self.inner.connection.state.answers()
    }

    /// The state of the server, and each change of it.
    pub fn state(&self) -> watch::Receiver<StoreState> {
        self.inner.connection.state.subscribe()
    }

    /// Sends `hello` every second until `stop`. Without it, only writes update the state.
    pub async fn watch(&self, stop: CancellationToken) {
        self.inner.connection.watch(stop).await;
    }

    /// The collections that accept no writes, each with the cause and the remedy: an index is being
    /// built, or an operator has to act.
    pub fn blocked(&self) -> Vec<String> {
        let now = Instant::now();
        let collections = lock(&self.inner.collections);
        collections.values().filter_map(|collection| collection.block_reason(now)).collect()
    }
}
