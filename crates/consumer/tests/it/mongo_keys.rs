//! UPSERT_KEYS: which events meet in one document, and the indexes that see to it.

use std::time::{Duration, Instant};

use bson::{Document, doc};
use events::{Source, derived_object_id};
use serde_json::json;
use testkit::servers::shared_mongodb;

use crate::mongo_fixture::{PATIENCE, Setting, Stage, counts, event, expected, open};

const LOOKUP: &str = "mode_s_1_registration_1_event_timestamp_1";

fn is_unique(index: Option<Document>) -> Option<bool> {
    index.map(|index| index.get_bool("unique").unwrap_or(false))
}

#[tokio::test]
async fn the_indexes_are_made_when_a_source_first_appears() {
    let by_id = Stage::with_keys("event_id").await;
    assert_eq!(by_id.index("event_id_1").await, None);
    by_id.store(&[event("a", 1, 1, &json!({}))]).await;
    assert_eq!(is_unique(by_id.index("event_id_1").await), Some(true));
    assert_eq!(is_unique(by_id.index(LOOKUP).await), Some(false));

    let by_mode_s = Stage::with_keys("mode_s").await;
    by_mode_s.store(&[event("a", 1, 1, &json!({}))]).await;
    let unique = by_mode_s.index("mode_s_1").await.expect("the key's index");
    assert_eq!(unique.get_bool("unique").ok(), Some(true));
    let filter = unique.get_document("partialFilterExpression").expect("a partial index");
    assert_eq!(filter.get_document("mode_s").and_then(|mode_s| mode_s.get_bool("$exists")).ok(), Some(true));
    assert_eq!(is_unique(by_mode_s.index("event_id_1").await), Some(false));
    assert_eq!(is_unique(by_mode_s.index(LOOKUP).await), Some(false));
}

#[tokio::test]
async fn events_meet_where_all_key_fields_are_equal() {
    let stage = Stage::with_keys("mode_s,registration").await;
    let one = |id: &str, timestamp, mode_s: &str, registration: &str| {
        event(id, timestamp, 1, &json!({ "mode_s": mode_s, "registration": registration }))
    };
    let batch =
        [one("1", 1, "A", "N1"), one("2", 2, "A", "N1"), one("3", 1, "A", "N2"), one("4", 1, "B", "N1")];
    assert_eq!(stage.store(&batch).await, counts(3, 1, 0, 0));
    assert_eq!(stage.store(&[one("5", 1, "A", "N1"), one("6", 3, "B", "N1")]).await, counts(0, 1, 0, 1));
    let ids: Vec<_> = stage
        .documents()
        .await
        .iter()
        .map(|document| document.get_str("event_id").expect("id").to_owned())
        .collect();
    assert_eq!(ids, ["2", "3", "6"]);
}

#[tokio::test]
async fn a_dotted_key_is_a_path_and_not_a_name_with_a_dot() {
    let stage = Stage::with_keys("place.code").await;
    let nested =
        |id: &str, timestamp| event(id, timestamp, 1, &json!({ "place": { "code": 1 }, "place.code": id }));
    let named = |id: &str, timestamp| event(id, timestamp, 1, &json!({ "place.code": 1 }));
    assert_eq!(
        stage.store(&[nested("a", 1), named("b", 1), nested("c", 2), named("d", 1)]).await,
        counts(3, 1, 0, 0)
    );
    assert_eq!(stage.store(&[named("b", 2), nested("e", 1)]).await, counts(0, 1, 0, 1));
    let real = event("f", 3, 1, &json!({ "place": { "code": 1.0 } }));
    assert_eq!(stage.store(&[real]).await, counts(0, 1, 0, 0), "1.0 is the value 1");
}

#[tokio::test]
async fn an_event_without_a_single_value_in_a_key_field_gets_an_id_of_its_own() {
    let stage = Stage::with_keys("mode_s").await;
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
    assert_eq!(stage.store(&batch).await, counts(6, 0, 0, 0));
    assert_eq!(stage.store(&batch).await, counts(0, 0, 6, 0));
    for (document, event) in stage.documents().await.iter().zip(&batch) {
        assert_eq!(document.get_object_id("_id").ok(), Some(derived_object_id(&event.id)));
    }
    let newer = event("e1", 2, 1, &json!({ "mode_s": null, "v": 2 }));
    let older = event("e1", 1, 1, &json!({ "v": 1 }));
    assert_eq!(stage.store(&[newer, older]).await, counts(0, 1, 0, 1));
}

