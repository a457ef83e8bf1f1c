//! Replies that a healthy database does not give. Each event still has one outcome, no event counts
//! as stored without a confirmation, and an outage causes no dead letter.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bson::{Document, doc};
use consumer::mongo::{Counts, StoreState};
use events::StorableEvent;
use serde_json::json;

use crate::mongo_fixture::{self, StoreFixture, StoreOptions, counts, event};
use testkit::scripted_mongodb::{Answer, ScriptedServer, collections};

const WIRE_VERSION_5_0: i32 = 13;

fn batch(size: u32) -> Vec<StorableEvent> {
    (0..size).map(|n| event(&format!("e{n}"), 1, 1, &json!({ "bad": n % 4 == 2 }))).collect()
}

fn is(command: &Document, name: &str) -> bool {
    command.keys().next().is_some_and(|first| first == name)
}

async fn fixture_on(server: &ScriptedServer) -> StoreFixture {
    StoreFixture::on_server(&server.uri, StoreOptions::default()).await
}

/// A server that sends this reply to the named command.
async fn answering(name: &'static str, reply: Document) -> ScriptedServer {
    let script = move |command: &Document| match is(command, name) {
        true => Answer::Reply(reply.clone()),
        false => Answer::Usual,
    };
    ScriptedServer::start(WIRE_VERSION_5_0, script).await
}

#[tokio::test]
async fn a_server_before_5_0_gets_no_write_and_the_reason_is_reported() {
    let server = ScriptedServer::start(9, |_| Answer::Usual).await;
    let fixture = fixture_on(&server).await;
    let applied = fixture.apply(&batch(3)).await;
    assert_eq!(applied.unfinished, [0, 1, 2]);
    let state = fixture.store.state().borrow().clone();
    assert!(matches!(&state, StoreState::Unusable(reason) if reason.contains("MongoDB 5.0")), "{state:?}");
    assert_eq!(server.commands(), Vec::<String>::new());
}

#[tokio::test]
async fn g5_a_document_that_fails_its_whole_command_is_rejected_alone() {
    let bad = |command: &Document| {
        let has_bad_document = |documents: &[bson::Bson]| {
            documents.iter().filter_map(|document| document.as_document()).any(|document| {
                let replaced = document.get_array("u").ok().map(|pipeline| format!("{pipeline:?}"));
                document.get_bool("bad").unwrap_or(false)
                    || replaced.is_some_and(|pipeline| pipeline.contains("\"bad\": Boolean(true)"))
            })
        };
        let lists = ["documents", "updates"].iter().filter_map(|list| command.get_array(list).ok());
        lists.into_iter().any(|list| has_bad_document(list))
    };
    let deep = doc! { "ok": 0, "code": 15, "codeName": "Overflow", "errmsg": "too deep" };
    let script =
        move |command: &Document| if bad(command) { Answer::Reply(deep.clone()) } else { Answer::Usual };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let fixture = fixture_on(&server).await;
    let applied = fixture.apply(&batch(11)).await;
    let rejected: Vec<_> =
        applied.rejected.iter().map(|rejected| (rejected.index, rejected.code_name.as_str())).collect();
    assert_eq!(rejected, [(2, "Overflow"), (6, "Overflow"), (10, "Overflow")]);
    assert_eq!((applied.counts, applied.unfinished), (counts(8, 0, 0, 0), vec![]));

    // The same for later events of a key.
    let later = (0..9).map(|n| event("e", 1 + n, 1, &json!({ "bad": n % 4 == 2 }))).collect::<Vec<_>>();
    let applied = fixture.apply(&later).await;
    assert_eq!(applied.rejected.iter().map(|rejected| rejected.index).collect::<Vec<_>>(), [2, 6]);
    assert_eq!((applied.counts, applied.unfinished), (counts(1, 6, 0, 0), vec![]));
}

#[tokio::test]
async fn g5_a_rejection_with_a_write_concern_error_is_not_final() {
    let unmet = doc! { "code": 64, "errmsg": "waiting for replication timed out" };
    for code in [121, 11000, 987_654] {
        let rejected_reply =
            doc! { "index": 2, "code": code, "errmsg": "rejected", "keyPattern": { "mode_s": 1 } };
        let of_a_statement = doc! {
            "ok": 1, "n": 3, "nModified": 0, "writeErrors": [rejected_reply], "writeConcernError": unmet.clone(),
        };
        let of_the_command = doc! {
            "ok": 0, "code": code, "codeName": "x", "errmsg": "rejected", "writeConcernError": unmet.clone(),
        };
        for reply in [of_a_statement, of_the_command] {
            for command in ["insert", "update"] {
                let script = {
                    let reply = reply.clone();
                    move |sent: &Document| match sent.keys().next().map(String::as_str) {
                        Some(name) if name == command => Answer::Reply(reply.clone()),
                        Some("insert") => Answer::Reply(first_exist(length(sent), length(sent))),
                        _ => Answer::Usual,
                    }
                };
                let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
                let applied = fixture_on(&server).await.apply(&batch(4)).await;
                let what = format!("{command} {reply}");
                assert_eq!((applied.counts, applied.rejected), (Counts::default(), vec![]), "{what}");
                assert_eq!((applied.unfinished, applied.unlisted), (vec![0, 1, 2, 3], vec![]), "{what}");
                assert!(applied.error.is_some_and(|trouble| !trouble.timed_out), "{what}");
            }
        }
    }
}

