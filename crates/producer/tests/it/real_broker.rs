//! Events and batches against a real broker: each event with a 202 is stored, even if the broker is
//! killed or the producer is shut down. KAFKA_PROPERTIES apply to every client of a broker with
//! SASL over TLS. A wrong password is reported, but never shown.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use devservers::{Broker, BrokerKind, BrokerOptions, Progress, Sasl, Simulator};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message, OwnedMessage};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::{Value, json};
use testkit::servers::{shared_broker, start_broker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::application::{Answer, Application, PATIENCE, assert_says, unique};
use crate::compressed::{peak, process};

/// Starts the broker that the tests of this binary share. It ends with the binary.
pub async fn shared() -> &'static str {
    static BOOTSTRAP: OnceCell<String> = OnceCell::const_new();
    BOOTSTRAP.get_or_init(async || shared_broker().await.bootstrap()).await
}

/// Reads the topic from its beginning until `complete`. Returns the last record of each event id.
pub async fn records(
    bootstrap: &str,
    topic: &str,
    partitions: i32,
    complete: impl Fn(&BTreeMap<String, OwnedMessage>) -> bool + Send + 'static,
) -> BTreeMap<String, OwnedMessage> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("group.id", unique("reader"));
    let consumer: BaseConsumer = config.create().unwrap();
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&assignment).unwrap();
    let read = move || {
        let (mut found, began) = (BTreeMap::new(), Instant::now());
        while !complete(&found) {
            assert!(began.elapsed() < PATIENCE, "only {} records", found.len());
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                let key = String::from_utf8(message.key().unwrap().to_vec()).unwrap();
                found.insert(key, message.detach());
            }
        }
        found
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_a_202_names_the_position_of_the_record_on_the_topic() {
    let bootstrap = shared().await;
    let app = Application::start(bootstrap, &[]).await.ready().await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let event = r#"{"source":"manual","id":"é-1","timestamp":1730000000.5,"payload":{"b" : 1.50, "a":[ ]}}"#;
    let headers = [("Content-Type", "application/json"), ("traceparent", trace)];
    let response = app.request("POST", "/ingest", &headers, event).await;
    let media_type = response.header("content-type");
    assert_eq!((response.status, media_type), (202, Some("application/json")), "{response:?}");
    let body = response.json();
    let ingested_at = body["ingested_at"].as_i64().unwrap();
    let fields: Vec<&String> = body.as_object().unwrap().keys().collect();
    let mut expected = ["id", "topic", "partition", "offset", "status", "timestamp", "ingested_at"];
    expected.sort_unstable();
    let mut fields: Vec<&str> = fields.into_iter().map(String::as_str).collect();
    fields.sort_unstable();
    assert_eq!(fields, expected);
    assert_eq!((&body["id"], &body["status"]), (&json!("é-1"), &json!("enqueued")));
    assert_eq!((&body["topic"], &body["timestamp"]), (&json!(app.topic), &json!(1_730_000_000_500_i64)));

    let found = records(bootstrap, &app.topic, 3, |found| !found.is_empty()).await;
    let record = &found["é-1"];
    assert_eq!((&json!(record.partition()), &json!(record.offset())), (&body["partition"], &body["offset"]));
    assert_eq!(record.timestamp().to_millis(), Some(ingested_at), "not the timestamp of the event");
    let value = std::str::from_utf8(record.payload().unwrap()).unwrap();
    assert_eq!(
        value,
        format!(
            r#"{{"id":"é-1","timestamp":1730000000500,"source":"manual","payload":{{"b" : 1.50, "a":[ ]}},"ingested_at":{ingested_at},"api_version":"1.0.0"}}"#
        )
    );
    let headers = record.headers().unwrap();
    let headers: Vec<(&str, &[u8])> = headers.iter().map(|h| (h.key, h.value.unwrap())).collect();
    assert_eq!(
        headers,
        [("content-type", b"application/json".as_slice()), ("traceparent", trace.as_bytes())]
    );

    let health = app.get("/health").await.json();
    assert_eq!(health["topic"], json!(app.topic));
    assert_eq!((&health["status"], &health["api_version"]), (&json!("ok"), &json!("1.0.0")));
    assert_eq!((&health["counters"]["accepted"], &health["accepted_last_min"]), (&json!(1), &json!(1)));
    assert!(health["uptime_seconds"].is_u64() && health["last_error"].is_null(), "{health}");
    assert_eq!(app.counters.accepted(), 1);
    assert_eq!(app.metric(r#"slipstream_events_accepted_total{source="manual"}"#).await, Some(1.0));
    assert_eq!(app.metric("slipstream_kafka_delivery_seconds_count").await, Some(1.0));
    let counted = r#"slipstream_http_requests_total{route="/ingest",status="202"}"#;
    assert_eq!(app.metric(counted).await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_an_aircraft_is_on_the_topic_byte_for_byte_and_in_the_response() {
    let (bootstrap, simulator) =
        (shared().await, Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap());
    let url = simulator.base_url();
    let app = Application::start(bootstrap, &[("ADSBDB_BASE_URL", &url)]).await.ready().await;
    let response = app.post("/ingest/adsbdb").await;
    assert_eq!(
        (response.status, response.header("content-type")),
        (202, Some("application/json")),
        "{response:?}"
    );
    let body = response.json();
    let id = body["id"].as_str().unwrap().to_owned();
    assert_eq!((body["payload"]["mode_s"].as_str(), &body["topic"]), (Some(&*id), &json!(app.topic)));
    let found = records(bootstrap, &app.topic, 3, |found| !found.is_empty()).await;
    let record = &found[&id];
    assert_eq!((&json!(record.partition()), &json!(record.offset())), (&body["partition"], &body["offset"]));
    let value = std::str::from_utf8(record.payload().unwrap()).unwrap();
    let (_, payload) = response.text.split_once(r#""payload":"#).unwrap();
    assert!(
        value.contains(&format!(r#""source":"adsbdb","payload":{},"#, &payload[..payload.len() - 1])),
        "{value}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_goes_to_the_partition_that_the_python_client_chose() {
    let app = Application::start(shared().await, &[("KAFKA_PARTITIONS", "5")]).await.ready().await;
    // Values of murmur2 from Kafka's own tests, modulo 5.
    for (id, partition) in [("21", 0), ("foobar", 1), ("a-little-bit-long-string", 2)] {
        let response = app.ingest(&format!(r#"{{"id":"{id}","source":"manual","payload":{{}}}}"#)).await;
        assert_eq!(response.json()["partition"], partition, "{id}");
    }
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_record_above_the_brokers_limit_is_rejected_for_its_size() {
    let bootstrap = shared().await;
    let topic = unique("small");
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap();
    let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set("max.message.bytes", "3000");
    admin.create_topics([&new], &AdminOptions::new()).await.unwrap();
    let app = Application::start_on(bootstrap, &topic, &[]).await.ready().await;
    let event = |bytes: usize| format!(r#"{{"source":"manual","payload":{{"x":"{}"}}}}"#, "y".repeat(bytes));
    let (small, large) = (event(500), event(4000));
    let requests = (0..60).map(|number| app.ingest(if number == 30 { &large } else { &small }));
    let responses = futures::future::join_all(requests).await;
    for (number, response) in responses.iter().enumerate() {
        if number == 30 {
            assert_says(&response.problem(413, false), &["kafka's limit"]);
        } else {
            assert_eq!(response.status, 202, "{number}: {response:?}");
        }
    }
}

/// Clients that send one event after another until the end. They collect the bodies of all 202s.
struct Load {
    end: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<Vec<Value>>>,
}

impl Load {
    fn start(app: &Arc<Application>) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let client = |client: usize| {
            let (app, end) = (Arc::clone(app), Arc::clone(&end));
            tokio::spawn(async move {
                let mut accepted = Vec::new();
                for number in 0.. {
                    if end.load(Ordering::Relaxed) {
                        break;
                    }
                    let event = format!(r#"{{"id":"{client}-{number}","source":"manual","payload":{{}}}}"#);
                    match app.try_ingest(&event).await {
                        Some(response) if response.status == 202 => accepted.push(response.json()),
                        Some(response) => {
                            assert!(matches!(response.status, 503 | 504), "{response:?}");
                            assert_eq!(response.json()["id"], json!(format!("{client}-{number}")));
                        }
                        None => break,
                    }
                }
                accepted
            })
        };
        Self { clients: (0..8).map(client).collect(), end }
    }

    async fn end(self) -> Vec<Value> {
        self.end.store(true, Ordering::Relaxed);
        let responses = futures::future::join_all(self.clients).await;
        responses.into_iter().flat_map(|responses| responses.expect("no panic")).collect()
    }
}

/// Checks that the record of each accepted event is at the position that its response names.
pub async fn assert_kept(bootstrap: &str, topic: &str, accepted: Vec<Value>) {
    let ids: Vec<String> = accepted.iter().map(|body| body["id"].as_str().unwrap().to_owned()).collect();
    let complete = move |found: &BTreeMap<String, OwnedMessage>| ids.iter().all(|id| found.contains_key(id));
    let found = records(bootstrap, topic, 3, complete).await;
    for body in accepted {
        let record = &found[body["id"].as_str().unwrap()];
        let position = (json!(record.partition()), json!(record.offset()));
        assert_eq!(position, (body["partition"].clone(), body["offset"].clone()), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g7_a_shutdown_under_load_loses_no_acknowledged_event() {
    let bootstrap = shared().await;
    let app = Arc::new(Application::start(bootstrap, &[]).await.ready().await);
    let load = Load::start(&app);
    while app.counters.accepted() < 200 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let began = Instant::now();
    app.begin_to_stop();
    app.ended().await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let accepted = load.end().await;
    assert!(accepted.len() >= 200);
    assert_kept(bootstrap, &app.topic, accepted).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_g6_a_broker_killed_under_load_loses_nothing_and_resumes_within_5_s() {
    let broker = start_broker().await;
    let app = Arc::new(Application::start(&broker.bootstrap(), &[]).await.ready().await);
    let load = Load::start(&app);
    while app.counters.accepted() < 200 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    broker.kill();
    assert!(app.readyz(503).await < Duration::from_secs(1), "the outage was detected too late");
    let began = Instant::now();
    let rejected = app.ingest(r#"{"id":"meanwhile","source":"manual","payload":{}}"#).await;
    assert_says(&rejected.retry_after(503).1, &["nothing was stored"]);
    assert!(began.elapsed() < Duration::from_millis(500));

    broker.restart().await.unwrap();
    let returned = Instant::now();
    let before = app.counters.accepted();
    while app.counters.accepted() == before {
        assert!(returned.elapsed() < Duration::from_secs(5), "work did not resume");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let accepted = load.end().await;
    assert_kept(&broker.bootstrap(), &app.topic, accepted).await;
    app.begin_to_stop();
    app.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g6_a_broker_that_stalls_is_detected_and_work_resumes_after_it() {
    let broker = start_broker().await;
    let app = Application::start(&broker.bootstrap(), &[("DELIVERY_TIMEOUT_MS", "3000")]).await.ready().await;
    let event = r#"{"id":"a-1","source":"manual","payload":{}}"#;
    assert_eq!(app.ingest(event).await.status, 202);
    broker.pause();
    let unacknowledged = app.ingest(event).await;
    assert_eq!(unacknowledged.problem(504, true)["id"], "a-1");
    assert!(app.readyz(503).await < Duration::from_secs(5));
    app.ingest(event).await.retry_after(503);
    broker.resume();
    let resumed = Instant::now();
    app.readyz(200).await;
    while app.ingest(event).await.status != 202 {
        assert!(resumed.elapsed() < Duration::from_secs(5), "work did not resume");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const EVENT: &str = r#"{"id":"a-1","source":"manual","payload":{}}"#;
const PASSWORD: &str = "correcthorse";

struct SaslBroker {
    broker: Broker,
    folder: tempfile::TempDir,
}

impl SaslBroker {
    async fn start() -> Self {
        let certificate = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let folder = testkit::servers::folder();
        std::fs::write(folder.path().join("ca.pem"), certificate.cert.pem()).unwrap();
        let mut options = BrokerOptions::new(BrokerKind::ApacheKafka, folder.path().join("broker"));
        options.sasl = Some(Sasl {
            certificate: certificate.cert.pem(),
            key: certificate.signing_key.serialize_pem(),
            user: "alice".into(),
            password: PASSWORD.into(),
        });
        let broker = Broker::start(options, Progress::silent()).await.unwrap();
        Self { broker, folder }
    }

    async fn shared() -> &'static Self {
        static SHARED: OnceCell<SaslBroker> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    fn authority(&self) -> std::path::PathBuf {
        self.folder.path().join("ca.pem")
    }

    async fn application(&self, authority: &Path, mechanism: &str, password: &str) -> Application {
        let properties = format!(
            "security.protocol=SASL_SSL;ssl.ca.location={};sasl.mechanism={mechanism};sasl.username=alice;\
             sasl.password={password}",
            authority.display()
        );
        let bootstrap = self.broker.sasl_bootstrap().unwrap();
        Application::start(&bootstrap, &[("KAFKA_PROPERTIES", &properties)]).await
    }
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_mechanism_accepts_the_password_and_a_wrong_one_is_never_shown() {
    let broker = SaslBroker::shared().await;
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let app = broker.application(&broker.authority(), mechanism, PASSWORD).await.ready().await;
        assert_eq!(app.ingest(EVENT).await.status, 202, "{mechanism}");
        app.stop().await;

        let app = broker.application(&broker.authority(), mechanism, "wrongbattery").await;
        let began = Instant::now();
        let body = loop {
            let body = app.get("/readyz").await.problem(503, true);
            if body["detail"].as_str().unwrap().contains("uthentication") {
                break body;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "{mechanism}: {body}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_says(&body, &["kafka"]);
        let (_, rejected) = app.ingest(EVENT).await.retry_after(503);
        assert_says(&rejected, &["nothing was stored"]);
        for path in ["/readyz", "/health", "/metrics"] {
            let text = app.get(path).await.text;
            assert!(!text.contains("wrongbattery") && !text.contains("alice"), "{path}: {text}");
        }
        assert_eq!(app.get("/livez").await.status, 200, "the process keeps running");
        assert!(app.stop().await < Duration::from_secs(10));
    }
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_untrusted_broker_gets_no_password() {
    let broker = SaslBroker::shared().await;
    let unknown_ca = rcgen::generate_simple_self_signed([unique("ca")]).unwrap();
    let authority = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&authority, unknown_ca.cert.pem()).unwrap();
    let app = broker.application(authority.path(), "PLAIN", PASSWORD).await;
    let began = Instant::now();
    while !app.get("/readyz").await.text.contains("certificate") {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", app.get("/readyz").await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    app.ingest(EVENT).await.retry_after(503);
}

/// A batch request whose body is written in parts.
struct Upload {
    connection: TcpStream,
    events: usize,
}

impl Upload {
    async fn begin(app: &Application) -> Self {
        let mut connection = TcpStream::connect(app.address).await.unwrap();
        let head = "POST /ingest/batch HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\
                    Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n";
        connection.write_all(head.as_bytes()).await.unwrap();
        Self { connection, events: 0 }
    }

    async fn write(&mut self, events: usize) {
        let mut lines = String::new();
        for number in self.events..self.events + events {
            writeln!(lines, r#"{{"id":"n-{number}","source":"manual","payload":{{}}}}"#).unwrap();
        }
        self.events += events;
        let chunk = format!("{:x}\r\n{lines}\r\n", lines.len());
        self.connection.write_all(chunk.as_bytes()).await.unwrap();
    }

    async fn end(mut self) -> Answer {
        self.connection.write_all(b"0\r\n\r\n").await.unwrap();
        let mut response = Vec::new();
        self.connection.read_to_end(&mut response).await.unwrap();
        Answer::parse(&response)
    }
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_a_broker_killed_during_a_batch_loses_no_accepted_event() {
    let broker = start_broker().await;
    let app = Application::start(&broker.bootstrap(), &[("DELIVERY_TIMEOUT_MS", "5000")]).await.ready().await;
    let mut upload = Upload::begin(&app).await;
    upload.write(1000).await;
    let began = Instant::now();
    while app.metric("slipstream_kafka_delivery_seconds_count").await != Some(1000.0) {
        assert!(began.elapsed() < PATIENCE, "no event is sent");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Events in flight at the kill, and events after it.
    upload.write(3000).await;
    broker.kill();
    upload.write(1000).await;
    app.readyz(503).await;
    upload.write(1000).await;
    let written = upload.events;
    let response = upload.end().await;
    let statuses = response.statuses();
    assert_eq!((response.status, statuses.len()), (207, written));
    assert!(statuses.iter().all(|status| matches!(status, 202 | 503 | 504)), "{statuses:?}");
    assert!(
        statuses[written - 1000..].iter().all(|status| *status == 503),
        "kafka is known to be unavailable"
    );
    assert!(statuses[..1000].iter().all(|status| *status == 202), "acknowledged before the kill");

    broker.restart().await.unwrap();
    let accepted = response.json()["results"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|r| r["status"] == 202)
        .cloned()
        .collect();
    assert_kept(&broker.bootstrap(), &app.topic, accepted).await;
    app.readyz(200).await;
    assert_eq!(app.batch(&[r#"{"source":"manual","payload":{}}"#]).await.status, 202);
}

const MIB: usize = 1024 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_100_mib_uses_less_than_150_mb_of_memory() {
    let topic = unique("large");
    let raised = [
        ("KAFKA_BROKER", shared().await),
        ("KAFKA_TOPIC", &topic),
        ("MAX_BATCH_EVENTS", "100000"),
        ("MAX_BATCH_BYTES", "209715200"),
    ];
    let (child, app) = process(&raised).await;
    app.readyz(200).await;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (file, results) = (folder.path().join("events.ndjson"), folder.path().join("results.json"));
    let (mut lines, mut count) = (String::new(), 0);
    while lines.len() < 100 * MIB {
        writeln!(lines, r#"{{"id":"aircraft-{count}","source":"manual","payload":{{"mode_s":"3F28BC","speed":{count}.5,"note":"{}"}}}}"#, "x".repeat(1000)).unwrap();
        count += 1;
    }
    tokio::fs::write(&file, lines).await.unwrap();
    let began = Instant::now();
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-X", "POST", "-H", "Content-Type: application/x-ndjson", "-w", "%{http_code}"]);
    curl.arg("-T").arg(&file).arg("-o").arg(&results).arg(format!("http://{}/ingest/batch", app.address));
    let output = curl.kill_on_drop(true).output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "202", "{output:?}");
    assert!(began.elapsed() < Duration::from_secs(300), "{:?}", began.elapsed());
    let peak = peak(&child).await;
    assert!(peak < 150_000_000, "{} MB", peak / 1_000_000);
    let response: Value = serde_json::from_slice(&tokio::fs::read(&results).await.unwrap()).unwrap();
    assert_eq!((&response["accepted"], &response["rejected"]), (&count.into(), &0.into()));
    let results = response["results"].as_array().unwrap();
    assert_eq!((results.len(), &results[4711]["id"]), (count, &"aircraft-4711".into()));
    println!("{count} events in {:?}, {} MB", began.elapsed(), peak / 1_000_000);
}
