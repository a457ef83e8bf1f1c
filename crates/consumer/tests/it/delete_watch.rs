//! Each consumer examines the tombstones once more, for documents of writes that nobody waits for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bson::{DateTime, Document, doc};
use consumer::mongo::{RecheckTimes, Store, StoreState};
use mongodb::{Client, Database};
use testkit::scripted_mongodb::{Answer, ScriptedServer, batch};
use testkit::servers::{shared_broker, shared_mongodb, start_durable_mongodb};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::delete_fixture::{FILE, delete, expected_sources, open, orders};
use crate::trial::{SOON, Trial, eventually};

const WIRE_VERSION_7_0: i32 = 21;
const DEADLINE: Duration = Duration::from_secs(10);
/// How long the sources file keeps a tombstone: 90 days.
const KEPT_MS: i64 = 90 * 24 * 3_600 * 1_000;

const TIMES: RecheckTimes = RecheckTimes {
    interval: Duration::from_millis(100),
    ages: [Duration::from_secs(1), Duration::from_secs(4)],
    history: Duration::from_hours(1),
};

/// A store on a server, and direct access to its database.
struct Scene {
    store: Store,
    database: Database,
}

impl Scene {
    async fn on(uri: &str) -> Self {
        let name = format!("deletes_{:016x}", fastrand::u64(..));
        let client = Client::with_uri_str(uri).await.expect("a client");
        Self { store: open(uri, &name, DEADLINE), database: client.database(&name) }
    }

    async fn delete(&self, id: char) {
        let event = delete(id, 2).decode(&expected_sources());
        let applied = self.store.apply(&orders(), &[&event], 0).await;
        assert_eq!((applied.counts.deleted, applied.error), (1, None));
    }

    /// Inserts the document of a write that was applied late.
    async fn insert_late(&self, id: &str, at: i64) {
        let document = doc! { "event_id": id, "event_timestamp": at, "ingested_at": at };
        self.documents().insert_one(document).await.expect("inserted");
    }

    fn documents(&self) -> mongodb::Collection<Document> {
        self.database.collection("orders")
    }

    async fn count(&self) -> u64 {
        self.documents().count_documents(doc! {}).await.expect("a number")
    }

    async fn is_removed(&self, id: &str) -> bool {
        self.documents().find_one(doc! { "event_id": id }).await.is_ok_and(|found| found.is_none())
    }
}

fn watch_deletes(store: &Store, times: RecheckTimes) -> AbortOnDropHandle<()> {
    let store = store.clone();
    AbortOnDropHandle::new(tokio::spawn(async move {
        store.watch_deletes(times, CancellationToken::new()).await;
    }))
}

fn watch_server(store: &Store) -> AbortOnDropHandle<()> {
    let store = store.clone();
    AbortOnDropHandle::new(tokio::spawn(async move { store.watch(CancellationToken::new()).await }))
}

#[tokio::test]
async fn a_tombstone_is_examined_at_both_ages() {
    let scene = Scene::on(&shared_mongodb().await.uri()).await;
    let _watch = watch_deletes(&scene.store, TIMES);
    let deleted = Instant::now();
    scene.delete('a').await;
    scene.delete('b').await;
    scene.insert_late("a", 2).await;
    scene.insert_late("b", 3).await;
    eventually("the first age", SOON, async || scene.is_removed("a").await).await;
    assert!(deleted.elapsed() >= TIMES.ages[0], "{:?}", deleted.elapsed());
    scene.insert_late("a", 1).await;
    eventually("the second age", SOON, async || scene.is_removed("a").await).await;
    assert!(deleted.elapsed() >= TIMES.ages[1], "{:?}", deleted.elapsed());
    assert!(!scene.is_removed("b").await, "a newer event stays");
}

#[tokio::test]
async fn more_tombstones_than_a_page_are_all_examined() {
    let scene = Scene::on(&shared_mongodb().await.uri()).await;
    scene.delete('a').await;
    let now = DateTime::now().timestamp_millis() + KEPT_MS;
    // Pages of one millisecond each, of one common millisecond, and of both.
    let expires_at =
        |n: i64| DateTime::from_millis(now + if (1_200..3_400).contains(&n) { 1_200 } else { n });
    let tombstone = |n: i64| {
        doc! { "_id": format!("k{n}"), "event_timestamp": 2_i64, "ingested_at": 2_i64, "expires_at": expires_at(n) }
    };
    // The document of every 500th tombstone is newer.
    let document = |n: i64| {
        let at = if n % 500 == 0 { 3_i64 } else { 2 };
        doc! { "event_id": format!("k{n}"), "event_timestamp": at, "ingested_at": at }
    };
    let tombstones = scene.database.collection::<Document>("orders.deletes");
    tombstones.insert_many((0..4_000).map(tombstone)).await.expect("inserted");
    scene.documents().insert_many((0..4_000).map(document)).await.expect("inserted");
    assert!(scene.store.recheck_all_deletes(&orders()).await);
    assert_eq!(scene.count().await, 8);
    let left = scene.documents().count_documents(doc! { "event_timestamp": 3_i64 }).await;
    assert_eq!(left.expect("a number"), 8);
}