#[tokio::test]
async fn every_command_except_create_indexes_has_max_time_ms() {
    let deadline = Duration::from_secs(7);
    let server = ScriptedServer::start(WIRE_VERSION_5_0, |command| match is(command, "insert") {
        true => Answer::Reply(first_exist(length(command), length(command))),
        false => Answer::Usual,
    })
    .await;
    let fixture =
        StoreFixture::on_server(&server.uri, StoreOptions { deadline, ..StoreOptions::default() }).await;
    let twice = [event("a", 1, 1, &json!({})), event("a", 2, 1, &json!({}))];
    assert_eq!(fixture.write(&twice).await.total(), 2);
    fixture.store.apply(&fixture.source, &[&twice[0]], 2).await;
    assert!(fixture.store.takes_writes(&fixture.source).await);

    let of = |name: &str| {
        let commands = server.sent().into_iter().filter(|command| is(command, name));
        commands.map(|command| command.get_i32("maxTimeMS").ok()).collect::<Vec<_>>()
    };
    for name in ["listIndexes", "listCollections", "insert", "update"] {
        let limits = of(name);
        let right = |limit: &Option<i32>| matches!(limit, Some(8_000 | 29_000));
        assert!(!limits.is_empty() && limits.iter().all(right), "{name}: {limits:?}");
    }
    assert!(of("insert").contains(&Some(29_000)), "the limit follows the deadline");
    assert_eq!(of("createIndexes").iter().flatten().count(), 0);
    assert!(!of("createIndexes").is_empty());
    assert!(server.sent().iter().all(|c| is(c, "createIndexes") || c.contains_key("maxTimeMS")));
    assert_eq!(server.hello_timeouts(), [8_000]);
}

#[tokio::test]
async fn a_time_limit_of_the_server_in_any_reply_counts_as_timeout() {
    for code in [50, 262] {
        let error = doc! { "code": code, "errmsg": "operation exceeded time limit" };
        let of_a_statement = doc! { "index": 1, "code": code, "errmsg": "operation exceeded time limit" };
        let replies = [
            doc! { "ok": 0, "code": code, "codeName": "MaxTimeMSExpired", "errmsg": "x" },
            doc! { "ok": 0, "code": code, "errmsg": "x", "writeConcernError": { "code": 64 } },
            doc! { "ok": 1, "n": 4, "writeConcernError": error },
            doc! { "ok": 1, "n": 3, "writeErrors": [of_a_statement] },
        ];
        for reply in replies {
            let server = answering("insert", reply.clone()).await;
            let applied = fixture_on(&server).await.apply(&batch(4)).await;
            assert!(applied.error.is_some_and(|trouble| trouble.timed_out), "{reply}");
            assert_eq!((applied.rejected, applied.unlisted), (vec![], vec![]), "{reply}");
            assert!(applied.unfinished.contains(&1), "{reply}");
        }
    }
}

/// Whether a write command has a document with `bad: true`.
fn has_bad(command: &Document) -> bool {
    let lists = ["documents", "updates"].iter().filter_map(|list| command.get_array(list).ok());
    lists.into_iter().any(|list| format!("{list:?}").contains("\"bad\": Boolean(true)"))
}

#[tokio::test]
async fn g5_an_event_that_fails_its_command_with_an_unlisted_code_is_found() {
    // Includes codes of whole commands: BadValue, InternalError, UnknownError, OperationFailed,
    // ExceededMemoryLimit.
    for code in [2, 1, 8, 96, 146, 987_654] {
        for existing in [false, true] {
            let rejected_reply = doc! { "ok": 0, "code": code, "codeName": "SomeName", "errmsg": "no" };
            let script = move |command: &Document| match command.keys().next().map(String::as_str) {
                Some("insert") if existing => Answer::Reply(first_exist(length(command), length(command))),
                _ if has_bad(command) => Answer::Reply(rejected_reply.clone()),
                _ => Answer::Usual,
            };
            let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
            let applied = fixture_on(&server).await.apply(&batch(11)).await;
            assert_eq!((applied.counts.total(), applied.rejected), (8, vec![]), "{code} {existing}");
            assert_eq!(applied.unfinished, [2, 6, 10], "{code} {existing}");
            let strange: Vec<_> =
                applied.unlisted.iter().map(|strange| (strange.index, strange.code)).collect();
            assert_eq!(strange, [(2, code), (6, code), (10, code)], "{existing}");
        }
    }
}

