//! Events into MongoDB, one collection a source.
//!
//! Guarantee: a document changes only if the event's `(event_timestamp, ingested_at)` is not lower than the stored one
//! (G3), and an event is told as finished only if a reply said so under the write concern of the URI (G2). No error of
//! the server or the network ends in anything but [`Applied`], which tells each event once.

use std::sync::Arc;
use std::time::Duration;

use bson::RawDocumentBuf;
use events::{Source, StorableEvent};
use service::Secret;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::collection::{Collection, Collections};
use super::command;
use super::connection::Connection;
use super::index_build::Preparation;
use super::key::UpsertKeys;
use super::outcome::{Applied, Trouble};
use super::server_state::StoreState;
use super::uri::{check_uri, ignored_options, write_concern};
use super::write::{Batch, Way};

/// The most that one call to the server may take.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// A command may take up to `2^DOUBLINGS_MAX` deadlines.
pub const DOUBLINGS_MAX: u32 = 6;

/// Where events are stored, and under which keys.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The connection string, as [`check_uri`] took it.
    pub uri: Secret,
    /// The database whose collections are named after the sources.
    pub database: String,
    /// What identifies a document.
    pub upsert_keys: UpsertKeys,
    /// The most bytes of one command, a record that is larger by itself excepted.
    pub batch_max_bytes: usize,
}

/// The connection string cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the MongoDB URI {0}")]
pub struct StoreSetupError(String);

/// The database. Clones share everything.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    connection: Connection,
    collections: Collections,
    keys: UpsertKeys,
    write_concern: RawDocumentBuf,
    command_bytes: usize,
    deadline: Duration,
}

impl Store {
    /// Sets the database up; no server needs to be there yet.
    ///
    /// # Errors
    /// A connection string that [`check_uri`] refuses.
    pub async fn new(config: StoreConfig) -> Result<Self, StoreSetupError> {
        Self::with_deadline(config, CALL_DEADLINE).await
    }

    /// As [`Store::new`], with another deadline for a call.
    ///
    /// # Errors
    /// As [`Store::new`].
    pub async fn with_deadline(config: StoreConfig, deadline: Duration) -> Result<Self, StoreSetupError> {
        let uri = check_uri(config.uri.expose()).map_err(StoreSetupError)?;
        for option in ignored_options(&uri) {
            tracing::warn!(option, "an option of the mongodb uri is ignored");
        }
        let inner = Inner {
            write_concern: write_concern(&uri).map_err(StoreSetupError)?,
            connection: Connection::new(uri, config.database),
            collections: Collections::default(),
            keys: config.upsert_keys,
            command_bytes: config.batch_max_bytes.min(command::COMMAND_MAX_BYTES),
            deadline,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Writes `events`, which all come from `source`, as if one after another in this order. Each command may take
    /// `2^doublings` deadlines.
    pub async fn apply(&self, source: &Source, events: &[&StorableEvent], doublings: u32) -> Applied {
        if events.is_empty() {
            return Applied::default();
        }
        let Inner { connection, keys, deadline, write_concern, .. } = &*self.inner;
        let collection = self.inner.collections.of(source);
        let prepared = collection.prepare(*deadline, |build_deadline, confirmed| {
            let preparation = Preparation {
                connection,
                keys,
                write_concern,
                collection: source.as_str(),
                known: &collection,
                confirmed,
                deadline: *deadline,
                build_deadline,
            };
            preparation.run()
        });
        if let Err(trouble) = prepared.await {
            // Nothing was written, so neither a smaller batch nor more time for one would have helped.
            return Applied::nothing(events.len(), Trouble { timed_out: false, ..trouble });
        }
        let way = self.way(source, &collection, deadline.saturating_mul(1 << doublings.min(DOUBLINGS_MAX)));
        let mut applied = Batch::new(way, events).run().await;
        applied.written = collection.wrote(applied.counts.total());
        applied
    }

    /// Whether the server takes a write to the collection of `source` now. The write changes and
    /// leaves nothing.
    pub async fn takes_writes(&self, source: &Source) -> bool {
        let collection = self.inner.collections.of(source);
        self.way(source, &collection, self.inner.deadline).takes_writes().await
    }

    fn way<'a>(&'a self, source: &'a Source, collection: &'a Collection, deadline: Duration) -> Way<'a> {
        Way {
            connection: &self.inner.connection,
            keys: &self.inner.keys,
            write_concern: &self.inner.write_concern,
            collection: source.as_str(),
            known: collection,
            collapses: collection.collapses(),
            command_bytes: self.inner.command_bytes,
            deadline,
        }
    }

    /// Whether the server answered lately, whatever became of a single command.
    pub fn server_answers(&self) -> bool {
        self.inner.connection.state.answers()
    }

    /// Whether the server can be used, and each change of it.
    pub fn state(&self) -> watch::Receiver<StoreState> {
        self.inner.connection.state.subscribe()
    }

    /// Asks the server every second until `stop`. Without it, only writes tell the state.
    pub async fn watch(&self, stop: CancellationToken) {
        self.inner.connection.watch(stop).await;
    }

    /// The collections that take no writes, each with the reason: an index is being built, or an operator has to put
    /// something right, with the query or command for it.
    pub fn blocked(&self) -> Vec<String> {
        self.inner.collections.blocked()
    }
}
