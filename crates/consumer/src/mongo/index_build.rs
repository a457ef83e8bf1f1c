//! Builds the indexes of a collection when its source first appears, and confirms them again while
//! it is written to.
//!
//! `listIndexes` lists an index that is being built like a finished one, and a build checks
//! uniqueness only at its end. A unique index is therefore confirmed by a reply to `createIndexes`.
//! That command waits for a running build and changes nothing if the index is finished. Each check
//! sends it again, because an index may be dropped and rebuilt between two checks.

use std::time::Duration;

use bson::raw::cstr;
use bson::{Document, RawDocumentBuf, doc, rawdoc};

use super::collection::{self, CallContext, NotReady};
use super::connection::{StoreState, first_batch};
use super::error::{CallError, TransientError};
use super::index::{self, IndexSpec};

/// NamespaceNotFound: the collection does not exist yet.
const NAMESPACE_NOT_FOUND: i32 = 26;
/// DuplicateKey: two documents have the same key.
const DUPLICATE_KEY: i32 = 11000;
/// The server does not build this index on this collection, because of an option, another index, or
/// the kind of the collection. An operator has to change something.
const CANNOT_BUILD: [i32; 8] = [2, 67, 68, 72, 85, 86, 171, 197];
/// The index, or another index of the collection, is being built.
const BUILD_IN_PROGRESS: [i32; 3] = [285, 12586, 12587];

/// How long writes wait for an index of the sources file that is not unique.
const EXTRA_INDEX_TIMEOUT: Duration = Duration::from_secs(1);

/// Options of a collection by which the server may reject one document and accept another.
const REJECTING_OPTIONS: [&str; 2] = ["validator", "capped"];

/// One attempt to have the indexes of a collection ready.
#[derive(Clone, Copy)]
pub(super) struct IndexBuild<'a> {
    pub(super) context: CallContext<'a>,
    /// The previous attempt confirmed the unique index.
    pub(super) confirmed: bool,
    pub(super) build_deadline: Duration,
}

