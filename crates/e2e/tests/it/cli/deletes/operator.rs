//! The operator's commands on sources with deletes and expiry.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bson::{Document, doc};
use mongodb::Collection;
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use testkit::process::command;
use testkit::scripted_mongodb::{self, Answer, ScriptedServer};
use testkit::{Names, Process, SourcesFile, Stack, eventually, http, kafka, mongo};

const LIMIT: Duration = Duration::from_secs(60);
/// The server looks for expired documents once a minute.
const EXPIRY_LIMIT: Duration = Duration::from_secs(90);

/// `orders` with deletes, and `carts`, whose documents also expire after a day. Only the tombstones
/// of `orders` are kept for a shorter time than the topic keeps its records.
const SOURCES: &str = "sources:
  orders:
    push: {}
    event: {id: /no, timestamp: /at}
    delete: {when: '.state == \"cancelled\"', tombstones: 1h}
  carts:
    push: {}
    event: {id: /no, timestamp: /at}
    delete: {}
    store: {ttl: 1d}
";

/// A producer and a consumer with [`SOURCES`].
struct Shop {
    names: Names,
    producer: Process,
    consumer: Process,
    _file: SourcesFile,
    folder: tempfile::TempDir,
}

impl Shop {
    async fn start() -> Self {
        let file = SourcesFile::new(SOURCES);
        let names = Stack::shared().await.names().with_sources(&file);
        let variables = names.environment(&[]);
        let (producer, consumer) =
            (Process::start("producer", &variables), Process::start("consumer", &variables));
        producer.ready().await;
        consumer.ready().await;
        Self { names, producer, consumer, _file: file, folder: tempfile::tempdir().unwrap() }
    }

    /// Pushes a record, and waits until the consumer has finished it.
    async fn push(&self, source: &str, record: Value) {
        let before = self.finished().await;
        let answer = http::post(&self.producer.url(&format!("/ingest/{source}")), &record).await.unwrap();
        assert_eq!(answer.status, 202, "{answer:?}");
        self.wait_for_finished(before + 1).await;
    }

    async fn finished(&self) -> u64 {
        self.consumer.counters().await.expect("the counters").finished
    }

    async fn wait_for_finished(&self, records: u64) {
        let is_finished = || async { (self.consumer.counters().await?.finished >= records).then_some(()) };
        eventually("the record is finished", LIMIT, is_finished).await;
    }

    /// The exit code and the whole output of a command.
    async fn text(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let (producer, consumer) = (self.producer.url(""), self.consumer.url(""));
        let variables = [
            ("PRODUCER_BASE_URL", producer.as_str()),
            ("CONSUMER_BASE_URL", &consumer),
            // Nothing listens there: this file has no ADSBDB.
            ("ADSBDB_BASE_URL", "http://127.0.0.1:9"),
        ];
        let mut command = command("slipstream", &self.names.environment(&variables));
        let output = command.args(arguments).output().await.unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    }

    /// The JSON of a command that exits with `code` and writes nothing to stderr.
    async fn json(&self, code: i32, arguments: &[&str]) -> Value {
        let (ended, text) = self.text(&[arguments, &["--json"]].concat()).await;
        assert_eq!(ended, Some(code), "{arguments:?}: {text}");
        // Progress and left-out dead letters precede the object.
        let line = text.lines().find(|line| line.starts_with('{'));
        serde_json::from_str(line.unwrap_or_else(|| panic!("{text}"))).unwrap()
    }

    /// Waits until the records of an event have these states, in the order in which they were sent.
    /// The consumer commits twice a second.
    async fn wait_for_states(&self, id: &str, expected: &[&str]) {
        let mut found = Vec::new();
        for _ in 0..20 {
            let traced = self.json(0, &["trace", id]).await;
            let records = traced["records"].as_array().unwrap().iter();
            found = records.map(|record| record["state"].as_str().unwrap().to_owned()).collect();
            if !found.iter().any(|state| state == "waiting") {
                break;
            }
        }
        assert_eq!(found, expected);
    }

    /// Runs a load, and returns its summary and its ledger.
    async fn load(&self, source: &str, options: &[&str]) -> (Value, PathBuf) {
        let ledger = self.folder.path().join(source);
        let arguments = ["load", "--source", source, "--ledger", ledger.to_str().unwrap()];
        let summary = self.json(0, &[&arguments, options].concat()).await;
        (summary, ledger)
    }

    async fn verify(&self, code: i32, ledger: &Path) -> Value {
        self.json(code, &["verify", "--wait", "60s", "--ledger", ledger.to_str().unwrap()]).await
    }

