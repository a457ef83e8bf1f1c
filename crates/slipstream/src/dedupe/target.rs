//! The collection: its documents as rows, their removal, and the index that stands in the way of the unique one.

use bson::{Bson, Document, RawDocumentBuf, doc};
use consumer::mongo::{IndexState, UpsertKeys, index_state, partial_filter, write_concern};
use events::Source;
use mongodb::error::{Error, ErrorKind};
use mongodb::{Collection, Cursor};

use super::config::Config;
use super::cut::cut;
use super::row::Row;
use kafka::BoxError;
use loadtest::mongo::Mongo;

const NAMESPACE_NOT_FOUND: i32 = 26;

/// Rows in one reply of the server.
const REPLY_ROWS: u32 = 10_000;

/// Bytes of what one command names: a command is a document, and a document has at most 16 MiB.
const COMMAND_BYTES: usize = 12 << 20;

/// A collection and what makes its documents unique.
#[derive(Debug)]
pub struct Target {
    /// What makes a document unique.
    pub keys: UpsertKeys,
    mongo: Mongo,
    collection: Source,
    fields: usize,
    write_concern: RawDocumentBuf,
}

/// The indexes of a collection.
#[derive(Debug, Clone, Default)]
pub struct Indexes {
    /// Those that are there.
    pub ready: Vec<Document>,
    /// Those that the server is still building: they guard nothing yet.
    pub in_progress: Vec<Document>,
}

impl Indexes {
    fn of<'a>(listed: impl Iterator<Item = &'a Document>) -> Self {
        let mut indexes = Self::default();
        for index in listed {
            match index.get_document("spec") {
                Ok(specification) => indexes.in_progress.push(specification.clone()),
                Err(_) => indexes.ready.push(index.clone()),
            }
        }
        indexes
    }

    /// Whether the index `name` is being built.
    pub fn builds(&self, name: &str) -> bool {
        self.in_progress.iter().any(|index| index.get_str("name").is_ok_and(|this| this == name))
    }

    /// The name of the unique index of `keys`, if it is being built.
    pub fn building(&self, keys: &UpsertKeys) -> Option<String> {
        let lacks = |existing: &[Document]| {
            matches!(index_state(keys, existing), IndexState::MissingUnique | IndexState::Conflicting(_))
        };
        let builds = |index: &&Document| !lacks(&[self.ready.clone(), vec![(*index).clone()]].concat());
        let index = if lacks(&self.ready) { self.in_progress.iter().find(builds) } else { None };
        Some(index?.get_str("name").unwrap_or_default().to_owned())
    }
}

/// An index on the key's fields that keeps the unique one from being made.
#[derive(Debug, Clone)]
pub struct Obstacle {
    /// Its name.
    pub name: String,
    /// It only makes queries quick, which the unique one does as well: it may be dropped.
    pub dispensable: bool,
}

impl Target {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// The driver refuses the connection string.
    pub async fn new(config: Config) -> Result<Self, BoxError> {
        Ok(Self {
            mongo: Mongo::open(&config.uri, &config.database).await?,
            write_concern: write_concern(&config.uri)?,
            fields: config.upsert_keys.fields().count(),
            collection: config.collection,
            keys: config.upsert_keys,
        })
    }

    /// Database and collection.
    pub fn names(&self) -> (&str, &str) {
        (self.mongo.database.name(), self.collection.as_str())
    }

    /// Every document that the unique index would cover, by key, the newest of each first.
    ///
    /// # Errors
    /// The server does not answer, or refuses.
    pub async fn sorted(&self) -> Result<Rows, BoxError> {
        let sort = doc! { "$sort": Row::order(self.fields) };
        self.rows(partial_filter(&self.keys).unwrap_or_default(), vec![sort]).await
    }

    /// The rows of the documents with these `_id`s, as they are now.
    ///
    /// # Errors
    /// As [`Target::sorted`].
    pub async fn named(&self, ids: Vec<Bson>) -> Result<Vec<Row>, BoxError> {
        let mut named = Vec::with_capacity(ids.len());
        for ids in cut(ids, bytes_of, COMMAND_BYTES) {
            let mut rows = self.rows(doc! { "_id": { "$in": ids } }, Vec::new()).await?;
            while let Some(row) = rows.next().await? {
                named.push(row);
            }
        }
        Ok(named)
    }

    /// The documents with these `_id`s, as they are now; a command for each part of them.
    ///
    /// # Errors
    /// As [`Target::sorted`].
    pub fn documents(
        &self,
        ids: Vec<Bson>,
    ) -> impl Iterator<Item = impl Future<Output = Result<Documents, BoxError>>> {
        cut(ids, bytes_of, COMMAND_BYTES).into_iter().map(async |ids| {
            let cursor = self.collection().find(doc! { "_id": { "$in": ids } }).await;
            Ok(self.cursor(cursor.map_err(|error| self.mongo.driver_error(&error))?))
        })
    }

    fn cursor(&self, cursor: Cursor<Document>) -> Documents {
        Documents { cursor, mongo: self.mongo.clone() }
    }

