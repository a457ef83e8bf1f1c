//! A collection that accepts no writes is blocked: its records wait, `/readyz` names it with the
//! remedy, and other collections are not delayed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bson::{Document, doc};
use consumer::mongo::Counts;
use events::Source;
use serde_json::json;

use crate::mongo_fixture::{StoreFixture, StoreOptions, WAIT_TIMEOUT, counts, event};
use testkit::scripted_mongodb::{Answer, ScriptedServer};

const WIRE_VERSION_5_0: i32 = 13;

fn is(command: &Document, name: &str) -> bool {
    command.keys().next().is_some_and(|first| first == name)
}

fn rejected_reply(code: i32) -> Document {
    doc! { "ok": 0, "code": code, "codeName": format!("Code{code}"), "errmsg": "this is the reason" }
}

/// Whether a command belongs to the collection of the fixture.
fn is_of_adsbdb(command: &Document) -> bool {
    let of_filter = command
        .get_document("filter")
        .is_ok_and(|filter| filter.get_str("name").is_ok_and(|n| n == "adsbdb"));
    of_filter || command.values().next().is_some_and(|name| name.as_str() == Some("adsbdb"))
}

/// Replies to one command on `adsbdb` with `reply` until `healed`, and expects a blocked
/// collection.
async fn is_blocked_by(command_name: &'static str, reply: Document) {
    let healed = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&healed);
    let answer = reply.clone();
    let script = move |command: &Document| {
        let hit = is(command, command_name) && is_of_adsbdb(command) && !seen.load(Ordering::Relaxed);
        match command.keys().next().map(String::as_str) {
            _ if hit => Answer::Reply(answer.clone()),
            // Without rules a repeated key is looked up.
            Some("listCollections") => Answer::Reply(testkit::scripted_mongodb::collections(doc! {})),
            _ => Answer::Usual,
        }
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let fixture = StoreFixture::on_server(&server.uri, StoreOptions::default()).await;
    let events = [event("a", 1, 1, &json!({})), event("a", 2, 1, &json!({}))];
    for _ in 0..8 {
        let applied = fixture.apply(&events).await;
        assert_eq!((applied.counts, applied.rejected), (Counts::default(), vec![]), "{command_name} {reply}");
        assert_eq!(applied.unlisted, vec![], "{command_name} {reply}: no record is the cause");
    }
    let blocked = fixture.store.blocked();
    let names = |why: &String| why.starts_with("collection adsbdb: ") && why.contains("writes are paused");
    assert!(blocked.len() == 1 && names(&blocked[0]), "{command_name} {reply}: {blocked:?}");

    let other = Source::new("other").expect("a source");
    let applied = fixture.store.apply(&other, &[&events[0]], 0).await;
    assert_eq!(applied.counts.total(), 1, "another collection is held up by {command_name} {reply}");

    healed.store(true, Ordering::Relaxed);
    assert_eq!(fixture.finish(&events, WAIT_TIMEOUT).await.total(), 2);
    assert_eq!(fixture.store.blocked(), Vec::<String>::new(), "{command_name} {reply}");
}

#[tokio::test]
async fn a_unique_index_that_cannot_be_built_blocks_its_collection() {
    let codes = [2, 67, 68, 72, 73, 85, 86, 166, 171, 197, 11000, 13297];
    let all = codes.map(|code| is_blocked_by("createIndexes", rejected_reply(code)));
    futures::future::join_all(all).await;
}

#[tokio::test]
async fn g5_a_rejected_namespace_blocks_its_collection_for_any_command() {
    let commands = ["listIndexes", "listCollections", "createIndexes", "insert", "find"];
    let all = commands
        .iter()
        .flat_map(|command| [73, 166, 13297].map(|code| is_blocked_by(command, rejected_reply(code))));
    futures::future::join_all(all).await;
}

#[tokio::test]
async fn g5_a_rejected_namespace_in_a_write_error_blocks_its_collection() {
    let error = doc! { "index": 0, "code": 73, "errmsg": "this is the reason" };
    is_blocked_by("insert", doc! { "ok": 1, "n": 0, "writeErrors": [error] }).await;
}

#[tokio::test]
async fn a_view_or_time_series_collection_is_blocked() {
    for kind in ["view", "timeseries"] {
        let entry = doc! { "name": "adsbdb", "type": kind, "options": {} };
        let cursor = doc! { "id": 0_i64, "ns": "d.$cmd.listCollections", "firstBatch": [entry] };
        is_blocked_by("listCollections", doc! { "ok": 1, "cursor": cursor }).await;
    }
}

#[tokio::test]
async fn a_blocked_view_is_replaced_after_it_is_dropped() {
    let fixture = StoreFixture::with_keys("event_id").await;
    let create = doc! { "create": fixture.source.as_str(), "viewOn": "other", "pipeline": [] };
    fixture.database.run_command(create).await.expect("a view");
    let events = [event("a", 1, 1, &json!({}))];
    assert_eq!(fixture.apply(&events).await.unfinished, [0]);
    let blocked = fixture.store.blocked();
    assert!(blocked.len() == 1 && blocked[0].contains("it is a view"), "{blocked:?}");
    fixture.collection().drop().await.expect("no view");
    assert_eq!(fixture.finish(&events, WAIT_TIMEOUT).await, counts(1, 0, 0, 0));
}
