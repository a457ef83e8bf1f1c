//! Partition workers are independent: a worker that waits does not delay the others.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bson::{Document, doc};
use testkit::servers::start_durable_mongodb;
use tokio::sync::watch;

use crate::trial::{SOON, Sent, Trial, event, eventually};
use testkit::scripted_mongodb::{Answer, ScriptedServer, is_write, open};

const WIRE_VERSION_5_0: i32 = 13;

fn of_source(source: &str, id: &str) -> String {
    event(id, 1, "{}").replace("adsbdb", source)
}

/// A server that replies to writes only while the gate is open.
async fn gated_server() -> (ScriptedServer, watch::Sender<bool>) {
    let (gate, opened) = watch::channel(false);
    let script = move |command: &Document| {
        if is_write(command) { Answer::after(open(&opened)) } else { Answer::Usual }
    };
    (ScriptedServer::start(WIRE_VERSION_5_0, script).await, gate)
}

#[tokio::test(flavor = "multi_thread")]
async fn index_build_of_a_new_source_does_not_delay_other_workers() {
    let (gate, opened) = watch::channel(false);
    let script = move |command: &Document| {
        let builds = command.get_str("createIndexes").is_ok_and(|source| source == "new");
        if builds { Answer::after(open(&opened)) } else { Answer::Usual }
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let trial = Trial::with_database(&server.uri, 2).await;
    let member = trial.start(&[("EXPECTED_SOURCE", "*")]).await;
    trial.send(Sent::new("first", &event("first", 1, "{}"))).await;
    member.finishes(1).await;
    let builds = || server.commands().iter().filter(|name| *name == "createIndexes").count();
    let before = builds();
    trial.send(Sent { partition: 1, ..Sent::new("n", &of_source("new", "n")) }).await;
    eventually("the index of the new source is being built", SOON, async || builds() > before).await;
    for n in 0..10 {
        let id = n.to_string();
        trial.send(Sent::new(&id, &event(&id, 1, "{}"))).await;
        member.finishes(2 + n).await;
    }
    let named = async || {
        let (status, why) = member.get("/readyz").await;
        status == 503 && why.contains("collection new: writes are paused: index event_id_1 is being built")
    };
    eventually("readyz names the build", SOON, named).await;
    assert!(
        server.writes().iter().all(|write| write.collection == "adsbdb"),
        "nothing is written before the index exists"
    );
    gate.send_replace(true);
    member.finishes(12).await;
    member.becomes_ready().await;
    member.stop().await;
}

#[testkit::needs(own_mongodb)]
#[tokio::test(flavor = "multi_thread")]
async fn blocked_collection_delays_neither_its_batch_nor_other_partitions() {
    let database = start_durable_mongodb().await;
    let trial = Trial::with_database(&database.uri(), 2).await;
    let blocked = trial.collection("blocked").await;
    blocked.insert_many([doc! {"event_id": "x", "n": 1}, doc! {"event_id": "x", "n": 2}]).await.unwrap();
    // While the write of the first record hangs, the next two form one batch.
    database.pause();
    trial.send(Sent::new("first", &event("first", 1, "{}"))).await;
    let member = trial.start(&[("EXPECTED_SOURCE", "*")]).await;
    eventually("the first batch has begun", SOON, async || member.seen().read == 1).await;
    trial.send(Sent::new("w", &of_source("blocked", "w"))).await;
    trial.send(Sent::new("same batch", &event("same batch", 1, "{}"))).await;
    let waiting = async || {
        let partitions = member.health().await["assignment"].clone();
        let is_waiting = |of: &serde_json::Value| of["partition"] == 0 && of["queued"] == 2;
        partitions.as_array().unwrap().iter().any(is_waiting)
    };
    eventually("two records are queued", SOON, waiting).await;
    database.resume();
    member.finishes(2).await;
    for id in ["a", "b", "c"] {
        trial.send(Sent { partition: 1, ..Sent::new(id, &event(id, 1, "{}")) }).await;
    }
    member.finishes(5).await;
    assert_eq!(trial.ids().await, ["a", "b", "c", "first", "same batch"]);
    let query = format!(r#"getSiblingDB("{}").getCollection("blocked").aggregate("#, trial.database);
    let (status, why) = member.get("/readyz").await;
    let why: serde_json::Value = serde_json::from_str(&why).unwrap();
    assert!(status == 503 && why["detail"].as_str().unwrap().contains(&query), "{why}");
    assert_eq!(
        blocked.count_documents(doc! {}).await.unwrap(),
        2,
        "nothing is written to the blocked collection"
    );
    eventually("the other partition is committed", SOON, async || {
        trial.committed().await.get(&1) == Some(&3)
    })
    .await;
    let first = async || trial.committed().await.get(&0) == Some(&1);
    eventually("nothing is committed past the waiting record", SOON, first).await;

    blocked.delete_one(doc! {"n": 2}).await.unwrap();
    member.finishes(6).await;
    member.becomes_ready().await;
    member.stop().await;
    assert_eq!(trial.committed().await, [(0, 3), (1, 3)].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn stuck_worker_makes_readyz_503_with_the_reason() {
    let (healed, seen) = watch::channel(false);
    let conflict = doc! { "ok": 0, "code": 112, "codeName": "WriteConflict", "errmsg": "in the way" };
    let script = move |command: &Document| match is_write(command) && !*seen.borrow() {
        true => Answer::Reply(conflict.clone()),
        false => Answer::Usual,
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let trial = Trial::with_database(&server.uri, 2).await;
    let limit = Duration::from_secs(4);
    let member = trial.start_with(&[], |config| config.stuck_after = limit).await;
    member.becomes_ready().await;
    trial.send(Sent { partition: 1, ..Sent::new("a", &event("a", 1, "{}")) }).await;
    eventually("the record is in the current batch", SOON, async || member.seen().read == 1).await;
    assert!(member.ready().await, "a short wait does not affect readiness");
    let stuck = async || {
        let (status, why) = member.get("/readyz").await;
        let message = format!("{}/1 has finished nothing for ", trial.topic);
        status == 503 && why.contains(&message) && why.contains("in the way")
    };
    eventually("readyz reports the stuck worker with the reason", SOON, stuck).await;
    assert!(member.metric("slipstream_seconds_since_progress").await.unwrap() >= limit.as_secs_f64());
    assert_eq!(member.get("/livez").await.0, 200);
    healed.send_replace(true);
    member.finishes(1).await;
    member.becomes_ready().await;
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_write_concurrently_and_queued_records_form_the_next_batch() {
    let (server, gate) = gated_server().await;
    let trial = Trial::with_database(&server.uri, 2).await;
    let member = trial.start(&[]).await;
    for (partition, id) in [(0, "a"), (1, "b")] {
        trial.send(Sent { partition, ..Sent::new(id, &event(id, 1, "{}")) }).await;
    }
    eventually("both workers are writing", SOON, async || server.writes().len() == 2).await;
    for n in 0..5 {
        let id = n.to_string();
        trial.send(Sent::new(&id, &event(&id, 1, "{}"))).await;
    }
    let queued = async || member.health().await["assignment"][0]["queued"] == 5;
    eventually("records that arrive meanwhile are queued", SOON, queued).await;
    gate.send_replace(true);
    member.finishes(7).await;
    let sizes: Vec<usize> = server.writes().iter().map(|write| write.records).collect();
    assert_eq!(sizes, [1, 1, 5]);
    assert_eq!(member.metric("slipstream_write_batch_records_count").await, Some(3.0));
    assert_eq!(member.metric("slipstream_write_batch_records_sum").await, Some(7.0));
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_has_at_most_batch_max_records() {
    let (server, gate) = gated_server().await;
    let trial = Trial::with_database(&server.uri, 1).await;
    trial.send_many("k", 50).await;
    let member = trial.start(&[("BATCH_MAX_RECORDS", "7")]).await;
    gate.send_replace(true);
    member.finishes(50).await;
    let sizes: Vec<usize> = server.writes().iter().map(|write| write.records).collect();
    assert!(sizes.iter().all(|size| *size <= 7) && sizes.contains(&7), "{sizes:?}");
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_with_a_full_queue_keeps_its_partition_beyond_the_poll_interval() {
    let (server, gate) = gated_server().await;
    let trial = Trial::with_database(&server.uri, 1).await;
    trial.send_many("k", 300).await;
    let quick = "session.timeout.ms=6000;max.poll.interval.ms=6000";
    // At most eight records are queued, so the partition is paused at once.
    let member = trial.start(&[("BATCH_MAX_RECORDS", "1"), ("KAFKA_PROPERTIES", quick)]).await;
    let still = async || member.metric("slipstream_seconds_since_progress").await >= Some(9.0);
    eventually("there is no progress for longer than the poll interval", SOON, still).await;
    assert_eq!(member.assigned().await, 1);
    gate.send_replace(true);
    eventually("all are finished", SOON, async || member.seen().finished() >= 300).await;
    let counted = member.stop().await;
    assert_eq!((counted.read, counted.finished(), counted.repeated), (300, 300, 0), "{counted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn record_for_an_idle_worker_is_written_at_once() {
    let trial = Trial::new(3).await;
    let member = trial.start(&[]).await;
    trial.send(Sent::new("warm", &event("warm", 1, "{}"))).await;
    member.finishes(1).await;
    let mut took = Vec::new();
    for n in 0..31_i32 {
        let id = n.to_string();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        trial.send(Sent { partition: n % 3, ..Sent::new(&id, &event(&id, now, "{}")) }).await;
        let sent = Instant::now();
        while member.seen().finished() < 2 + n as u64 {
            assert!(sent.elapsed() < SOON, "{id} is not finished");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        took.push(sent.elapsed());
    }
    took.sort();
    // With a timer that forms batches, half of the records would wait longer.
    assert!(took[took.len() / 2] < Duration::from_millis(100), "{took:?}");
    assert_eq!(member.metric("slipstream_freshness_seconds_count").await, Some(32.0));
    member.stop().await;
}
