//! Large records, slow answers and old servers: what is sent to the database, and when it is given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bson::Document;
use serde_json::json;
use tokio::sync::watch;

use crate::scripted_server::{Answer, ScriptedServer, is_write, open};
use crate::store_stage::{Setting, Stage, counts, event};
use crate::trial::{SOON, Trial, eventually};

const WIRE_VERSION_4_4: i32 = 9;
const WIRE_VERSION_5_0: i32 = 13;

#[tokio::test]
async fn no_command_with_more_than_one_record_reaches_12_mib() {
    let server = ScriptedServer::start(WIRE_VERSION_5_0, |_| Answer::Usual).await;
    // Far above what the consumer's configuration would let through.
    let setting = Setting { batch_max_bytes: 64 << 20, ..Setting::default() };
    let stage = Stage::at(&server.uri, setting).await;
    let mut events: Vec<_> = (0..20)
        .map(|n| event(&format!("e{n}"), 1, 1, &json!({ "text": "x".repeat((1 << 20) + 4321 * n) })))
        .collect();
    events.push(event("alone", 1, 1, &json!({ "text": "x".repeat(13 << 20) })));
    assert_eq!(stage.store(&events).await, counts(21, 0, 0, 0));
    let writes = server.writes();
    assert!(writes.iter().any(|write| write.records == 1 && write.bytes > 12 << 20), "{writes:?}");
    for write in writes {
        assert!(write.records == 1 || write.bytes < 12 << 20, "{write:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_a_timeout_halves_the_next_batch_down_to_one_record_and_then_doubles_the_deadline() {
    let (deadline, slow) = (Duration::from_secs(3), Duration::from_secs(4));
    let (gate, opened) = watch::channel(false);
    let (writes, healed) = (AtomicUsize::new(0), Arc::new(AtomicBool::new(false)));
    let script = move |command: &Document| {
        let lists = ["documents", "updates"];
        let Some(list) = lists.iter().find_map(|list| command.get_array(list).ok()) else {
            return Answer::Usual;
        };
        // The first waits until the others make a full batch.
        if writes.fetch_add(1, Ordering::Relaxed) == 0 {
            return Answer::after(open(&opened));
        }
        let healed = Arc::clone(&healed);
        match list.len() {
            _ if healed.load(Ordering::Relaxed) => Answer::Usual,
            // More than one deadline, less than two.
            1 => Answer::after(async move {
                tokio::time::sleep(slow).await;
                healed.store(true, Ordering::Relaxed);
            }),
            _ => Answer::after(std::future::pending()),
        }
    };
    let server = ScriptedServer::start(WIRE_VERSION_5_0, script).await;
    let trial = Trial::with_database(&server.uri, 1).await;
    trial.send_many("k", 9).await;
    let member =
        trial.start_with(&[("BATCH_MAX_RECORDS", "8")], |config| config.call_deadline = deadline).await;
    let queued = async || member.health().await["assignment"][0]["queued"] == 8;
    eventually("a full batch waits", SOON, queued).await;
    gate.send_replace(true);
    eventually("all are finished", SOON, async || member.seen().finished() >= 9).await;
    let sizes: Vec<usize> = server.writes().iter().map(|write| write.records).collect();
    assert!(sizes.starts_with(&[1, 8, 4, 2, 1, 1]), "{sizes:?}");
    let counted = member.stop().await;
    assert_eq!((counted.finished(), counted.dead_lettered), (9, 0), "{counted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_before_5_0_makes_readyz_503_with_the_reason() {
    let server = ScriptedServer::start(WIRE_VERSION_4_4, |_| Answer::Usual).await;
    let trial = Trial::with_database(&server.uri, 1).await;
    trial.send_many("k", 3).await;
    let member = trial.start(&[]).await;
    let told = async || {
        let (status, why) = member.get("/readyz").await;
        status == 503 && why.contains("MongoDB 5.0 or later is needed")
    };
    eventually("readyz says why", SOON, told).await;
    eventually("a record is in hand", SOON, async || member.seen().read > 0).await;
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
        let stage = Stage::at(&format!("{}{option}", server.uri), Setting::default()).await;
        let [one, two] = [1, 2].map(|at| event("a", at, 1, &json!({})));
        stage.apply(&[one, two]).await;
        let concern = seen.recv().await.unwrap().unwrap();
        assert_eq!(concern.get("w"), Some(&w));
        while let Ok(further) = seen.try_recv() {
            assert_eq!(further, Some(concern.clone()));
        }
    }
}