    async fn rows(&self, filter: Document, more: Vec<Document>) -> Result<Rows, BoxError> {
        let projection = Row::projection(self.keys.fields());
        let mut stages = vec![doc! { "$match": filter }, doc! { "$project": projection }];
        stages.extend(more);
        // A sort of a whole collection is larger than the memory that the server gives a sort.
        let cursor = self.collection().aggregate(stages).allow_disk_use(true).batch_size(REPLY_ROWS).await;
        let cursor = cursor.map_err(|error| self.mongo.driver_error(&error))?;
        Ok(Rows { documents: self.cursor(cursor), fields: self.fields })
    }

    fn collection(&self) -> Collection<Document> {
        self.mongo.database.collection(self.collection.as_str())
    }

    /// Removes `documents`, each only if it still is what it was; how many were.
    ///
    /// # Errors
    /// The server does not answer, or refuses; some may be removed then.
    pub async fn remove(&self, documents: &[Document]) -> Result<u64, BoxError> {
        let deletes = documents.iter().map(delete).collect();
        let mut removed = 0;
        for deletes in cut(deletes, document_bytes, COMMAND_BYTES) {
            let reply =
                self.write(doc! { "delete": self.collection.as_str(), "deletes": deletes, "ordered": false });
            removed += match reply.await?.get("n") {
                Some(Bson::Int32(n)) => i64::from(*n),
                Some(Bson::Int64(n)) => *n,
                _ => return Err("the reply to delete has no count".into()),
            };
        }
        Ok(removed.try_into()?)
    }

    /// What listIndexes tells; nothing where there is no collection.
    ///
    /// # Errors
    /// As [`Target::sorted`].
    pub async fn indexes(&self) -> Result<Option<Indexes>, BoxError> {
        let plain = doc! { "listIndexes": self.collection.as_str(), "cursor": { "batchSize": 1000 } };
        let mut marked = plain.clone();
        marked.insert("includeBuildUUIDs", true);
        let reply = match self.mongo.database.run_command(marked).await {
            // A server that does not know the option lists indexes that are being built like the others.
            Err(error) if code(&error).is_some_and(|code| code != NAMESPACE_NOT_FOUND) => {
                self.mongo.database.run_command(plain).await
            }
            reply => reply,
        };
        let reply = match reply {
            Err(error) if code(&error) == Some(NAMESPACE_NOT_FOUND) => return Ok(None),
            reply => reply.map_err(|error| self.mongo.driver_error(&error))?,
        };
        let listed = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
        let listed = listed.map_err(|_| "the reply to listIndexes has no list")?;
        Ok(Some(Indexes::of(listed.iter().filter_map(Bson::as_document))))
    }

    /// The index that stands in the way; and the name of the unique one while it is being built.
    ///
    /// # Errors
    /// As [`Target::sorted`].
    pub async fn obstacle(&self) -> Result<(Option<Obstacle>, Option<String>), BoxError> {
        let indexes = self.indexes().await?.unwrap_or_default();
        let building = indexes.building(&self.keys);
        let existing = [indexes.ready, indexes.in_progress].concat();
        let IndexState::Conflicting(name) = index_state(&self.keys, &existing) else {
            return Ok((None, building));
        };
        let named = existing.iter().find(|index| index.get_str("name").is_ok_and(|this| this == name));
        let dispensable = named.is_some_and(|index| is_plain(index, &self.keys));
        Ok((Some(Obstacle { name, dispensable }), building))
    }

    /// Drops an index.
    ///
    /// # Errors
    /// The server does not answer, or refuses.
    pub async fn drop_index(&self, name: &str) -> Result<(), BoxError> {
        self.write(doc! { "dropIndexes": self.collection.as_str(), "index": name }).await.map(drop)
    }

    async fn write(&self, mut command: Document) -> Result<Document, BoxError> {
        command.insert("writeConcern", Document::try_from(&*self.write_concern)?);
        let reply = self.mongo.database.run_command(command).await;
        let reply = reply.map_err(|error| self.mongo.driver_error(&error))?;
        // A reply that is well as a whole can still tell of what is not.
        let fault = reply.get_array("writeErrors").ok().and_then(|errors| errors.first()?.as_document());
        match fault.or(reply.get_document("writeConcernError").ok()) {
            Some(fault) => Err(fault.get_str("errmsg").unwrap_or("the server refused the write").into()),
            None => Ok(reply),
        }
    }
}

/// The removal of `document`, if it still is what it was.
fn delete(document: &Document) -> Document {
    let id = document.get("_id").cloned().unwrap_or(Bson::Null);
    let unchanged = doc! { "$eq": ["$$ROOT", { "$literal": document.clone() }] };
    let delete = doc! { "q": { "_id": { "$eq": &id }, "$expr": unchanged }, "limit": 1 };
    if document_bytes(&delete) < COMMAND_BYTES {
        return delete;
    }
    // So large an `_id` cannot be there twice.
    let (root, mut rest) = (doc! { "$unsetField": { "field": "_id", "input": "$$ROOT" } }, document.clone());
    rest.remove("_id");
    let unchanged = doc! { "$eq": [root, { "$literal": rest }] };
    doc! { "q": { "_id": { "$eq": id }, "$expr": unchanged }, "limit": 1 }
}

