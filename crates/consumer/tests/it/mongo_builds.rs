//! A unique index that is being built is listed like a finished one and does not check uniqueness
//! yet. No event is written before the server confirmed the index.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bson::{Document, doc};
use consumer::mongo::{Store, StoreState};
use events::{Source, StorableEvent};
use serde_json::json;
use tokio::sync::watch;

use crate::mongo_fixture::{self, StoreFixture, StoreOptions, WAIT_TIMEOUT, counts, event};
use crate::trial::eventually;
use testkit::scripted_mongodb::{Answer, ScriptedServer, indexes, open};

const WIRE_VERSION_5_0: i32 = 13;

fn unique() -> Document {
    doc! { "v": 2, "key": { "event_id": 1 }, "name": "event_id_1", "unique": true }
}

fn lookup() -> Document {
    let key = doc! { "mode_s": 1, "registration": 1, "event_timestamp": 1 };
    doc! { "v": 2, "key": key, "name": "mode_s_1_registration_1_event_timestamp_1" }
}

/// The reply to listIndexes with this unique index.
fn listed(unique: Document) -> Document {
    let id = doc! { "v": 2, "key": { "_id": 1 }, "name": "_id_" };
    indexes(&[id, unique, lookup()])
}

fn is(command: &Document, name: &str) -> bool {
    command.keys().next().is_some_and(|first| first == name)
}

fn rejected_reply(code: i32, name: &str) -> Document {
    doc! { "ok": 0, "code": code, "codeName": name, "errmsg": "no" }
}

/// A server that lists the unique index, and replies to createIndexes after `release`.
async fn building() -> (Arc<ScriptedServer>, watch::Sender<bool>) {
    let (release, released) = watch::channel(false);
    let script = move |command: &Document| match command.keys().next().map(String::as_str) {
        Some("listIndexes") => Answer::Reply(listed(unique())),
        Some("createIndexes") => Answer::after(open(&released)),
        _ => Answer::Usual,
    };
    (Arc::new(ScriptedServer::start(WIRE_VERSION_5_0, script).await), release)
}

fn one() -> [StorableEvent; 1] {
    [event("a", 1, 1, &json!({}))]
}

async fn apply(store: &Store) -> consumer::mongo::BatchOutcome {
    let source = Source::new("adsbdb").expect("a source");
    store.apply(&source, &[&one()[0]], 0).await
}