impl IndexBuild<'_> {
    /// Checks the version of the server, the rules of the collection and its indexes. Builds the
    /// missing indexes and waits until the unique index is finished.
    pub(super) async fn run(self) -> Result<(), NotReady> {
        let CallContext { connection, keys, collection, deadline, .. } = self.context;
        let hello = connection.hello(deadline).await.map_err(|error| self.not_ready(error))?;
        let in_replica_set = hello.contains_key("setName");
        let has_options = self.has_rejecting_options().await?;
        let existing = self.list_indexes(&collection.name, false).await?;
        if collection.is_configured
            && let Some((index, fields)) = index::other_keys(keys, &collection.extra_indexes, &existing)
        {
            return Err(self.written_under_other_keys(&index, &fields));
        }
        let extra = collection.extra_indexes.iter().map(|index| index.specification.clone());
        let with_extra: Vec<Document> = existing.iter().cloned().chain(extra).collect();
        let has_rules = has_options || index::user_indexes_may_reject(keys, &with_extra);
        collection.state().merges_events = !has_rules;
        let mut missing =
            index::missing_indexes(keys, &existing).map_err(|name| self.conflicting_index(&name))?;
        match (index::listed_unique_index(keys, &existing), missing.unique) {
            (Some(listed), _) => self.confirm_unique(&listed, in_replica_set).await?,
            (None, Some(unique)) => {
                let built = self.create_indexes(std::slice::from_ref(&unique), in_replica_set, true).await;
                built.map_err(|error| self.build_failed(error, &unique.name))?;
                tracing::info!(collection = collection.name, names = unique.name, "indexes built");
            }
            (None, None) => {}
        }
        for index in collection.extra_indexes.iter().filter(|index| index::is_unique(index)) {
            // A listed index may still be building, which only the reply to createIndexes tells.
            if !self.confirmed || !index::has_extra(index, &existing) {
                self.build_unique_extra(index, &existing, in_replica_set).await?;
            }
        }
        // An extra index may have the fields of a look-up index.
        missing.lookups.retain(|lookup| {
            !collection
                .extra_indexes
                .iter()
                .any(|extra| index::has_extra(lookup, std::slice::from_ref(&extra.specification)))
        });
        if !missing.lookups.is_empty() && !collection.state().lookup_indexes_given_up {
            self.build_lookups(&missing.lookups, in_replica_set).await?;
        }
        self.build_extras(&collection.name, &collection.extra_indexes, &existing, in_replica_set).await;
        if let Some(tombstones) = &collection.tombstones {
            let existing = self.tombstone_indexes(&tombstones.name).await?;
            let expiry = [index::expiry_index()];
            self.build_extras(&tombstones.name, &expiry, &existing, in_replica_set).await;
        }
        Ok(())
    }

    /// Builds those of these indexes that a collection lacks, without the unique ones.
    async fn build_extras(
        &self,
        collection: &str,
        indexes: &[IndexSpec],
        existing: &[Document],
        in_replica_set: bool,
    ) {
        for index in indexes {
            if !index::is_unique(index) && !index::has_extra(index, existing) {
                self.build_extra(collection, index, in_replica_set).await;
            }
        }
    }

    /// Builds a unique index of the sources file. Nothing is written without it.
    async fn build_unique_extra(
        &self,
        index: &IndexSpec,
        existing: &[Document],
        in_replica_set: bool,
    ) -> Result<(), NotReady> {
        let collection = self.context.collection;
        let built = self.create_indexes(std::slice::from_ref(index), in_replica_set, true).await;
        let is_listed = index::has_extra(index, existing);
        let (message, remedy) = match built {
            Ok(()) if is_listed => return Ok(()),
            Ok(()) => {
                tracing::info!(collection = collection.name, names = index.name, "indexes built");
                return Ok(());
            }
            // It has another name, or there is no right to create indexes: the list decides.
            Err(CallError::Rejected(error)) if is_listed && CANNOT_BUILD.contains(&error.code) => {
                return Ok(());
            }
            Err(CallError::Unauthorized(_)) if is_listed => return Ok(()),
            Err(CallError::Rejected(error)) if error.code == DUPLICATE_KEY => {
                (error.message, "Remove the duplicates, or remove `unique` in the sources file and restart")
            }
            Err(CallError::Rejected(error)) if CANNOT_BUILD.contains(&error.code) => {
                (error.message, "Remove the cause, or the index in the sources file and restart")
            }
            Err(error) => return Err(self.build_failed(error, &index.name)),
        };
        Err(NotReady::Blocked(format!(
            "collection {}: writes are paused: the unique index {} of the sources file cannot be built: {message}. \
             {remedy}",
            collection.name, index.name
        )))
    }

    /// Builds an index of the sources file that is not unique. Writes continue without it, so the
    /// call waits only for a short time; the server continues the build.
    async fn build_extra(&self, collection_name: &str, index: &IndexSpec, in_replica_set: bool) {
        let collection = self.context.collection;
        let index_name = &*index.name;
        let names = (collection_name.to_owned(), index.name.clone());
        if collection.state().extra_indexes_given_up.contains(&names) {
            return;
        }
        let limited = Self { build_deadline: EXTRA_INDEX_TIMEOUT.min(self.build_deadline), ..*self };
        let indexes = std::slice::from_ref(index);
        let built = limited.create_indexes_in(collection_name, indexes, in_replica_set, true).await;
        collection.state().index_build_ended();
        let error = match built {
            Ok(()) => {
                tracing::info!(collection = collection_name, names = index_name, "indexes built");
                return;
            }
            Err(CallError::TimedOut(_)) => {
                tracing::info!(collection = collection_name, names = index_name, "index is being built");
                return;
            }
            Err(CallError::Rejected(error)) if BUILD_IN_PROGRESS.contains(&error.code) => return,
            Err(CallError::Rejected(error)) => format!("{} ({})", error.message, error.code_name),
            Err(CallError::Unauthorized(reason)) => reason,
            // The next check tries again.
            Err(_) => return,
        };
        collection.state().extra_indexes_given_up.insert(names);
        tracing::warn!(
            collection = collection_name,
            index = index_name,
            error,
            "index of the sources file cannot be built, writes continue without it"
        );
    }

    fn written_under_other_keys(&self, index: &str, fields: &[String]) -> NotReady {
        let CallContext { connection, keys, collection, .. } = self.context;
        let (database, collection) = (connection.database_name(), &*collection.name);
        let written = fields.join(", ");
        NotReady::Blocked(format!(
            "collection {collection}: writes are paused: it was written under the keys {written} (unique index {index}), \
             and the sources file says {keys}. Set `keys: [{written}]` or another `collection` in the file and restart; \
             or drop the index, and `slipstream dedupe` then removes duplicates: \
             db.getSiblingDB({database:?}).getCollection({collection:?}).dropIndex({index:?})"
        ))
    }

    /// Waits until the listed unique index is finished. Without the right to create indexes the
    /// list decides.
    async fn confirm_unique(&self, listed: &IndexSpec, in_replica_set: bool) -> Result<(), NotReady> {
        // A repeated check of a durable index writes nothing, so the write concern of the writes is
        // enough.
        let durable = !self.confirmed;
        match self.create_indexes(std::slice::from_ref(listed), in_replica_set, durable).await {
            Ok(()) => {}
            Err(error @ CallError::Unauthorized(_)) => self.trust_listed_index(error, &listed.name).await?,
            Err(error) => return Err(self.build_failed(error, &listed.name)),
        }
        if !self.confirmed && listed.specification.get_bool("hidden").unwrap_or(false) {
            let (collection, index) = (&*self.context.collection.name, &*listed.name);
            tracing::warn!(collection, index, "unique index is hidden, updates are slow");
        }
        Ok(())
    }

    /// Accepts a listed index unless a replica set marks it as being built, which it does on
    /// request.
    async fn trust_listed_index(&self, error: CallError, index: &str) -> Result<(), NotReady> {
        let CallContext { connection, keys, collection, .. } = self.context;
        let marked = self.list_indexes(&collection.name, true).await?;
        if index::listed_unique_index(keys, &marked).is_some() {
            return Ok(());
        }
        let specifications = marked.iter().map(|entry| entry.get_document("spec").unwrap_or(entry).clone());
        if index::listed_unique_index(keys, &specifications.collect::<Vec<_>>()).is_some() {
            collection.index_build_requested(index);
            return Err(self.build_in_progress(index));
        }
        connection.record_error(&error);
        Err(self.not_ready(error))
    }

    async fn build_lookups(&self, lookups: &[IndexSpec], in_replica_set: bool) -> Result<(), NotReady> {
        let collection = self.context.collection;
        let names: Vec<&str> = lookups.iter().map(|index| index.name.as_str()).collect();
        let error = match self.create_indexes(lookups, in_replica_set, true).await {
            Ok(()) => {
                tracing::info!(collection = collection.name, names = names.join(","), "indexes built");
                return Ok(());
            }
            Err(CallError::Rejected(error)) if CANNOT_BUILD.contains(&error.code) => error.code_name,
            Err(CallError::Unauthorized(reason)) => reason,
            Err(error) => return Err(self.build_failed(error, &names.join(","))),
        };
        collection.state().lookup_indexes_given_up = true;
        tracing::warn!(collection = collection.name, error, "look-up index cannot be built");
        Ok(())
    }

    /// Whether the collection has options by which the server may reject a document, such as a
    /// validator. Without the right to list collections, assumes that it has.
    async fn has_rejecting_options(&self) -> Result<bool, NotReady> {
        let CallContext { connection, collection, deadline, .. } = self.context;
        let name = collection.name.as_str();
        let command = rawdoc! { "listCollections": 1, "filter": { "name": name }, "cursor": {} };
        let reply = match connection.run(command, deadline).await {
            Err(CallError::Unauthorized(_)) => return Ok(true),
            reply => reply.map_err(|error| self.not_ready(error))?,
        };
        let entries = first_batch("listCollections", &reply).map_err(|error| self.not_ready(error))?;
        for entry in &entries {
            let cause = match entry.get_str("type") {
                Ok("view") => "it is a view",
                Ok("timeseries") => "it is a time-series collection, which cannot have a unique index",
                _ => continue,
            };
            return Err(NotReady::Blocked(collection::cannot_be_written(&collection.name, cause)));
        }
        let options = entries.iter().filter_map(|entry| entry.get_document("options").ok());
        let mut names = options.flat_map(|options| options.keys());
        Ok(names.any(|name| REJECTING_OPTIONS.contains(&name.as_str())))
    }

    /// The reply to `listIndexes`. With `mark_builds`, a server that can do so returns the fields
    /// of an index that is being built in `spec`.
    async fn list_indexes(&self, collection: &str, mark_builds: bool) -> Result<Vec<Document>, NotReady> {
        self.listed(collection, mark_builds).await.map_err(|error| self.not_listed(collection, error))
    }

    /// The indexes of the tombstones. Without the right to list them, the expiry index is requested
    /// again.
    async fn tombstone_indexes(&self, collection: &str) -> Result<Vec<Document>, NotReady> {
        match self.listed(collection, false).await {
            Err(CallError::Unauthorized(_)) => Ok(Vec::new()),
            listed => listed.map_err(|error| self.not_listed(collection, error)),
        }
    }

    fn not_listed(&self, collection: &str, error: CallError) -> NotReady {
        self.context.connection.record_error(&error);
        not_ready(collection, error)
    }

    async fn listed(&self, collection: &str, mark_builds: bool) -> Result<Vec<Document>, CallError> {
        let CallContext { connection, deadline, .. } = self.context;
        let mut command = rawdoc! { "listIndexes": collection, "cursor": { "batchSize": 1000 } };
        if mark_builds {
            command.append(cstr!("includeBuildUUIDs"), true);
        }
        match connection.run(command, deadline).await {
            Err(CallError::Rejected(error)) if error.code == NAMESPACE_NOT_FOUND => Ok(Vec::new()),
            reply => first_batch("listIndexes", &reply?),
        }
    }

    /// Sends `createIndexes` and waits until the indexes are built. A call that timed out does not
    /// stop the build; the next call waits for the same build.
    async fn create_indexes(
        &self,
        indexes: &[IndexSpec],
        in_replica_set: bool,
        durable: bool,
    ) -> Result<(), CallError> {
        self.create_indexes_in(&self.context.collection.name, indexes, in_replica_set, durable).await
    }

    async fn create_indexes_in(
        &self,
        name: &str,
        indexes: &[IndexSpec],
        in_replica_set: bool,
        durable: bool,
    ) -> Result<(), CallError> {
        let CallContext { connection, collection, write_concern, .. } = self.context;
        let mut command = index::create_command(name, indexes);
        if durable {
            command.insert("writeConcern", doc! { "w": "majority" });
        } else {
            command.insert("writeConcern", Document::try_from(write_concern)?);
        }
        if in_replica_set {
            command.insert("commitQuorum", "majority");
        }
        let names: Vec<&str> = indexes.iter().map(|index| index.name.as_str()).collect();
        collection.index_build_requested(&names.join(","));
        let command = RawDocumentBuf::try_from(&command)?;
        let mut state = connection.state.subscribe();
        // The call may take an hour, and a half-open connection would not end it.
        let unavailable =
            async { drop(state.wait_for(|state| matches!(state, StoreState::Unavailable(_))).await) };
        let reply = tokio::select! {
            reply = connection.run(command, self.build_deadline) => reply?,
            () = unavailable => {
                let reason = "mongodb became unavailable during an index build";
                return Err(CallError::Unreachable(reason.into()));
            }
        };
        match reply.get("writeConcernError") {
            None => Ok(()),
            Some(error) => {
                let message = error.as_document().and_then(|error| error.get_str("errmsg").ok());
                let message = message.unwrap_or("no reason given");
                let reason = format!("the write concern of createIndexes was not met: {message}");
                Err(CallError::Other(reason))
            }
        }
    }

    fn build_failed(&self, error: CallError, index: &str) -> NotReady {
        let CallContext { connection, keys, collection, .. } = self.context;
        connection.record_error(&error);
        match error {
            CallError::TimedOut(_) => self.build_in_progress(index),
            CallError::Rejected(error) if BUILD_IN_PROGRESS.contains(&error.code) => {
                self.build_in_progress(index)
            }
            CallError::Rejected(error) if error.code == DUPLICATE_KEY => {
                let query = index::duplicates_query(connection.database_name(), &collection.name, keys);
                NotReady::Blocked(format!(
                    "collection {}: writes are paused: duplicate values of {keys}; run `slipstream dedupe`. \
                     This query finds them: {query}",
                    collection.name
                ))
            }
            CallError::Rejected(error) if CANNOT_BUILD.contains(&error.code) => NotReady::Blocked(format!(
                "collection {}: writes are paused: its unique index on {keys} cannot be built: {} ({}). Remove the \
                 cause, or rename or drop the collection",
                collection.name, error.message, error.code_name
            )),
            error => self.not_ready(error),
        }
    }

    fn build_in_progress(&self, index: &str) -> NotReady {
        let collection = &self.context.collection.name;
        NotReady::Building(format!(
            "collection {collection}: writes are paused: index {index} is being built"
        ))
    }

    fn not_ready(&self, error: CallError) -> NotReady {
        not_ready(&self.context.collection.name, error)
    }

    fn conflicting_index(&self, name: &str) -> NotReady {
        let CallContext { connection, keys, collection, .. } = self.context;
        let (database, collection) = (connection.database_name(), &*collection.name);
        NotReady::Blocked(format!(
            "collection {collection}: writes are paused: its index {name} lacks the options that a unique index on \
             {keys} needs. Drop it; the consumer then builds the right one: \
             db.getSiblingDB({database:?}).getCollection({collection:?}).dropIndex({name:?})"
        ))
    }
}

/// Why the indexes of `collection` cannot be confirmed after `error`.
fn not_ready(collection: &str, error: CallError) -> NotReady {
    let rejection = match &error {
        CallError::Rejected(error) => collection::namespace_rejection(collection, error.code, &error.message),
        _ => None,
    };
    rejection.map_or_else(|| NotReady::Transient(TransientError::from(error)), NotReady::Blocked)
}
