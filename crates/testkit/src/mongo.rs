//! Reads a test's database with a client of its own.

use bson::{Document, doc};
use futures::TryStreamExt;
use mongodb::{Client, Collection, Database};

use crate::Names;

/// The collection of a source.
pub async fn collection(names: &Names, source: &str) -> Collection<Document> {
    database(names).await.collection(source)
}

/// The test's database.
pub async fn database(names: &Names) -> Database {
    Client::with_uri_str(&names.mongodb).await.expect("a client").database(&names.database)
}

/// The document of an event. Panics if there are two.
pub async fn find(collection: &Collection<Document>, id: &str) -> Option<Document> {
    let mut documents = all(collection, doc! {"event_id": id}).await;
    assert!(documents.len() < 2, "{} documents of event {id}", documents.len());
    documents.pop()
}

/// All documents that match `filter`; empty if the server is unavailable.
pub async fn all(collection: &Collection<Document>, filter: Document) -> Vec<Document> {
    match collection.find(filter).await {
        Ok(cursor) => cursor.try_collect().await.unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}
