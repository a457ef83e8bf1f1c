//! Documents as the original writes them.

use std::path::Path;
use std::process::Output;

use bson::{Document, RawDocumentBuf, doc};
use mongodb::Collection;
use serde_json::Value;
use testkit::process::command;
use testkit::{Names, mongo};

/// The document that the original makes of an event: payload and metadata in one flat document,
/// without an `_id`.
pub fn document(id: &str, timestamp: i64, ingested_at: i64, owner: &str) -> Document {
    doc! {
        "type": "G Hot Air Balloon", "mode_s": id, "registered_owner": owner, "url_photo": null,
        "event_id": id, "event_timestamp": timestamp, "ingested_at": ingested_at, "api_version": "1.0.0",
        "event_timestamp_iso": "2025-10-26T20:16:03.123Z", "ingested_at_iso": "2025-10-26T20:16:03.123Z",
    }
}

/// An update with upsert, without a unique index.
pub async fn upsert(collection: &Collection<Document>, document: Document) {
    let filter = doc! { "event_id": document.get("event_id") };
    let written = collection.update_one(filter, doc! { "$set": document }).upsert(true).await;
    written.expect("an upsert");
}

/// Concurrent upserts: each finds nothing and inserts.
pub async fn upserts_at_once(collection: &Collection<Document>, documents: Vec<Document>) {
    collection.insert_many(documents).await.expect("documents");
}

/// All documents, byte for byte, in a fixed order.
pub async fn snapshot(collection: &Collection<Document>) -> Vec<Vec<u8>> {
    bytes(&mongo::all(collection, doc! {}).await)
}

/// Documents, byte for byte, in a fixed order.
pub fn bytes(documents: &[Document]) -> Vec<Vec<u8>> {
    let raw = |document: &Document| RawDocumentBuf::try_from(document).expect("BSON").into_bytes();
    let mut all: Vec<Vec<u8>> = documents.iter().map(raw).collect();
    all.sort();
    all
}

/// The documents in a file of `dedupe`.
pub fn read_back(file: &Path) -> Vec<Document> {
    let text = std::fs::read_to_string(file).expect("the file");
    text.lines().map(|line| serde_json::from_str(line).expect("Extended JSON")).collect()
}

/// Runs `slipstream dedupe` on the database of `names`.
pub async fn dedupe(names: &Names, more: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut environment = vec![("MONGODB_URI", names.mongodb.as_str()), ("MONGODB_DB", &names.database)];
    environment.extend_from_slice(more);
    command("slipstream", &environment).arg("dedupe").args(arguments).output().await.expect("it runs")
}

/// Its output with `--json`.
pub fn said(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}