/// Of an `_id` in a list.
fn bytes_of(id: &Bson) -> usize {
    document_bytes(&doc! { "0000000": id.clone() })
}

fn document_bytes(document: &Document) -> usize {
    RawDocumentBuf::try_from(document).map_or(0, |raw| raw.as_bytes().len())
}

fn code(error: &Error) -> Option<i32> {
    if let ErrorKind::Command(error) = &*error.kind { Some(error.code) } else { None }
}

/// No option that does anything, and no other fields than the key's.
fn is_plain(index: &Document, keys: &UpsertKeys) -> bool {
    let names = ["v", "key", "name", "ns", "background"];
    let on_key = index.get_document("key").is_ok_and(|key| {
        key.len() == keys.fields().count()
            && key.iter().all(|(field, order)| {
                keys.fields().any(|key| key == field) && !matches!(order, Bson::String(_))
            })
    });
    on_key && index.keys().all(|name| names.contains(&name.as_str()))
}

/// Documents as they come from the server.
#[derive(Debug)]
pub struct Documents {
    cursor: Cursor<Document>,
    mongo: Mongo,
}

impl Documents {
    /// The next document.
    ///
    /// # Errors
    /// The server does not answer, or refuses.
    pub async fn next(&mut self) -> Result<Option<Document>, BoxError> {
        if !self.cursor.advance().await.map_err(|error| self.mongo.driver_error(&error))? {
            return Ok(None);
        }
        // Not through serde, which takes a field of the form of Extended JSON for a value of that type.
        Ok(Some(Document::try_from(self.cursor.current())?))
    }
}

/// Rows as they come from the server.
#[derive(Debug)]
pub struct Rows {
    documents: Documents,
    fields: usize,
}

impl Rows {
    /// The next row.
    ///
    /// # Errors
    /// The server does not answer, or refuses.
    pub async fn next(&mut self) -> Result<Option<Row>, BoxError> {
        Ok(self.documents.next().await?.map(|projected| Row::read(&projected, self.fields)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_stay_below_16_mib_however_large_the_ids_are() {
        let large = |n: i32, id: usize, rest: usize| doc! { "_id": format!("{n}{}", "x".repeat(id)), "b": "y".repeat(rest) };
        let documents: Vec<Document> = (0..12)
            .map(|n| large(n, 2 << 20, 1 << 10))
            .chain([large(12, 8 << 20, 7 << 20), large(13, 100, (16 << 20) - 1_000), large(14, 9, 9)])
            .collect();
        let parts = cut(documents.iter().map(delete).collect(), document_bytes, COMMAND_BYTES);
        assert_eq!(parts.concat().len(), documents.len());
        for deletes in parts {
            let command = doc! { "delete": "c", "deletes": deletes, "ordered": false };
            assert!(document_bytes(&command) <= (16 << 20) + (1 << 10), "{}", document_bytes(&command));
        }
    }

    #[test]
    fn an_index_that_is_being_built_is_not_there_yet() {
        let keys = UpsertKeys::parse("event_id").unwrap();
        let unique = doc! { "v": 2, "key": { "event_id": 1 }, "name": "event_id_1", "unique": true };
        let id = doc! { "v": 2, "key": { "_id": 1 }, "name": "_id_" };
        let building = doc! { "spec": unique.clone(), "buildUUID": "u" };
        let indexes = Indexes::of([&id, &building].into_iter());
        assert_eq!((indexes.ready.len(), indexes.in_progress.len()), (1, 1));
        assert_eq!(indexes.building(&keys).as_deref(), Some("event_id_1"));
        assert_eq!(Indexes::of([&id, &unique].into_iter()).building(&keys), None);
        let plain = doc! { "v": 2, "key": { "event_id": 1 }, "name": "event_id_1" };
        assert_eq!(
            Indexes::of([&doc! { "spec": plain, "buildUUID": "u" }].into_iter()).building(&keys),
            None
        );
    }

    #[test]
    fn only_an_index_that_does_nothing_else_is_dispensable() {
        let keys = UpsertKeys::parse("event_id").unwrap();
        let index = |more: Document| {
            let mut index = doc! { "v": 2, "key": { "event_id": 1 }, "name": "event_id_1" };
            index.extend(more);
            index
        };
        assert!(is_plain(&index(doc! {}), &keys));
        assert!(is_plain(&index(doc! { "key": { "event_id": -1.0 } }), &keys));
        for more in [
            doc! { "expireAfterSeconds": 60 },
            doc! { "sparse": true },
            doc! { "collation": { "locale": "fr" } },
            doc! { "key": { "event_id": "hashed" } },
            doc! { "key": { "other": 1 } },
        ] {
            assert!(!is_plain(&index(more.clone()), &keys), "{more}");
        }
    }
}
