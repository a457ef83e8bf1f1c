//! A unique index that is still being built is listed like one that is ready, and checks nothing yet: no event is
//! written before the server confirmed the index.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bson::{Document, doc};
use consumer::mongo::{Store, StoreState};
use events::{Source, StorableEvent};
use serde_json::json;
use tokio::sync::watch;

use crate::mongo_fixture::{self, PATIENCE, Setting, Stage, counts, event};
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

/// The reply to listIndexes where the unique index is the given one.
fn listed(unique: Document) -> Document {
    let id = doc! { "v": 2, "key": { "_id": 1 }, "name": "_id_" };
    indexes(&[id, unique, lookup()])
}

fn is(command: &Document, name: &str) -> bool {
    command.keys().next().is_some_and(|first| first == name)
}

fn refused(code: i32, name: &str) -> Document {
    doc! { "ok": 0, "code": code, "codeName": name, "errmsg": "no" }
}

/// A server that lists the unique index, and answers createIndexes only while the gate is open.
async fn building() -> (Arc<ScriptedServer>, watch::Sender<bool>) {
    let (gate, opened) = watch::channel(false);
    let script = move |command: &Document| match command.keys().next().map(String::as_str) {
        Some("listIndexes") => Answer::Reply(listed(unique())),
        Some("createIndexes") => Answer::after(open(&opened)),
        _ => Answer::Usual,
    };
    (Arc::new(ScriptedServer::start(WIRE_VERSION_5_0, script).await), gate)
}

fn one() -> [StorableEvent; 1] {
    [event("a", 1, 1, &json!({}))]
}

async fn apply(store: &Store) -> consumer::mongo::BatchOutcome {
    let source = Source::new("adsbdb").expect("a source");
    store.apply(&source, &[&one()[0]], 0).await
}

