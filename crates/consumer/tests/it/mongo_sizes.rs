//! Large records, slow replies and old servers: the size of commands and their deadlines.

use std::time::Duration;

use bson::Document;
use serde_json::json;

use crate::mongo_fixture::{StoreFixture, StoreOptions, counts, event};
use crate::trial::{SOON, Trial, eventually};
use testkit::scripted_mongodb::{Answer, ScriptedServer, is_write};

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
