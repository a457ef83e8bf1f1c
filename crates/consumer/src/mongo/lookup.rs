//! Asks the server which documents exist and how new they are. One question for many keys where an index answers it,
//! else a question a key.

use std::collections::HashMap;
use std::time::Duration;

use bson::{Document, RawDocumentBuf};
use futures::{StreamExt, TryStreamExt, stream};

use super::collection::Collection;
use super::command;
use super::connection::Connection;
use super::error::Fault;
use super::key::{Key, UpsertKeys};
use super::version::Version;

/// Questions under way at once.
const CONCURRENT: usize = 8;

/// Versions by the identity of their keys.
type Found = HashMap<Vec<u8>, Version>;

/// The collection that is asked.
#[derive(Clone, Copy)]
pub(super) struct Lookup<'a> {
    pub(super) connection: &'a Connection,
    pub(super) keys: &'a UpsertKeys,
    pub(super) collection: &'a str,
    pub(super) known: &'a Collection,
    pub(super) deadline: Duration,
}

impl Lookup<'_> {
    /// The version of each key's document, `None` where there is no document.
    pub(super) async fn versions(self, keys: &[&Key<'_>]) -> Result<Vec<Option<Version>>, Fault> {
        let found = self.ask_for_all(keys).await?.unwrap_or_default();
        self.one_by_one(keys, &found).await
    }

    /// As [`Lookup::versions`], with no question beyond the first where one answers for all keys; the server may hold
    /// for equal what this one misses, as under a collation.
    pub(super) async fn seen(self, keys: &[&Key<'_>]) -> Result<Vec<Option<Version>>, Fault> {
        match self.ask_for_all(keys).await? {
            Some(found) => Ok(keys.iter().map(|key| found.get(&key.identity()).copied()).collect()),
            None => self.one_by_one(keys, &Found::new()).await,
        }
    }

    /// One question for the keys of each kind; `None` if there is none for all of a kind.
    async fn ask_for_all(self, keys: &[&Key<'_>]) -> Result<Option<Found>, Fault> {
        let mut found = Found::new();
        let (derived, fields): (Vec<&Key<'_>>, Vec<&Key<'_>>) =
            keys.iter().copied().partition(|key| matches!(key, Key::Derived(_)));
        for group in [derived, fields].into_iter().filter(|group| !group.is_empty()) {
            let Some(command) = command::find_all(self.collection, self.keys, &group) else {
                return Ok(None);
            };
            found.extend(self.ask(command?).await?.iter().filter_map(|document| self.read(document)));
        }
        Ok(Some(found))
    }

    async fn one_by_one(self, keys: &[&Key<'_>], found: &Found) -> Result<Vec<Option<Version>>, Fault> {
        let answers = keys.iter().map(|key| async {
            match found.get(&key.identity()) {
                Some(version) => Ok(Some(*version)),
                None => self.version(key).await,
            }
        });
        stream::iter(answers.collect::<Vec<_>>()).buffered(CONCURRENT).try_collect().await
    }

    /// The version of one key's document, if there is one.
    pub(super) async fn version(self, key: &Key<'_>) -> Result<Option<Version>, Fault> {
        let found = self.ask(command::find(self.collection, self.keys, key)?).await?;
        Ok(found.first().map(Version::read))
    }

    async fn ask(self, command: RawDocumentBuf) -> Result<Vec<Document>, Fault> {
        let reply = self.connection.call(command, self.deadline).await;
        let reply = reply.inspect_err(|fault| self.known.heed_fault(fault))?;
        let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
        let batch = batch.map_err(|_| Fault::Other("the reply to find has no list".into()))?;
        Ok(batch.iter().filter_map(|document| document.as_document().cloned()).collect())
    }

    fn read(self, document: &Document) -> Option<(Vec<u8>, Version)> {
        Some((self.keys.identity_in(document)?, Version::read(document)))
    }
}
