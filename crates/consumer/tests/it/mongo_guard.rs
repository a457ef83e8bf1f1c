//! G3: the newest event wins in any order, and a document keeps its `_id`.

use std::collections::BTreeMap;

use bson::{Document, doc};
use consumer::mongo::Counts;
use events::StorableEvent;
use fastrand::Rng;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::json;
use testkit::servers::shared_mongodb;

use crate::mongo_fixture::{
    StoreFixture, StoreOptions, counts, event, expected_document, open, sum, without_id,
};

/// The specification of a collection: events are applied one after another.
#[derive(Default)]
struct Model {
    newest: BTreeMap<String, StorableEvent>,
}

impl Model {
    /// Returns `None` if the validator rejects the event. An event that is both rejected and
    /// superseded may end as either.
    fn apply(&mut self, event: &StorableEvent, rejected: bool) -> Option<Counts> {
        let older = |stored: &StorableEvent| {
            (event.timestamp, event.ingested_at) < (stored.timestamp, stored.ingested_at)
        };
        let superseded = self.newest.get(event.id.as_str()).is_some_and(older);
        if event.document.get_i32("v").expect("v") == REFUSED && (rejected || !superseded) {
            return None;
        }
        let Some(stored) = self.newest.get(event.id.as_str()) else {
            self.newest.insert(event.id.to_string(), event.clone());
            return Some(counts(1, 0, 0, 0));
        };
        if superseded {
            return Some(counts(0, 0, 0, 1));
        }
        let unchanged = stored.document == event.document;
        self.newest.insert(event.id.to_string(), event.clone());
        Some(if unchanged { counts(0, 0, 1, 0) } else { counts(0, 1, 0, 0) })
    }
}

/// A value that the collection's validator rejects.
const REFUSED: i32 = 7;

/// An event with few possible keys and versions, so that events collide.
#[derive(Debug, Clone)]
struct Draw {
    id: u32,
    timestamp: i64,
    ingested_at: i64,
    v: i32,
}

/// The batches of one collection.
#[derive(Debug, Clone)]
struct Case {
    batch_max_bytes: usize,
    batches: Vec<Vec<Draw>>,
}

fn cases(values: i32) -> impl Strategy<Value = Case> {
    (1_u32..64).prop_flat_map(move |ids| {
        let draw = (0..ids, 1_i64..6, 1_i64..4, 0..values).prop_map(|(id, timestamp, ingested_at, v)| Draw {
            id,
            timestamp,
            ingested_at,
            v,
        });
        (600_usize..40_000, vec(vec(draw, 1..120), 2..8))
            .prop_map(|(batch_max_bytes, batches)| Case { batch_max_bytes, batches })
    })
}

#[test]
fn g3_any_order_of_events_ends_as_if_applied_one_after_another() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    // Without rules of the collection, events of a key may be merged.
    for (has_rule, values) in [(true, REFUSED + 1), (false, 3)] {
        // Each case uses its own database. A failure takes minutes to shrink.
        let config = ProptestConfig {
            cases: 8,
            max_shrink_iters: 2000,
            failure_persistence: None,
            ..Default::default()
        };
        let ended = TestRunner::new(config).run(&cases(values), |case| {
            runtime.block_on(ends_as_the_model(has_rule, &case));
            Ok(())
        });
        ended.unwrap_or_else(|error| panic!("with a rule: {has_rule}: {error}"));
    }
}

