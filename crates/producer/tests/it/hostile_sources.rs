//! Sources of the file whose APIs are hostile, against a real broker: each ends in its own answer, in
//! bounded memory and with one dead letter for each faulty record. What such a source gets never
//! shows the query of its URL, which may be a secret.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_compression::tokio::bufread::GzipEncoder;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::Message;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Child;
use tokio::task::JoinHandle;

use crate::application::{Application, Cluster, PATIENCE, assert_says, unique};
use crate::binary::producer;
use crate::compressed::{peak, process};
use crate::real_broker::shared;
use crate::sources::{File, header, messages};

const MIB: usize = 1024 * 1024;

async fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut compressed = Vec::new();
    GzipEncoder::new(bytes).read_to_end(&mut compressed).await.unwrap();
    compressed
}

/// What an API sends after the head of a request.
enum Reply {
    /// These bytes, and the end of the connection.
    Bytes(Vec<u8>),
    /// These bytes, and then the others again and again.
    Endless(Vec<u8>, Vec<u8>, Duration),
}

/// The bytes of a response.
fn response(status: &str, headers: &str, body: &[u8]) -> Reply {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n");
    Reply::Bytes([head.as_bytes(), body].concat())
}

fn json_response(body: &str) -> Reply {
    response("200 OK", "", body.as_bytes())
}

/// Serves the replies that `script` makes of the heads of requests. Returns the URL.
async fn serve(script: impl Fn(&str) -> Reply + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let script = Arc::new(script);
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(reply(connection, Arc::clone(&script)));
        }
    });
    url
}

async fn reply(connection: TcpStream, script: Arc<impl Fn(&str) -> Reply>) {
    let mut connection = BufReader::new(connection);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        match connection.read_line(&mut head).await {
            Ok(read) if read > 0 => {}
            _ => return,
        }
    }
    match script(&head) {
        Reply::Bytes(bytes) => _ = connection.write_all(&bytes).await,
        Reply::Endless(first, again, pause) => {
            _ = connection.write_all(&first).await;
            while connection.write_all(&again).await.is_ok() {
                tokio::time::sleep(pause).await;
            }
        }
    }
}

fn path(head: &str) -> &str {
    let target = head.split(' ').nth(1).unwrap_or_default();
    target.split('?').next().unwrap_or_default()
}

