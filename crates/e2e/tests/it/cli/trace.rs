//! `slipstream trace` on real servers: each state of a record.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bson::doc;
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::Value;
use testkit::process::command;
use testkit::{Names, Process, Stack, eventually, http, kafka, mongo};

const LIMIT: Duration = Duration::from_secs(60);

fn event(id: &str, source: &str, at: i64, mode_s: &str) -> String {
    format!(
        r#"{{"id":"{id}","timestamp":{at},"source":"{source}","payload":{{"mode_s":"{mode_s}"}},"ingested_at":{at},"api_version":"1.0.0"}}"#
    )
}

fn client(names: &Names) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &names.kafka);
    config
}

/// Produces to partition 0.
async fn send(names: &Names, key: Option<&str>, value: Option<&str>, record_ms: Option<i64>) {
    let producer: FutureProducer = client(names).create().unwrap();
    let record: FutureRecord<'_, str, str> = FutureRecord {
        topic: &names.topic,
        partition: Some(0),
        payload: value,
        key,
        timestamp: record_ms,
        headers: None,
    };
    producer.send(record, LIMIT).await.unwrap();
}

async fn trace(names: &Names, more: &[(&str, &str)], arguments: &[&str]) -> (Option<i32>, String) {
    let output =
        command("slipstream", &names.environment(more)).arg("trace").args(arguments).output().await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

async fn states(names: &Names, more: &[(&str, &str)], id: &str) -> (Vec<String>, Value) {
    let (code, said) = trace(names, more, &[id, "--json"]).await;
    assert_eq!(code, Some(0), "{said}");
    let said: Value = serde_json::from_str(&said).unwrap();
    let states =
        said["records"].as_array().unwrap().iter().map(|record| record["state"].as_str().unwrap().to_owned());
    (states.collect(), said)
}

/// Waits until the consumer has finished `records`, then stops it.
async fn finish(consumer: Process, records: u64) {
    eventually("all are finished", LIMIT, || async {
        let health = http::get(&consumer.url("/health")).await.ok()?.body;
        let counters = &health["counters"];
        let outcomes = ["inserted", "updated", "unchanged", "superseded", "skipped", "dead_lettered"];
        (outcomes.iter().filter_map(|outcome| counters[outcome].as_u64()).sum::<u64>() >= records)
            .then_some(())
    })
    .await;
    assert!(consumer.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_record_of_an_event_is_shown_with_its_outcome() {
    let stack = Stack::shared().await;
    let names = stack.names();
    let consumer = stack.consumer(&names, &[("EXPECTED_SOURCE", "adsbdb")]);
    consumer.ready().await;
    let at = |at| event("one", "adsbdb", at, "M");
    send(&names, Some("one"), Some(&at(100)), None).await;
    send(&names, Some("one"), Some(&at(300)), None).await;
    send(&names, None, Some(&at(200)), None).await;
    send(&names, Some("one"), Some("{"), None).await;
    send(&names, Some("one"), None, None).await;
    send(&names, Some("one"), Some(&event("one", "other", 500, "M")), None).await;
    send(&names, Some("two"), Some(&event("two", "adsbdb", 500, "one")), None).await;
    finish(consumer, 7).await;
    send(&names, Some("one"), Some(&at(400)), None).await;

    let (found, said) = states(&names, &[], "one").await;
    assert_eq!(
        found,
        ["superseded", "stored", "superseded", "dead_lettered", "skipped", "skipped", "waiting"],
        "{said:#}"
    );
    assert_eq!(said["documents"].as_array().unwrap().len(), 1, "{said:#}");
    assert_eq!(said["records"][6]["committed"], 7);
    let (code, text) = trace(&names, &[], &["one"]).await;
    let topic = &names.topic;
    for part in [
        format!("{topic}/0@1  timestamp 1970-01-01T00:00:00.300Z"),
        format!("waits for the consumer: group {} is at 7", names.group),
        "dead-lettered: ".to_owned(),
        format!("document in {}.adsbdb: ", names.database),
    ] {
        assert!(code == Some(0) && text.contains(&part), "{part} in {text}");
    }

    let adsbdb = mongo::collection(&names, "adsbdb").await;
    adsbdb.delete_one(doc! { "event_id": "one" }).await.unwrap();
    assert_eq!(states(&names, &[], "one").await.0[..2], ["missing", "missing"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn event_without_records_is_found_by_dead_letter_and_document() {
    let stack = Stack::shared().await;
    let names = stack.names();
    let consumer = stack.consumer(&names, &[("EXPECTED_SOURCE", "adsbdb")]);
    consumer.ready().await;
    send(&names, Some("one"), Some("{"), None).await;
    send(&names, Some("one"), Some(&event("one", "adsbdb", 5, "M")), None).await;
    finish(consumer, 2).await;
    kafka::delete_records(&names, 0, 2).await;
    for source in ["adsbdb", "*"] {
        let (code, text) = trace(&names, &[("EXPECTED_SOURCE", source)], &["one"]).await;
        let letter = format!("dead letter of {}/0@0: ", names.topic);
        assert_eq!(code, Some(0), "{text}");
        assert!(
            text.contains("one: 0 records") && text.contains(&letter) && text.contains("document in"),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_other_upsert_keys_the_document_of_the_key_is_shown() {
    let stack = Stack::shared().await;
    let names = stack.names();
    let keys = [("UPSERT_KEYS", "mode_s")];
    let consumer = stack.consumer(&names, &[("EXPECTED_SOURCE", "adsbdb"), keys[0]]);
    consumer.ready().await;
    send(&names, Some("one"), Some(&event("one", "adsbdb", 100, "M")), None).await;
    send(&names, Some("two"), Some(&event("two", "adsbdb", 200, "M")), None).await;
    finish(consumer, 2).await;
    let (found, said) = states(&names, &keys, "one").await;
    assert_eq!(found, ["superseded"], "{said:#}");
    assert_eq!(said["documents"][0]["document"]["event_id"], "two");
    assert_eq!(states(&names, &keys, "two").await.0, ["stored"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_code_tells_unknown_too_old_and_unreadable_apart() {
    let stack = Stack::shared().await;
    let names = stack.names();
    let producer = stack.producer(&names, &[]);
    producer.ready().await;
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    send(&names, Some("old"), Some(&event("old", "adsbdb", 5, "M")), Some(now_ms - 7_200_000)).await;
    send(&names, Some("new"), Some(&event("new", "adsbdb", 5, "M")), Some(now_ms)).await;
    assert_eq!(states(&names, &[], "old").await.0, ["waiting"]);
    for (arguments, code, part) in [
        (&["old", "--since", "1h"][..], Some(1), "was not found"),
        (&["new", "--since", "1h"], Some(0), "waits for the consumer: group"),
        (&["never"], Some(1), "event never was not found"),
    ] {
        let (ended, said) = trace(&names, &[], arguments).await;
        assert!(ended == code && said.contains(part), "{ended:?} {said}");
    }
    let nobody = testkit::process::free_address().to_string();
    let (code, said) = trace(&names, &[("MONGODB_URI", &format!("mongodb://{nobody}"))], &["old"]).await;
    assert!(code == Some(1) && said.contains(&nobody) && !said.contains("was not found"), "{said}");
    let (code, said) = trace(&names, &[("KAFKA_BROKER", &nobody)], &["old"]).await;
    assert!(code == Some(1) && !said.contains("was not found"), "{said}");
    let (code, said) = trace(&names, &[("UPSERT_KEYS", "_id")], &["old"]).await;
    assert!(code == Some(2) && said.contains("UPSERT_KEYS"), "{said}");
}
