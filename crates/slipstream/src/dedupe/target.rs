//! The collection: its documents as rows, their removal, and the index that stands in the way of the unique one.

use bson::{Bson, Document, RawDocumentBuf, doc};
use consumer::store::{IndexState, UpsertKeys, index_state, partial_filter, write_concern};
use events::Source;
use mongodb::error::{Error, ErrorKind};
use mongodb::{Collection, Cursor, Database};

use super::config::Config;
use super::row::Row;
use crate::{Failure, mongo};

const NAMESPACE_NOT_FOUND: i32 = 26;

/// Rows in one reply of the server.
const REPLY_ROWS: u32 = 10_000;

/// A collection and what makes its documents unique.
#[derive(Debug)]
pub struct Target {
    /// What makes a document unique.
    pub keys: UpsertKeys,
    database: Database,
    collection: Source,
    fields: usize,
    write_concern: RawDocumentBuf,
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
    pub async fn new(config: Config) -> Result<Self, Failure> {
        Ok(Self {
            database: mongo::database(&config.uri, &config.database).await?,
            write_concern: write_concern(&config.uri)?,
            fields: config.upsert_keys.fields().count(),
            collection: config.collection,
            keys: config.upsert_keys,
        })
    }

    /// Database and collection.
    pub fn names(&self) -> (&str, &str) {
        (self.database.name(), self.collection.as_str())
    }

    /// Every document that the unique index would cover, by key, the newest of each first.
    ///
    /// # Errors
    /// The server does not answer, or refuses.
    pub async fn sorted(&self) -> Result<Rows, Failure> {
        let sort = doc! { "$sort": Row::order(self.fields) };
        self.rows(partial_filter(&self.keys).unwrap_or_default(), vec![sort]).await
    }

    /// The rows of the documents with these `_id`s, as they are now.
    ///
    /// # Errors
    /// As [`Target::sorted`].
    pub async fn named(&self, ids: Vec<Bson>) -> Result<Rows, Failure> {
        self.rows(doc! { "_id": { "$in": ids } }, Vec::new()).await
    }

    /// The documents with these `_id`s, as they are now.
    ///
    /// # Errors
    /// As [`Target::sorted`].
    pub async fn documents(&self, ids: Vec<Bson>) -> Result<Documents, Failure> {
        Ok(Documents(self.collection().find(doc! { "_id": { "$in": ids } }).await?))
    }

    async fn rows(&self, filter: Document, more: Vec<Document>) -> Result<Rows, Failure> {
        let projection = Row::projection(self.keys.fields());
        let mut stages = vec![doc! { "$match": filter }, doc! { "$project": projection }];
        stages.extend(more);
        // A sort of a whole collection is larger than the memory that the server gives a sort.
        let cursor = self.collection().aggregate(stages).allow_disk_use(true).batch_size(REPLY_ROWS).await?;
        Ok(Rows { documents: Documents(cursor), fields: self.fields })
    }

    fn collection(&self) -> Collection<Document> {
        self.database.collection(self.collection.as_str())
    }

    /// Removes `documents`, each only if it still is what it was; how many were.
    ///
    /// # Errors
    /// The server does not answer, or refuses; some may be removed then.
    pub async fn remove(&self, documents: &[Document]) -> Result<u64, Failure> {
        let delete = |document: &Document| {
            let id = document.get("_id").cloned().unwrap_or(Bson::Null);
            let unchanged = doc! { "$eq": ["$$ROOT", { "$literal": document.clone() }] };
            doc! { "q": { "_id": { "$eq": id }, "$expr": unchanged }, "limit": 1 }
        };
        let deletes: Vec<Document> = documents.iter().map(delete).collect();
        let reply =
            self.write(doc! { "delete": self.collection.as_str(), "deletes": deletes, "ordered": false });
        let reply = reply.await?;
        let removed = match reply.get("n") {
            Some(Bson::Int32(n)) => i64::from(*n),
            Some(Bson::Int64(n)) => *n,
            _ => return Err("the reply to delete has no count".into()),
        };
        Ok(removed.try_into()?)
    }

    /// What listIndexes tells; nothing where there is no collection.
    ///
    /// # Errors
    /// As [`Target::sorted`].
    pub async fn indexes(&self) -> Result<Option<Vec<Document>>, Failure> {
        let command = doc! { "listIndexes": self.collection.as_str(), "cursor": { "batchSize": 1000 } };
        let reply = match self.database.run_command(command).await {
            Err(error) if code(&error) == Some(NAMESPACE_NOT_FOUND) => return Ok(None),
            reply => reply?,
        };
        let listed = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
        let listed = listed.map_err(|_| "the reply to listIndexes has no list")?;
        Ok(Some(listed.iter().filter_map(|index| index.as_document().cloned()).collect()))
    }

    /// The index that stands in the way.
    ///
    /// # Errors
    /// As [`Target::sorted`].
    pub async fn obstacle(&self) -> Result<Option<Obstacle>, Failure> {
        let existing = self.indexes().await?.unwrap_or_default();
        let IndexState::InTheWay(name) = index_state(&self.keys, &existing) else { return Ok(None) };
        let named = existing.iter().find(|index| index.get_str("name").is_ok_and(|this| this == name));
        let dispensable = named.is_some_and(|index| is_plain(index, &self.keys));
        Ok(Some(Obstacle { name, dispensable }))
    }

    /// Drops an index.
    ///
    /// # Errors
    /// The server does not answer, or refuses.
    pub async fn drop_index(&self, name: &str) -> Result<(), Failure> {
        self.write(doc! { "dropIndexes": self.collection.as_str(), "index": name }).await.map(drop)
    }

    async fn write(&self, mut command: Document) -> Result<Document, Failure> {
        command.insert("writeConcern", Document::try_from(&*self.write_concern)?);
        let reply = self.database.run_command(command).await?;
        // A reply that is well as a whole can still tell of what is not.
        let fault = reply.get_array("writeErrors").ok().and_then(|errors| errors.first()?.as_document());
        match fault.or(reply.get_document("writeConcernError").ok()) {
            Some(fault) => Err(fault.get_str("errmsg").unwrap_or("the server refused the write").into()),
            None => Ok(reply),
        }
    }
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
pub struct Documents(Cursor<Document>);

impl Documents {
    /// The next document.
    ///
    /// # Errors
    /// The server does not answer, or refuses.
    pub async fn next(&mut self) -> Result<Option<Document>, Failure> {
        if !self.0.advance().await? {
            return Ok(None);
        }
        // Not through serde, which takes a field of the form of Extended JSON for a value of that type.
        Ok(Some(Document::try_from(self.0.current())?))
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
    pub async fn next(&mut self) -> Result<Option<Row>, Failure> {
        Ok(self.documents.next().await?.map(|projected| Row::read(&projected, self.fields)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