#[testkit::needs(own_mongodb)]
#[tokio::test]
async fn a_tombstone_is_examined_after_an_outage() {
    let server = start_durable_mongodb().await;
    let scene = Scene::on(&server.uri()).await;
    let _watches = [watch_server(&scene.store), watch_deletes(&scene.store, TIMES)];
    scene.delete('a').await;
    scene.insert_late("a", 1).await;
    server.kill();
    let mut state = scene.store.state();
    let is_down = state.wait_for(|state| matches!(state, StoreState::Unavailable(_)));
    tokio::time::timeout(SOON, is_down).await.expect("in time").expect("a state");
    server.restart().await.expect("restarted");
    eventually("the document is removed", SOON, async || scene.is_removed("a").await).await;
}

/// The window of a query for tombstones by their expiry.
fn window(command: &Document) -> Option<(i64, i64)> {
    let expires = command.get_document("filter").ok()?.get_document("expires_at").ok()?;
    let bound = |operator| expires.get_datetime(operator).ok().map(|at| at.timestamp_millis());
    Some((bound("$gte")?, bound("$lt")?))
}

#[tokio::test]
async fn the_clock_of_the_server_decides_on_the_age() {
    let local = DateTime::from_millis(1_500_000_000_000);
    let server =
        ScriptedServer::start_as(WIRE_VERSION_7_0, doc! { "localTime": local }, |_| Answer::Usual).await;
    let store = open(&server.uri, "d", DEADLINE);
    let _watches = [watch_server(&store), watch_deletes(&store, TIMES)];
    let windows = || server.sent().iter().filter_map(window).collect::<Vec<_>>();
    eventually("both ages", SOON, async || windows().len() >= 2).await;
    let hellos = server.hello_timeouts().len();
    eventually("more examinations", SOON, async || server.hello_timeouts().len() > hellos + 5).await;
    let window = |age_ms: i64| {
        let end = local.timestamp_millis() + KEPT_MS - age_ms;
        (end - 3_600_000, end)
    };
    // The clock stands still, so nothing more is to be examined.
    assert_eq!(windows(), [window(1_000), window(4_000)]);
}

#[tokio::test]
async fn after_failed_queries_the_same_window_is_examined() {
    let (fails, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let (failing, log) = (Arc::clone(&fails), Arc::clone(&seen));
    let script = move |command: &Document| match window(command) {
        Some(window) => {
            let fails = failing.load(Ordering::SeqCst);
            log.lock().expect("no panic").push((window, !fails));
            if fails { Answer::Silence } else { Answer::Reply(batch(Vec::new())) }
        }
        None => Answer::Usual,
    };
    let server = ScriptedServer::start(WIRE_VERSION_7_0, script).await;
    let store = open(&server.uri, "d", DEADLINE);
    let times = RecheckTimes { interval: Duration::from_millis(20), ..TIMES };
    let _watches = [watch_server(&store), watch_deletes(&store, times)];
    let count =
        |answered: bool| seen.lock().expect("no panic").iter().filter(|one| one.1 == answered).count();
    eventually("examinations", SOON, async || count(true) >= 6).await;
    fails.store(true, Ordering::SeqCst);
    eventually("failures", SOON, async || count(false) >= 3).await;
    let before = count(true);
    fails.store(false, Ordering::SeqCst);
    eventually("it goes on", SOON, async || count(true) >= before + 6).await;
    // The windows of each age follow each other. Those of the second age end 3 s earlier.
    let mut examined: [Option<i64>; 2] = [None, None];
    for ((start, end), answered) in seen.lock().expect("no panic").clone() {
        let age = usize::from(examined[0].is_some_and(|first| end < first));
        match examined[age] {
            Some(examined) => assert_eq!(start, examined, "a gap at age {age}"),
            None => assert_eq!(start, end - 3_600_000),
        }
        if answered {
            examined[age] = Some(end);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g7_a_shutdown_does_not_wait_for_an_examination() {
    let script = |command: &Document| match window(command) {
        Some(_) => Answer::Later(Box::pin(std::future::pending())),
        None => Answer::Usual,
    };
    let server = ScriptedServer::start(WIRE_VERSION_7_0, script).await;
    let trial = Trial::on(&shared_broker().await.bootstrap(), &server.uri, 1);
    trial.make_topic(&trial.topic, 1, &[]).await;
    let file = testkit::SourcesFile::new(FILE);
    let member =
        trial.start_with(&[("SOURCES_FILE", &file.path())], |config| config.recheck_times = TIMES).await;
    eventually("an examination", SOON, async || server.sent().iter().any(|sent| window(sent).is_some()))
        .await;
    let stopped = Instant::now();
    member.stop().await;
    assert!(stopped.elapsed() < Duration::from_secs(5), "{:?}", stopped.elapsed());
}
