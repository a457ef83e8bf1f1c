//! Makes the indexes of a collection when its source first appears, and confirms them again while it is written to.
//!
//! listIndexes lists an index that is still being built like one that is ready, and a build checks uniqueness only when
//! it ends. The proof of a unique index is therefore an answer to `createIndexes`: it waits for a build under way, and
//! changes nothing where the index is ready. Each check asks for it anew, as an index may be dropped and built again
//! between two checks.

use std::time::Duration;

use bson::{Document, RawDocument, RawDocumentBuf, doc};

use super::collection::{self, Collection, Unprepared};
use super::connection::Connection;
use super::error::Fault;
use super::index::{self, Wanted};
use super::key::UpsertKeys;
use super::outcome::Trouble;
use super::server_state::StoreState;

/// The collection does not exist yet.
const NAMESPACE_NOT_FOUND: i32 = 26;
/// Two documents share a key.
const DUPLICATE_KEY: i32 = 11000;
/// The server does not build this index on this collection: an option, another index, or the kind of the collection
/// is in the way. These codes stay until an operator changes something.
const CANNOT_BUILD: [i32; 8] = [2, 67, 68, 72, 85, 86, 171, 197];
/// The index, or another one of the collection, is being built.
const BUILDS_ALREADY: [i32; 3] = [285, 12586, 12587];

/// Options of a collection by which its server may refuse one document and take another.
const REFUSING: [&str; 2] = ["validator", "capped"];

/// One collection whose indexes are to be there.
#[derive(Clone, Copy)]
pub(super) struct Preparation<'a> {
    pub(super) connection: &'a Connection,
    pub(super) keys: &'a UpsertKeys,
    /// The write concern of the URI.
    pub(super) write_concern: &'a RawDocument,
    pub(super) collection: &'a str,
    pub(super) known: &'a Collection,
    /// The last attempt confirmed the unique index.
    pub(super) confirmed: bool,
    pub(super) deadline: Duration,
    pub(super) build_deadline: Duration,
}

