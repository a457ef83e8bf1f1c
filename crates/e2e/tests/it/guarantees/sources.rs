//! Sources of a file on topics of their own, one of which is broken: the others are not held up.
//!
//! The tests of the consumer hold more of this with a blocked collection: a killed consumer (G1),
//! newest events (G3), bad records (G5), commits (G6), and a shutdown (G7). Those of the producer
//! hold each error of an API.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bson::doc;
use rdkafka::Message;
use serde_json::{Value, json};
use testkit::api::{Answer, response};
use testkit::fault_test::{ServerSetup, Servers};
use testkit::http::{self, Response};
use testkit::process::{command, free_address};
use testkit::proxy::Fault;
use testkit::{Api, Names, Process, SourcesFile, Stack, eventually, kafka, mongo};

const LIMIT: Duration = Duration::from_secs(60);
/// Maximum time until an event of a healthy source is a document.
const HEALTHY: Duration = Duration::from_secs(5);
/// Partitions of each topic.
const PARTITIONS: usize = 3;
const KAFKA_PARTITIONS: (&str, &str) = ("KAFKA_PARTITIONS", "3");
/// An earthquake has a magnitude.
const SCHEMA: &str =
    r#"{"type": "object", "required": ["id", "mag"], "properties": {"mag": {"type": "number"}}}"#;

/// `orders` are pushed to the usual topic, `readings` and the fetched `quakes` have topics of their
/// own.
struct Sources {
    names: Names,
    file: SourcesFile,
    api: Api,
}

impl Sources {
    async fn new() -> Self {
        Self::on(Stack::shared().await.names()).await
    }

    async fn on(names: Names) -> Self {
        let api = Api::start(None).await;
        let text = format!(
            "
sources:
  orders: {{push: {{}}, event: {{id: /no, timestamp: /at}}}}
  readings: {{push: {{}}, topic: {topic}.readings, event: {{id: /no, timestamp: /at}}}}
  quakes:
    pull: {{url: '{url}/quakes', records: /features, timeout: 30s, every: 200ms}}
    topic: {topic}.quakes
    event: {{id: /id, timestamp: /updated}}
    schema: quakes.schema.json
    store: {{collection: earth, source_field: origin}}
",
            topic = names.topic,
            url = api.url,
        );
        let file = SourcesFile::new(&text);
        file.add("quakes.schema.json", SCHEMA);
        Self { names: names.with_sources(&file), file, api }
    }

    /// With two documents of one key in the collection of `orders`, so that its unique index cannot
    /// be built.
    async fn with_blocked_orders() -> Self {
        let sources = Self::new().await;
        block_orders(&sources.names).await;
        sources
    }

    /// The names with the topic of a source.
    fn of(&self, source: &str) -> Names {
        Names { topic: format!("{}.{source}", self.names.topic), ..self.names.clone() }
    }

    fn start(&self, name: &str) -> Process {
        Process::start(name, &self.names.environment(&[KAFKA_PARTITIONS]))
    }

    async fn producer(&self) -> Process {
        let producer = self.start("producer");
        producer.ready().await;
        producer
    }

    /// A consumer with all partitions. It is not ready if a collection is blocked.
    async fn consumer(&self) -> Process {
        let consumer = self.start("consumer");
        has_all_partitions(&consumer).await;
        consumer
    }

    async fn count(&self, collection: &str) -> u64 {
        mongo::collection(&self.names, collection).await.count_documents(doc! {}).await.unwrap()
    }

    /// Waits until a collection has `count` documents.
    async fn stored(&self, collection: &str, count: u64, limit: Duration) {
        let what = format!("{count} documents in {collection}");
        eventually(&what, limit, || async { (self.count(collection).await >= count).then_some(()) }).await;
        assert_eq!(self.count(collection).await, count, "{collection}");
    }

    async fn dead_letters(&self, names: &Names) -> usize {
        kafka::read_all(names, &names.dead_letter_topic()).await.len()
    }

