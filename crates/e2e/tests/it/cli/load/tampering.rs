//! Each finding of a verification, after its cause was made in the database.

use bson::{Bson, Document, doc};
use mongodb::Collection;
use serde_json::Value;
use testkit::{Stack, kafka, mongo};

use super::{Said, Site, lines};

/// A load of 60 events with 10 ids, stored and verified.
struct Stored {
    site: Site,
    manual: Collection<Document>,
    run: String,
}

impl Stored {
    async fn new() -> Self {
        Self::sent(&["--events", "60", "--keys", "10", "--superseded", "30%"]).await
    }

    async fn sent(options: &[&str]) -> Self {
        let site = Site::start(Stack::shared_without_sync().await).await;
        let sent = site.load(options).await;
        assert_eq!(sent.code, Some(0), "{sent:?}");
        let verdict = site.verify(&[]).await;
        assert_eq!(verdict.code, Some(0), "{verdict:#?}");
        let manual = mongo::collection(&site.names, "manual").await;
        Self { run: lines(&site.ledger())[0]["run"].as_str().unwrap().to_owned(), site, manual }
    }

    fn id(&self, key: u64) -> String {
        format!("{}-{key}", self.run)
    }

    async fn update(&self, key: u64, update: Document) {
        let done = self.manual.update_one(doc! { "event_id": self.id(key) }, update).await.unwrap();
        assert_eq!(done.modified_count, 1);
    }

    /// Panics unless this is the only finding, with the id as its example.
    async fn assert_only(&self, kind: &str, key: u64, part: &str) -> Said {
        let verdict = self.site.verify(&[]).await;
        assert_eq!(verdict.code, Some(1), "{verdict:#?}");
        for other in ["missing", "gone", "duplicated", "superseded", "altered", "foreign", "dead_lettered"] {
            let count = u64::from(other == kind);
            assert_eq!(verdict.count(&format!("/{other}/count")), count, "{other}: {verdict:#?}");
        }
        let example = verdict.json[kind]["examples"][0].as_str().unwrap();
        assert!(example.starts_with(&format!("{}:", self.id(key))) && example.contains(part), "{example}");
        verdict
    }