#[tokio::test]
async fn lanes_that_meet_a_new_source_together_make_its_indexes_once() {
    let stage = Stage::with_keys("event_id").await;
    let mut lanes = Vec::new();
    for lane in 0..8 {
        let (store, source) = (stage.store.clone(), stage.source.clone());
        lanes.push(tokio::spawn(async move {
            let event = event("the same", lane, 1, &json!({ "lane": lane }));
            store.apply(&source, &[&event], 0).await
        }));
    }
    for lane in lanes {
        let applied = lane.await.expect("a lane");
        assert_eq!((applied.unfinished, applied.error), (vec![], None));
    }
    assert_eq!(stage.documents().await.len(), 1);
}

#[tokio::test]
async fn duplicates_in_the_way_of_the_unique_index_keep_records_waiting_until_they_are_removed() {
    let stage = Stage::with_keys("event_id").await;
    let twice = [doc! { "event_id": "a", "n": 1 }, doc! { "event_id": "a", "n": 2 }];
    stage.collection().insert_many(twice).await.expect("duplicates");
    let waiting = [event("b", 1, 1, &json!({}))];
    let applied = stage.apply(&waiting).await;
    assert_eq!(applied.unfinished, [0]);
    let blocked = stage.store.blocked();
    assert_eq!(blocked.len(), 1);
    let query = format!("getSiblingDB(\"{}\").getCollection(\"adsbdb\").aggregate(", stage.database.name());
    assert!(blocked[0].contains(&query) && blocked[0].contains("\"$event_id\""), "{}", blocked[0]);
    assert_eq!(stage.documents().await.len(), 2, "something was written");

    // Another source is not held up.
    let other = Source::new("other").expect("a source");
    assert_eq!(stage.store.apply(&other, &[&waiting[0]], 0).await.counts, counts(1, 0, 0, 0));

    stage.collection().delete_one(doc! { "n": 2 }).await.expect("one document less");
    assert_eq!(stage.finish(&waiting, PATIENCE).await, counts(1, 0, 0, 0));
    assert_eq!(stage.store.blocked(), Vec::<String>::new());
    assert_eq!(is_unique(stage.index("event_id_1").await), Some(true));
}

#[tokio::test]
async fn an_index_of_the_key_with_other_options_is_named_and_replaced_once_it_is_dropped() {
    let stage = Stage::with_keys("event_id").await;
    let index = doc! { "key": { "event_id": 1 }, "name": "not_unique" };
    let create = doc! { "createIndexes": stage.source.as_str(), "indexes": [index] };
    stage.database.run_command(create).await.expect("an index");
    let waiting = [event("b", 1, 1, &json!({}))];
    assert_eq!(stage.apply(&waiting).await.unfinished, [0]);
    let blocked = stage.store.blocked();
    assert!(blocked.len() == 1 && blocked[0].contains("dropIndex(\"not_unique\")"), "{blocked:?}");

    let drop = doc! { "dropIndexes": stage.source.as_str(), "index": "not_unique" };
    stage.database.run_command(drop).await.expect("no index");
    assert_eq!(stage.finish(&waiting, PATIENCE).await, counts(1, 0, 0, 0));
}

#[tokio::test]
async fn a_collection_that_is_dropped_gets_its_indexes_again() {
    let stage = Stage::with_keys("event_id").await;
    stage.store(&[event("a", 1, 1, &json!({}))]).await;
    stage.collection().drop().await.expect("no collection");
    let started = Instant::now();
    let mut number = 0;
    while is_unique(stage.index("event_id_1").await) != Some(true) {
        assert!(started.elapsed() < Duration::from_secs(15), "no index");
        number += 1;
        stage.store(&[event(&format!("e{number}"), 1, 1, &json!({}))]).await;
    }
}

#[tokio::test]
async fn a_restarted_consumer_finds_its_indexes_and_documents() {
    let uri = shared_mongodb().await.uri();
    let setting = || Setting { keys: "mode_s,place.code", ..Setting::default() };
    let stage = Stage::at(&uri, setting()).await;
    let first = event("a", 1, 1, &json!({ "mode_s": "A", "place": { "code": 2 } }));
    stage.store(std::slice::from_ref(&first)).await;
    let again = open(&uri, stage.database.name(), &setting()).await;
    assert_eq!(again.apply(&stage.source, &[&first], 0).await.counts, counts(0, 0, 1, 0));
    assert_eq!(stage.one(doc! {}).await.get_str("mode_s").ok(), expected(&first).get_str("mode_s").ok());
}

#[tokio::test]
async fn a_look_up_index_that_cannot_be_built_holds_no_record_up() {
    let stage = Stage::with_keys("event_id").await;
    let index = doc! { "key": { "x": 1 }, "name": LOOKUP };
    let create = doc! { "createIndexes": stage.source.as_str(), "indexes": [index] };
    stage.database.run_command(create).await.expect("an index");
    assert_eq!(stage.store(&[event("a", 1, 1, &json!({}))]).await, counts(1, 0, 0, 0));
    assert_eq!(is_unique(stage.index("event_id_1").await), Some(true));
}
