//! UPSERT_KEYS: which events share a document, and the indexes for them.

use std::time::{Duration, Instant};

use bson::{Document, doc};
use events::{Source, derived_object_id};
use serde_json::json;
use testkit::servers::shared_mongodb;

use crate::mongo_fixture::{
    StoreFixture, StoreOptions, WAIT_TIMEOUT, counts, event, expected_document, open,
};

const LOOKUP: &str = "mode_s_1_registration_1_event_timestamp_1";

fn is_unique(index: Option<Document>) -> Option<bool> {
    index.map(|index| index.get_bool("unique").unwrap_or(false))
}

#[tokio::test]
async fn indexes_are_built_when_a_source_first_appears() {
    let by_id = StoreFixture::with_keys("event_id").await;
    assert_eq!(by_id.index("event_id_1").await, None);
    by_id.write(&[event("a", 1, 1, &json!({}))]).await;
    assert_eq!(is_unique(by_id.index("event_id_1").await), Some(true));
    assert_eq!(is_unique(by_id.index(LOOKUP).await), Some(false));

    let by_mode_s = StoreFixture::with_keys("mode_s").await;
    by_mode_s.write(&[event("a", 1, 1, &json!({}))]).await;
    let unique = by_mode_s.index("mode_s_1").await.expect("the key's index");
    assert_eq!(unique.get_bool("unique").ok(), Some(true));
    let filter = unique.get_document("partialFilterExpression").expect("a partial index");
    assert_eq!(filter.get_document("mode_s").and_then(|mode_s| mode_s.get_bool("$exists")).ok(), Some(true));
    assert_eq!(is_unique(by_mode_s.index("event_id_1").await), Some(false));
    assert_eq!(is_unique(by_mode_s.index(LOOKUP).await), Some(false));
}

#[tokio::test]
async fn events_with_equal_key_fields_share_a_document() {
    let fixture = StoreFixture::with_keys("mode_s,registration").await;
    let one = |id: &str, timestamp, mode_s: &str, registration: &str| {
        event(id, timestamp, 1, &json!({ "mode_s": mode_s, "registration": registration }))
    };
    let batch =
        [one("1", 1, "A", "N1"), one("2", 2, "A", "N1"), one("3", 1, "A", "N2"), one("4", 1, "B", "N1")];
    assert_eq!(fixture.write(&batch).await, counts(3, 1, 0, 0));
    assert_eq!(fixture.write(&[one("5", 1, "A", "N1"), one("6", 3, "B", "N1")]).await, counts(0, 1, 0, 1));
    let ids: Vec<_> = fixture
        .documents()
        .await
        .iter()
        .map(|document| document.get_str("event_id").expect("id").to_owned())
        .collect();
    assert_eq!(ids, ["2", "3", "6"]);
}

#[tokio::test]
async fn a_dotted_key_is_a_path_and_not_a_name_with_a_dot() {
    let fixture = StoreFixture::with_keys("place.code").await;
    let nested =
        |id: &str, timestamp| event(id, timestamp, 1, &json!({ "place": { "code": 1 }, "place.code": id }));
    let named = |id: &str, timestamp| event(id, timestamp, 1, &json!({ "place.code": 1 }));
    assert_eq!(
        fixture.write(&[nested("a", 1), named("b", 1), nested("c", 2), named("d", 1)]).await,
        counts(3, 1, 0, 0)
    );
    assert_eq!(fixture.write(&[named("b", 2), nested("e", 1)]).await, counts(0, 1, 0, 1));
    let real = event("f", 3, 1, &json!({ "place": { "code": 1.0 } }));
    assert_eq!(fixture.write(&[real]).await, counts(0, 1, 0, 0), "1.0 is the value 1");
}

#[tokio::test]
async fn an_event_without_a_single_value_in_a_key_field_has_its_own_id() {
    let fixture = StoreFixture::with_keys("mode_s").await;
    let payloads = [
        json!({}),
        json!({ "mode_s": null }),
        json!({ "mode_s": { "a": 1 } }),
        json!({ "mode_s": ["X", "Y"] }),
        json!({ "mode_s": null }),
        json!({ "mode_s": { "a": 1 } }),
    ];
    let batch: Vec<_> =
        payloads.iter().enumerate().map(|(n, payload)| event(&format!("e{n}"), 1, 1, payload)).collect();
    assert_eq!(fixture.write(&batch).await, counts(6, 0, 0, 0));
    assert_eq!(fixture.write(&batch).await, counts(0, 0, 6, 0));
    for (document, event) in fixture.documents().await.iter().zip(&batch) {
        assert_eq!(document.get_object_id("_id").ok(), Some(derived_object_id(&event.id)));
    }
    let newer = event("e1", 2, 1, &json!({ "mode_s": null, "v": 2 }));
    let older = event("e1", 1, 1, &json!({ "v": 1 }));
    assert_eq!(fixture.write(&[newer, older]).await, counts(0, 1, 0, 1));
}

