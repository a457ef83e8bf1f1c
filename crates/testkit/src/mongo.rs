//! Reads a test's database with a client of its own, and the parts of its URI.

use std::net::SocketAddr;

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

/// The host, and the port if it has one, of a URI with one host.
pub fn host(uri: &str) -> &str {
    let rest = uri.strip_prefix("mongodb://").expect("a URI with mongodb://");
    let host = rest.split(['/', '?']).next().unwrap_or(rest);
    host.rsplit_once('@').map_or(host, |(_, host)| host)
}

/// The address of the server of a URI with one host.
pub async fn address(uri: &str) -> SocketAddr {
    let host = host(uri);
    let with_port = if host.contains(':') { host.to_owned() } else { format!("{host}:27017") };
    tokio::net::lookup_host(with_port).await.expect("a known host").next().expect("an address")
}

/// The URI with another option.
pub fn with_option(uri: &str, option: &str) -> String {
    let separator = match uri.rsplit_once('/') {
        _ if uri.contains('?') => "&",
        Some((before, "")) if !before.ends_with('/') => "?",
        _ => "/?",
    };
    format!("{uri}{separator}{option}")
}