impl Preparation<'_> {
    /// Checks the server's version, the collection's rules and its indexes, makes those that are missing, and waits
    /// until the unique one is built.
    pub(super) async fn run(self) -> Result<(), Unprepared> {
        let hello = self.connection.greet(self.deadline).await.map_err(|fault| self.unprepared(fault))?;
        let in_replica_set = hello.contains_key("setName");
        let has_options = self.has_options().await?;
        let existing = self.existing(false).await?;
        self.known.has_rules(has_options || index::others_may_refuse(self.keys, &existing));
        let missing = index::missing(self.keys, &existing).map_err(|name| self.conflict(&name))?;
        match (index::listed_unique(self.keys, &existing), missing.unique) {
            (Some(listed), _) => self.confirm(&listed, in_replica_set).await?,
            (None, Some(unique)) => self.make_unique(&unique, in_replica_set).await?,
            (None, None) => {}
        }
        if missing.lookups.is_empty() || !self.known.wants_lookups() {
            return Ok(());
        }
        self.make_lookups(&missing.lookups, in_replica_set).await
    }

    async fn make_unique(&self, unique: &Wanted, in_replica_set: bool) -> Result<(), Unprepared> {
        let made = self.create(std::slice::from_ref(unique), in_replica_set, true).await;
        made.map_err(|fault| {
            self.connection.note(&fault);
            self.unbuilt(fault, &unique.name)
        })?;
        tracing::info!(collection = self.collection, names = unique.name, "indexes made");
        Ok(())
    }

    /// Waits until the listed unique index is built. Who may not create indexes has to believe the list.
    async fn confirm(&self, listed: &Wanted, in_replica_set: bool) -> Result<(), Unprepared> {
        // A new check of a durable index writes nothing. It must not need more members than the writes do.
        let built = self.create(std::slice::from_ref(listed), in_replica_set, !self.confirmed).await;
        match built {
            Ok(()) => {}
            Err(fault @ Fault::NotAllowed(_)) => self.believe_list(fault, &listed.name).await?,
            Err(fault) => {
                self.connection.note(&fault);
                return Err(self.unbuilt(fault, &listed.name));
            }
        }
        if !self.confirmed && listed.specification.get_bool("hidden").unwrap_or(false) {
            let index = listed.name.as_str();
            tracing::warn!(collection = self.collection, index, "a unique index is hidden, updates are slow");
        }
        Ok(())
    }

    /// Replica sets mark the builds in the list on request.
    async fn believe_list(&self, fault: Fault, index: &str) -> Result<(), Unprepared> {
        let marked = self.existing(true).await?;
        if index::listed_unique(self.keys, &marked).is_some() {
            return Ok(());
        }
        let specifications = marked.iter().map(|entry| entry.get_document("spec").unwrap_or(entry).clone());
        if index::listed_unique(self.keys, &specifications.collect::<Vec<_>>()).is_some() {
            self.known.builds(index);
            return Err(self.building(index));
        }
        self.connection.note(&fault);
        Err(self.unprepared(fault))
    }

    async fn make_lookups(&self, lookups: &[Wanted], in_replica_set: bool) -> Result<(), Unprepared> {
        let names: Vec<&str> = lookups.iter().map(|index| index.name.as_str()).collect();
        let error = match self.create(lookups, in_replica_set, true).await {
            Ok(()) => {
                tracing::info!(collection = self.collection, names = names.join(","), "indexes made");
                return Ok(());
            }
            Err(Fault::Refused(refusal)) if CANNOT_BUILD.contains(&refusal.code) => refusal.class,
            Err(Fault::NotAllowed(reason)) => reason,
            Err(fault) => {
                self.connection.note(&fault);
                return Err(self.unbuilt(fault, &names.join(",")));
            }
        };
        self.known.give_lookups_up();
        tracing::warn!(collection = self.collection, error, "a look-up index cannot be built");
        Ok(())
    }

    /// Whether the collection was made with options by which it may refuse a document, as a validator. Who may not
    /// ask has to assume so.
    async fn has_options(&self) -> Result<bool, Unprepared> {
        let command = doc! { "listCollections": 1, "filter": { "name": self.collection }, "cursor": {} };
        let command = RawDocumentBuf::try_from(&command).map_err(|error| self.unprepared(error.into()))?;
        let reply = match self.connection.ask(command, self.deadline).await {
            Err(Fault::NotAllowed(_)) => return Ok(true),
            reply => reply.map_err(|fault| self.unprepared(fault))?,
        };
        let collections = entries("listCollections", &reply)?;
        for collection in &collections {
            let cause = match collection.get_str("type") {
                Ok("view") => "it is a view",
                Ok("timeseries") => "it is a time-series collection, which can have no unique index",
                _ => continue,
            };
            return Err(Unprepared::Blocked(collection::cannot_be_written(self.collection, cause)));
        }
        let options = collections.iter().filter_map(|collection| collection.get_document("options").ok());
        Ok(options.flat_map(|options| options.keys()).any(|option| REFUSING.contains(&option.as_str())))
    }

    /// What listIndexes returns. With `marked`, an index under construction has its fields in `spec`, where the server
    /// knows it.
    async fn existing(&self, marked: bool) -> Result<Vec<Document>, Unprepared> {
        let mut command = doc! { "listIndexes": self.collection, "cursor": { "batchSize": 1000 } };
        if marked {
            command.insert("includeBuildUUIDs", true);
        }
        match self.call(&command).await {
            Err(Fault::Refused(refusal)) if refusal.code == NAMESPACE_NOT_FOUND => Ok(Vec::new()),
            reply => entries("listIndexes", &reply.map_err(|fault| self.unprepared(fault))?),
        }
    }

    /// Has the server build `wanted`, and waits until it did. A call that was given up does not stop the build, and the
    /// next one waits for the same.
    async fn create(&self, wanted: &[Wanted], in_replica_set: bool, durable: bool) -> Result<(), Fault> {
        let mut command = index::create(self.collection, wanted);
        if durable {
            command.insert("writeConcern", doc! { "w": "majority" });
        } else {
            command.insert("writeConcern", Document::try_from(self.write_concern)?);
        }
        if in_replica_set {
            command.insert("commitQuorum", "majority");
        }
        let names: Vec<&str> = wanted.iter().map(|index| index.name.as_str()).collect();
        self.known.builds(&names.join(","));
        let command = RawDocumentBuf::try_from(&command)?;
        let mut state = self.connection.state.subscribe();
        // The call may last for an hour, and a connection that broke silently would not end it.
        let away = async { drop(state.wait_for(|state| matches!(state, StoreState::Away(_))).await) };
        let reply = tokio::select! {
            reply = self.connection.ask(command, self.build_deadline) => reply?,
            () = away => return Err(Fault::Unreachable("the server does not answer during an index build".into())),
        };
        match reply.get("writeConcernError") {
            None => Ok(()),
            Some(error) => {
                let message = error.as_document().and_then(|error| error.get_str("errmsg").ok());
                let message = message.unwrap_or("no reason was given");
                Err(Fault::Other(format!("the write concern of createIndexes was not met: {message}")))
            }
        }
    }

    async fn call(&self, command: &Document) -> Result<Document, Fault> {
        self.connection.call(RawDocumentBuf::try_from(command)?, self.deadline).await
    }

    fn unbuilt(&self, fault: Fault, index: &str) -> Unprepared {
        match fault {
            Fault::TimedOut(_) => self.building(index),
            Fault::Refused(refusal) if BUILDS_ALREADY.contains(&refusal.code) => self.building(index),
            Fault::Refused(refusal) if refusal.code == DUPLICATE_KEY => {
                let (database, collection) = (self.connection.database_name(), self.collection);
                let query = index::duplicates_query(database, collection, self.keys);
                Unprepared::Blocked(format!(
                    "collection {collection}: documents share a value of {}, so its unique index cannot be built; \
                     its records wait until only one document of each value is left, which `slipstream dedupe` sees to. \
                     They are found by: {query}",
                    self.keys
                ))
            }
            Fault::Refused(refusal) if CANNOT_BUILD.contains(&refusal.code) => Unprepared::Blocked(format!(
                "collection {}: its unique index on {} cannot be built: {} ({}); its records wait until the cause is \
                 removed, or the collection is renamed or dropped",
                self.collection, self.keys, refusal.message, refusal.class
            )),
            fault => self.unprepared(fault),
        }
    }

    fn building(&self, index: &str) -> Unprepared {
        Unprepared::Building(format!(
            "collection {}: its index {index} is being built; its records wait",
            self.collection
        ))
    }

    /// What a failed call means for the collection.
    fn unprepared(&self, fault: Fault) -> Unprepared {
        let rejection = match &fault {
            Fault::Refused(refusal) => {
                collection::namespace_rejection(self.collection, refusal.code, &refusal.message)
            }
            _ => None,
        };
        rejection.map_or_else(|| Unprepared::Trouble(Trouble::from(fault)), Unprepared::Blocked)
    }

    fn conflict(&self, name: &str) -> Unprepared {
        let drop = format!(
            "db.getSiblingDB({:?}).getCollection({:?}).dropIndex({name:?})",
            self.connection.database_name(),
            self.collection
        );
        Unprepared::Blocked(format!(
            "collection {}: its index {name} has not the options that a unique index on {} needs; \
             its records wait until it is dropped, and it is then made anew: {drop}",
            self.collection, self.keys
        ))
    }
}

/// The list in the reply to the command of this name.
fn entries(name: &str, reply: &Document) -> Result<Vec<Document>, Unprepared> {
    let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    let batch =
        batch.map_err(|_| Unprepared::Trouble(Trouble::new(format!("the reply to {name} has no list"))))?;
    Ok(batch.iter().filter_map(|entry| entry.as_document().cloned()).collect())
}
