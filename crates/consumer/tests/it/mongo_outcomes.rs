//! Each event has one outcome, whichever commands wrote it. Permanent rejections are reported
//! record by record, and the other records are stored (G5). Large records, slow replies and old
//! servers decide the size of commands and their deadlines.

use std::time::Duration;

use bson::{Document, doc};
use consumer::mongo::{BatchOutcome, Counts};
use events::StorableEvent;
use serde_json::json;
use testkit::scripted_mongodb::{Answer, ScriptedServer, is_write};
use testkit::servers::shared_mongodb;

use crate::mongo_fixture::{
    StoreFixture, StoreOptions, counts, event, event_with, expected_document, without_id,
};
use crate::trial::{SOON, Trial, eventually};

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

const WIRE_VERSION_4_4: i32 = 9;
const WIRE_VERSION_5_0: i32 = 13;

#[tokio::test]
async fn no_command_with_more_than_one_record_reaches_12_mib() {
    let server = ScriptedServer::start(WIRE_VERSION_5_0, |_| Answer::Usual).await;
    // Far above the maximum of the consumer's configuration.
    let options = StoreOptions { batch_max_bytes: 64 << 20, ..StoreOptions::default() };
    let fixture = StoreFixture::on_server(&server.uri, options).await;
    let mut events: Vec<_> = (0..20)
        .map(|n| event(&format!("e{n}"), 1, 1, &json!({ "text": "x".repeat((1 << 20) + 4321 * n) })))
        .collect();
    events.push(event("alone", 1, 1, &json!({ "text": "x".repeat(13 << 20) })));
    assert_eq!(fixture.write(&events).await, counts(21, 0, 0, 0));
    let writes = server.writes();
    assert!(writes.iter().any(|write| write.records == 1 && write.bytes > 12 << 20), "{writes:?}");
    for write in writes {
        assert!(write.records == 1 || write.bytes < 12 << 20, "{write:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_timeouts_halve_the_batch_to_one_record_then_double_the_deadline() {
    let (deadline, slow) = (Duration::from_millis(400), Duration::from_millis(600));
    let script = move |command: &Document| {
        let lists = ["documents", "updates"];
        match lists.iter().find_map(|list| command.get_array(list).ok()) {
            Some(list) if list.len() > 1 => Answer::after(std::future::pending()),
            // Between one and two deadlines.
            Some(_) => Answer::after(tokio::time::sleep(slow)),
            None => Answer::Usual,
        }
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let trial = Trial::with_database(&server.uri, 1).await;
    trial.send_many("k", 8).await;
    let member =
        trial.start_with(&[("BATCH_MAX_RECORDS", "8")], |config| config.call_deadline = deadline).await;
    eventually("all are finished", SOON, async || member.seen().finished() >= 8).await;
    let sizes: Vec<usize> = server.writes().iter().map(|write| write.records).collect();
    // The number of records that arrive together varies; the sizes after a timeout do not.
    assert!(sizes.iter().any(|size| *size > 1), "{sizes:?}");
    let halved = |pair: &[usize]| pair[0] == 1 || pair[1] == pair[0] / 2;
    assert!(sizes.windows(2).all(halved), "{sizes:?}");
    let alone = |pair: &[usize]| pair == [1, 1];
    assert!(sizes.windows(2).any(alone), "a single record is sent again with a longer deadline: {sizes:?}");
    let counted = member.stop().await;
    assert_eq!((counted.finished(), counted.dead_lettered), (8, 0), "{counted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_before_5_0_makes_readyz_503_with_the_reason() {
    let server = ScriptedServer::start(WIRE_VERSION_4_4, |_| Answer::Usual).await;
    let trial = Trial::with_database(&server.uri, 1).await;
    trial.send_many("k", 3).await;
    let member = trial.start(&[]).await;
    let reports_version = async || {
        let (status, why) = member.get("/readyz").await;
        status == 503 && why.contains("MongoDB 5.0 or later is needed")
    };
    eventually("readyz has the reason", SOON, reports_version).await;
    eventually("records were read", SOON, async || member.seen().read > 0).await;
    assert_eq!(member.metric("slipstream_store_up").await, Some(0.0));
    assert!(server.writes().is_empty(), "nothing is written to it");
    assert_eq!(member.stop().await.finished(), 0);
}

#[tokio::test]
async fn the_write_concern_of_the_uri_is_in_every_write() {
    let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let script = move |command: &Document| {
        if is_write(command) {
            _ = sender.send(command.get_document("writeConcern").ok().cloned());
        }
        Answer::Usual
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    for (option, w) in [("", bson::Bson::from("majority")), ("?w=1&journal=true", bson::Bson::from(1))] {
        let fixture =
            StoreFixture::on_server(&format!("{}{option}", server.uri), StoreOptions::default()).await;
        let [one, two] = [1, 2].map(|at| event("a", at, 1, &json!({})));
        fixture.apply(&[one, two]).await;
        let concern = seen.recv().await.unwrap().unwrap();
        assert_eq!(concern.get("w"), Some(&w));
        while let Ok(further) = seen.try_recv() {
            assert_eq!(further, Some(concern.clone()));
        }
    }
}