async fn ends_as_the_model(has_rule: bool, case: &Case) {
    let fixture = StoreFixture::with_options(StoreOptions {
        batch_max_bytes: case.batch_max_bytes,
        ..StoreOptions::default()
    })
    .await;
    if has_rule {
        let create = doc! { "create": fixture.source.as_str(), "validator": { "v": { "$ne": REFUSED } } };
        fixture.database.run_command(create).await.expect("a collection");
    }
    let mut model = Model::default();
    let mut ids: BTreeMap<String, bson::oid::ObjectId> = BTreeMap::new();
    for draws in &case.batches {
        let batch: Vec<StorableEvent> = draws
            .iter()
            .map(|d| event(&format!("id{}", d.id), d.timestamp, d.ingested_at, &json!({ "v": d.v })))
            .collect();
        let applied = fixture.apply(&batch).await;
        let rejected = |index| applied.rejected.iter().any(|rejected| rejected.index == index);
        let outcomes: Vec<Option<Counts>> =
            batch.iter().enumerate().map(|(index, event)| model.apply(event, rejected(index))).collect();
        let rejected_reply: Vec<usize> =
            (0..batch.len()).filter(|index| outcomes[*index].is_none()).collect();
        assert_eq!(
            applied.rejected.iter().map(|rejected| rejected.index).collect::<Vec<_>>(),
            rejected_reply
        );
        assert_eq!(applied.unfinished, Vec::<usize>::new());
        assert_eq!(applied.counts, outcomes.into_iter().flatten().fold(Counts::default(), sum));

        let documents = fixture.documents().await;
        assert_eq!(documents.len(), model.newest.len());
        for (document, wanted) in documents.into_iter().zip(model.newest.values()) {
            let id = document.get_object_id("_id").expect("an _id");
            assert_eq!(*ids.entry(wanted.id.to_string()).or_insert(id), id, "the _id changed");
            assert_eq!(without_id(document), expected_document(wanted));
        }
    }
}

#[tokio::test]
async fn g3_concurrent_writers_leave_the_newest_event() {
    let uri = shared_mongodb().await.uri();
    let fixture = StoreFixture::on_server(&uri, StoreOptions::default()).await;
    let mut random = Rng::with_seed(3);
    let mut all: Vec<StorableEvent> = (0..400)
        .map(|n| event(&format!("id{:02}", n % 20), 1_000 + random.i64(0..50), n, &json!({ "v": n })))
        .collect();
    let mut newest: BTreeMap<String, &StorableEvent> = BTreeMap::new();
    for event in &all {
        let best = newest.entry(event.id.to_string()).or_insert(event);
        if (event.timestamp, event.ingested_at) > (best.timestamp, best.ingested_at) {
            *best = event;
        }
    }
    let wanted: Vec<Document> = newest.values().map(|event| expected_document(event)).collect();
    random.shuffle(&mut all);

    let mut writers = Vec::new();
    for share in all.chunks(50) {
        let store = open(&uri, fixture.database.name(), &StoreOptions::default()).await;
        let (share, source) = (share.to_vec(), fixture.source.clone());
        writers.push(tokio::spawn(async move {
            for batch in share.chunks(10) {
                let applied = store.apply(&source, &batch.iter().collect::<Vec<_>>(), 0).await;
                assert_eq!((applied.rejected, applied.unfinished), (vec![], vec![]));
            }
        }));
    }
    for writer in writers {
        writer.await.expect("a writer");
    }
    assert_eq!(fixture.documents().await.into_iter().map(without_id).collect::<Vec<_>>(), wanted);
}

#[tokio::test]
async fn g3_a_stored_document_without_version_fields_counts_as_lowest() {
    let fixture = StoreFixture::with_keys("event_id").await;
    let stored = [
        doc! { "event_id": "none", "left": "over" },
        doc! { "event_id": "null", "event_timestamp": null, "ingested_at": null },
        doc! { "event_id": "half", "event_timestamp": 5_i64 },
        doc! { "event_id": "real", "event_timestamp": 5.5, "ingested_at": 1 },
        doc! { "event_id": "newer", "event_timestamp": 6_i64 },
    ];
    fixture.collection().insert_many(stored).await.expect("documents");
    let batch: Vec<StorableEvent> =
        ["none", "null", "half", "real", "newer"].iter().map(|id| event(id, 5, 5, &json!({}))).collect();
    assert_eq!(fixture.write(&batch).await, counts(0, 3, 0, 2));
    assert_eq!(without_id(fixture.find_one(doc! { "event_id": "none" }).await), expected_document(&batch[0]));
}