#[tokio::test]
async fn concurrent_workers_build_the_indexes_of_a_new_source_once() {
    let fixture = StoreFixture::with_keys("event_id").await;
    let mut workers = Vec::new();
    for worker in 0..8 {
        let (store, source) = (fixture.store.clone(), fixture.source.clone());
        workers.push(tokio::spawn(async move {
            let event = event("the same", worker, 1, &json!({ "worker": worker }));
            store.apply(&source, &[&event], 0).await
        }));
    }
    for worker in workers {
        let applied = worker.await.expect("a worker");
        assert_eq!((applied.unfinished, applied.error), (vec![], None));
    }
    assert_eq!(fixture.documents().await.len(), 1);
}

#[tokio::test]
async fn duplicate_keys_pause_writes_until_they_are_removed() {
    let fixture = StoreFixture::with_keys("event_id").await;
    let twice = [doc! { "event_id": "a", "n": 1 }, doc! { "event_id": "a", "n": 2 }];
    fixture.collection().insert_many(twice).await.expect("duplicates");
    let waiting = [event("b", 1, 1, &json!({}))];
    let applied = fixture.apply(&waiting).await;
    assert_eq!(applied.unfinished, [0]);
    let blocked = fixture.store.blocked();
    assert_eq!(blocked.len(), 1);
    let query = format!("getSiblingDB(\"{}\").getCollection(\"adsbdb\").aggregate(", fixture.database.name());
    assert!(blocked[0].contains(&query) && blocked[0].contains("\"$event_id\""), "{}", blocked[0]);
    assert_eq!(fixture.documents().await.len(), 2, "something was written");

    // Another source is not delayed.
    let other = Source::new("other").expect("a source");
    assert_eq!(fixture.store.apply(&other, &[&waiting[0]], 0).await.counts, counts(1, 0, 0, 0));

    fixture.collection().delete_one(doc! { "n": 2 }).await.expect("one document less");
    assert_eq!(fixture.finish(&waiting, WAIT_TIMEOUT).await, counts(1, 0, 0, 0));
    assert_eq!(fixture.store.blocked(), Vec::<String>::new());
    assert_eq!(is_unique(fixture.index("event_id_1").await), Some(true));
}

#[tokio::test]
async fn a_conflicting_index_is_named_and_replaced_after_it_is_dropped() {
    let fixture = StoreFixture::with_keys("event_id").await;
    let index = doc! { "key": { "event_id": 1 }, "name": "not_unique" };
    let create = doc! { "createIndexes": fixture.source.as_str(), "indexes": [index] };
    fixture.database.run_command(create).await.expect("an index");
    let waiting = [event("b", 1, 1, &json!({}))];
    assert_eq!(fixture.apply(&waiting).await.unfinished, [0]);
    let blocked = fixture.store.blocked();
    assert!(blocked.len() == 1 && blocked[0].contains("dropIndex(\"not_unique\")"), "{blocked:?}");

    let drop = doc! { "dropIndexes": fixture.source.as_str(), "index": "not_unique" };
    fixture.database.run_command(drop).await.expect("no index");
    assert_eq!(fixture.finish(&waiting, WAIT_TIMEOUT).await, counts(1, 0, 0, 0));
}

#[tokio::test]
async fn a_dropped_collection_gets_its_indexes_again() {
    let fixture = StoreFixture::with_keys("event_id").await;
    fixture.write(&[event("a", 1, 1, &json!({}))]).await;
    fixture.collection().drop().await.expect("no collection");
    let started = Instant::now();
    let mut number = 0;
    while is_unique(fixture.index("event_id_1").await) != Some(true) {
        assert!(started.elapsed() < Duration::from_secs(15), "no index");
        number += 1;
        fixture.write(&[event(&format!("e{number}"), 1, 1, &json!({}))]).await;
    }
}

#[tokio::test]
async fn a_restarted_consumer_finds_its_indexes_and_documents() {
    let uri = shared_mongodb().await.uri();
    let options = || StoreOptions { keys: "mode_s,place.code", ..StoreOptions::default() };
    let fixture = StoreFixture::on_server(&uri, options()).await;
    let first = event("a", 1, 1, &json!({ "mode_s": "A", "place": { "code": 2 } }));
    fixture.write(std::slice::from_ref(&first)).await;
    let again = open(&uri, fixture.database.name(), &options()).await;
    assert_eq!(again.apply(&fixture.source, &[&first], 0).await.counts, counts(0, 0, 1, 0));
    assert_eq!(
        fixture.find_one(doc! {}).await.get_str("mode_s").ok(),
        expected_document(&first).get_str("mode_s").ok()
    );
}

#[tokio::test]
async fn a_look_up_index_that_cannot_be_built_delays_no_record() {
    let fixture = StoreFixture::with_keys("event_id").await;
    let index = doc! { "key": { "x": 1 }, "name": LOOKUP };
    let create = doc! { "createIndexes": fixture.source.as_str(), "indexes": [index] };
    fixture.database.run_command(create).await.expect("an index");
    assert_eq!(fixture.write(&[event("a", 1, 1, &json!({}))]).await, counts(1, 0, 0, 0));
    assert_eq!(is_unique(fixture.index("event_id_1").await), Some(true));
}