/// Applies one event until it is stored, as a lane does.
async fn finish(store: Store) {
    let started = Instant::now();
    while !apply(&store).await.unfinished.is_empty() {
        assert!(started.elapsed() < PATIENCE, "unfinished");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn until(what: &str, reached: impl Fn() -> bool) {
    eventually(what, PATIENCE, async || reached()).await;
}

#[tokio::test]
async fn g3_a_listed_index_that_is_being_built_gets_no_write_before_its_end() {
    let (server, gate) = building().await;
    let stage = Stage::at(&server.uri, Setting::default()).await;
    let lane = tokio::spawn(finish(stage.store.clone()));
    let named = || stage.store.blocked().iter().any(|why| why.contains("index event_id_1 is being built"));
    until("the build is named", named).await;
    assert!(!lane.is_finished() && server.writes().is_empty());
    gate.send_replace(true);
    lane.await.expect("a lane");
    assert_eq!(server.writes().len(), 1);
    assert_eq!(stage.store.blocked(), Vec::<String>::new());
}

#[tokio::test]
async fn g3_two_consumers_repeat_a_build_one_call_at_a_time_and_wait_longer() {
    let (server, gate) = building().await;
    let setting = || Setting { deadline: Duration::from_millis(150), ..Setting::default() };
    let started = Instant::now();
    let stores = [
        mongo_fixture::open(&server.uri, "d", &setting()).await,
        mongo_fixture::open(&server.uri, "d", &setting()).await,
    ];
    let lanes: Vec<_> =
        stores.iter().flat_map(|store| [store; 4]).cloned().map(finish).map(tokio::spawn).collect();
    let calls = || server.commands_named("createIndexes").len();
    until("each repeats its call", || calls() >= 8).await;
    // Deadlines of 150, 300 and 600 ms passed in each before its fourth call. Without doubling, 450 ms would do.
    assert!(started.elapsed() >= Duration::from_millis(1_050), "{:?}", started.elapsed());
    assert!(server.writes().is_empty());
    assert!(stores.iter().all(|store| store.blocked().len() == 1), "a repeated build is named");
    gate.send_replace(true);
    for lane in lanes {
        lane.await.expect("a lane");
    }
    assert_eq!(server.writes().len(), 8);
    assert!(calls() <= 10, "the lanes of a consumer share a call: {}", calls());
}

#[tokio::test]
async fn g3_an_index_that_is_built_anew_between_two_checks_stops_the_writes() {
    let (gate, opened) = watch::channel(true);
    let script = move |command: &Document| match command.keys().next().map(String::as_str) {
        Some("listIndexes") => Answer::Reply(listed(unique())),
        Some("createIndexes") => Answer::after(open(&opened)),
        _ => Answer::Usual,
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let stage = Stage::at(&server.uri, Setting::default()).await;
    stage.store(&one()).await;
    // Dropped, and built again by another: the list says the same as before.
    gate.send_replace(false);
    let before = server.commands_named("createIndexes").len();
    let store = stage.store.clone();
    let lane = tokio::spawn(async move {
        loop {
            assert_eq!(apply(&store).await.unfinished, Vec::<usize>::new());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    until("the index is asked for again", || server.commands_named("createIndexes").len() > before).await;
    let written = server.writes().len();
    until("the build is named", || stage.store.blocked().len() == 1).await;
    assert_eq!(server.writes().len(), written, "written to during the build");
    gate.send_replace(true);
    until("writes go on", || server.writes().len() > written).await;
    lane.abort();
}

#[tokio::test]
async fn g6_a_build_is_asked_for_again_once_the_server_was_away() {
    let (gate, opened) = watch::channel(false);
    let script = move |command: &Document| match command.keys().next().map(String::as_str) {
        Some("createIndexes") if command.get_str("createIndexes").is_ok_and(|name| name == "adsbdb") => {
            Answer::after(open(&opened))
        }
        Some("insert") if command.get_str("insert").is_ok_and(|name| name == "other") => Answer::Silence,
        _ => Answer::Usual,
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let deadline = Duration::from_secs(300);
    let stage = Stage::at(&server.uri, Setting { deadline, ..Setting::default() }).await;
    let lane = tokio::spawn(finish(stage.store.clone()));
    let builds = || {
        let sent = server.commands_named("createIndexes");
        sent.iter()
            .filter(|command| command.get_str("createIndexes").is_ok_and(|name| name == "adsbdb"))
            .count()
    };
    until("the build began", || builds() == 1).await;
    // Another lane finds the server away.
    let other = Source::new("other").expect("a source");
    assert_eq!(stage.store.apply(&other, &[&one()[0]], 0).await.unfinished, [0]);
    until("the call is repeated before its deadline", || builds() == 2).await;
    gate.send_replace(true);
    lane.await.expect("a lane");
}

#[tokio::test]
async fn who_may_not_create_indexes_believes_the_list_except_of_a_build() {
    let ready = Arc::new(AtomicBool::new(false));
    let is_ready = Arc::clone(&ready);
    let script = move |command: &Document| match command.keys().next().map(String::as_str) {
        Some("createIndexes") => Answer::Reply(refused(13, "Unauthorized")),
        Some("listIndexes")
            if command.contains_key("includeBuildUUIDs") && !is_ready.load(Ordering::Relaxed) =>
        {
            Answer::Reply(listed(doc! { "spec": unique(), "buildUUID": bson::Uuid::new() }))
        }
        Some("listIndexes") => Answer::Reply(listed(unique())),
        _ => Answer::Usual,
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let stage = Stage::at(&server.uri, Setting::default()).await;
    assert_eq!(stage.apply(&one()).await.unfinished, [0]);
    assert!(server.writes().is_empty());
    ready.store(true, Ordering::Relaxed);
    assert_eq!(stage.store(&one()).await, counts(1, 0, 0, 0));
    assert_eq!(*stage.store.state().borrow(), StoreState::Ready);
}

#[tokio::test]
async fn who_may_not_create_indexes_does_not_write_without_the_unique_one() {
    let script = move |command: &Document| match is(command, "createIndexes") {
        true => Answer::Reply(refused(13, "Unauthorized")),
        false => Answer::Usual,
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let stage = Stage::at(&server.uri, Setting::default()).await;
    assert_eq!(stage.apply(&one()).await.unfinished, [0]);
    assert!(server.writes().is_empty());
    let state = stage.store.state().borrow().clone();
    assert!(matches!(state, StoreState::Unusable(_)), "{state:?}");
}

#[tokio::test]
async fn who_may_not_create_look_up_indexes_still_writes() {
    let script = move |command: &Document| match command.keys().next().map(String::as_str) {
        Some("createIndexes") => Answer::Reply(refused(13, "Unauthorized")),
        Some("listIndexes") => Answer::Reply(indexes(&[unique()])),
        _ => Answer::Usual,
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let stage = Stage::at(&server.uri, Setting::default()).await;
    assert_eq!(stage.store(&one()).await, counts(1, 0, 0, 0));
    assert_eq!(*stage.store.state().borrow(), StoreState::Ready);
}

#[tokio::test]
async fn a_guarding_index_is_confirmed_by_the_specification_that_is_listed() {
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
        let stage = Stage::at(&server.uri, Setting::default()).await;
        assert_eq!(stage.store(&one()).await, counts(1, 0, 0, 0), "{index}");
        let sent = server.commands_named("createIndexes");
        assert_eq!(sent.len(), 1, "{sent:?}");
        let sent = sent[0].get_array("indexes").expect("indexes")[0].as_document().expect("an index").clone();
        let sorted = |index: Document| index.into_iter().collect::<std::collections::BTreeMap<_, _>>();
        assert_eq!(sorted(sent), sorted(index));
    }
}

#[tokio::test]
async fn create_indexes_has_write_concern_majority_and_a_quorum_on_replica_sets() {
    let in_set = doc! { "setName": "rs0", "hosts": ["127.0.0.1:1"], "me": "127.0.0.1:1" };
    for (greeting, quorum) in [(doc! {}, None), (in_set, Some("majority"))] {
        let server = ScriptedServer::start_as(WIRE_VERSION_5_0, greeting, |_| Answer::Usual).await;
        // The write concern of the writes is another one.
        let stage = Stage::at(&format!("{}?directConnection=true&w=1", server.uri), Setting::default()).await;
        assert_eq!(stage.store(&one()).await, counts(1, 0, 0, 0));
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
async fn a_confirmed_index_is_checked_with_the_write_concern_of_the_writes() {
    let script = move |command: &Document| match is(command, "listIndexes") {
        true => Answer::Reply(listed(unique())),
        false => Answer::Usual,
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let stage = Stage::at(&format!("{}?w=1", server.uri), Setting::default()).await;
    let started = Instant::now();
    while server.commands_named("createIndexes").len() < 2 {
        assert!(started.elapsed() < PATIENCE, "not checked again");
        stage.store(&one()).await;
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
    let stage = Stage::at(&server.uri, Setting::default()).await;
    assert_eq!(stage.apply(&one()).await.unfinished, [0]);
    assert!(server.writes().is_empty());
    assert_eq!(stage.store(&one()).await, counts(1, 0, 0, 0));
}
