//! The collection that a side writes to, seen with a client of the driver's own.

use std::collections::HashMap;

use bson::{Document, doc};
use futures::TryStreamExt;
use mongodb::{Client, Database};

use crate::Failure;
use crate::stage::{Stage, Storage};
use crate::workload::{SOURCE, Totals};

/// The database that the collection is in.
pub const DATABASE: &str = "bench";

/// An empty collection with both indexes in place, in a database server of its own.
#[derive(Debug)]
pub struct Collection {
    database: Database,
    storage: Storage,
}

impl Collection {
    /// Starts the server and makes the indexes, under the names that every side would give them.
    pub async fn make(stage: &Stage) -> Result<Collection, Failure> {
        let storage = stage.database().await?;
        let database = Client::with_uri_str(storage.uri()).await?.database(DATABASE);
        let collection = Collection { database, storage };
        let lookup = doc! { "mode_s": 1, "registration": 1, "event_timestamp": 1 };
        let indexes = [
            doc! { "key": { "event_id": 1 }, "name": "event_id_1", "unique": true },
            doc! { "key": lookup, "name": "mode_s_1_registration_1_event_timestamp_1" },
        ];
        collection.run(doc! { "createIndexes": SOURCE, "indexes": indexes.to_vec() }).await?;
        Ok(collection)
    }

    /// What MONGODB_URI takes.
    pub fn uri(&self) -> String {
        self.storage.uri()
    }

    /// How many documents it has.
    pub async fn count(&self) -> Result<u32, Failure> {
        let reply = self.run(doc! { "count": SOURCE }).await?;
        Ok(u32::try_from(integer(&reply, "n")?)?)
    }

    /// The `event_timestamp` of each of these documents that is there.
    pub async fn timestamps(&self, ids: &[&str]) -> Result<HashMap<String, i64>, Failure> {
        let found = self.database.collection::<Document>(SOURCE);
        let found = found.find(doc! { "event_id": { "$in": ids } });
        let documents = found.projection(doc! { "_id": 0, "event_id": 1, "event_timestamp": 1 }).await?;
        let documents: Vec<Document> = documents.try_collect().await?;
        let pair = |document: &Document| {
            Ok((document.get_str("event_id")?.to_owned(), integer(document, "event_timestamp")?))
        };
        documents.iter().map(pair).collect()
    }

    /// What it comes to; this reads every document.
    pub async fn totals(&self) -> Result<Totals, Failure> {
        let group = doc! { "_id": null, "n": { "$sum": 1 }, "sum": { "$sum": "$event_timestamp" } };
        let found =
            self.database.collection::<Document>(SOURCE).aggregate([doc! { "$group": group }]).await?;
        let groups: Vec<Document> = found.try_collect().await?;
        let Some(group) = groups.first() else { return Ok(Totals::default()) };
        Ok(Totals { documents: integer(group, "n")?, timestamps: integer(group, "sum")? })
    }

    async fn run(&self, command: Document) -> Result<Document, Failure> {
        Ok(self.database.run_command(command).await?)
    }
}

/// A whole number, of whichever kind it came as.
fn integer(document: &Document, field: &str) -> Result<i64, Failure> {
    match document.get(field) {
        Some(bson::Bson::Int32(number)) => Ok(i64::from(*number)),
        Some(bson::Bson::Int64(number)) => Ok(*number),
        Some(bson::Bson::Double(number)) => Ok(*number as i64),
        _ => Err(format!("the database's answer has no number {field}").into()),
    }
}
