//! Makes the indexes of a collection when its source first appears.

use std::time::Duration;

use bson::{Document, RawDocumentBuf, doc};

use super::collections::{Collection, Unprepared};
use super::connection::Connection;
use super::fault::Fault;
use super::indexes::{self, Wanted};
use super::keys::UpsertKeys;
use super::outcome::Trouble;

/// The collection does not exist yet.
const NAMESPACE_NOT_FOUND: i32 = 26;
/// Two documents share a key.
const DUPLICATE_KEY: i32 = 11000;
/// An index of other options or another name is in the way, or the collection is a view: codes that stay.
const CANNOT_BUILD: [i32; 6] = [67, 68, 85, 86, 166, 171];

/// Options of a collection by which its server may refuse one document and take another.
const REFUSING: [&str; 3] = ["validator", "capped", "timeseries"];

/// One collection whose indexes are to be there.
#[derive(Clone, Copy)]
pub(super) struct Preparation<'a> {
    pub(super) connection: &'a Connection,
    pub(super) keys: &'a UpsertKeys,
    pub(super) collection: &'a str,
    pub(super) known: &'a Collection,
    pub(super) deadline: Duration,
    pub(super) build_deadline: Duration,
}

impl Preparation<'_> {
    /// Checks the server's version, the collection's rules and its indexes, and makes those that are missing.
    pub(super) async fn run(self) -> Result<(), Unprepared> {
        self.connection.greet(self.deadline).await.map_err(unprepared)?;
        let existing = self.existing().await?;
        let rules = indexes::others_may_refuse(self.keys, &existing) || self.has_options().await?;
        self.known.has_rules(rules);
        let missing = indexes::missing(self.keys, &existing).map_err(|name| self.conflict(&name))?;
        if let Some(unique) = &missing.unique {
            self.create(std::slice::from_ref(unique)).await.map_err(|fault| self.unbuildable(fault))?;
        }
        if missing.lookups.is_empty() || !self.known.wants_lookups() {
            return Ok(());
        }
        match self.create(&missing.lookups).await {
            Ok(()) => Ok(()),
            Err(Fault::Refused(refusal)) if CANNOT_BUILD.contains(&refusal.code) => {
                let error = refusal.class;
                self.known.give_lookups_up();
                tracing::warn!(collection = self.collection, error, "a look-up index cannot be built");
                Ok(())
            }
            Err(fault) => Err(unprepared(fault)),
        }
    }

    /// Whether the collection was made with options by which it may refuse a document, as a validator. Who may not
    /// ask has to assume so.
    async fn has_options(&self) -> Result<bool, Unprepared> {
        let command = doc! { "listCollections": 1, "filter": { "name": self.collection }, "cursor": {} };
        let command = RawDocumentBuf::try_from(&command).map_err(|error| unprepared(error.into()))?;
        let reply = match self.connection.ask(command, self.deadline).await {
            Err(Fault::NotAllowed(_)) => return Ok(true),
            reply => reply.map_err(unprepared)?,
        };
        let collections = entries("listCollections", &reply)?;
        let options = collections.iter().filter_map(|collection| collection.get_document("options").ok());
        Ok(options.flat_map(|options| options.keys()).any(|option| REFUSING.contains(&option.as_str())))
    }

    async fn existing(&self) -> Result<Vec<Document>, Unprepared> {
        let command = doc! { "listIndexes": self.collection, "cursor": { "batchSize": 1000 } };
        match self.call(&command, self.deadline).await {
            Err(Fault::Refused(refusal)) if refusal.code == NAMESPACE_NOT_FOUND => Ok(Vec::new()),
            reply => entries("listIndexes", &reply.map_err(unprepared)?),
        }
    }

    async fn create(&self, wanted: &[Wanted]) -> Result<(), Fault> {
        self.call(&indexes::create(self.collection, wanted), self.build_deadline).await?;
        let names: Vec<&str> = wanted.iter().map(|index| index.name.as_str()).collect();
        tracing::info!(collection = self.collection, names = names.join(", "), "indexes made");
        Ok(())
    }

    async fn call(&self, command: &Document, deadline: Duration) -> Result<Document, Fault> {
        self.connection.call(RawDocumentBuf::try_from(command)?, deadline).await
    }

    fn unbuildable(&self, fault: Fault) -> Unprepared {
        match fault {
            Fault::Refused(refusal) if refusal.code == DUPLICATE_KEY => {
                let (database, collection) = (self.connection.database_name(), self.collection);
                let query = indexes::duplicates_query(database, collection, self.keys);
                Unprepared::Blocked(format!(
                    "collection {collection}: documents share a value of {}, so its unique index cannot be built; \
                     its records wait until only one document of each value is left, which `slipstream dedupe` sees to. \
                     They are found by: {query}",
                    self.keys
                ))
            }
            Fault::Refused(refusal) if CANNOT_BUILD.contains(&refusal.code) => Unprepared::Blocked(format!(
                "collection {}: its unique index on {} cannot be built: {}",
                self.collection, self.keys, refusal.message
            )),
            fault => unprepared(fault),
        }
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
    let batch = batch.map_err(|_| unprepared(Fault::Other(format!("the reply to {name} has no list"))))?;
    Ok(batch.iter().filter_map(|entry| entry.as_document().cloned()).collect())
}

fn unprepared(fault: Fault) -> Unprepared {
    Unprepared::Trouble(Trouble::from(fault))
}