    async fn collection(&self, name: &str) -> Collection<Document> {
        mongo::collection(&self.names, name).await
    }

    async fn end(self) {
        assert!(self.producer.terminate().await.success());
        assert!(self.consumer.terminate().await.success());
    }
}

fn now_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn trace_shows_what_a_delete_or_the_expiry_removed() {
    let shop = Shop::start().await;
    let day_before = now_ms() - 24 * 3_600_000 - 1;
    shop.push("carts", json!({"no": "c", "at": day_before})).await;
    let order = |at: i64, state: &str| json!({"no": "a", "at": 1_700_000_000_000_i64 + at, "state": state});
    shop.push("orders", order(10, "paid")).await;
    shop.push("orders", order(20, "cancelled")).await;
    shop.wait_for_states("a", &["superseded", "deleted"]).await;
    shop.push("orders", order(15, "sent")).await;
    shop.wait_for_states("a", &["superseded", "deleted", "superseded"]).await;
    shop.push("orders", order(12, "cancelled")).await;
    shop.wait_for_states("a", &["superseded", "deleted", "superseded", "superseded"]).await;
    let (code, text) = shop.text(&["trace", "a"]).await;
    assert_eq!((code, text.matches("superseded by a newer delete").count()), (Some(0), 3), "{text}");
    assert!(text.contains("  deleted\n") && !text.contains("MISSING"), "{text}");

    let tombstone = format!("tombstone in {}.orders.deletes: ", shop.names.database);
    assert!(text.contains(&tombstone) && !text.contains("document in"), "{text}");
    let traced = shop.json(0, &["trace", "a"]).await;
    assert_eq!(traced["tombstones"][0]["document"]["event_timestamp"], 1_700_000_000_020_i64, "{traced}");

    shop.push("orders", order(30, "open")).await;
    let expected = ["superseded", "superseded", "superseded", "superseded", "stored"];
    shop.wait_for_states("a", &expected).await;
    let (_, text) = shop.text(&["trace", "a"]).await;
    assert!(text.contains(&format!("document in {}.orders: ", shop.names.database)), "{text}");

    // As in a database that was restored from a backup.
    let orders = shop.collection("orders").await;
    orders.update_one(doc! {}, doc! { "$set": { "event_timestamp": 1_700_000_000_010_i64 } }).await.unwrap();
    let (_, text) = shop.text(&["trace", "a"]).await;
    assert!(text.contains("MISSING: the document that it deletes is stored"), "{text}");

    let carts = shop.collection("carts").await;
    let is_gone = || async { (carts.count_documents(doc! {}).await.ok()? == 0).then_some(()) };
    eventually("the cart has expired", EXPIRY_LIMIT, is_gone).await;
    shop.wait_for_states("c", &["expired"]).await;

    // Kafka no longer has the records: the tombstone says what happened.
    for (partition, end) in kafka::end_offsets(&shop.names).await {
        kafka::delete_records(&shop.names, partition, end).await;
    }
    orders.delete_many(doc! {}).await.unwrap();
    let (code, text) = shop.text(&["trace", "a"]).await;
    assert!(code == Some(0) && text.contains("a: 0 records") && text.contains(&tombstone), "{text}");
    assert_eq!(shop.text(&["trace", "c"]).await.0, Some(1));
    shop.end().await;
}

