//! What is in the database.

use bson::{Document, doc};
use mongodb::{Client, Collection, Database};

use crate::Names;

/// A collection of the test's database, read with a client of its own.
pub async fn collection(names: &Names, source: &str) -> Collection<Document> {
    database(names).await.collection(source)
}

/// The test's database.
pub async fn database(names: &Names) -> Database {
    Client::with_uri_str(&names.mongodb).await.expect("a client").database(&names.database)
}

/// The document of an event, if there is one; more than one is a failure.
pub async fn find(collection: &Collection<Document>, id: &str) -> Option<Document> {
    let mut documents = all(collection, doc! {"event_id": id}).await;
    assert!(documents.len() < 2, "{id} is there {} times", documents.len());
    documents.pop()
}

/// Every document that `filter` finds; none while the server is away.
pub async fn all(collection: &Collection<Document>, filter: Document) -> Vec<Document> {
    use futures::TryStreamExt;
    match collection.find(filter).await {
        Ok(cursor) => cursor.try_collect().await.unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}