    fn serve(&self, features: &str) {
        let body = format!(r#"{{"features":[{features}]}}"#);
        self.api.set("/quakes", Answer::This(response("200 OK", "", &body)));
    }
}

async fn block_orders(names: &Names) {
    let duplicates = [doc! {"event_id": "x", "n": 1}, doc! {"event_id": "x", "n": 2}];
    mongo::collection(names, "orders").await.insert_many(duplicates).await.unwrap();
}

async fn unblock_orders(names: &Names) {
    mongo::collection(names, "orders").await.delete_many(doc! {"event_id": "x"}).await.unwrap();
}

async fn has_all_partitions(consumer: &Process) {
    let all = || async { (consumer.assigned_partitions().await == 3 * PARTITIONS).then_some(()) };
    eventually("partitions of three topics", LIMIT, all).await;
}

fn record(n: usize) -> Value {
    json!({"no": format!("r{n}"), "at": 1_700_000_000_000_u64 + n as u64, "n": n})
}

fn records(count: usize) -> Vec<Value> {
    (0..count).map(record).collect()
}

async fn push_batch(producer: &Process, source: &str, count: usize) {
    let url = producer.url(&format!("/ingest/{source}/batch"));
    let response = http::post(&url, &json!(records(count))).await.unwrap();
    assert_eq!((response.status, &response.body["accepted"]), (202, &json!(count)), "{response:?}");
}

async fn fetch(producer: &Process, source: &str) -> Response {
    let url = producer.url(&format!("/ingest/{source}"));
    http::request("POST", &url, "application/json", "").await.unwrap()
}

/// Runs `slipstream dead-letters replay`. Returns its report.
async fn replay(sources: &Sources) -> Value {
    let environment = sources.names.environment(&[]);
    let output = command("slipstream", &environment).args(["dead-letters", "replay", "--json"]).output();
    let output = output.await.unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn g1_killed_producer_loses_no_record_of_two_sources_one_is_blocked() {
    let sources = Sources::with_blocked_orders().await;
    let (environment, address) = (sources.names.environment(&[KAFKA_PARTITIONS]), free_address());
    let producer = Process::start_at("producer", address, &environment);
    producer.ready().await;
    let consumer = sources.consumer().await;
    let loads = ["orders", "readings"].map(|source| {
        let url = producer.url(&format!("/ingest/{source}"));
        tokio::spawn(async move { http::post_all(&url, records(1_000)).await })
    });
    eventually("the middle of the load", LIMIT, || async {
        (sources.count("readings").await >= 300).then_some(())
    })
    .await;
    producer.kill().await;
    let producer = Process::start_at("producer", address, &environment);
    for load in loads {
        load.await.unwrap();
    }
    sources.stored("readings", 1_000, HEALTHY).await;
    assert_eq!(sources.count("orders").await, 2, "orders are blocked");
    unblock_orders(&sources.names).await;
    sources.stored("orders", 1_000, LIMIT).await;
    assert!(producer.terminate().await.success());
    assert_eq!(consumer.terminate_with_counters().await.dead_lettered, 0);
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g2_each_record_has_one_outcome_beside_a_collection_that_rejects() {
    let sources = Sources::new().await;
    let validator = doc! { "n": { "$not": { "$mod": [3, 0] } } };
    let create = doc! { "create": "readings", "validator": validator };
    mongo::database(&sources.names).await.run_command(create).await.unwrap();
    let (producer, consumer) = (sources.producer().await, sources.consumer().await);
    push_batch(&producer, "readings", 300).await;
    push_batch(&producer, "orders", 300).await;
    sources.stored("orders", 300, HEALTHY).await;
    sources.stored("readings", 200, LIMIT).await;
    let readings = sources.of("readings");
    for names in [&sources.names, &readings] {
        eventually("all are committed", LIMIT, || async {
            (kafka::committed_offsets(names).await.values().sum::<i64>() == 300).then_some(())
        })
        .await;
    }
    assert_eq!(sources.dead_letters(&readings).await, 100);
    assert_eq!(sources.dead_letters(&sources.names).await, 0);
    let metrics = http::text(&consumer.url("/metrics")).await.unwrap();
    for (labels, count) in [
        (r#"source="orders",outcome="inserted""#, 300),
        (r#"source="readings",outcome="inserted""#, 200),
        (r#"source="readings",outcome="dead_lettered""#, 100),
    ] {
        let line = format!("slipstream_source_records_finished_total{{{labels}}} {count}");
        assert!(metrics.lines().any(|found| found == line), "no {line} in\n{metrics}");
    }
    let counted = consumer.terminate_with_counters().await;
    assert_eq!((counted.read, counted.finished, counted.repeated), (600, 600, 0), "{counted:?}");
    assert!(producer.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn g3_older_answer_of_an_api_restores_nothing_beside_a_blocked_source() {
    let sources = Sources::with_blocked_orders().await;
    let (producer, consumer) = (sources.producer().await, sources.consumer().await);
    push_batch(&producer, "orders", 10).await;
    // A cache in front of the API serves an older answer after a newer one.
    for (updated, mag) in [(1, "4.60"), (3, "4.9"), (2, "4.7")] {
        sources.serve(&format!(r#"{{"id":"q","updated":179589830{updated},"mag":{mag}}}"#));
        let response = fetch(&producer, "quakes").await;
        assert_eq!((response.status, &response.body["accepted"]), (202, &json!(1)), "{response:?}");
    }
    eventually("all are finished", HEALTHY, || async {
        (consumer.counters().await?.finished == 3).then_some(())
    })
    .await;
    let earth = mongo::collection(&sources.names, "earth").await;
    let found = mongo::find(&earth, "q").await.unwrap();
    assert_eq!(found.get_f64("mag").unwrap(), 4.9);
    assert_eq!(found.get_i64("event_timestamp").unwrap(), 1_795_898_303_000);
    assert_eq!(found.get_str("origin").unwrap(), "quakes");
    assert_eq!(sources.count("orders").await, 2, "orders are blocked");
    assert!(consumer.terminate().await.success());
    assert!(producer.terminate().await.success());
}

/// Panics unless the response is a problem with this status.
fn assert_problem(response: &Response, status: u16, retryable: bool) {
    assert_eq!(response.status, status, "{response:?}");
    assert_eq!(response.header("content-type"), Some("application/problem+json"), "{response:?}");
    assert_eq!(response.body["retryable"], retryable, "{response:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn g4_errors_of_one_source_are_actionable_and_hold_up_no_other() {
    let sources = Sources::new().await;
    let (producer, consumer) = (sources.producer().await, sources.consumer().await);
    let poller = Process::start(
        "poller",
        &[
            ("PRODUCER_BASE_URL", producer.url("").as_str()),
            ("SOURCES_FILE", &sources.file.path()),
            ("POLL_SOURCES", "*"),
            ("DURATION_SEC", "0"),
        ],
    );
    // The upstream returns errors, and the poller asks it all the time.
    let broken = response("500 Internal Server Error", "", "");
    sources.api.set("/quakes", Answer::This(broken));
    eventually("the poller fetches", LIMIT, || async {
        (sources.api.exchanges("/quakes").len() > 3).then_some(())
    })
    .await;
    let failed = fetch(&producer, "quakes").await;
    assert_problem(&failed, 502, true);
    assert_eq!(failed.body["detail"], "the API of quakes returned status 500");
    let url = producer.url("/ingest/readings");
    let faulty = http::post(&url, &json!({"at": 1})).await.unwrap();
    assert_problem(&faulty, 422, false);
    assert_eq!(faulty.body["errors"][0]["loc"][0], "body", "{faulty:?}");
    let unknown = http::post(&producer.url("/ingest/nobody"), &record(1)).await.unwrap();
    assert_problem(&unknown, 404, false);
    let elsewhere = json!({"source": "readings", "payload": {}});
    assert_problem(&http::post(&producer.url("/ingest"), &elsewhere).await.unwrap(), 422, false);
    push_batch(&producer, "orders", 10).await;
    push_batch(&producer, "readings", 10).await;
    sources.stored("orders", 10, HEALTHY).await;
    sources.stored("readings", 10, HEALTHY).await;
    assert!(producer.is_running() && consumer.is_running() && poller.is_running());
    // It continues by itself.
    sources.serve(r#"{"id":"q","updated":1795898300,"mag":4.6}"#);
    sources.stored("earth", 1, LIMIT).await;
    assert!(poller.terminate().await.code().is_some());
    assert!(producer.terminate().await.success());
    assert!(consumer.terminate().await.success());
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g5_fetched_records_that_break_the_schema_are_dead_letters_once() {
    let sources = Sources::new().await;
    let (producer, consumer) = (sources.producer().await, sources.consumer().await);
    let faulty = r#"{ "id":"bad", "updated":1795898300, "mag":"four" }"#;
    for n in 1..=3 {
        // The faulty record comes again in each answer, between others.
        sources.serve(&format!(
            r#"{{"id":"a{n}","updated":1795898300,"mag":1}},{faulty},{{"id":"b{n}","updated":1795898300,"mag":2.50}}"#
        ));
        let response = fetch(&producer, "quakes").await;
        assert_eq!(response.status, if n == 1 { 207 } else { 202 }, "{response:?}");
        assert_eq!(response.body["accepted"], 2, "{response:?}");
        push_batch(&producer, "orders", n).await;
    }
    sources.stored("earth", 6, HEALTHY).await;
    sources.stored("orders", 3, HEALTHY).await;
    let quakes = sources.of("quakes");
    let letters = kafka::read_all(&quakes, &quakes.dead_letter_topic()).await;
    assert_eq!(letters.len(), 1, "one letter for each content");
    assert_eq!(letters[0].payload(), Some(faulty.as_bytes()), "byte for byte");
    let reason = kafka::header(&letters[0], "__connect.errors.exception.message").unwrap();
    assert!(reason.contains("body.mag: Value is not of type"), "{reason}");
    assert_eq!(kafka::header(&letters[0], "pull").as_deref(), Some("quakes"));
    assert_eq!(sources.dead_letters(&sources.names).await, 0);
    let report = replay(&sources).await;
    assert_eq!((&report["replayed"], &report["left_out"]["pulled"]), (&json!(0), &json!(1)), "{report}");
    assert!(producer.terminate().await.success());
    assert!(consumer.terminate().await.success());
}

/// Pushes records until `over`, each until it is accepted. Returns their number.
async fn push_until(url: String, over: Arc<AtomicBool>) -> u64 {
    let mut sent = 0;
    while !over.load(Ordering::Relaxed) {
        http::post_all(&url, vec![record(sent)]).await;
        sent += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    sent as u64
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_outages_of_both_servers_lose_nothing_beside_a_blocked_source() {
    let servers = Servers::start(ServerSetup { broker: true, ..ServerSetup::default() }).await;
    let sources = Sources::on(servers.names()).await;
    block_orders(&sources.names).await;
    let more = [KAFKA_PARTITIONS, ("EXPECTED_SOURCE", "")];
    let environment = servers.environment(&sources.names, &more);
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let producer = Process::start("producer", &environment);
    let consumer = Process::start("consumer", &environment);
    producer.ready().await;
    has_all_partitions(&consumer).await;
    let over = Arc::new(AtomicBool::new(false));
    let loads = ["orders", "readings"].map(|source| {
        tokio::spawn(push_until(producer.url(&format!("/ingest/{source}")), Arc::clone(&over)))
    });
    let more_is_stored = async |what: &str, limit: Duration| {
        let (start, before) = (Instant::now(), sources.count("readings").await);
        eventually(what, limit, || async { (sources.count("readings").await > before).then_some(()) }).await;
        println!("{what} after {:?}", start.elapsed());
    };
    more_is_stored("readings are stored", LIMIT).await;

    servers.mongodb.set(Fault::Blackhole);
    tokio::time::sleep(Duration::from_secs(5)).await;
    servers.mongodb.set(Fault::None);
    more_is_stored("readings are stored after the outage of mongodb", Duration::from_secs(5)).await;
    let kafka = servers.kafka.as_ref().unwrap();
    kafka.set(Fault::Reset);
    // Longer than DELIVERY_TIMEOUT_MS and the session of a member, both 10 s.
    tokio::time::sleep(Duration::from_secs(12)).await;
    kafka.set(Fault::None);
    more_is_stored("readings are stored after the outage of kafka", Duration::from_secs(5)).await;

    over.store(true, Ordering::Relaxed);
    let [orders, readings] = loads;
    let (orders, readings) = (orders.await.unwrap(), readings.await.unwrap());
    sources.stored("readings", readings, LIMIT).await;
    assert_eq!(sources.count("orders").await, 2, "orders are blocked");
    unblock_orders(&sources.names).await;
    sources.stored("orders", orders, LIMIT).await;
    for names in [&sources.names, &sources.of("readings")] {
        assert_eq!(sources.dead_letters(names).await, 0, "an outage makes no dead letter");
    }
    assert!(producer.terminate().await.success());
    assert!(consumer.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn g7_shutdown_repeats_no_record_of_two_sources_beside_a_hanging_api() {
    const EACH: usize = 1_500;
    let sources = Sources::new().await;
    sources.api.set("/quakes", Answer::Hang);
    let (producer, first) = (sources.producer().await, sources.consumer().await);
    let url = producer.url("/ingest/quakes");
    let hanging = tokio::spawn(async move { http::request("POST", &url, "application/json", "").await });
    let loads = ["orders", "readings"].map(|source| {
        let url = producer.url(&format!("/ingest/{source}"));
        tokio::spawn(async move { http::post_all(&url, records(EACH)).await })
    });
    eventually("a third is finished", LIMIT, || async {
        let both = sources.count("orders").await.min(sources.count("readings").await);
        (both > EACH as u64 / 3).then_some(())
    })
    .await;
    let first = first.terminate_with_counters().await;
    for load in loads {
        load.await.unwrap();
    }
    assert!(!sources.api.exchanges("/quakes").is_empty(), "the fetch is under way");
    let ended = tokio::spawn(producer.terminate());
    let second = sources.consumer().await;
    sources.stored("orders", EACH as u64, LIMIT).await;
    sources.stored("readings", EACH as u64, LIMIT).await;
    let second = second.terminate_with_counters().await;
    assert_eq!(first.finished + second.finished, 2 * EACH as u64, "{first:?}, {second:?}");
    assert_eq!((first.repeated, second.repeated), (0, 0), "{first:?}, {second:?}");
    assert!(ended.await.unwrap().success());
    assert_problem(&hanging.await.unwrap().unwrap(), 503, true);
}

/// The producer is restarted with a new file, the consumer still has the old one.
#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g2_records_of_a_source_that_only_the_producer_knows_are_not_lost() {
    const OLD: &str = "sources:\n  orders: {push: {}, event: {id: /no, timestamp: /at}}\n";
    let file = SourcesFile::new(OLD);
    let names = Stack::shared().await.names().with_sources(&file);
    let environment = names.environment(&[]);
    let consumer = Process::start("consumer", &environment);
    let producer = Process::start("producer", &environment);
    consumer.ready().await;
    producer.ready().await;
    let unknown = http::post(&producer.url("/ingest/parcels"), &record(1)).await.unwrap();
    assert_problem(&unknown, 404, false);
    assert!(producer.terminate().await.success());
    let own = format!("{}.readings", names.topic);
    file.write(&format!(
        "{OLD}  parcels: {{push: {{}}, event: {{id: /no, timestamp: /at}}}}\n  readings: {{push: {{}}, topic: {own}, event: \
         {{id: /no, timestamp: /at}}}}\n"
    ));
    let sources = Sources { names: names.clone(), file, api: Api::start(None).await };
    let producer = Process::start("producer", &environment);
    producer.ready().await;
    for source in ["parcels", "readings", "orders"] {
        push_batch(&producer, source, 50).await;
    }
    sources.stored("orders", 50, LIMIT).await;
    eventually("the new source is dead-lettered", LIMIT, || async {
        (consumer.counters().await?.finished == 100).then_some(())
    })
    .await;
    let letters = kafka::read_all(&names, &names.dead_letter_topic()).await;
    let mut classes = BTreeMap::new();
    for letter in &letters {
        let class = kafka::header(letter, "__connect.errors.exception.class.name").unwrap();
        *classes.entry(class).or_insert(0) += 1;
    }
    assert_eq!(classes, BTreeMap::from([("UnknownSource".to_owned(), 50)]));
    let counted = consumer.terminate_with_counters().await;
    assert_eq!((counted.finished, counted.dead_lettered), (100, 50), "none is skipped: {counted:?}");

    // The records of the topic of its own were not read by the old consumer.
    let consumer = Process::start("consumer", &environment);
    sources.stored("readings", 50, LIMIT).await;
    assert_eq!(sources.count("parcels").await, 0);
    let report = replay(&sources).await;
    assert_eq!((&report["replayed"], &report["refused"]), (&json!(50), &json!(0)), "{report}");
    sources.stored("parcels", 50, LIMIT).await;
    let parcels = mongo::collection(&names, "parcels").await;
    let found = mongo::find(&parcels, "r7").await.unwrap();
    assert_eq!(found.get_i64("event_timestamp").unwrap(), 1_700_000_000_007);
    let counted = consumer.terminate_with_counters().await;
    assert_eq!((counted.finished, counted.dead_lettered), (100, 0), "{counted:?}");
    assert!(producer.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn g4_blocked_collection_on_a_shared_topic_holds_only_its_partition() {
    let file = SourcesFile::new(
        "sources:\n  orders: {push: {}, event: {id: /no}}\n  parcels: {push: {}, event: {id: /no}}\n",
    );
    let names = Stack::shared().await.names().with_sources(&file);
    block_orders(&names).await;
    let environment = names.environment(&[]);
    let producer = Process::start("producer", &environment);
    producer.ready().await;
    let consumer = Process::start("consumer", &environment);
    let post = async |source: &str, no: usize| {
        let url = producer.url(&format!("/ingest/{source}"));
        let response = http::post(&url, &json!({"no": no})).await.unwrap();
        assert_eq!(response.status, 202, "{response:?}");
        response.body["partition"].as_i64().unwrap()
    };
    let partition = post("orders", 1).await;
    let held = format!("partitions that wait for it: {}/{partition}", names.topic);
    let why = eventually("readiness names the collection and its partition", LIMIT, || async {
        let ready = http::get(&consumer.url("/readyz")).await.ok()?;
        let why = ready.body.to_string();
        (ready.status == 503 && why.contains(&held)).then_some(why)
    })
    .await;
    assert!(why.contains("collection orders") && !why.contains("parcels"), "{why}");
    let (mut waiting, mut free) = (0, 0);
    for no in 0..60 {
        let is_held = post("parcels", no).await == partition;
        waiting += u64::from(is_held);
        free += u64::from(!is_held);
    }
    assert!(waiting > 0 && free > 0, "{waiting} wait, {free} do not");
    let parcels = mongo::collection(&names, "parcels").await;
    let stored = async |count: u64| {
        let what = format!("{count} parcels");
        eventually(&what, HEALTHY, || async {
            (parcels.count_documents(doc! {}).await.ok()? == count).then_some(())
        })
        .await;
    };
    stored(free).await;
    eventually("the others wait", HEALTHY, || async {
        let health = http::get(&consumer.url("/health")).await.ok()?.body;
        let assignment = health["assignment"].as_array()?.clone();
        let queued = assignment.iter().find(|one| one["partition"] == partition)?["queued"].clone();
        (queued == waiting).then_some(())
    })
    .await;
    stored(free).await;
    unblock_orders(&names).await;
    stored(free + waiting).await;
    consumer.ready().await;
    assert!(consumer.terminate().await.success());
    assert!(producer.terminate().await.success());
}
