//! G5: permanent rejections are reported record by record, and the other records are stored.

use bson::doc;
use consumer::mongo::BatchOutcome;
use events::StorableEvent;
use serde_json::json;

use crate::mongo_fixture::{StoreFixture, counts, event};

fn rejected(applied: &BatchOutcome) -> Vec<(usize, i32, &str)> {
    applied
        .rejected
        .iter()
        .map(|rejected| (rejected.index, rejected.code, rejected.code_name.as_str()))
        .collect()
}

#[tokio::test]
async fn g5_a_validator_rejects_only_its_events_and_others_are_stored() {
    let fixture = StoreFixture::with_keys("event_id").await;
    let create = doc! { "create": fixture.source.as_str(), "validator": { "bad": { "$ne": true } } };
    fixture.database.run_command(create).await.expect("a collection");
    let batch = |timestamp: i64, bad: usize| -> Vec<StorableEvent> {
        let one = |n: usize| event(&format!("e{n:02}"), timestamp, 1, &json!({ "bad": n % 3 == bad }));
        (0..30).map(one).collect()
    };
    let applied = fixture.apply(&batch(1, 0)).await;
    let every_third: Vec<_> = (0..30).step_by(3).map(|n| (n, 121, "DocumentValidationFailure")).collect();
    assert_eq!(rejected(&applied), every_third);
    assert_eq!((applied.counts, applied.unfinished), (counts(20, 0, 0, 0), vec![]));

    // The same with updates: 1, 4, … are stored and now rejected; 0, 3, … are new.
    let applied = fixture.apply(&batch(2, 1)).await;
    let every_third: Vec<_> = (1..30).step_by(3).map(|n| (n, 121, "DocumentValidationFailure")).collect();
    assert_eq!(rejected(&applied), every_third);
    assert_eq!((applied.counts, applied.unfinished), (counts(10, 10, 0, 0), vec![]));
    assert_eq!(fixture.documents().await.len(), 30);
}

#[tokio::test]
async fn g5_a_rejected_event_does_not_reject_later_events_of_its_key() {
    let fixture = StoreFixture::with_keys("event_id").await;
    let create = doc! { "create": fixture.source.as_str(), "validator": { "bad": { "$ne": true } } };
    fixture.database.run_command(create).await.expect("a collection");
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
    let applied = fixture.apply(&batch).await;
    assert_eq!(rejected(&applied).iter().map(|rejected| rejected.0).collect::<Vec<_>>(), [0, 1, 4, 5]);
    assert_eq!((applied.counts, applied.unfinished), (counts(2, 2, 0, 0), vec![]));
}

#[tokio::test]
async fn g5_a_unique_index_of_the_user_rejects_and_the_key_s_does_not() {
    let fixture = StoreFixture::with_keys("event_id").await;
    let index = doc! { "key": { "tail": 1 }, "name": "the_users_own", "unique": true };
    let create = doc! { "createIndexes": fixture.source.as_str(), "indexes": [index] };
    fixture.database.run_command(create).await.expect("an index");
    let batch = [
        event("a", 1, 1, &json!({ "tail": "N1" })),
        event("b", 1, 1, &json!({ "tail": "N1" })),
        event("c", 1, 1, &json!({ "tail": "N2" })),
    ];
    let applied = fixture.apply(&batch).await;
    assert_eq!(rejected(&applied), [(1, 11000, "DuplicateKey")]);
    assert_eq!((applied.counts, applied.unfinished), (counts(2, 0, 0, 0), vec![]));

    // A replay collides with both indexes, and the server names one. An existing document is not a
    // rejection.
    let applied = fixture.apply(&batch).await;
    assert_eq!(rejected(&applied), [(1, 11000, "DuplicateKey")]);
    assert_eq!((applied.counts, applied.unfinished), (counts(0, 0, 2, 0), vec![]));

    // An update to a value of another document.
    let applied =
        fixture.apply(&[event("c", 2, 1, &json!({ "tail": "N1" })), event("c", 3, 1, &json!({}))]).await;
    assert_eq!(rejected(&applied), [(0, 11000, "DuplicateKey")]);
    assert_eq!((applied.counts, applied.unfinished), (counts(0, 1, 0, 0), vec![]));
}