/// Applies one event until it is stored, as a partition worker does.
async fn finish(store: Store) {
    let started = Instant::now();
    while !apply(&store).await.unfinished.is_empty() {
        assert!(started.elapsed() < WAIT_TIMEOUT, "unfinished");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn until(what: &str, reached: impl Fn() -> bool) {
    eventually(what, WAIT_TIMEOUT, async || reached()).await;
}

#[tokio::test]
async fn g3_no_write_before_a_listed_unique_index_is_built() {
    let (server, release) = building().await;
    let fixture = StoreFixture::on_server(&server.uri, StoreOptions::default()).await;
    let worker = tokio::spawn(finish(fixture.store.clone()));
    let named = || fixture.store.blocked().iter().any(|why| why.contains("index event_id_1 is being built"));
    until("the build is named", named).await;
    assert!(!worker.is_finished() && server.writes().is_empty());
    release.send_replace(true);
    worker.await.expect("a worker");
    assert_eq!(server.writes().len(), 1);
    assert_eq!(fixture.store.blocked(), Vec::<String>::new());
}

#[tokio::test]
async fn g3_two_consumers_repeat_create_indexes_with_longer_deadlines() {
    let (server, release) = building().await;
    let options = || StoreOptions { deadline: Duration::from_millis(150), ..StoreOptions::default() };
    let started = Instant::now();
    let stores = [
        mongo_fixture::open(&server.uri, "d", &options()).await,
        mongo_fixture::open(&server.uri, "d", &options()).await,
    ];
    let workers: Vec<_> =
        stores.iter().flat_map(|store| [store; 4]).cloned().map(finish).map(tokio::spawn).collect();
    let calls = || server.commands_named("createIndexes").len();
    until("each store repeats its call", || calls() >= 8).await;
    // Deadlines of 150, 300 and 600 ms passed before the fourth call of each store. Without
    // doubling 450 ms would be enough.
    assert!(started.elapsed() >= Duration::from_millis(1_050), "{:?}", started.elapsed());
    assert!(server.writes().is_empty());
    assert!(stores.iter().all(|store| store.blocked().len() == 1), "a repeated build is named");
    release.send_replace(true);
    for worker in workers {
        worker.await.expect("a worker");
    }
    assert_eq!(server.writes().len(), 8);
    assert!(calls() <= 10, "the workers of a consumer share a call: {}", calls());
}

#[tokio::test]
async fn g3_an_index_rebuilt_between_two_checks_pauses_writes() {
    let (release, released) = watch::channel(true);
    let script = move |command: &Document| match command.keys().next().map(String::as_str) {
        Some("listIndexes") => Answer::Reply(listed(unique())),
        Some("createIndexes") => Answer::after(open(&released)),
        _ => Answer::Usual,
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let fixture = StoreFixture::on_server(&server.uri, StoreOptions::default()).await;
    fixture.write(&one()).await;
    // The index was dropped and is built again elsewhere: the list is the same as before.
    release.send_replace(false);
    let before = server.commands_named("createIndexes").len();
    let store = fixture.store.clone();
    let worker = tokio::spawn(async move {
        loop {
            assert_eq!(apply(&store).await.unfinished, Vec::<usize>::new());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    until("createIndexes is sent again", || server.commands_named("createIndexes").len() > before).await;
    let written = server.writes().len();
    until("the build is named", || fixture.store.blocked().len() == 1).await;
    assert_eq!(server.writes().len(), written, "written to during the build");
    release.send_replace(true);
    until("writes go on", || server.writes().len() > written).await;
    worker.abort();
}

#[tokio::test]
async fn g6_create_indexes_is_repeated_after_an_outage() {
    let (release, released) = watch::channel(false);
    let script = move |command: &Document| match command.keys().next().map(String::as_str) {
        Some("createIndexes") if command.get_str("createIndexes").is_ok_and(|name| name == "adsbdb") => {
            Answer::after(open(&released))
        }
        Some("insert") if command.get_str("insert").is_ok_and(|name| name == "other") => Answer::Silence,
        _ => Answer::Usual,
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let deadline = Duration::from_secs(300);
    let fixture =
        StoreFixture::on_server(&server.uri, StoreOptions { deadline, ..StoreOptions::default() }).await;
    let worker = tokio::spawn(finish(fixture.store.clone()));
    let builds = || {
        let sent = server.commands_named("createIndexes");
        sent.iter()
            .filter(|command| command.get_str("createIndexes").is_ok_and(|name| name == "adsbdb"))
            .count()
    };
    until("the build began", || builds() == 1).await;
    // Another worker finds the server unavailable.
    let other = Source::new("other").expect("a source");
    assert_eq!(fixture.store.apply(&other, &[&one()[0]], 0).await.unfinished, [0]);
    until("the call is repeated before its deadline", || builds() == 2).await;
    release.send_replace(true);
    worker.await.expect("a worker");
}

#[tokio::test]
async fn without_the_right_to_create_indexes_a_finished_index_is_trusted() {
    let ready = Arc::new(AtomicBool::new(false));
    let is_ready = Arc::clone(&ready);
    let script = move |command: &Document| match command.keys().next().map(String::as_str) {
        Some("createIndexes") => Answer::Reply(rejected_reply(13, "Unauthorized")),
        Some("listIndexes")
            if command.contains_key("includeBuildUUIDs") && !is_ready.load(Ordering::Relaxed) =>
        {
            Answer::Reply(listed(doc! { "spec": unique(), "buildUUID": bson::Uuid::new() }))
        }
        Some("listIndexes") => Answer::Reply(listed(unique())),
        _ => Answer::Usual,
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let fixture = StoreFixture::on_server(&server.uri, StoreOptions::default()).await;
    assert_eq!(fixture.apply(&one()).await.unfinished, [0]);
    assert!(server.writes().is_empty());
    ready.store(true, Ordering::Relaxed);
    assert_eq!(fixture.write(&one()).await, counts(1, 0, 0, 0));
    assert_eq!(*fixture.store.state().borrow(), StoreState::Ready);
}

#[tokio::test]
async fn without_the_right_to_create_indexes_a_missing_index_stops_writes() {
    let script = move |command: &Document| match is(command, "createIndexes") {
        true => Answer::Reply(rejected_reply(13, "Unauthorized")),
        false => Answer::Usual,
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let fixture = StoreFixture::on_server(&server.uri, StoreOptions::default()).await;
    assert_eq!(fixture.apply(&one()).await.unfinished, [0]);
    assert!(server.writes().is_empty());
    let state = fixture.store.state().borrow().clone();
    assert!(matches!(state, StoreState::Unusable(_)), "{state:?}");
}

#[tokio::test]
async fn without_the_right_to_create_look_up_indexes_events_are_written() {
    let script = move |command: &Document| match command.keys().next().map(String::as_str) {
        Some("createIndexes") => Answer::Reply(rejected_reply(13, "Unauthorized")),
        Some("listIndexes") => Answer::Reply(indexes(&[unique()])),
        _ => Answer::Usual,
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let fixture = StoreFixture::on_server(&server.uri, StoreOptions::default()).await;
    assert_eq!(fixture.write(&one()).await, counts(1, 0, 0, 0));
    assert_eq!(*fixture.store.state().borrow(), StoreState::Ready);
}

#[tokio::test]
async fn an_index_is_confirmed_with_its_listed_specification() {
    let base = || doc! { "key": { "event_id": -1 }, "name": "by_hand", "unique": true };
    for more in [
        doc! {},
        doc! { "sparse": true },
        doc! { "hidden": true },
        doc! { "collation": { "locale": "simple" } },
    ] {
        let mut index = base();
        index.extend(more);
        let mut stored = index.clone();
        stored.extend(doc! { "v": 2, "ns": "d.adsbdb", "background": true });
        let script = move |command: &Document| match is(command, "listIndexes") {
            true => Answer::Reply(listed(stored.clone())),
            false => Answer::Usual,
        };
        let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
        let fixture = StoreFixture::on_server(&server.uri, StoreOptions::default()).await;
        assert_eq!(fixture.write(&one()).await, counts(1, 0, 0, 0), "{index}");
        let sent = server.commands_named("createIndexes");
        assert_eq!(sent.len(), 1, "{sent:?}");
        let sent = sent[0].get_array("indexes").expect("indexes")[0].as_document().expect("an index").clone();
        let sorted = |index: Document| index.into_iter().collect::<std::collections::BTreeMap<_, _>>();
        assert_eq!(sorted(sent), sorted(index));
    }
}

#[tokio::test]
async fn create_indexes_has_write_concern_and_commit_quorum_majority() {
    let in_set = doc! { "setName": "rs0", "hosts": ["127.0.0.1:1"], "me": "127.0.0.1:1" };
    for (greeting, quorum) in [(doc! {}, None), (in_set, Some("majority"))] {
        let server = ScriptedServer::start_as(WIRE_VERSION_5_0, greeting, |_| Answer::Usual).await;
        // The writes have another write concern.
        let fixture = StoreFixture::on_server(
            &format!("{}?directConnection=true&w=1", server.uri),
            StoreOptions::default(),
        )
        .await;
        assert_eq!(fixture.write(&one()).await, counts(1, 0, 0, 0));
        let created = server.commands_named("createIndexes");
        assert_eq!(created.len(), 2, "the unique index and the look-up index");
        for command in created {
            let concern = command.get_document("writeConcern").expect("a write concern");
            assert_eq!(concern, &doc! { "w": "majority" });
            assert_eq!(command.get_str("commitQuorum").ok(), quorum);
        }
    }
}

#[tokio::test]
async fn a_confirmed_index_is_checked_with_the_writes_write_concern() {
    let script = move |command: &Document| match is(command, "listIndexes") {
        true => Answer::Reply(listed(unique())),
        false => Answer::Usual,
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let fixture = StoreFixture::on_server(&format!("{}?w=1", server.uri), StoreOptions::default()).await;
    let started = Instant::now();
    while server.commands_named("createIndexes").len() < 2 {
        assert!(started.elapsed() < WAIT_TIMEOUT, "not checked again");
        fixture.write(&one()).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let concerns = server.commands_named("createIndexes");
    let concerns = concerns.iter().map(|command| command.get_document("writeConcern").expect("one"));
    assert_eq!(concerns.collect::<Vec<_>>(), [&doc! { "w": "majority" }, &doc! { "w": 1 }]);
}

#[tokio::test]
async fn an_index_whose_write_concern_was_not_met_is_not_ready() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let script = move |command: &Document| {
        if is(command, "createIndexes") && counted.fetch_add(1, Ordering::Relaxed) == 0 {
            let error = doc! { "code": 91, "errmsg": "shutting down" };
            return Answer::Reply(doc! { "ok": 1, "writeConcernError": error });
        }
        Answer::Usual
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let fixture = StoreFixture::on_server(&server.uri, StoreOptions::default()).await;
    assert_eq!(fixture.apply(&one()).await.unfinished, [0]);
    assert!(server.writes().is_empty());
    assert_eq!(fixture.write(&one()).await, counts(1, 0, 0, 0));
}
