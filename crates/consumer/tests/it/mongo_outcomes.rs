//! Each event has one outcome, whichever commands wrote it.

use bson::doc;
use consumer::mongo::Counts;
use events::StorableEvent;
use serde_json::json;
use testkit::servers::shared_mongodb;

use crate::mongo_fixture::{
    StoreFixture, StoreOptions, counts, event, event_with, expected_document, without_id,
};

#[tokio::test]
async fn inserted_updated_unchanged_and_superseded_are_counted_apart() {
    let fixture = StoreFixture::with_keys("event_id").await;
    let first: Vec<StorableEvent> =
        (0..40).map(|n| event(&format!("e{n:02}"), 1_000, 1_000, &json!({ "n": n }))).collect();
    assert_eq!(fixture.write(&first).await, counts(40, 0, 0, 0));
    assert_eq!(fixture.write(&first).await, counts(0, 0, 40, 0));

    let second: Vec<StorableEvent> = (0..50)
        .map(|n| match n {
            0..10 => event(&format!("e{n:02}"), 999, 5_000, &json!({ "n": "late" })),
            10..20 => event(&format!("e{n:02}"), 1_000, 999, &json!({ "n": "late" })),
            20..25 => event(&format!("e{n:02}"), 1_000, 1_000, &json!({ "n": n })),
            _ => event(&format!("e{n:02}"), 1_000, 1_001, &json!({ "n": "new" })),
        })
        .collect();
    assert_eq!(fixture.write(&second).await, counts(10, 15, 5, 20));

    let documents = fixture.documents().await;
    assert_eq!(documents.len(), 50);
    for (n, document) in documents.into_iter().enumerate() {
        let wanted = if n < 25 { &first[n] } else { &second[n] };
        assert_eq!(without_id(document), expected_document(wanted));
    }
}

#[tokio::test]
async fn events_of_one_key_in_a_batch_are_applied_one_after_another() {
    let fixture = StoreFixture::with_keys("event_id").await;
    let batch = [
        event("a", 5, 5, &json!({ "v": 1 })),
        event("b", 5, 5, &json!({ "v": 1 })),
        event("a", 5, 5, &json!({ "v": 2 })),
        event("a", 4, 9, &json!({ "v": 3 })),
        event("a", 5, 5, &json!({ "v": 2 })),
        event("b", 6, 6, &json!({ "v": 4 })),
        event("a", 7, 1, &json!({ "v": 5 })),
    ];
    assert_eq!(fixture.write(&batch).await, counts(2, 3, 1, 1));
    let values: Vec<_> =
        fixture.documents().await.iter().map(|document| document.get_i32("v").expect("v")).collect();
    assert_eq!(values, [5, 4]);
}

#[tokio::test]
async fn a_batch_of_many_commands_is_counted_as_one() {
    let fixture =
        StoreFixture::with_options(StoreOptions { batch_max_bytes: 4_096, ..StoreOptions::default() }).await;
    let filler = "x".repeat(700);
    let batch: Vec<StorableEvent> =
        (0..100).map(|n| event(&format!("e{:02}", n % 60), n, n, &json!({ "filler": filler }))).collect();
    assert_eq!(fixture.write(&batch).await, counts(60, 40, 0, 0));
    assert_eq!(fixture.write(&batch).await, counts(0, 0, 60, 40));
    // A record above the limit is sent alone.
    let large =
        [event("large", 1, 1, &json!({ "filler": "y".repeat(20_000) })), event("e00", 500, 1, &json!({}))];
    assert_eq!(fixture.write(&large).await, counts(1, 1, 0, 0));
}

#[tokio::test]
async fn a_record_that_no_command_can_hold_is_rejected_alone() {
    let fixture = StoreFixture::with_keys("mode_s").await;
    let key = "k".repeat(200 << 10);
    let huge = |timestamp| {
        let filler = "x".repeat((16 << 20) - (300 << 10));
        event_with("huge", timestamp, 1, &format!(r#"{{"mode_s":"{key}","filler":"{filler}"}}"#))
    };
    let neighbour = |timestamp| event("small", timestamp, 1, &json!({ "mode_s": "A" }));
    assert_eq!(fixture.write(&[huge(1), neighbour(1)]).await, counts(2, 0, 0, 0));
    // The filter of an update repeats the value of the key, so the command exceeds the server's
    // limit.
    let applied = fixture.apply(&[neighbour(2), huge(2), neighbour(3)]).await;
    assert_eq!(applied.counts, counts(0, 2, 0, 0));
    let rejected: Vec<_> =
        applied.rejected.iter().map(|rejected| (rejected.index, rejected.code_name.as_str())).collect();
    assert_eq!(rejected, [(1, "BSONObjectTooLarge")]);
    assert_eq!(fixture.find_one(doc! { "event_id": "small" }).await.get_i64("event_timestamp").ok(), Some(3));
}

#[tokio::test]
async fn no_event_is_finished_without_its_write_concern() {
    let uri = shared_mongodb().await.uri();
    let separator = if uri.contains('?') { "&" } else { "/?" };
    let fixture = StoreFixture::on_server(
        &format!("{}{separator}w=5&wtimeoutMS=100", uri.trim_end_matches('/')),
        StoreOptions::default(),
    )
    .await;
    let batch = [event("a", 1, 1, &json!({})), event("b", 1, 1, &json!({})), event("a", 2, 1, &json!({}))];
    for _ in 0..2 {
        let applied = fixture.apply(&batch).await;
        assert_eq!((applied.counts, applied.unfinished), (Counts::default(), vec![0, 1, 2]));
        assert!(applied.error.is_some_and(|trouble| !trouble.timed_out));
    }
}