#[tokio::test]
async fn g6_a_rejection_of_all_commands_is_not_repeated_per_event() {
    let rejected_reply = doc! { "ok": 0, "code": 96, "codeName": "OperationFailed", "errmsg": "no" };
    let script = move |command: &Document| match is(command, "insert") || is(command, "update") {
        true => Answer::Reply(rejected_reply.clone()),
        false => Answer::Usual,
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let applied = fixture_on(&server).await.apply(&batch(1000)).await;
    assert_eq!((applied.counts, applied.rejected), (Counts::default(), vec![]));
    assert_eq!(applied.unfinished.len(), 1000);
    let writes = server.sent().iter().filter(|c| is(c, "insert") || is(c, "update")).count();
    assert!(writes < 20, "{writes} writes for one batch");
}

#[tokio::test]
async fn an_outage_in_any_form_rejects_nothing() {
    let rejected_reply = |code: i32| doc! { "ok": 0, "code": code, "codeName": "x", "errmsg": "x" };
    let replies = [
        rejected_reply(10107),
        rejected_reply(91),
        rejected_reply(13),
        rejected_reply(2),
        rejected_reply(987_654),
        doc! { "ok": 1 },
        doc! { "ok": 1, "n": 1 },
        doc! { "ok": 1, "n": 9 },
        doc! { "ok": 1, "n": 2, "writeErrors": "none" },
    ];
    for reply in replies {
        let server = answering("insert", reply.clone()).await;
        let applied = fixture_on(&server).await.apply(&batch(4)).await;
        assert_eq!((applied.counts, applied.rejected), (Counts::default(), vec![]), "{reply}");
        assert_eq!(applied.unfinished, [0, 1, 2, 3], "{reply}");
    }
}

#[tokio::test]
async fn a_transient_rejection_delays_only_the_events_of_its_key() {
    // Error 11000 without an index name may concern the key, so the event is retried.
    for (code, options) in [(112, true), (10107, false), (987_654, true), (987_654, false), (11000, false)] {
        let options = if options {
            doc! { "validator": {} }
        } else {
            doc! {}
        };
        let rejected_reply =
            doc! { "ok": 1, "n": 2, "writeErrors": [{ "index": 1, "code": code, "errmsg": "x" }] };
        let script = move |command: &Document| match command.keys().next().map(String::as_str) {
            Some("insert") => Answer::Reply(rejected_reply.clone()),
            Some("listCollections") => Answer::Reply(collections(options.clone())),
            _ => Answer::Usual,
        };
        let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
        let one = |id: &str, timestamp| event(id, timestamp, 1, &json!({}));
        let events = [one("a", 1), one("b", 1), one("c", 1), one("b", 2), one("a", 2), one("b", 3)];
        let applied = fixture_on(&server).await.apply(&events).await;
        assert_eq!(applied.rejected, vec![], "{code}");
        assert_eq!((applied.counts, applied.unfinished), (counts(2, 1, 0, 0), vec![1, 3, 5]), "{code}");
        let strange = applied.unlisted.iter().map(|strange| strange.code).collect::<Vec<_>>();
        assert_eq!(strange, if code == 987_654 { vec![code] } else { vec![] });
    }
}

#[tokio::test]
async fn g5_an_insert_rejected_for_an_existing_document_is_updated() {
    // As with validationLevel moderate, or a validator that is newer than the documents.
    let rejected_reply = |index: i32| doc! { "index": index, "code": 121, "errmsg": "rejected" };
    let script = move |command: &Document| match command.keys().next().map(String::as_str) {
        Some("insert") => {
            Answer::Reply(doc! { "ok": 1, "n": 0, "writeErrors": [rejected_reply(0), rejected_reply(1)] })
        }
        Some("find") => {
            let there = doc! { "event_id": "e1", "event_timestamp": 1_i64, "ingested_at": 0_i64 };
            let asks_for_other =
                command.to_string().contains("\"e0\"") && !command.to_string().contains("\"e1\"");
            let batch = if asks_for_other { vec![] } else { vec![there] };
            Answer::Reply(doc! { "ok": 1, "cursor": { "id": 0_i64, "ns": "d.c", "firstBatch": batch } })
        }
        _ => Answer::Usual,
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let applied = fixture_on(&server).await.apply(&batch(2)).await;
    assert_eq!(applied.rejected.iter().map(|rejected| rejected.index).collect::<Vec<_>>(), [0]);
    assert_eq!((applied.counts, applied.unfinished), (counts(0, 1, 0, 0), vec![]));
}

#[tokio::test]
async fn without_the_right_to_list_collections_events_are_not_merged() {
    let denied = doc! { "ok": 0, "code": 13, "codeName": "Unauthorized", "errmsg": "not allowed" };
    let server = answering("listCollections", denied).await;
    let fixture = fixture_on(&server).await;
    let events = [event("a", 1, 1, &json!({})), event("a", 2, 1, &json!({}))];
    assert_eq!(fixture.write(&events).await, counts(1, 1, 0, 0));
    assert_eq!(*fixture.store.state().borrow(), StoreState::Ready);
}

/// The number of statements of a write command.
fn length(command: &Document) -> i32 {
    let lists = ["documents", "updates"].iter().filter_map(|list| command.get_array(list).ok());
    lists.map(|list| i32::try_from(list.len()).unwrap_or(i32::MAX)).sum()
}

/// The reply to an insert if the first `existing` of `sent` documents exist already.
fn first_exist(existing: i32, sent: i32) -> Document {
    let error = |index: i32| doc! { "index": index, "code": 11000, "keyPattern": { "event_id": 1 }, "errmsg": "E11000" };
    doc! { "ok": 1, "n": sent - existing, "writeErrors": (0..existing).map(error).collect::<Vec<_>>() }
}

#[tokio::test]
async fn a_document_inserted_between_update_and_insert_is_updated_again() {
    let updates = AtomicUsize::new(0);
    let script = move |command: &Document| match (command.keys().next().map(String::as_str), length(command))
    {
        // Many existing documents make the strategy send updates first.
        (Some("insert"), sent @ 100..) => Answer::Reply(first_exist(sent, sent)),
        // Two of four matched the update, but three exist now.
        (Some("insert"), sent) => Answer::Reply(first_exist(3, sent)),
        (Some("update"), ..100) => match updates.fetch_add(1, Ordering::Relaxed) {
            0 => Answer::Reply(doc! { "ok": 1, "n": 2, "nModified": 1 }),
            _ => Answer::Reply(doc! { "ok": 1, "n": 3, "nModified": 1 }),
        },
        (Some("find"), _) => {
            let newer = doc! { "event_id": "e0", "event_timestamp": 9_i64, "ingested_at": 1_i64 };
            Answer::Reply(doc! { "ok": 1, "cursor": { "id": 0_i64, "ns": "d.c", "firstBatch": [newer] } })
        }
        _ => Answer::Usual,
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let fixture = fixture_on(&server).await;
    assert_eq!(fixture.write(&batch(2000)).await, counts(0, 2000, 0, 0));
    // Of the three existing documents one changed each time, and the third is newer.
    assert_eq!(fixture.write(&batch(4)).await, counts(1, 2, 0, 1));
    let writes = server.commands().into_iter().filter(|name| ["insert", "update"].contains(&name.as_str()));
    assert_eq!(writes.collect::<Vec<_>>(), ["insert", "update", "update", "insert", "update"]);
}

#[tokio::test]
async fn after_a_lost_reply_the_outcome_of_the_retry_counts() {
    let lost = AtomicBool::new(false);
    let script = move |command: &Document| match command.keys().next().map(String::as_str) {
        Some("insert") if !lost.swap(true, Ordering::Relaxed) => Answer::Silence,
        Some("insert") => Answer::Reply(first_exist(length(command), length(command))),
        Some("update") => Answer::Reply(doc! { "ok": 1, "n": 4, "nModified": 0 }),
        _ => Answer::Usual,
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let fixture = fixture_on(&server).await;
    let applied = fixture.apply(&batch(4)).await;
    assert_eq!((applied.counts, applied.rejected), (Counts::default(), vec![]));
    assert!(matches!(*fixture.store.state().borrow(), StoreState::Unavailable(_)));
    assert_eq!(fixture.write(&batch(4)).await, counts(0, 0, 4, 0));
    assert_eq!(*fixture.store.state().borrow(), StoreState::Ready);
}

#[tokio::test]
async fn a_uri_for_another_driver_connects_and_its_compressor_is_used() {
    let server = ScriptedServer::start(WIRE_VERSION_5_0, |_| Answer::Usual).await;
    for (options, compresses) in [
        ("foo=bar&socketTimeoutMS=1000&uuidRepresentation=standard&maxPoolSize=0", false),
        ("compressors=snappy", false),
        ("compressors=snappy,zlib&zlibCompressionLevel=1", true),
    ] {
        let uri = format!("{}?{options}", server.uri);
        let store = mongo_fixture::open(&uri, "d", &StoreOptions::default()).await;
        let (event, source) =
            (event("a", 1, 1, &json!({})), events::Source::new("adsbdb").expect("a source"));
        let applied = store.apply(&source, &[&event], 0).await;
        assert_eq!(applied.counts, counts(1, 0, 0, 0), "{options}: {:?}", applied.error);
        assert_eq!(server.compressed() > 0, compresses, "{options}");
    }
}
