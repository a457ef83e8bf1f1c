//! G6: a server that is unavailable, rejects the login or hangs delays events and loses none.

use std::time::{Duration, Instant};

use bson::doc;
use consumer::mongo::{Counts, StoreState};
use events::StorableEvent;
use serde_json::json;
use testkit::servers::{shared_mongodb, start_durable_mongodb};
use tokio_util::sync::CancellationToken;

use crate::mongo_fixture::{StoreFixture, StoreOptions, WAIT_TIMEOUT, counts, event};

fn batch(names: std::ops::Range<u32>) -> Vec<StorableEvent> {
    names.map(|n| event(&format!("e{n:03}"), 1, 1, &json!({ "n": n }))).collect()
}

/// Watches the server until the returned guard is dropped.
fn watch(fixture: &StoreFixture) -> tokio_util::sync::DropGuard {
    let stop = CancellationToken::new();
    let (store, watched) = (fixture.store.clone(), stop.clone());
    tokio::spawn(async move { store.watch(watched).await });
    stop.drop_guard()
}

#[testkit::needs(own_mongodb)]
#[tokio::test]
async fn g6_a_killed_database_loses_no_event_and_work_resumes() {
    let database = start_durable_mongodb().await;
    let fixture = StoreFixture::on_server(&database.uri(), StoreOptions::default()).await;
    let _watch = watch(&fixture);
    fixture.wait_for_state(|state| *state == StoreState::Ready).await;
    assert_eq!(fixture.write(&batch(0..50)).await, counts(50, 0, 0, 0));

    database.kill();
    let applied = fixture.apply(&batch(50..60)).await;
    assert_eq!((applied.counts, applied.unfinished.len()), (Counts::default(), 10));
    fixture.wait_for_state(|state| matches!(state, StoreState::Unavailable(_))).await;

    database.restart().await.expect("restarted");
    let back = Instant::now();
    assert_eq!(fixture.finish(&batch(50..60), Duration::from_secs(5)).await, counts(10, 0, 0, 0));
    println!("resumed after {:?}", back.elapsed());
    fixture.wait_for_state(|state| *state == StoreState::Ready).await;
    assert_eq!(fixture.write(&batch(0..60)).await, counts(0, 0, 60, 0));
}

#[testkit::needs(own_mongodb)]
#[tokio::test]
async fn g6_a_call_to_a_hanging_database_ends_at_the_deadline() {
    let database = start_durable_mongodb().await;
    let deadline = Duration::from_millis(700);
    let fixture =
        StoreFixture::on_server(&database.uri(), StoreOptions { deadline, ..StoreOptions::default() }).await;
    let _watch = watch(&fixture);
    fixture.write(&batch(0..5)).await;

    database.pause();
    let started = Instant::now();
    let applied = fixture.apply(&batch(5..10)).await;
    assert!(started.elapsed() < deadline + Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!(applied.unfinished, [0, 1, 2, 3, 4]);
    assert!(applied.error.is_some_and(|trouble| trouble.timed_out));
    fixture.wait_for_state(|state| matches!(state, StoreState::Unavailable(_))).await;

    database.resume();
    let finished = fixture.finish(&batch(5..10), Duration::from_secs(5)).await;
    assert_eq!(finished.total(), 5);
    fixture.wait_for_state(|state| *state == StoreState::Ready).await;
    assert_eq!(fixture.documents().await.len(), 10);
}

#[testkit::needs(own_mongodb)]
#[tokio::test]
async fn g6_events_wait_for_a_database_that_starts_later() {
    let database = start_durable_mongodb().await;
    database.kill();
    let fixture = StoreFixture::on_server(&database.uri(), StoreOptions::default()).await;
    assert_eq!(*fixture.store.state().borrow(), StoreState::Unknown);
    let _watch = watch(&fixture);
    assert_eq!(fixture.apply(&batch(0..3)).await.unfinished, [0, 1, 2]);
    fixture.wait_for_state(|state| matches!(state, StoreState::Unavailable(_))).await;
    database.restart().await.expect("restarted");
    assert_eq!(fixture.finish(&batch(0..3), Duration::from_secs(5)).await, counts(3, 0, 0, 0));
}

#[tokio::test]
async fn a_wrong_password_is_reported_and_retried_until_it_is_right() {
    let uri = shared_mongodb().await.uri();
    let user = format!("user{:08x}", fastrand::u32(..));
    let (_, host) = uri.split_once("://").expect("a URI");
    let secret = "s3cret-and-never-shown";
    let separator = if host.contains('?') { "&" } else { "/?" };
    let uri_of_user =
        format!("mongodb://{user}:{secret}@{}{separator}authSource=admin", host.trim_end_matches('/'));
    let fixture = StoreFixture::on_server(&uri_of_user, StoreOptions::default()).await;
    let _watch = watch(&fixture);
    let applied = fixture.apply(&batch(0..3)).await;
    assert_eq!(applied.unfinished, [0, 1, 2]);
    let StoreState::Unusable(reason) =
        fixture.wait_for_state(|state| matches!(state, StoreState::Unusable(_))).await
    else {
        panic!("not unusable")
    };
    let output = format!("{reason} {:?} {:?}", applied.error, fixture.store);
    assert!(!output.contains(secret), "{output}");

    let admin = mongodb::Client::with_uri_str(&uri).await.expect("a client").database("admin");
    let roles = vec![doc! { "role": "root", "db": "admin" }];
    let create = doc! { "createUser": user, "pwd": secret, "roles": roles };
    admin.run_command(create).await.expect("a user");
    assert_eq!(fixture.finish(&batch(0..3), WAIT_TIMEOUT).await, counts(3, 0, 0, 0));
    fixture.wait_for_state(|state| *state == StoreState::Ready).await;
}
