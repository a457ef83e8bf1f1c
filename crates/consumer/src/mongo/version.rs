//! Versions of events and stored documents: `(event_timestamp, ingested_at)`, which the guard
//! compares in BSON order. The lookups send one query for many keys if an index can answer it, else
//! one query per key.

use std::collections::HashMap;

use bson::{Bson, Document, RawDocumentBuf};
use events::StorableEvent;
use futures::{StreamExt, TryStreamExt, stream};

use super::collection::CallContext;
use super::command;
use super::error::CallError;
use super::key::Key;

/// Concurrent queries of one lookup.
const MAX_CONCURRENT_QUERIES: usize = 8;

/// The version of an event or of a stored document. Timestamps are far below 2^53, so a double
/// holds each exactly.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub(super) struct Version(f64, f64);

impl Version {
    pub(super) fn of(event: &StorableEvent) -> Self {
        Self::at(event.timestamp.get(), event.ingested_at.get())
    }

    pub(super) fn at(timestamp: i64, ingested_at: i64) -> Self {
        Self(timestamp as f64, ingested_at as f64)
    }

    /// The version of a stored document. Other programs may have written it.
    pub(super) fn read(document: &Document) -> Self {
        Self(rank(document.get("event_timestamp")), rank(document.get("ingested_at")))
    }
}

/// A missing field and null are below every number; other types are above.
fn rank(value: Option<&Bson>) -> f64 {
    match value {
        None | Some(Bson::Null | Bson::Undefined | Bson::MinKey) => f64::NEG_INFINITY,
        Some(Bson::Int32(number)) => f64::from(*number),
        Some(Bson::Int64(number)) => *number as f64,
        Some(Bson::Double(number)) if number.is_nan() => f64::NEG_INFINITY,
        Some(Bson::Double(number)) => *number,
        Some(Bson::Decimal128(number)) => number.to_string().parse().unwrap_or(f64::INFINITY),
        Some(_) => f64::INFINITY,
    }
}

/// Versions by the identity of their keys.
type VersionsByKey = HashMap<Vec<u8>, Version>;

impl CallContext<'_> {
    /// The version of each key's document, `None` if there is no document.
    pub(super) async fn find_versions(self, keys: &[&Key<'_>]) -> Result<Vec<Option<Version>>, CallError> {
        let found = self.find_in_one_query(keys).await?.unwrap_or_default();
        self.find_one_by_one(keys, &found).await
    }

    /// As [`CallContext::find_versions`], with one query if an index can answer it for all keys. It
    /// can miss a document whose key only the server holds for equal, as under a collation.
    pub(super) async fn find_versions_quickly(
        self,
        keys: &[&Key<'_>],
    ) -> Result<Vec<Option<Version>>, CallError> {
        match self.find_in_one_query(keys).await? {
            Some(found) => Ok(keys.iter().map(|key| found.get(&key.identity()).copied()).collect()),
            None => self.find_one_by_one(keys, &VersionsByKey::new()).await,
        }
    }

    /// One query for the keys of each kind, or `None` if no index can answer it.
    async fn find_in_one_query(self, keys: &[&Key<'_>]) -> Result<Option<VersionsByKey>, CallError> {
        let mut found = VersionsByKey::new();
        let (derived, fields): (Vec<&Key<'_>>, Vec<&Key<'_>>) =
            keys.iter().copied().partition(|key| matches!(key, Key::Derived(_)));
        for group in [derived, fields].into_iter().filter(|group| !group.is_empty()) {
            let Some(command) = command::find_all(&self.collection.name, self.keys, &group) else {
                return Ok(None);
            };
            let documents = self.find(command?).await?;
            found.extend(
                documents
                    .iter()
                    .filter_map(|document| Some((self.keys.identity_in(document)?, Version::read(document)))),
            );
        }
        Ok(Some(found))
    }

    async fn find_one_by_one(
        self,
        keys: &[&Key<'_>],
        found: &VersionsByKey,
    ) -> Result<Vec<Option<Version>>, CallError> {
        let queries = keys.iter().map(|key| async {
            if let Some(version) = found.get(&key.identity()) {
                return Ok(Some(*version));
            }
            let documents = self.find(command::find(&self.collection.name, self.keys, key)?).await?;
            Ok(documents.first().map(Version::read))
        });
        stream::iter(queries.collect::<Vec<_>>()).buffered(MAX_CONCURRENT_QUERIES).try_collect().await
    }

    async fn find(self, command: RawDocumentBuf) -> Result<Vec<Document>, CallError> {
        let reply = self.connection.call(command, self.deadline).await;
        let reply = reply.inspect_err(|error| self.collection.note_error(error))?;
        let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
        let batch = batch.map_err(|_| CallError::Other("the reply to find has no firstBatch".into()))?;
        Ok(batch.iter().filter_map(|document| document.as_document().cloned()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    #[test]
    fn versions_compare_as_the_server_compares_the_fields() {
        let version = |document: Document| Version::read(&document);
        let pair = |timestamp: i64, ingested: i64| {
            version(doc! { "event_timestamp": timestamp, "ingested_at": ingested })
        };
        assert!(version(doc! {}) < pair(0, 0));
        assert!(version(doc! { "event_timestamp": null }) < pair(0, 0));
        assert!(version(doc! { "event_timestamp": 5 }) < pair(5, 0));
        assert!(version(doc! { "event_timestamp": 5.5 }) > pair(5, 9));
        assert!(version(doc! { "event_timestamp": "5" }) > pair(253_402_300_799_999, 0));
        assert!(pair(5, 6) > pair(5, 5) && pair(6, 0) > pair(5, 9) && pair(5, 5) == pair(5, 5));
        let decimal: bson::Decimal128 = "5.5".parse().expect("a decimal");
        assert!(version(doc! { "event_timestamp": decimal }) > pair(5, 9));
    }
}