/// The ids of a ledger whose newest event deletes, each with an older event.
fn deleted(ledger: &Path) -> Vec<(String, Value)> {
    let mut newest = BTreeMap::<String, Vec<Value>>::new();
    for line in testkit::load::ledger_events(ledger) {
        newest.entry(line["id"].as_str().unwrap().to_owned()).or_default().push(line);
    }
    // The SHA-256 of no text.
    let deletes = |line: &Value| line["hash"].as_str().unwrap().starts_with("e3b0c44298fc1c14");
    let of_key = newest.into_iter().filter_map(|(id, mut lines)| {
        lines.sort_by_key(|line| line["timestamp"].as_i64());
        let older = lines.iter().rfind(|line| !deletes(line))?.clone();
        deletes(lines.last()?).then_some((id, older))
    });
    of_key.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_with_deletes_is_verified_and_a_document_that_came_back_is_found() {
    let shop = Shop::start().await;
    let options = ["--events", "2000", "--keys", "200", "--superseded", "20%", "--deletes", "5%"];
    let (sent, ledger) = shop.load("orders", &options).await;
    let deletes = sent["deletes"].as_u64().unwrap();
    assert!(sent["accepted"] == 2_000 && (50..160).contains(&deletes), "{sent}");
    let verified = shop.verify(0, &ledger).await;
    let deleted = deleted(&ledger);
    let documents = u64::try_from(200 - deleted.len()).unwrap();
    assert!((1..60).contains(&deleted.len()) && verified["documents"] == documents, "{verified}");
    let health = http::get(&shop.consumer.url("/health")).await.unwrap().body;
    assert!(health["counters"]["deleted"].as_u64().is_some_and(|counted| counted > 0), "{health}");

    // A running consumer removes a document that it finds below its tombstone.
    let (names, ledger_path) = (shop.names.clone(), ledger.clone());
    assert!(shop.consumer.terminate().await.success());
    let (id, older) = &deleted[0];
    let mut back = doc! { "event_id": id };
    back.insert("event_timestamp", older["timestamp"].as_i64());
    back.insert("ingested_at", older["ingested_at"].as_i64());
    mongo::collection(&names, "orders").await.insert_one(back).await.unwrap();
    let verify = |arguments: &'static [&str]| {
        let mut command = command("slipstream", &names.environment(&[]));
        command.args(["verify", "--ledger", ledger_path.to_str().unwrap()]).args(arguments);
        async move { command.output().await.unwrap() }
    };
    let found = verify(&["--json"]).await;
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    let found: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(found["resurrected"]["count"], 1, "{found}");
    for other in ["missing", "gone", "duplicated", "superseded", "altered", "foreign", "dead_lettered"] {
        assert_eq!(found[other]["count"], 0, "{other}: {found}");
    }
    let example = found["resurrected"]["examples"][0].as_str().unwrap();
    assert!(example.starts_with(&format!("{id}: ")) && example.contains("a newer delete"), "{example}");
    let text = String::from_utf8(verify(&[]).await.stdout).unwrap();
    assert!(text.contains("  resurrected    1\n") && text.contains("VERIFICATION FAILED"), "{text}");
    assert!(shop.producer.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_takes_expired_documents_for_expired_and_not_for_missing() {
    let shop = Shop::start().await;
    // The events of a load are of 2023, so that each has expired when it arrives.
    let (_, ledger) = shop.load("carts", &["--events", "300", "--keys", "60", "--deletes", "10%"]).await;
    shop.verify(0, &ledger).await;
    let carts = shop.collection("carts").await;
    let is_gone = || async { (carts.count_documents(doc! {}).await.ok()? == 0).then_some(()) };
    eventually("the carts have expired", EXPIRY_LIMIT, is_gone).await;
    let verified = shop.verify(0, &ledger).await;
    let expired = u64::try_from(60 - deleted(&ledger).len()).unwrap();
    assert_eq!((&verified["expired"], &verified["documents"]), (&json!(expired), &json!(0)), "{verified}");
    let (_, text) = shop.text(&["verify", "--ledger", ledger.to_str().unwrap()]).await;
    assert!(text.contains(&format!("  expired        {expired} ids: their documents are removed")), "{text}");
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_leaves_out_letters_that_are_older_than_the_tombstones() {
    let shop = Shop::start().await;
    // A validator, so that the records are dead letters with all that they need to be stored.
    let database = mongo::database(&shop.names).await;
    shop.push("orders", json!({"no": "first", "at": 1})).await;
    let validator = |validator: Document| doc! { "collMod": "orders", "validator": validator };
    database.run_command(validator(doc! { "bad": { "$ne": true } })).await.unwrap();
    let before = shop.finished().await;
    let value = |id: &str, at: i64| {
        format!(
            r#"{{"id":"{id}","timestamp":{at},"source":"orders","payload":{{"bad":true}},"ingested_at":{at},"api_version":"1"}}"#
        )
    };
    let hours_ago = |hours: i64| now_ms() - hours * 3_600_000;
    for (id, at) in [("old", hours_ago(2)), ("young", hours_ago(0))] {
        let producer: FutureProducer =
            ClientConfig::new().set("bootstrap.servers", &shop.names.kafka).create().unwrap();
        let value = value(id, at);
        let record = FutureRecord::to(&shop.names.topic).key(id).payload(&value).timestamp(at);
        producer.send(record, LIMIT).await.unwrap();
    }
    shop.wait_for_finished(before + 2).await;
    database.run_command(validator(doc! {})).await.unwrap();

    let (code, text) = shop.text(&["dead-letters", "replay", "--dry-run"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("left out older than the deletes that their source remembers: 1"), "{text}");
    let replayed = shop.json(0, &["dead-letters", "replay"]).await;
    assert_eq!(
        (&replayed["replayed"], &replayed["left_out"]["too_old"]),
        (&json!(1), &json!(1)),
        "{replayed}"
    );
    let named = replayed["named"]["too_old"][0]["reason"].as_str().unwrap();
    assert!(named.contains("older than the deletes"), "{replayed}");
    shop.wait_for_finished(before + 3).await;
    let orders = shop.collection("orders").await;
    assert!(mongo::find(&orders, "young").await.is_some() && mongo::find(&orders, "old").await.is_none());
    let again = shop.json(0, &["dead-letters", "replay"]).await;
    assert_eq!((&again["replayed"], &again["left_out"]["too_old"]), (&json!(0), &Value::Null), "{again}");
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_warns_if_the_topic_keeps_records_longer_than_deletes_are_remembered() {
    let shop = Shop::start().await;
    let is_sound = || async { (shop.text(&["check"]).await.0 == Some(0)).then_some(()) };
    eventually("the check finds no failure", LIMIT, is_sound).await;
    let warnings = || async {
        let checked = shop.json(0, &["check"]).await;
        let causes = checked["findings"].as_array().unwrap().iter().filter(|found| found["level"] == "warn");
        let causes = causes.map(|found| (found["cause"].to_string(), found["remedy"].to_string()));
        causes.filter(|(cause, _)| cause.contains("are remembered for")).collect::<Vec<_>>()
    };
    let found = warnings().await;
    assert_eq!(found.len(), 1, "carts remembers its deletes for 90 days: {found:?}");
    let (cause, remedy) = &found[0];
    assert!(
        cause.contains("deletes of orders are remembered for 1 h") && cause.contains("7 days"),
        "{cause}"
    );
    assert!(remedy.contains("tombstones") && remedy.contains("retention.ms"), "{remedy}");
    kafka::set_topic_config(&shop.names, "retention.ms", "-1").await;
    let found = warnings().await;
    assert!(
        found.len() == 2 && found.iter().all(|(cause, _)| cause.contains("without a limit")),
        "{found:?}"
    );
    kafka::set_topic_config(&shop.names, "retention.ms", "3600000").await;
    assert_eq!(warnings().await, []);
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_a_delete_waits_until_the_right_on_its_collection_is_granted() {
    let file = SourcesFile::new("sources: {orders: {push: {}, event: {id: /no}, delete: {}}}\n");
    for command in ["update", "find"] {
        let is_granted = Arc::new(AtomicBool::new(false));
        let granted = Arc::clone(&is_granted);
        let tombstone = doc! { "_id": "a", "event_timestamp": 5_i64, "ingested_at": 6_i64 };
        let server = ScriptedServer::start(21, move |sent| {
            let is_of_deletes = |name: &str| sent.get_str(name).is_ok_and(|named| named == "orders.deletes");
            if is_of_deletes(command) && !granted.load(Ordering::Relaxed) {
                return Answer::Reply(scripted_mongodb::error(13, "not authorized on d"));
            }
            match is_of_deletes("find") {
                true => Answer::Reply(scripted_mongodb::batch(vec![tombstone.clone()])),
                false => Answer::Usual,
            }
        });
        let server = server.await;
        let names = Stack::shared().await.names().with_sources(&file);
        let names = Names { mongodb: server.uri.clone(), ..names };
        kafka::create_topic(&names, 1).await;
        let value =
            br#"{"id":"a","timestamp":5,"source":"orders","op":"delete","ingested_at":6,"api_version":"1"}"#;
        kafka::produce(&names, &[(Some("a"), value)]).await;
        let consumer = Process::start("consumer", &names.environment(&[]));
        let is_reported = || async {
            let ready = http::get(&consumer.url("/readyz")).await.ok()?;
            (ready.status == 503 && ready.body.to_string().contains("not authorized on d")).then_some(())
        };
        eventually(&format!("the missing right to {command}"), LIMIT, is_reported).await;
        assert_eq!(consumer.counters().await.expect("the counters").finished, 0);
        is_granted.store(true, Ordering::Relaxed);
        let is_finished = || async { (consumer.counters().await?.finished == 1).then_some(()) };
        eventually("the delete is finished", LIMIT, is_finished).await;
        let health = http::get(&consumer.url("/health")).await.unwrap().body;
        assert_eq!(health["counters"]["deleted"], 1, "{health}");
        consumer.ready().await;
        assert!(consumer.terminate().await.success());
    }
}
