//! Sources by configuration: each has its topic, collection, keys and indexes. A source whose
//! collection is blocked does not hold up one on another topic.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use bson::{Document, doc};
use futures::TryStreamExt;
use rdkafka::Message;
use rdkafka::producer::FutureRecord;
use tempfile::TempDir;
use testkit::scripted_mongodb::{Answer, ScriptedServer};

use crate::trial::{Member, SOON, Sent, Trial, event, eventually, told};

const WIRE_VERSION_7_0: i32 = 21;

/// An event as the producer writes it.
fn event_of(source: &str, id: &str, at: i64, payload: &str) -> String {
    event(id, at, payload).replace(r#""source":"adsbdb""#, &format!(r#""source":"{source}""#))
}

/// A sources file in a folder of its own.
struct File {
    folder: TempDir,
}

impl File {
    fn new(text: &str) -> Self {
        let file = Self { folder: tempfile::tempdir().unwrap() };
        file.write(text);
        file
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("sources.yaml")
    }

    fn write(&self, text: &str) {
        std::fs::write(self.path(), text).unwrap();
    }

    async fn start(&self, trial: &Trial) -> Member {
        self.start_with(trial, &[]).await
    }

    async fn start_with(&self, trial: &Trial, more: &[(&str, &str)]) -> Member {
        let path = self.path().display().to_string();
        trial.start(&[&[("SOURCES_FILE", path.as_str())], more].concat()).await
    }
}

/// The same group and database with another topic.
fn with_topic(trial: &Trial, topic: &str) -> Trial {
    let mut other = Trial::on(&trial.bootstrap, &trial.uri, trial.partitions);
    topic.clone_into(&mut other.topic);
    other.group.clone_from(&trial.group);
    other.database.clone_from(&trial.database);
    other
}

/// Two sources: `quakes` on a topic of its own, and `orders` on the topic of the trial.
struct TwoSources {
    orders: Trial,
    quakes: Trial,
    file: File,
}

impl TwoSources {
    async fn new() -> Self {
        let orders = Trial::new(1).await;
        let quakes = with_topic(&orders, &format!("{}.quakes", orders.topic));
        let file = File::new(&format!(
            "
sources:
  orders: {{push: {{}}, event: {{id: /no}}}}
  quakes: {{push: {{}}, topic: {}, event: {{id: /id}}, store: {{collection: earth, source_field: origin}}}}
",
            quakes.topic
        ));
        Self { orders, quakes, file }
    }

    /// With two documents of one key in the collection of `orders`, so that its unique index cannot
    /// be built.
    async fn with_blocked_orders() -> Self {
        let two = Self::new().await;
        let duplicates = [doc! {"event_id": "x", "n": 1}, doc! {"event_id": "x", "n": 2}];
        two.orders.collection("orders").await.insert_many(duplicates).await.unwrap();
        two
    }

    async fn unblock_orders(&self) {
        self.orders.collection("orders").await.delete_many(doc! {"event_id": "x"}).await.unwrap();
    }

    async fn start(&self) -> Member {
        self.file.start(&self.orders).await
    }

    /// Starts a consumer and waits until it has partitions of both topics, and the topics exist.
    async fn start_assigned(&self) -> Member {
        let member = self.start().await;
        let topics = async || {
            let health = member.health().await["assignment"].to_string();
            health.contains(&format!("\"{}\"", self.orders.topic))
                && health.contains(&format!("\"{}\"", self.quakes.topic))
        };
        eventually("partitions of both topics", SOON, topics).await;
        member
    }

    async fn send_orders(&self, ids: std::ops::Range<i64>) {
        for n in ids {
            let id = format!("o{n}");
            self.orders.send(Sent::new(&id, &event_of("orders", &id, n + 1, r#"{"state":"new"}"#))).await;
        }
    }

    async fn send_quakes(&self, ids: std::ops::Range<i64>) {
        for n in ids {
            let id = format!("q{n}");
            self.quakes.send(Sent::new(&id, &event_of("quakes", &id, n + 1, r#"{"mag":4.6}"#))).await;
        }
    }

    async fn count(&self, collection: &str) -> u64 {
        self.orders.collection(collection).await.count_documents(doc! {}).await.unwrap()
    }
}

async fn index(trial: &Trial, collection: &str, name: &str) -> Option<Document> {
    let reply = trial.mongo().await.run_command(doc! { "listIndexes": collection }).await.ok()?;
    let list = reply.get_document("cursor").ok()?.get_array("firstBatch").ok()?.clone();
    let mut indexes = list.iter().filter_map(|index| index.as_document());
    indexes.find(|index| index.get_str("name").ok() == Some(name)).cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_source_has_its_topic_collection_keys_indexes_and_source_field() {
    let trial = Trial::new(1).await;
    let quakes = with_topic(&trial, &format!("{}.quakes", trial.topic));
    let file = File::new(&format!(
        "
sources:
  orders: {{push: {{}}, event: {{id: /no}}}}
  quakes:
    push: {{}}
    topic: {}
    event: {{id: /id}}
    store:
      collection: earth
      keys: [place]
      source_field: origin
      indexes: [{{keys: {{mag: -1}}}}, {{keys: {{code: 1}}, unique: true}}]
",
        quakes.topic
    ));
    let member = file.start(&trial).await;
    member.becomes_ready().await;
    // The collections are prepared before their first event.
    let prepared = async || index(&trial, "earth", "mag_-1").await.is_some();
    eventually("the extra indexes exist", SOON, prepared).await;
    assert!(index(&trial, "earth", "code_1").await.unwrap().get_bool("unique").unwrap());
    assert!(index(&trial, "earth", "place_1").await.unwrap().get_bool("unique").unwrap());
    for (id, at, payload) in [
        ("q1", 1, r#"{"place":"A","mag":1,"code":1,"origin":"theirs"}"#),
        ("q2", 2, r#"{"place":"A","mag":2,"code":1}"#),
        ("q3", 1, r#"{"place":"B","mag":3,"code":1}"#),
    ] {
        quakes.send(Sent::new(id, &event_of("quakes", id, at, payload))).await;
    }
    trial.send(Sent::new("o1", &event_of("orders", "o1", 5, r#"{"place":"A"}"#))).await;
    trial.send(Sent::new("o2", &event_of("orders", "o2", 5, r#"{"place":"A"}"#))).await;
    member.finishes(5).await;
    let cursor = trial.collection("earth").await.find(doc! {}).await.unwrap();
    let documents: Vec<Document> = cursor.try_collect().await.unwrap();
    // One document for each key. The third event breaks the unique index of the file.
    assert_eq!(documents.len(), 1, "{documents:?}");
    assert_eq!(documents[0].get_str("event_id").unwrap(), "q2");
    assert_eq!(documents[0].get_str("origin").unwrap(), "quakes");
    assert_eq!(quakes.dead_letters().await.len(), 1);
    assert_eq!(trial.dead_letters().await.len(), 0);
    let orders = trial.collection("orders").await;
    assert_eq!(orders.count_documents(doc! {}).await.unwrap(), 2);
    assert_eq!(orders.count_documents(doc! {"origin": {"$exists": true}}).await.unwrap(), 0);
    let stored =
        member.metric(r#"slipstream_source_records_finished_total{source="orders",outcome="inserted"}"#);
    assert_eq!(stored.await, Some(2.0));
    let dead = r#"slipstream_source_records_finished_total{source="quakes",outcome="dead_lettered"}"#;
    assert_eq!(member.metric(dead).await, Some(1.0));
    let fresh = member.metric(r#"slipstream_source_freshness_seconds_count{source="orders"}"#);
    assert_eq!(fresh.await, Some(2.0));
    assert!(
        member.metric(r#"slipstream_source_last_stored_timestamp_seconds{source="orders"}"#).await
            > Some(0.0)
    );
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g2_record_of_an_unknown_source_is_dead_lettered_and_stored_after_its_replay() {
    let trial = Trial::new(1).await;
    let file = File::new("sources: {orders: {push: {}, event: {id: /no}}}");
    let member = file.start(&trial).await;
    for (source, id) in [("orders", "o1"), ("quakes", "q1"), ("orders", "o2")] {
        trial.send(Sent::new(id, &event_of(source, id, 1, r#"{"mag":4.60}"#))).await;
    }
    member.finishes(3).await;
    assert_eq!(member.metric("slipstream_unknown_source_records_total").await, Some(1.0));
    let seen = member.stop().await;
    assert_eq!((seen.inserted, seen.skipped, seen.dead_lettered), (2, 0, 1), "{seen:?}");
    let letters = trial.dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(told(&letters[0], "exception.class.name"), "UnknownSource");
    let reason = told(&letters[0], "exception.message");
    assert!(reason.contains("the source quakes is not in the sources file"), "{reason}");
    assert_eq!(letters[0].payload(), Some(event_of("quakes", "q1", 1, r#"{"mag":4.60}"#).as_bytes()));

    // The restarted consumer knows the source, and the operator replays the dead letter.
    file.write("sources: {orders: {push: {}, event: {id: /no}}, quakes: {push: {}, event: {id: /id}}}");
    let member = file.start(&trial).await;
    let replayed = FutureRecord::to(&trial.topic).key(letters[0].key().unwrap());
    trial.producer.send(replayed.payload(letters[0].payload().unwrap()), SOON).await.unwrap();
    member.finishes(1).await;
    let stored = trial.collection("quakes").await.find_one(doc! {"event_id": "q1"}).await.unwrap();
    assert_eq!(stored.unwrap().get_f64("mag").unwrap(), 4.6);
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expected_source_selects_among_the_sources_of_the_file_and_others() {
    let trial = Trial::new(1).await;
    let file = File::new(
        "sources: {orders: {push: {}, event: {id: /no}}, quakes: {push: {}, event: {id: /id}, store: {collection: earth}}}",
    );
    let member = file.start_with(&trial, &[("EXPECTED_SOURCE", "quakes,other")]).await;
    for source in ["orders", "quakes", "other", "unknown"] {
        trial.send(Sent::new(source, &event_of(source, source, 1, "{}"))).await;
    }
    member.finishes(4).await;
    let seen = member.stop().await;
    assert_eq!((seen.inserted, seen.skipped, seen.dead_lettered), (2, 2, 0), "{seen:?}");
    let names = trial.mongo().await.list_collection_names().await.unwrap();
    assert!(names.contains(&"earth".to_owned()) && names.contains(&"other".to_owned()), "{names:?}");
    assert!(!names.contains(&"orders".to_owned()), "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_written_under_other_keys_is_blocked_from_the_start() {
    let trial = Trial::new(1).await;
    let file = File::new("sources: {orders: {push: {}, event: {id: /no}}}");
    let member = file.start(&trial).await;
    trial.send(Sent::new("o1", &event_of("orders", "o1", 1, r#"{"customer":"c1"}"#))).await;
    member.finishes(1).await;
    member.stop().await;
    file.write("sources: {orders: {push: {}, event: {id: /no}, store: {keys: [customer]}}}");
    let member = file.start(&trial).await;
    // No record waits: the check at the start reports it.
    let reported = async || member.get("/readyz").await.1.contains("was written under the keys event_id");
    eventually("readiness names the collection", SOON, reported).await;
    let (status, why) = member.get("/readyz").await;
    assert_eq!(status, 503, "{why}");
    for part in ["collection orders", "keys: [event_id]", r#"dropIndex(\"event_id_1\")"#] {
        assert!(why.contains(part), "{part}: {why}");
    }
    trial.send(Sent::new("o2", &event_of("orders", "o2", 2, r#"{"customer":"c1"}"#))).await;
    let held = format!("partitions that wait for it: {}/0", trial.topic);
    eventually("readiness names the partition", SOON, async || member.get("/readyz").await.1.contains(&held))
        .await;
    assert_eq!(trial.collection("orders").await.count_documents(doc! {}).await.unwrap(), 1);
    trial.collection("orders").await.drop_index("event_id_1").await.unwrap();
    member.finishes(1).await;
    member.becomes_ready().await;
    let stored = trial.collection("orders").await.find_one(doc! {"customer": "c1"}).await.unwrap().unwrap();
    assert_eq!(stored.get_str("event_id").unwrap(), "o2");
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g1_killed_consumer_loses_no_record_of_either_source() {
    let two = TwoSources::with_blocked_orders().await;
    let path = two.file.path().display().to_string();
    let environment = two.orders.environment(&[("SOURCES_FILE", path.as_str())]);
    let mut process = Command::new(env!("CARGO_BIN_EXE_consumer"))
        .env_clear()
        .envs(environment)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    two.send_orders(0..20).await;
    // The topic exists from the start of the consumer on.
    let sent = async || {
        let metadata = two.orders.admin().inner().fetch_metadata(Some(&two.quakes.topic), SOON).unwrap();
        metadata.topics().first().is_some_and(|topic| topic.error().is_none())
    };
    eventually("the topic of quakes", SOON, sent).await;
    two.send_quakes(0..20).await;
    eventually("a quake is stored", SOON, async || two.count("earth").await > 0).await;
    process.kill().unwrap();
    process.wait().unwrap();
    two.unblock_orders().await;
    let member = two.start().await;
    eventually("all orders", SOON, async || two.count("orders").await == 20).await;
    eventually("all quakes", SOON, async || two.count("earth").await == 20).await;
    let seen = member.stop().await;
    assert_eq!(seen.dead_lettered + seen.skipped + seen.superseded, 0, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn g3_newest_event_wins_in_each_source_beside_a_blocked_one() {
    let two = TwoSources::with_blocked_orders().await;
    let member = two.start_assigned().await;
    for at in [2, 3, 1] {
        let payload = format!(r#"{{"version":{at}}}"#);
        two.orders.send(Sent::new("o", &event_of("orders", "o", at, &payload))).await;
        two.quakes.send(Sent::new("q", &event_of("quakes", "q", at, &payload))).await;
    }
    member.finishes(3).await;
    let version = async |collection: &str| {
        let found =
            two.orders.collection(collection).await.find_one(doc! {"version": {"$exists": true}}).await;
        found.unwrap().map(|document| document.get_i32("version").unwrap())
    };
    assert_eq!((version("earth").await, version("orders").await), (Some(3), None));
    two.unblock_orders().await;
    member.finishes(6).await;
    assert_eq!((version("earth").await, version("orders").await), (Some(3), Some(3)));
    let seen = member.stop().await;
    assert_eq!(seen.finished(), 6, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn g5_bad_record_goes_to_the_topic_of_its_source_beside_a_blocked_one() {
    let two = TwoSources::with_blocked_orders().await;
    let member = two.start_assigned().await;
    two.send_orders(0..1).await;
    two.quakes.send(Sent::new("bad", "{")).await;
    // A record of one source on the topic of the other is stored.
    two.quakes.send(Sent::new("q", &event_of("quakes", "q", 1, "{}"))).await;
    two.quakes.send(Sent::new("u", &event_of("nobody", "u", 1, "{}"))).await;
    member.finishes(3).await;
    assert_eq!(two.quakes.dead_letters().await.len(), 2);
    assert_eq!(two.orders.dead_letters().await.len(), 0);
    assert_eq!(two.count("earth").await, 1);
    two.unblock_orders().await;
    member.finishes(4).await;
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_blocked_collection_does_not_hold_up_a_source_on_another_topic() {
    let two = TwoSources::with_blocked_orders().await;
    let member = two.start_assigned().await;
    two.send_orders(0..20).await;
    two.send_quakes(0..20).await;
    member.finishes(20).await;
    assert_eq!((two.count("earth").await, two.count("orders").await), (20, 2));
    // G4: readiness says which collection is blocked, which partition waits, and what to do.
    let held = format!("partitions that wait for it: {}/0", two.orders.topic);
    eventually("readiness names it", SOON, async || member.get("/readyz").await.1.contains(&held)).await;
    let (status, why) = member.get("/readyz").await;
    assert_eq!(status, 503);
    assert!(
        why.contains("collection orders: writes are paused") && why.contains("slipstream dedupe"),
        "{why}"
    );
    assert!(!why.contains("earth") && !why.contains(&two.quakes.topic), "{why}");
    two.send_quakes(20..40).await;
    member.finishes(40).await;
    let committed = async || two.quakes.committed().await.get(&0) == Some(&40);
    eventually("the healthy source is committed", SOON, committed).await;
    assert_eq!(two.orders.committed().await.get(&0), None, "nothing of the blocked source is committed");
    two.unblock_orders().await;
    member.finishes(60).await;
    member.becomes_ready().await;
    assert_eq!((two.count("earth").await, two.count("orders").await), (40, 20));
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g7_shutdown_commits_the_healthy_source_and_keeps_the_blocked_one() {
    let two = TwoSources::with_blocked_orders().await;
    let member = two.start_assigned().await;
    two.send_orders(0..10).await;
    two.send_quakes(0..10).await;
    member.finishes(10).await;
    let seen = member.stop().await;
    assert_eq!((seen.inserted, seen.dead_lettered, seen.skipped), (10, 0, 0), "{seen:?}");
    assert_eq!(two.quakes.committed().await.get(&0), Some(&10));
    assert_eq!(two.orders.committed().await.get(&0), None);
    two.unblock_orders().await;
    let member = two.start().await;
    member.finishes(10).await;
    let seen = member.stop().await;
    assert_eq!((seen.inserted, seen.finished()), (10, 10), "no record is processed twice: {seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn g4_blocked_collection_on_a_shared_topic_is_named_with_the_held_partition() {
    let trial = Trial::new(1).await;
    let file =
        File::new("sources: {orders: {push: {}, event: {id: /no}}, quakes: {push: {}, event: {id: /id}}}");
    let duplicates = [doc! {"event_id": "x", "n": 1}, doc! {"event_id": "x", "n": 2}];
    trial.collection("orders").await.insert_many(duplicates).await.unwrap();
    let member = file.start(&trial).await;
    trial.send(Sent::new("o", &event_of("orders", "o", 1, "{}"))).await;
    let held = format!("partitions that wait for it: {}/0", trial.topic);
    eventually("readiness names it", SOON, async || member.get("/readyz").await.1.contains(&held)).await;
    trial.send(Sent::new("q", &event_of("quakes", "q", 1, "{}"))).await;
    let queued = async || member.health().await["assignment"][0]["queued"] == 1;
    eventually("the other source waits in the queue", SOON, queued).await;
    trial.collection("orders").await.delete_many(doc! {"event_id": "x"}).await.unwrap();
    member.finishes(2).await;
    member.stop().await;
}

/// Whether a command creates the index `name`.
fn creates(command: &Document, name: &str) -> bool {
    let indexes = command.get_array("indexes").map(Vec::as_slice).unwrap_or_default();
    let mut names = indexes.iter().filter_map(|index| index.as_document()?.get_str("name").ok());
    names.any(|this| this == name)
}

/// A server that answers to the creation of the index `name` with `answer`.
async fn server_that_fails(
    name: &'static str,
    answer: impl Fn() -> Answer + Send + Sync + 'static,
) -> ScriptedServer {
    let script = move |command: &Document| if creates(command, name) { answer() } else { Answer::Usual };
    ScriptedServer::start(WIRE_VERSION_7_0, script).await
}

const TWO_INDEXES: &str = "
sources:
  quakes:
    push: {}
    event: {id: /id}
    store: {indexes: [{keys: {mag: -1}}, {keys: {code: 1}, unique: true}]}
  orders: {push: {}, event: {id: /no}}
";

#[tokio::test(flavor = "multi_thread")]
async fn writes_continue_if_an_extra_index_cannot_be_built_in_time() {
    let rejected = |code: i32| move || Answer::Reply(doc! { "ok": 0, "code": code, "errmsg": "the reason" });
    let never = || Answer::after(std::future::pending());
    let servers = [
        server_that_fails("mag_-1", rejected(67)).await,
        server_that_fails("mag_-1", rejected(13)).await,
        server_that_fails("mag_-1", rejected(11_000)).await,
        server_that_fails("mag_-1", never).await,
    ];
    for server in servers {
        let trial = Trial::with_database(&server.uri, 1).await;
        let file = File::new(TWO_INDEXES);
        let member = file.start(&trial).await;
        trial.send(Sent::new("q", &event_of("quakes", "q", 1, "{}"))).await;
        member.finishes(1).await;
        member.becomes_ready().await;
        assert_eq!(member.stop().await.inserted, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unique_extra_index_that_cannot_be_built_blocks_only_its_collection() {
    let duplicate = || Answer::Reply(doc! { "ok": 0, "code": 11_000, "errmsg": "the reason" });
    let server = server_that_fails("code_1", duplicate).await;
    let trial = Trial::with_database(&server.uri, 1).await;
    let file = File::new(TWO_INDEXES);
    let member = file.start(&trial).await;
    let reported = async || {
        let why = member.get("/readyz").await.1;
        why.contains("collection quakes") && why.contains("unique index code_1 of the sources file")
    };
    eventually("readiness names the index", SOON, reported).await;
    trial.send(Sent::new("o", &event_of("orders", "o", 1, "{}"))).await;
    member.finishes(1).await;
    trial.send(Sent::new("q", &event_of("quakes", "q", 1, "{}"))).await;
    let held = format!("partitions that wait for it: {}/0", trial.topic);
    eventually("the record waits", SOON, async || member.get("/readyz").await.1.contains(&held)).await;
    assert_eq!(member.stop().await.finished(), 1);
}

#[test]
fn faults_of_the_sources_file_are_reported_each_in_a_line_and_exit_2() {
    let file = File::new(
        "sources:\n  a: {push: {}, event: {id: /id}, nonsense: 1}\n  b: {push: {}, event: {id: id(}}\n",
    );
    let path = file.path().display().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_consumer"))
        .arg("--check-config")
        .env_clear()
        .envs([("KAFKA_BROKER", "k:9092"), ("MONGODB_URI", "mongodb://m"), ("SOURCES_FILE", path.as_str())])
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("SOURCES_FILE: "), "{message}");
    let lines: Vec<&str> = message.lines().filter(|line| line.starts_with(&path)).collect();
    assert_eq!(lines.len(), 2, "{message}");
    assert!(lines[0].starts_with(&format!("{path}:2:")) && lines[0].contains("sources.a"), "{message}");
    assert!(lines[1].starts_with(&format!("{path}:3:")) && lines[1].contains("sources.b"), "{message}");
}