/// The hostile APIs, by path.
async fn hostile() -> String {
    let spaces = gzip(&vec![b' '; 16 * MIB]).await;
    // It decompresses to 1 GiB.
    let bomb = spaces.repeat(64);
    let records: Vec<String> = (0..10_000).map(|id| format!(r#"{{"id":{id},"text":"some text"}}"#)).collect();
    let many = gzip(format!(r#"{{"list":[{}]}}"#, records.join(",")).as_bytes()).await;
    let fetches = AtomicUsize::new(0);
    serve(move |head| {
        let start = |body: &str| format!("HTTP/1.1 200 OK\r\n\r\n{body}").into_bytes();
        match path(head) {
            "/endless" => Reply::Endless(start(r#"{"list":["#), b"1,".repeat(MIB / 32), Duration::ZERO),
            "/slow" => Reply::Endless(start(r#"{"list":["#), b" ".to_vec(), Duration::from_millis(50)),
            "/loop" => response("302 Found", "Location: /loop\r\n", b""),
            "/bomb" => response("200 OK", "Content-Encoding: gzip\r\n", &bomb),
            "/utf8" => response("200 OK", "", b"{\"list\":[{\"id\":\"\xc3\x28\"}]}"),
            "/object" => json_response(r#"{"list":{"id":1}}"#),
            "/many" => response("200 OK", "Content-Encoding: gzip\r\nETag: \"1\"\r\n", &many),
            _ => {
                let number = fetches.fetch_add(1, Ordering::Relaxed);
                json_response(&format!(
                    r#"{{"list":[{{"id":"a{number}"}},{{"no":"id"}},{{"id":"b{number}"}}]}}"#
                ))
            }
        }
    })
    .await
}

const HOSTILE: [(&str, &str); 6] = [
    ("endless", "returned more than 16777216 bytes"),
    ("slow", "did not respond within 2000 ms"),
    ("loop", "redirects too often"),
    ("bomb", "returned more than 16777216 bytes"),
    ("utf8", "returned an invalid response: it is not UTF-8"),
    ("object", "returned an invalid response: the value at /list is not an array but object"),
];

/// A file with a source for each API. `many` has a topic of its own.
fn hostile_file(url: &str, topic: &str) -> File {
    let mut text = "sources:\n".to_owned();
    for name in HOSTILE.map(|(name, _)| name).into_iter().chain(["many", "faulty"]) {
        // A debug build on a busy machine needs longer to read 16 MiB.
        let timeout = if name == "slow" { "2s" } else { "20s" };
        let own = if name == "many" { format!("    topic: {topic}\n") } else { String::new() };
        text += &format!(
            "  {name}:\n    pull: {{url: '{url}/{name}', records: /list, timeout: {timeout}}}\n    event: {{id: \
             /id}}\n{own}"
        );
    }
    File::new(&text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_hostile_apis_end_in_their_own_answers_and_hold_up_no_other_source() {
    let (bootstrap, topic) = (shared().await, unique("many"));
    let file = hostile_file(&hostile().await, &topic);
    let shared_topic = unique("events");
    let settings = [
        ("KAFKA_BROKER", bootstrap),
        ("KAFKA_TOPIC", &shared_topic),
        ("KAFKA_PARTITIONS", "3"),
        ("SOURCES_FILE", &file.path()),
    ];
    let (child, app) = process(&settings).await;
    app.readyz(200).await;
    let before = peak(&child).await;
    let job = app.post("/ingest/faulty/poll?interval_sec=0.2&duration_sec=600").await;
    let job = job.header("location").unwrap().to_owned();
    let hostile = HOSTILE.map(|(name, words)| {
        let app = &app;
        async move {
            for _ in 0..3 {
                let body = app.post(&format!("/ingest/{name}")).await.problem(502, true);
                assert_says(&body, &[&format!("the API of {name} {words}")]);
            }
        }
    });
    let many = async {
        let response = app.post("/ingest/many").await;
        assert_eq!((response.status, response.statuses().len()), (202, 10_000));
        let again = app.post("/ingest/many").await.json();
        assert_eq!((&again["accepted"], &again["unchanged"]), (&json!(0), &json!(10_000)));
    };
    futures::join!(futures::future::join_all(hostile), many);
    let more = peak(&child).await - before;
    // Two bodies of 16 MiB are read at a time, in buffers that double, beside 10,000 records.
    assert!(more < 160 * MIB, "{} MiB more", more / MIB);

    let sent: BTreeSet<Vec<u8>> = messages(bootstrap, &topic, 3, 10_000)
        .await
        .iter()
        .map(|message| message.key().unwrap().to_vec())
        .collect();
    assert_eq!(sent.len(), 10_000, "each record once");
    let began = Instant::now();
    while app.get(&job).await.json()["sent"].as_u64().unwrap() < 6 {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let job = app.request("DELETE", &job, &[], "").await.json();
    assert_eq!(job["failed"], 0, "{job}");
    let letters = messages(bootstrap, &format!("{shared_topic}.dlq"), 3, 1).await;
    assert_eq!(letters[0].payload(), Some(&br#"{"no":"id"}"#[..]));
    let metric = async |outcome: &str| {
        let line = format!("slipstream_pull_records_total{{source=\"faulty\",outcome=\"{outcome}\"}}");
        app.metric(&line).await.unwrap_or_default()
    };
    assert_eq!(metric("dead_lettered").await, 1.0);
    assert!(metric("accepted").await >= 12.0, "its neighbours are sent each time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compressed_answer_is_read_and_another_coding_is_an_error() {
    let body = br#"{"list":[{"id":1}]}"#;
    let whole = gzip(body).await;
    let members = [gzip(&body[..8]).await, gzip(&body[8..]).await].concat();
    let cut = whole[..whole.len() - 4].to_vec();
    let requested = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requested);
    let url = serve(move |head| {
        counter.fetch_add(usize::from(head.contains("accept-encoding: gzip\r\n")), Ordering::Relaxed);
        let coded =
            |coding: &str, body: &[u8]| response("200 OK", &format!("Content-Encoding: {coding}\r\n"), body);
        match path(head) {
            "/whole" => coded("gzip", &whole),
            "/upper" => coded("X-GZIP", &whole),
            "/members" => coded("gzip", &members),
            "/plain" => coded("identity", body),
            "/cut" => coded("gzip", &cut),
            "/text" => coded("gzip", body),
            "/br" => coded("br", b"x"),
            "/twice" => coded("gzip, gzip", b"x"),
            _ => response("200 OK", "Content-Encoding: gzip\r\nContent-Encoding: gzip\r\n", b"x"),
        }
    })
    .await;
    let cluster = Cluster::start();
    let names = ["whole", "upper", "members", "plain", "cut", "text", "br", "twice", "two"];
    let mut text = "sources:\n".to_owned();
    for name in names {
        text += &format!("  {name}: {{pull: {{url: '{url}/{name}', records: /list}}, event: {{id: /id}}}}\n");
    }
    let file = File::new(&text);
    let app = file.on(&cluster, &[]).await;
    for (index, name) in names.into_iter().enumerate() {
        let answer = app.post(&format!("/ingest/{name}")).await;
        match name {
            "whole" | "upper" | "members" | "plain" => assert_eq!(answer.statuses(), [202], "{name}"),
            "cut" | "text" => {
                assert_says(&answer.problem(502, true), &["it cannot be decompressed as gzip"]);
            }
            "two" => assert_says(&answer.problem(502, true), &["it is compressed more than once"]),
            _ => assert_says(&answer.problem(502, true), &["compressed in another way than gzip"]),
        }
        assert_eq!(requested.load(Ordering::Relaxed), index + 1, "{name}");
    }
}

/// A record of this size.
fn record(id: &str, bytes: usize) -> String {
    format!(r#"{{"id":"{id}","x":"{}"}}"#, "y".repeat(bytes))
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_a_fetched_record_above_the_brokers_limit_is_sent_once_and_lettered() {
    let (bootstrap, topic) = (shared().await, unique("small"));
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap();
    let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set("max.message.bytes", "3000");
    admin.create_topics([&new], &AdminOptions::new()).await.unwrap();
    // The first fits into the dead-letter topic, whose limit is 64 KiB above. The others do not.
    let (large, huge) = (record("large", 4000), record("huge", 80_000));
    let faulty = format!(r#"{{"x":"{}"}}"#, "y".repeat(80_000));
    let list = [record("a", 10), large.clone(), huge.clone(), faulty, record("b", 10)];
    let (list, one) = (format!("[{}]", list.join(",")), record("one", 5000));
    let requests = Arc::new(AtomicUsize::new(0));
    let conditional = Arc::clone(&requests);
    let single = one.clone();
    let url = serve(move |head| {
        if head.contains("if-none-match") {
            conditional.fetch_add(1, Ordering::Relaxed);
        }
        // Another tag each time: the records must be known even if the answer is another one.
        let body = if path(head) == "/one" { &single } else { &list };
        let tag = format!("ETag: \"{}\"\r\n", fastrand::u64(..));
        response("200 OK", &tag, body.as_bytes())
    })
    .await;
    let file = File::new(&format!(
        "sources:\n  api: {{pull: {{url: '{url}/list', records: ''}}, event: {{id: /id}}}}\n  one: {{pull: {{url: \
         '{url}/one'}}, event: {{id: /id}}}}\n"
    ));
    let settings = [("SOURCES_FILE", &*file.path())];
    let app = Application::start_on(bootstrap, &topic, &settings).await.ready().await;
    let first = app.post("/ingest/api").await;
    assert_eq!((first.status, first.statuses()), (207, vec![202, 413, 413, 422, 202]), "{first:?}");
    for _ in 0..2 {
        let again = app.post("/ingest/api").await;
        assert_eq!((again.status, &again.json()["unchanged"]), (202, &json!(5)), "{again:?}");
    }
    assert_eq!(requests.load(Ordering::Relaxed), 2, "validators are kept");
    for _ in 0..2 {
        let body = app.post("/ingest/one").await.problem(502, true);
        assert_says(&body, &["a record that cannot be stored", "larger than kafka's limit"]);
    }
    assert_eq!(requests.load(Ordering::Relaxed), 3, "validators are kept");
    let letters = messages(bootstrap, &format!("{topic}.dlq"), 3, 2).await;
    for letter in &letters {
        let text = std::str::from_utf8(letter.payload().unwrap()).unwrap();
        assert!(text == large || text == one, "{}", &text[..40]);
        let has = |name: &str| header(letter, &format!("__connect.errors.{name}")).unwrap_or_default();
        assert_eq!(has("exception.class.name"), "RecordFault");
        assert!(has("exception.message").contains("larger than kafka's limit"), "{letter:?}");
    }
    for (source, outcome, count) in
        [("api", "dead_lettered", 1.0), ("api", "rejected", 2.0), ("one", "dead_lettered", 1.0)]
    {
        let line = format!("slipstream_pull_records_total{{source=\"{source}\",outcome=\"{outcome}\"}}");
        assert_eq!(app.metric(&line).await, Some(count), "{source} {outcome}");
    }
}

/// An API whose paths end in every kind of answer. `elsewhere` is the target of a redirect.
async fn all_answers(elsewhere: String) -> String {
    serve(move |head| match path(head) {
        "/ok" => response("200 OK", "Link: </next?token=s3cret>; rel=\"next\"\r\n", br#"[{"id":1},{"x":1}]"#),
        "/missing" => response("404 Not Found", "", b""),
        "/limited" => response("429 Too Many Requests", "", b""),
        "/text" => json_response("s3cret"),
        "/loop" => response("302 Found", "Location: /loop?token=s3cret\r\n", b""),
        "/moved" => response("302 Found", &format!("Location: {elsewhere}/x\r\n"), b""),
        "/outside" => response("200 OK", "Link: <http://a.b/?s3cret>; rel=\"next\"\r\n", b"[]"),
        "/cut" => Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[".to_vec()),
        "/slow" => {
            Reply::Endless(b"HTTP/1.1 200 OK\r\n\r\n[".to_vec(), b" ".to_vec(), Duration::from_millis(50))
        }
        _ => json_response("[]"),
    })
    .await
}

/// Starts the binary with all log lines. They are collected until it ends.
async fn logged(settings: &[(&str, &str)]) -> (Child, Application, JoinHandle<String>) {
    let mut child = producer(settings).env("RUST_LOG", "trace").stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut log = String::new();
    let address = loop {
        let text = lines.next_line().await.unwrap().unwrap();
        let line: Value = serde_json::from_str(&text).unwrap();
        log += &text;
        if line["message"] == "listening" {
            break line["address"].as_str().unwrap().parse().unwrap();
        }
    };
    let log = tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            log += &line;
        }
        log
    });
    (child, Application::at(address), log)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_query_of_a_url_is_in_no_log_line_answer_metric_or_page() {
    // The target of a redirect must not learn the query either.
    let leak = |head: &str| if head.contains("s3cret") { "leaked" } else { r#"[{"id":2}]"# };
    let other = serve(move |head| json_response(leak(head))).await;
    let url = all_answers(other).await;
    let mut sources: Vec<(&str, String)> =
        ["ok", "missing", "limited", "text", "loop", "moved", "outside", "cut", "slow"]
            .map(|name| (name, format!("{url}/{name}")))
            .into();
    sources.push(("tls", url.replace("http:", "https:")));
    sources.push(("closed", "http://127.0.0.1:9/x".to_owned()));
    sources.push(("nowhere", "http://no-such-host.invalid/x".to_owned()));
    let mut text = "sources:\n".to_owned();
    for (name, target) in &sources {
        text += &format!(
            "  {name}: {{pull: {{url: '{target}?token=s3cret', timeout: 1s, records: '', paging: {{link_header: \
             true}}}}, event: {{id: /id}}}}\n"
        );
    }
    let (cluster, file) = (Cluster::start(), File::new(&text));
    cluster.mock.create_topic(&format!("{}.dlq", cluster.topic), 1, 1).unwrap();
    let (broker, path) = (cluster.mock.bootstrap_servers(), file.path());
    let settings = [
        ("LISTEN_ADDR", "127.0.0.1:0"),
        ("KAFKA_BROKER", &*broker),
        ("KAFKA_TOPIC", &cluster.topic),
        ("SOURCES_FILE", &path),
    ];
    let (mut child, app, log) = logged(&settings).await;
    app.readyz(200).await;
    let mut shown = String::new();
    for (name, _) in &sources {
        shown += &format!("{:?}", app.post(&format!("/ingest/{name}")).await);
        let job = app.post(&format!("/ingest/{name}/poll?interval_sec=0.1&duration_sec=0.2")).await;
        let (began, job) = (Instant::now(), job.header("location").unwrap());
        while app.get(job).await.json()["state"] == "running" {
            assert!(began.elapsed() < PATIENCE, "{name}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        shown += &app.get(job).await.text;
    }
    for page in ["/metrics", "/health", "/readyz", "/openapi.json"] {
        shown += &app.get(page).await.text;
    }
    let moved = r#"slipstream_pull_records_total{source="moved",outcome="accepted"}"#;
    assert_eq!(app.metric(moved).await, Some(1.0), "the query was sent to another origin");
    child.kill().await.unwrap();
    let log = log.await.unwrap();
    assert!(log.contains("fetched records sent to dead-letter topic"), "{log}");
    let place = |text: &str| text.find("s3cret").map(|at| text[at.saturating_sub(300)..at].to_owned());
    assert_eq!((place(&shown), place(&log)), (None, None));
}
