//! G5: what the server refuses for good is told record by record, and its neighbours are stored.

use bson::doc;
use consumer::mongo::BatchOutcome;
use events::StorableEvent;
use serde_json::json;

use crate::mongo_fixture::{Stage, counts, event};

fn rejected(applied: &BatchOutcome) -> Vec<(usize, i32, &str)> {
    applied
        .rejected
        .iter()
        .map(|rejected| (rejected.index, rejected.code, rejected.code_name.as_str()))
        .collect()
}

#[tokio::test]
async fn g5_a_validator_s_refusals_are_exactly_the_rejected_and_the_neighbours_are_stored() {
    let stage = Stage::with_keys("event_id").await;
    let create = doc! { "create": stage.source.as_str(), "validator": { "bad": { "$ne": true } } };
    stage.database.run_command(create).await.expect("a collection");
    let batch = |timestamp: i64, bad: usize| -> Vec<StorableEvent> {
        let one = |n: usize| event(&format!("e{n:02}"), timestamp, 1, &json!({ "bad": n % 3 == bad }));
        (0..30).map(one).collect()
    };
    let applied = stage.apply(&batch(1, 0)).await;
    let every_third: Vec<_> = (0..30).step_by(3).map(|n| (n, 121, "DocumentValidationFailure")).collect();
    assert_eq!(rejected(&applied), every_third);
    assert_eq!((applied.counts, applied.unfinished), (counts(20, 0, 0, 0), vec![]));

    // The same on the way of an update: 1, 4, … are stored and now refused; 0, 3, … are new.
    let applied = stage.apply(&batch(2, 1)).await;
    let every_third: Vec<_> = (1..30).step_by(3).map(|n| (n, 121, "DocumentValidationFailure")).collect();
    assert_eq!(rejected(&applied), every_third);
    assert_eq!((applied.counts, applied.unfinished), (counts(10, 10, 0, 0), vec![]));
    assert_eq!(stage.documents().await.len(), 30);
}

#[tokio::test]
async fn g5_a_refused_event_does_not_take_later_ones_of_its_key_along() {
    let stage = Stage::with_keys("event_id").await;
    let create = doc! { "create": stage.source.as_str(), "validator": { "bad": { "$ne": true } } };
    stage.database.run_command(create).await.expect("a collection");
    let one = |id: &str, timestamp, bad: bool| event(id, timestamp, 1, &json!({ "bad": bad }));
    let batch = [
        one("a", 1, true),
        one("a", 2, true),
        one("a", 3, false),
        one("b", 1, false),
        one("a", 4, true),
        one("b", 2, true),
        one("b", 3, false),
        one("a", 5, false),
    ];
    let applied = stage.apply(&batch).await;
    assert_eq!(rejected(&applied).iter().map(|rejected| rejected.0).collect::<Vec<_>>(), [0, 1, 4, 5]);
    assert_eq!((applied.counts, applied.unfinished), (counts(2, 2, 0, 0), vec![]));
}

#[tokio::test]
async fn g5_the_user_s_own_unique_index_rejects_and_our_own_key_never_does() {
    let stage = Stage::with_keys("event_id").await;
    let index = doc! { "key": { "tail": 1 }, "name": "the_users_own", "unique": true };
    let create = doc! { "createIndexes": stage.source.as_str(), "indexes": [index] };
    stage.database.run_command(create).await.expect("an index");
    let batch = [
        event("a", 1, 1, &json!({ "tail": "N1" })),
        event("b", 1, 1, &json!({ "tail": "N1" })),
        event("c", 1, 1, &json!({ "tail": "N2" })),
    ];
    let applied = stage.apply(&batch).await;
    assert_eq!(rejected(&applied), [(1, 11000, "DuplicateKey")]);
    assert_eq!((applied.counts, applied.unfinished), (counts(2, 0, 0, 0), vec![]));

    // A replay collides with both indexes, of which the server names one: what exists is no refusal.
    let applied = stage.apply(&batch).await;
    assert_eq!(rejected(&applied), [(1, 11000, "DuplicateKey")]);
    assert_eq!((applied.counts, applied.unfinished), (counts(0, 0, 2, 0), vec![]));

    // An update that takes another document's value.
    let applied =
        stage.apply(&[event("c", 2, 1, &json!({ "tail": "N1" })), event("c", 3, 1, &json!({}))]).await;
    assert_eq!(rejected(&applied), [(0, 11000, "DuplicateKey")]);
    assert_eq!((applied.counts, applied.unfinished), (counts(0, 1, 0, 0), vec![]));
}