    /// The events of a key, oldest first.
    fn of_key(&self, key: u64) -> Vec<Value> {
        let mut lines = lines(&self.site.ledger()).split_off(1);
        lines.retain(|line| line["id"] == self.id(key).as_str());
        lines.sort_by_key(|line| line["timestamp"].as_i64());
        lines
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_document_is_missing() {
    let stored = Stored::new().await;
    stored.manual.delete_one(doc! { "event_id": stored.id(3) }).await.unwrap();
    stored.assert_only("missing", 3, "has no document").await;
    stored.site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn second_document_of_an_id_is_a_duplicate() {
    let stored = Stored::new().await;
    // As in a collection without its unique index.
    stored.manual.drop_index("event_id_1").await.unwrap();
    let mut again = mongo::find(&stored.manual, &stored.id(4)).await.unwrap();
    again.remove("_id");
    stored.manual.insert_one(again).await.unwrap();
    stored.assert_only("duplicated", 4, "several documents").await;
    stored.site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn older_event_in_place_of_a_newer_one_is_superseded() {
    let stored = Stored::new().await;
    let older = stored.of_key(5).swap_remove(0)["timestamp"].as_i64().unwrap();
    stored.update(5, doc! { "$set": { "event_timestamp": older } }).await;
    stored.assert_only("superseded", 5, "a newer event was accepted").await;
    let newest = stored.of_key(5).pop().unwrap();
    let (timestamp, ingested_at) = (newest["timestamp"].as_i64(), newest["ingested_at"].as_i64());
    // The same event with an earlier `ingested_at`.
    let earlier = doc! { "event_timestamp": timestamp, "ingested_at": ingested_at.map(|at| at - 1) };
    stored.update(5, doc! { "$set": earlier }).await;
    stored.assert_only("superseded", 5, "a newer event was accepted").await;
    stored.site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn older_event_is_gone_if_only_its_own_record_is_left() {
    // The first document is the newest.
    let stored =
        Stored::sent(&["--events", "10", "--keys", "1", "--superseded", "100%", "--connections", "1"]).await;
    let older = stored.of_key(0).into_iter().rev().nth(1).unwrap();
    let times =
        doc! { "event_timestamp": older["timestamp"].as_i64(), "ingested_at": older["ingested_at"].as_i64() };
    stored.update(0, doc! { "$set": times }).await;
    stored.assert_only("superseded", 0, "a newer event was accepted").await;
    let partition = i32::try_from(older["partition"].as_i64().unwrap()).unwrap();
    kafka::delete_records(&stored.site.names, partition, older["offset"].as_i64().unwrap()).await;
    stored.assert_only("gone", 0, "the topic no longer has their records").await;
    stored.site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn document_with_a_changed_field_is_altered_and_the_field_is_named() {
    let stored = Stored::new().await;
    let original = mongo::find(&stored.manual, &stored.id(6)).await.unwrap();
    let n = original.get_i32("n").unwrap();
    let stamp = original.get_i64("ingested_at").unwrap();
    for (update, part) in [
        (doc! { "$set": { "n": n + 1 } }, "differs in n"),
        // The same number with another type.
        (doc! { "$set": { "n": i64::from(n) } }, "differs in n"),
        (doc! { "$set": { "position.latitude": 0.5 } }, "differs in position"),
        (doc! { "$unset": { "url_photo": "" } }, "differs in url_photo"),
        (doc! { "$set": { "new": Bson::Null } }, "differs in new"),
        (doc! { "$set": { "api_version": "2" } }, "differs in api_version"),
        (doc! { "$set": { "ingested_at_iso": "2020-01-01T00:00:00.000Z" } }, "differs in ingested_at_iso"),
        (doc! { "$set": { "ingested_at": stamp + 1 } }, "no accepted event has these times"),
        (doc! { "$set": { "event_timestamp": 1_900_000_000_000_i64 } }, "no accepted event has these times"),
        (doc! { "$set": { "event_timestamp": "x" } }, "is not an int64"),
    ] {
        stored.update(6, update).await;
        stored.assert_only("altered", 6, part).await;
        let id = doc! { "_id": original.get_object_id("_id").unwrap() };
        stored.manual.replace_one(id, original.clone()).await.unwrap();
    }
    assert_eq!(stored.site.verify(&[]).await.code, Some(0), "it is as it was");
    stored.site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn document_that_was_never_sent_is_foreign() {
    let stored = Stored::new().await;
    stored.manual.insert_one(doc! { "event_id": stored.id(999) }).await.unwrap();
    // Documents of another load, or of none.
    stored.manual.insert_one(doc! { "event_id": format!("{}1-3", stored.run) }).await.unwrap();
    stored.manual.insert_one(doc! { "event_id": "load" }).await.unwrap();
    let verdict = stored.assert_only("foreign", 999, "was never sent").await;
    assert_eq!(verdict.count("/documents"), 11);
    stored.site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn number_of_dead_letters_is_compared_with_the_expected_number() {
    let stack = Stack::shared_without_sync().await;
    let site = Site::start(stack).await;
    let create = doc! { "create": "manual", "validator": { "n": { "$not": { "$mod": [3, 0] } } } };
    mongo::database(&site.names).await.run_command(create).await.unwrap();
    let sent = site.load(&["--events", "30", "--keys", "30"]).await;
    assert_eq!(sent.code, Some(0), "{sent:?}");
    let verdict = site.verify(&["--expect-dead-letters", "10"]).await;
    assert_eq!((verdict.code, verdict.count("/documents")), (Some(0), 20), "{verdict:#?}");
    let verdict = site.verify(&[]).await;
    assert_eq!((verdict.code, verdict.count("/dead_lettered/count")), (Some(1), 10), "{verdict:#?}");
    assert_eq!(verdict.count("/missing/count"), 0, "what is dead-lettered is not missing: {verdict:#?}");
    let example = verdict.json["dead_lettered"]["examples"][0].as_str().unwrap();
    assert!(example.contains("validation"), "the reason is told: {example}");

    // A record of this load that is no event counts as well; a record of others does not.
    let run = lines(&site.ledger())[0]["run"].as_str().unwrap().to_owned();
    let (ours, others) = (format!("{run}-1"), format!("{run}x-1"));
    kafka::produce(&site.names, &[(Some(&ours), b"{"), (Some(&others), b"{")]).await;
    let verdict = site.verify(&["--expect-dead-letters", "11"]).await;
    assert_eq!(verdict.code, Some(0), "{verdict:#?}");
    site.end().await;
}
