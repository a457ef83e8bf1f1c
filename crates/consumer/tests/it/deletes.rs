//! Deletes and expiry on real servers: a delete wins over every older event, whenever that is written.

use std::time::Duration;

use bson::{Document, doc};
use tempfile::TempDir;

use crate::trial::{Member, Sent, Trial, event, eventually, told};

/// The TTL monitor of a server runs once a minute.
const EXPIRY_TIMEOUT: Duration = Duration::from_secs(90);

/// A consumer whose sources file has `orders` with these fields.
struct Orders {
    trial: Trial,
    _folder: TempDir,
    member: Member,
}

impl Orders {
    async fn start(fields: &str) -> Self {
        Self::start_on(Trial::new(1).await, fields).await
    }

    async fn start_on(trial: Trial, fields: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sources.yaml");
        std::fs::write(&path, format!("sources: {{orders: {{push: {{}}, event: {{id: /no}}{fields}}}}}"))
            .unwrap();
        let member = trial.start(&[("SOURCES_FILE", &path.display().to_string())]).await;
        member.becomes_ready().await;
        Self { trial, _folder: folder, member }
    }

    async fn send(&self, value: &str) {
        self.trial.send(Sent::new("a", value)).await;
    }

    async fn write(&self, id: &str, at: i64) {
        self.send(&event(id, at, &format!(r#"{{"at":{at}}}"#)).replace("adsbdb", "orders")).await;
    }

    async fn delete(&self, id: &str, at: i64) {
        self.send(&delete(id, at)).await;
    }

    /// The stored timestamp of an id.
    async fn stored(&self, id: &str) -> Option<i64> {
        version(self.trial.collection("orders").await.find_one(doc! { "event_id": id }).await.unwrap())
    }

    async fn tombstone(&self, id: &str) -> Option<i64> {
        version(self.trial.collection("orders.deletes").await.find_one(doc! { "_id": id }).await.unwrap())
    }

    async fn index(&self, collection: &str, name: &str) -> Option<Document> {
        let indexes = self.trial.collection(collection).await;
        let mut indexes = indexes.list_indexes().await.ok()?;
        while indexes.advance().await.ok()? {
            let index = bson::serialize_to_document(&indexes.deserialize_current().ok()?).ok()?;
            if index.get_str("name").ok() == Some(name) {
                return Some(index);
            }
        }
        None
    }
}

fn version(document: Option<Document>) -> Option<i64> {
    Some(document?.get_i64("event_timestamp").unwrap())
}

/// The record of a delete, as the producer writes it.
fn delete(id: &str, at: i64) -> String {
    format!(
        r#"{{"id":"{id}","timestamp":{at},"source":"orders","op":"delete","ingested_at":{at},"api_version":"1.0.0"}}"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn g3_a_delete_removes_its_document_and_keeps_older_events_out() {
    let orders = Orders::start(", delete: {}").await;
    orders.write("a", 10).await;
    orders.write("b", 10).await;
    orders.member.finishes(2).await;
    orders.delete("a", 20).await;
    orders.delete("b", 5).await;
    orders.delete("c", 20).await;
    orders.member.finishes(5).await;
    assert_eq!((orders.stored("a").await, orders.tombstone("a").await), (None, Some(20)));
    assert_eq!(orders.stored("b").await, Some(10), "the stored event is newer");
    let seen = orders.member.seen();
    assert_eq!((seen.inserted, seen.deleted, seen.superseded), (2, 2, 1), "{seen:?}");
    // An older event, a late one whose id was deleted first, and the delete once more.
    orders.write("a", 15).await;
    orders.write("c", 19).await;
    orders.delete("a", 20).await;
    orders.delete("a", 3).await;
    orders.member.finishes(9).await;
    let seen = orders.member.seen();
    assert_eq!((seen.inserted, seen.deleted, seen.superseded), (2, 3, 4), "{seen:?}");
    assert_eq!((orders.stored("a").await, orders.stored("c").await), (None, None));
    orders.write("a", 21).await;
    orders.member.finishes(10).await;
    assert_eq!((orders.stored("a").await, orders.tombstone("a").await), (Some(21), Some(20)));
    let documents = orders.trial.collection("orders").await.count_documents(doc! {}).await.unwrap();
    assert_eq!(documents, 2, "no tombstone is in the collection");
    let deleted = r#"slipstream_source_records_finished_total{source="orders",outcome="deleted"}"#;
    assert_eq!(orders.member.metric(deleted).await, Some(3.0));
    let deleted = r#"slipstream_records_finished_total{outcome="deleted"}"#;
    assert_eq!(orders.member.metric(deleted).await, Some(3.0));
    assert_eq!(orders.member.health().await["counters"]["deleted"], 3);
    orders.member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_with_events_and_deletes_ends_as_if_sorted() {
    let trial = Trial::new(1).await;
    let mut expected = std::collections::BTreeMap::new();
    for n in 0..2_000_i64 {
        let (id, at) = (format!("k{}", n % 97), 1_000 + (n * 7_919) % 2_003);
        let deletes = n % 5 == 0;
        let newest = expected.entry(id.clone()).or_insert((0, false));
        *newest = (*newest).max((at, deletes));
        let value = match deletes {
            true => delete(&id, at),
            false => event(&id, at, r#"{"x":1}"#).replace("adsbdb", "orders"),
        };
        trial.send(Sent::new("k", &value)).await;
    }
    let orders = Orders::start_on(trial, ", delete: {}").await;
    orders.member.finishes(2_000).await;
    for (id, (at, deletes)) in expected {
        assert_eq!(orders.stored(&id).await, (!deletes).then_some(at), "{id}");
    }
    let seen = orders.member.stop().await;
    assert!(seen.deleted > 0 && seen.superseded > 0 && seen.dead_lettered == 0, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_without_times_is_deleted_too() {
    let orders = Orders::start(", delete: {}").await;
    let collection = orders.trial.collection("orders").await;
    for times in
        [doc! {}, doc! { "event_timestamp": null }, doc! { "event_timestamp": 5.5, "ingested_at": 3 }]
    {
        let mut document = doc! { "event_id": "foreign" };
        document.extend(times);
        collection.insert_one(document).await.unwrap();
        let finished = orders.member.seen().finished();
        orders.delete("foreign", 20).await;
        orders.member.finishes(finished + 1).await;
        assert_eq!(collection.count_documents(doc! {}).await.unwrap(), 0);
    }
    orders.member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_of_a_source_without_deletes_is_dead_lettered() {
    let orders = Orders::start("").await;
    orders.write("a", 10).await;
    orders.delete("a", 20).await;
    orders.member.finishes(2).await;
    assert_eq!(orders.stored("a").await, Some(10));
    let letters = orders.trial.dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(told(&letters[0], "exception.class.name"), "InvalidEnvelope");
    assert!(told(&letters[0], "exception.message").contains("no `delete` in the sources file"));
    assert!(orders.index("orders", "event_id_1_event_timestamp_1_ingested_at_1").await.is_none());
    let names = orders.trial.mongo().await.list_collection_names().await.unwrap();
    assert_eq!(names, ["orders"], "a source without deletes has no tombstones");
    orders.member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_expires_after_its_ttl() {
    let orders = Orders::start(", delete: {tombstones: 2h}, store: {ttl: 1h}").await;
    let now = bson::DateTime::now().timestamp_millis();
    orders.write("old", 10).await;
    orders.write("new", now).await;
    orders.delete("gone", now).await;
    orders.member.finishes(3).await;
    let collection = orders.trial.collection("orders").await;
    let document = collection.find_one(doc! { "event_id": "new" }).await.unwrap().unwrap();
    let expires_at = document.get_datetime("expires_at").unwrap().timestamp_millis();
    assert_eq!(expires_at, now + 3_600_000);
    let tombstone = orders.trial.collection("orders.deletes").await.find_one(doc! {}).await.unwrap().unwrap();
    let kept_ms = tombstone.get_datetime("expires_at").unwrap().timestamp_millis() - now;
    assert!((7_200_000..7_260_000).contains(&kept_ms), "{kept_ms}");
    for collection in ["orders", "orders.deletes"] {
        let index = orders.index(collection, "expires_at_1").await.expect("an index");
        assert_eq!(index.get_i32("expireAfterSeconds").ok().map(i64::from), Some(0), "{index}");
    }
    assert_eq!(orders.member.seen().inserted, 2, "an event that has expired is stored");
    eventually("the old document is removed", EXPIRY_TIMEOUT, async || orders.stored("old").await.is_none())
        .await;
    assert_eq!(orders.stored("new").await, Some(now));
    orders.member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g5_a_delete_whose_tombstone_is_rejected_is_dead_lettered_alone() {
    let trial = Trial::new(1).await;
    let validator = doc! { "_id": { "$ne": "bad" } };
    let create = doc! { "create": "orders.deletes", "validator": validator };
    trial.mongo().await.run_command(create).await.unwrap();
    for value in [delete("bad", 20), delete("good", 20)] {
        trial.send(Sent::new("k", &value)).await;
    }
    trial.send(Sent::new("k", &event("new", 5, "{}").replace("adsbdb", "orders"))).await;
    let orders = Orders::start_on(trial, ", delete: {}").await;
    orders.member.finishes(3).await;
    let seen = orders.member.seen();
    assert_eq!((seen.deleted, seen.inserted, seen.dead_lettered), (1, 1, 1), "{seen:?}");
    let letters = orders.trial.dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(told(&letters[0], "exception.class.name"), "DocumentValidationFailure");
    assert_eq!((orders.tombstone("bad").await, orders.tombstone("good").await), (None, Some(20)));
    orders.member.stop().await;
}
