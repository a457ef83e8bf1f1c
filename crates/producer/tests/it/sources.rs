//! The sources of a file: records that clients send, and APIs that the producer fetches.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use devservers::{Fault, Simulator};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message, OwnedMessage};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::application::{Answer, Application, Cluster, PATIENCE, assert_says, unique};
use crate::real_broker::{records, shared};

const JSON: [(&str, &str); 1] = [("Content-Type", "application/json")];
const SCHEMA: &str = r##"{
    "type": "object",
    "required": ["no", "lines"],
    "properties": {
        "no": {"type": "integer"},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}}
    },
    "$defs": {"line": {"type": "object", "properties": {"count": {"type": "integer", "minimum": 1}}}}
}"##;

/// A folder with a sources file and a schema.
pub struct File {
    folder: TempDir,
}

impl File {
    pub fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("sources.yaml"), text).unwrap();
        std::fs::write(folder.path().join("orders.schema.json"), SCHEMA).unwrap();
        Self { folder }
    }

    /// Adds a file to the folder.
    pub fn add(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    pub fn path(&self) -> String {
        self.folder.path().join("sources.yaml").display().to_string()
    }

    /// A producer with this file on a mock cluster.
    pub async fn on(&self, cluster: &Cluster, more: &[(&str, &str)]) -> Application {
        let path = self.path();
        // The mock creates no topics. It may exist already.
        _ = cluster.mock.create_topic(&format!("{}.dlq", cluster.topic), 1, 1);
        let mut settings = vec![("SOURCES_FILE", path.as_str())];
        settings.extend(more);
        cluster.application(&settings).await
    }
}

/// Makes the response to the head of a request.
type Script = Box<dyn Fn(&str) -> String + Send + Sync>;

/// An API that gives a scripted response to each request, the last one again and again.
struct Api {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
    responses: Arc<Mutex<VecDeque<String>>>,
}

impl Api {
    /// Starts one. A response is the whole text of an HTTP response.
    async fn start(responses: impl IntoIterator<Item = String>) -> Self {
        let responses = Arc::new(Mutex::new(responses.into_iter().collect::<VecDeque<_>>()));
        let queue = Arc::clone(&responses);
        let script: Script = Box::new(move |_| {
            let mut queue = queue.lock().unwrap();
            if queue.len() > 1 {
                queue.pop_front().unwrap()
            } else {
                queue.front().cloned().unwrap_or_default()
            }
        });
        let (url, requests) = serve(script).await;
        Self { url, requests, responses }
    }

    fn set(&self, responses: impl IntoIterator<Item = String>) {
        *self.responses.lock().unwrap() = responses.into_iter().collect();
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// Serves the responses of `script` to requests, which are their heads.
async fn serve(script: Script) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&requests);
    tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let head = head(&mut connection).await;
            let response = script(&head);
            log.lock().unwrap().push(head);
            tokio::spawn(async move { connection.write_all(response.as_bytes()).await });
        }
    });
    (url, requests)
}

async fn head(connection: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match connection.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

fn http(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

fn ok(body: &str) -> String {
    http("200 OK", "", body)
}

/// Reads `count` messages of a topic from its beginning.
pub async fn messages(bootstrap: &str, topic: &str, partitions: i32, count: usize) -> Vec<OwnedMessage> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("group.id", unique("reader"));
    let consumer: BaseConsumer = config.create().unwrap();
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&assignment).unwrap();
    let read = move || {
        let (mut found, began) = (Vec::new(), Instant::now());
        while found.len() < count {
            assert!(began.elapsed() < PATIENCE, "only {} messages", found.len());
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                found.push(message.detach());
            }
        }
        // There is not one more.
        assert!(!matches!(consumer.poll(Duration::from_millis(500)), Some(Ok(_))), "more than {count}");
        found
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

pub fn header(message: &OwnedMessage, name: &str) -> Option<String> {
    let header = message.headers()?.iter().find(|header| header.key == name)?;
    Some(String::from_utf8(header.value?.to_vec()).unwrap())
}

fn paths(body: &Value) -> Vec<String> {
    let errors = body["errors"].as_array().unwrap_or_else(|| panic!("{body}"));
    errors.iter().map(|error| error["loc"].to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_a_pushed_and_a_fetched_record_are_on_their_topics() {
    let bootstrap = shared().await;
    let answer = r#"{"list":[{"id":7,"at":1730000000,"v":1.50}]}"#;
    let (api, topic) = (Api::start([ok(answer)]).await, unique("orders"));
    let file = File::new(&format!(
        "sources:\n  orders:\n    push: {{}}\n    topic: {topic}\n    event: {{id: /no, timestamp: /at}}\n    \
         schema: orders.schema.json\n  api:\n    pull: {{url: '{}', records: /list}}\n    event: {{id: /id, \
         timestamp: /at}}\n",
        api.url
    ));
    let app = Application::start(bootstrap, &[("SOURCES_FILE", &file.path())]).await.ready().await;
    let record = r#" {"no":42,"at":1730000000.5, "lines":[ ],"x":0.10}"#;
    let response = app.request("POST", "/ingest/orders", &JSON, record).await;
    assert_eq!(response.status, 202, "{response:?}");
    let body = response.json();
    assert_eq!((&body["id"], &body["topic"]), (&json!("42"), &json!(topic)));
    assert_eq!(body["timestamp"], json!(1_730_000_000_500_i64));
    let found = records(bootstrap, &topic, 3, |found| !found.is_empty()).await;
    let value = std::str::from_utf8(found["42"].payload().unwrap()).unwrap().to_owned();
    assert!(value.contains(&format!(r#""source":"orders","payload":{},"#, record.trim())), "{value}");

    let response = app.post("/ingest/api").await;
    assert_eq!((response.status, response.statuses()), (202, vec![202]), "{response:?}");
    assert_eq!(response.json()["unchanged"], 0);
    let found = records(bootstrap, &app.topic, 3, |found| !found.is_empty()).await;
    let value = std::str::from_utf8(found["7"].payload().unwrap()).unwrap().to_owned();
    assert!(value.contains(r#""payload":{"id":7,"at":1730000000,"v":1.50},"#), "{value}");
    for line in [
        r#"slipstream_pull_requests_total{source="api",outcome="ok"}"#,
        r#"slipstream_pull_records_total{source="api",outcome="accepted"}"#,
        r#"slipstream_events_accepted_total{source="api"}"#,
        r#"slipstream_events_accepted_total{source="orders"}"#,
        r#"slipstream_http_requests_total{route="/ingest/{source}",status="202"}"#,
    ] {
        let expected = if line.contains("route") { 2.0 } else { 1.0 };
        assert_eq!(app.metric(line).await, Some(expected), "{line}");
    }
}

const ORDERS: &str = "sources:\n  orders:\n    push: {}\n    event: {id: /no, timestamp: /at}\n    schema: \
                      orders.schema.json\n  notes:\n    push: {}\n    event: {id: {else: uuid}, payload: \
                      /note}\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_a_pushed_record_has_its_path_in_the_body() {
    let (cluster, file) = (Cluster::start(), File::new(ORDERS));
    let app = file.on(&cluster, &[]).await;
    let post = async |path: &str, body: &str| app.request("POST", path, &JSON, body).await;
    let body = post("/ingest/orders", r#"{"no":"x","lines":[{"count":1},{"count":0}]}"#).await;
    let body = body.problem(422, false);
    let mut found = paths(&body);
    found.sort();
    // The last is the timestamp, which the record does not have.
    assert_eq!(found, [r#"["body","lines",1,"count"]"#, r#"["body","no"]"#, r#"["body"]"#], "{body}");
    // The payload of a note is a part of it.
    let body = post("/ingest/notes", r#"{"note":{"a":1e9999}}"#).await.problem(422, false);
    assert_eq!(paths(&body), [r#"["body","note","a"]"#]);
    let body = post("/ingest/notes", r#"{"note":[1]}"#).await.problem(422, false);
    assert_eq!(paths(&body), [r#"["body","note"]"#]);
    post("/ingest/orders", "{").await.problem(400, false);
    post("/ingest/orders", "").await.problem(400, false);
    let text = [("Content-Type", "text/plain")];
    app.request("POST", "/ingest/orders", &text, "{}").await.problem(415, false);
    post("/ingest/orders", &format!("[{}1]", "1,".repeat(40_000))).await.problem(413, false);
    for path in ["/ingest/unknown", "/ingest/unknown/batch", "/ingest/orders/poll", "/ingest/orders/poll/x"] {
        post(path, "{}").await.problem(if path.ends_with('x') { 405 } else { 404 }, false);
    }
    app.get("/ingest/orders").await.problem(405, false);
    assert_eq!(app.counters.accepted(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotency_key_is_the_id_of_a_record_or_replaces_a_generated_one() {
    let (cluster, file) = (Cluster::start(), File::new(ORDERS));
    let app = file.on(&cluster, &[]).await;
    let post = async |path: &str, key: &str, body: &str| {
        let headers = [("Content-Type", "application/json"), ("Idempotency-Key", key)];
        app.request("POST", path, &headers, body).await
    };
    let order = r#"{"no":1,"at":1,"lines":[]}"#;
    assert_eq!(post("/ingest/orders", "1", order).await.status, 202);
    post("/ingest/orders", "2", order).await.problem(422, false);
    let response = post("/ingest/notes", "mine", r#"{"note":{}}"#).await;
    assert_eq!((response.status, &response.json()["id"]), (202, &json!("mine")));
    let response = app.request("POST", "/ingest/notes", &JSON, r#"{"note":{}}"#).await;
    assert_eq!((response.status, response.json()["id"].as_str().map(str::len)), (202, Some(36)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_records_has_a_result_for_each() {
    let (cluster, file) = (Cluster::start(), File::new(ORDERS));
    let app = file.on(&cluster, &[]).await;
    let lines = [
        r#"{"no":1,"at":1,"lines":[]}"#,
        r#"{"no":"2","at":1,"lines":[]}"#,
        "{",
        r#"{"no":3,"at":1,"lines":[]}"#,
    ];
    let ndjson = [("Content-Type", "application/x-ndjson")];
    let response = app.request("POST", "/ingest/orders/batch", &ndjson, &lines.join("\n")).await;
    assert_eq!((response.status, response.statuses()), (207, vec![202, 422, 400, 202]), "{response:?}");
    assert_eq!(paths(&response.result(1)), [r#"["body","no"]"#]);
    let array = app.request("POST", "/ingest/orders/batch", &JSON, &format!("[{}]", lines[0])).await;
    assert_eq!((array.status, array.statuses()), (202, vec![202]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_of_the_file_is_only_taken_at_its_endpoint_or_in_envelopes_if_it_says_so() {
    let cluster = Cluster::start();
    let file = File::new(
        "sources:\n  orders: {push: {}, event: {id: /no}}\n  api: {pull: {url: 'http://127.0.0.1:9'}, event: \
         {id: /no}}\n  both:\n    push: {}\n    envelope: true\n    event: {id: /no}\n    schema: \
         orders.schema.json\n",
    );
    let app = file.on(&cluster, &[]).await;
    let event = |source: &str, payload: &str| format!(r#"{{"source":"{source}","payload":{payload}}}"#);
    for (source, part) in [("orders", "POST /ingest/orders"), ("api", "POST /ingest/api, without a body")] {
        let body = app.ingest(&event(source, "{}")).await.problem(422, false);
        assert_says(&body, &[part]);
        let response = app.batch(&[&event(source, "{}"), &event("manual", "{}")]).await;
        assert_eq!(response.statuses(), [422, 202], "{response:?}");
        assert!(response.result(0)["detail"].as_str().unwrap().contains(part), "{response:?}");
    }
    let valid = event("both", r#"{"no":1,"lines":[]}"#);
    assert_eq!(app.ingest(&valid).await.status, 202);
    let body = app.ingest(&event("both", r#"{"no":"x","lines":[]}"#)).await.problem(422, false);
    assert_eq!(paths(&body), [r#"["body","payload","no"]"#]);
    let response = app.batch(&[&valid, &event("both", "{}")]).await;
    assert_eq!(response.statuses(), [202, 422]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_for_some_sources_gets_a_403_for_others() {
    // The key is `secret`.
    let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let (cluster, file) = (Cluster::start(), File::new(ORDERS));
    let keys = format!("shop:{hash}:orders|manual");
    let app = file.on(&cluster, &[("API_KEYS", &keys)]).await;
    let post = async |path: &str, body: &str| {
        let headers = [("Content-Type", "application/json"), ("X-API-Key", "secret")];
        app.request("POST", path, &headers, body).await
    };
    assert_eq!(post("/ingest/orders", r#"{"no":1,"at":1,"lines":[]}"#).await.status, 202);
    assert_eq!(post("/ingest", r#"{"source":"manual","payload":{}}"#).await.status, 202);
    for (path, body) in [
        ("/ingest/notes", r#"{"note":{}}"#),
        ("/ingest/notes/batch", "[]"),
        ("/ingest/unknown", "{}"),
        ("/ingest/adsbdb", ""),
        ("/ingest/adsbdb/poll", ""),
        ("/ingest", r#"{"source":"other","payload":{}}"#),
    ] {
        assert_says(&post(path, body).await.problem(403, false), &["not for the source"]);
    }
    let both = r#"[{"source":"other","payload":{}},{"source":"manual","payload":{}}]"#;
    assert_eq!(post("/ingest/batch", both).await.statuses(), [403, 202]);
    app.request("POST", "/ingest/orders", &JSON, "{}").await.problem(401, false);
}

fn pull(url: &str, pull: &str, rest: &str) -> File {
    File::new(&format!(
        "sources:\n  api:\n    pull: {{url: '{url}/x?k=1', timeout: 1s, {pull}}}\n    event: {{id: /id}}\n{rest}"
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchanged_answer_and_unchanged_records_are_not_sent_again() {
    let (cluster, api) = (Cluster::start(), Api::start([]).await);
    let app = pull(&api.url, "records: ''", "").on(&cluster, &[]).await;
    let tagged =
        |tag: &str, body: &str| http("200 OK", &format!("ETag: \"{tag}\"\r\nLast-Modified: {tag}\r\n"), body);
    api.set([tagged("1", r#"[{"id":"a"},{"id":"b"}]"#)]);
    assert_eq!(app.post("/ingest/api").await.statuses(), [202, 202]);
    assert!(!api.requests()[0].contains("if-none-match"), "{:?}", api.requests());
    api.set([http("304 Not Modified", "", "")]);
    let response = app.post("/ingest/api").await;
    let expected = json!({"accepted": 0, "rejected": 0, "results": [], "not_modified": true});
    assert_eq!((response.status, response.json()), (200, expected));
    assert!(
        api.requests()[1].contains("if-none-match: \"1\"\r\nif-modified-since: 1"),
        "{:?}",
        api.requests()
    );
    api.set([tagged("2", r#"[{"id":"a"},{"id":"b","x":1},{"id":"c"}]"#)]);
    let response = app.post("/ingest/api").await;
    assert_eq!((response.status, response.statuses()), (202, vec![202, 202]));
    assert_eq!(response.json()["unchanged"], 1);
    let line = r#"slipstream_pull_records_total{source="api",outcome="not_modified"}"#;
    assert_eq!(app.metric(line).await, Some(1.0));
    let line = r#"slipstream_pull_requests_total{source="api",outcome="not_modified"}"#;
    assert_eq!(app.metric(line).await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_a_faulty_fetched_record_is_dead_lettered_once_and_its_neighbours_are_sent() {
    let bootstrap = shared().await;
    let faulty = r#"{"no":"x", "lines":[]}"#;
    let answer = format!(r#"[{{"no":1,"lines":[]}},{faulty},{{"lines":[]}},7,{{"no":2,"lines":[]}}]"#);
    let api = Api::start([ok(&answer)]).await;
    let file = File::new(&format!(
        "sources:\n  api:\n    pull: {{url: '{}', records: ''}}\n    event: {{id: /no}}\n    schema: \
         orders.schema.json\n",
        api.url
    ));
    let app = Application::start(bootstrap, &[("SOURCES_FILE", &file.path())]).await.ready().await;
    let response = app.post("/ingest/api").await;
    assert_eq!((response.status, response.statuses()), (207, vec![202, 422, 422, 422, 202]));
    for _ in 0..3 {
        let response = app.post("/ingest/api").await;
        assert_eq!((response.status, &response.json()["unchanged"]), (202, &json!(5)));
    }
    let letters = messages(bootstrap, &format!("{}.dlq", app.topic), 3, 3).await;
    let letter = letters.iter().find(|letter| letter.payload() == Some(faulty.as_bytes())).expect("a letter");
    let has = |name: &str| header(letter, &format!("__connect.errors.{name}"));
    assert_eq!(has("exception.class.name").as_deref(), Some("SchemaFault"));
    assert!(has("exception.message").is_some_and(|reason| reason.contains("body.no")), "{letters:?}");
    assert_eq!((header(letter, "pull").as_deref(), has("stage").as_deref()), (Some("api"), Some("pull")));
    assert_eq!((has("topic"), has("offset"), letter.key()), (None, None, None));
    let line = r#"slipstream_pull_records_total{source="api",outcome="dead_lettered"}"#;
    assert_eq!(app.metric(line).await, Some(3.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_one_record_has_the_response_of_adsbdb() {
    let (cluster, api) = (Cluster::start(), Api::start([ok(r#"{"id":"a", "v":1.0}"#)]).await);
    let app = pull(&api.url, "headers: {X-Own: '1'}, auth: {basic: {user: me, password_file: secret}}", "");
    std::fs::write(app.folder.path().join("secret"), "pass\n").unwrap();
    let app = app.on(&cluster, &[]).await;
    let response = app.post("/ingest/api").await;
    assert_eq!((response.status, &response.json()["id"]), (202, &json!("a")), "{response:?}");
    assert!(response.text.ends_with(r#""payload":{"id":"a", "v":1.0}}"#), "{response:?}");
    let request = api.requests().remove(0);
    for line in ["x-own: 1", "authorization: Basic bWU6cGFzcw==", "accept: application/json", "GET /x?k=1 "] {
        assert!(request.contains(line), "{request}");
    }
    assert_eq!(app.post("/ingest/api").await.json()["not_modified"], true);
    api.set([ok(r#"{"v":1}"#)]);
    for _ in 0..2 {
        let body = app.post("/ingest/api").await.problem(502, true);
        assert_says(&body, &["the API of api returned a record that cannot be stored", "id"]);
    }
    let line = r#"slipstream_pull_records_total{source="api",outcome="dead_lettered"}"#;
    assert_eq!(app.metric(line).await, Some(1.0));
    // A request with a record in it is an error, so that the record is not lost.
    app.request("POST", "/ingest/api", &JSON, "{}").await.problem(422, false);
    let key = [("Idempotency-Key", "a")];
    app.request("POST", "/ingest/api", &key, "").await.problem(400, false);
}

/// Fetches once and returns the results and the targets of the requests.
async fn paged(paging: &str, responses: Vec<String>) -> (Answer, Vec<String>) {
    let (cluster, api) = (Cluster::start(), Api::start(responses).await);
    let app = pull(&api.url, &format!("records: /l, paging: {paging}"), "").on(&cluster, &[]).await;
    let response = app.post("/ingest/api").await;
    let target = |request: &String| request.split(' ').nth(1).unwrap().to_owned();
    (response, api.requests().iter().map(target).collect())
}

fn page(ids: &[u32], rest: &str) -> String {
    let mut list = String::new();
    for id in ids {
        let comma = if list.is_empty() { "" } else { "," };
        write!(list, "{comma}{{\"id\":{id}}}").unwrap();
    }
    format!("{{\"l\":[{list}]{rest}}}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_kinds_of_paging_fetch_all_pages() {
    let pages = vec![ok(&page(&[1], r#","n":{"next":"/y?p=2"}"#)), ok(&page(&[2], r#","n":{"next":null}"#))];
    let (response, targets) = paged("{next: /n/next}", pages).await;
    assert_eq!((response.statuses(), targets), (vec![202; 2], vec!["/x?k=1".into(), "/y?p=2".into()]));

    let link = "Link: <?p=2>; rel=\"next\", <?p=9>; rel=\"last\"\r\n";
    let pages = vec![http("200 OK", link, &page(&[1], "")), ok(&page(&[2], ""))];
    let (response, targets) = paged("{link_header: true}", pages).await;
    assert_eq!((response.statuses(), targets), (vec![202; 2], vec!["/x?k=1".into(), "/x?p=2".into()]));

    let pages = vec![http("200 OK", "CB-AFTER: 17\r\n", &page(&[1], "")), ok(&page(&[2], ""))];
    let (response, targets) = paged("{cursor_header: CB-AFTER, param: after}", pages).await;
    assert_eq!((response.statuses(), &*targets[1]), (vec![202; 2], "/x?k=1&after=17"));

    let pages = vec![ok(&page(&[1, 2], "")), ok(&page(&[3], ""))];
    let offset = "{offset: {param: offset, size: 2, size_param: limit}}";
    let (response, targets) = paged(offset, pages).await;
    assert_eq!(response.statuses(), [202; 3]);
    assert_eq!(targets, ["/x?k=1&offset=0&limit=2", "/x?k=1&limit=2&offset=2"]);

    let pages = (1..9).map(|id| ok(&page(&[id], &format!(r#","next":"?p={id}""#)))).collect();
    let (response, targets) = paged("{next: /next, max_pages: 3}", pages).await;
    assert_eq!((response.statuses(), targets.len()), (vec![202; 3], 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_of_a_later_page_is_the_last_result_and_keeps_no_validator() {
    let (cluster, api) = (Cluster::start(), Api::start([]).await);
    let app = pull(&api.url, "records: /l, paging: {next: /n}", "").on(&cluster, &[]).await;
    let first = || http("200 OK", "ETag: \"1\"\r\n", &page(&[1], r#","n":"?p=2""#));
    for (next, words) in [
        (http("404 Not Found", "", ""), "returned status 404"),
        (ok(r#"{"l":{}}"#), "not an array"),
        (ok(&page(&[], r#","n":"http://127.0.0.1:9/""#)), "at another origin"),
        (ok(&page(&[], r#","n":"?p=2""#)), "was fetched before"),
    ] {
        api.set([first(), next]);
        let response = app.post("/ingest/api").await;
        let body = response.json();
        let last = body["results"].as_array().unwrap().last().unwrap();
        assert_eq!(last["status"], 502, "{response:?}");
        assert!(last["detail"].as_str().unwrap().contains(words), "{last}");
        assert_eq!(body["incomplete"], last["detail"]);
    }
    assert!(api.requests().iter().all(|request| !request.contains("if-none-match")));
    // Each page has its own validator, so that a new second page is found.
    let second = |tag: &str, id| http("200 OK", &format!("ETag: \"{tag}\"\r\n"), &page(&[id], ""));
    api.set([first(), second("2", 2)]);
    assert_eq!(app.post("/ingest/api").await.statuses(), [202]);
    api.set([http("304 Not Modified", "", ""), second("3", 3)]);
    assert_eq!(app.post("/ingest/api").await.statuses(), [202]);
    api.set([http("304 Not Modified", "", "")]);
    assert_eq!(app.post("/ingest/api").await.json()["not_modified"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_error_of_an_api_is_a_502_with_its_own_detail() {
    let (cluster, api) = (Cluster::start(), Api::start([]).await);
    let app = pull(&api.url, "records: /l", "").on(&cluster, &[]).await;
    for (response, words) in [
        (http("404 Not Found", "", ""), "returned status 404"),
        (ok(""), "it is empty"),
        (ok(" <html>"), "a web page"),
        (ok("{\"l\":["), "not JSON, or its JSON is cut off"),
        (ok("{\"l\":{}}"), "not an array but object"),
        (ok("{}"), "the value at /l is absent"),
        (http("200 OK", "Content-Encoding: br\r\n", "x"), "compressed in another way than gzip"),
        (http("302 Found", "Location: /x\r\n", ""), "redirects too often"),
        (http("304 Not Modified", "", ""), "returned status 304"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{".into(), "cannot be reached"),
        ("HTTP/1.1 200 OK\r\n\r\n".to_owned() + &" ".repeat(17 * 1024 * 1024), "more than 16777216 bytes"),
        (ok(&format!("{{\"l\":[{}1]}}", "1,".repeat(100_001))), "more than 100000 records"),
    ] {
        api.set([response]);
        let response = app.post("/ingest/api").await;
        assert!(response.text.contains(words), "{words}: {}", &response.text[..response.text.len().min(300)]);
        if words.contains("records") {
            assert_eq!(response.status, 207);
        } else {
            let body = response.problem(502, true);
            assert_says(&body, &["the API of api "]);
        }
    }
    // A slow body ends at the timeout of the source, and a client error is not retried.
    let before = api.requests().len();
    api.set([http("404 Not Found", "", "")]);
    app.post("/ingest/api").await.problem(502, true);
    assert_eq!(api.requests().len(), before + 1);
    api.set([http("500 Oops", "", ""), http("500 Oops", "", ""), ok("{\"l\":[{\"id\":1}]}")]);
    assert_eq!(app.post("/ingest/api").await.status, 202);
    assert_eq!(api.requests().len(), before + 4, "it was retried twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_api_does_not_hold_up_another_source() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let (cluster, api) = (Cluster::start(), Api::start([ok(r#"{"id":1}"#)]).await);
    let file = File::new(&format!(
        "sources:\n  slow: {{pull: {{url: '{url}', timeout: 2s}}, event: {{id: /id}}}}\n  fast: {{pull: {{url: \
         '{}'}}, event: {{id: /id}}}}\n",
        api.url
    ));
    let app = file.on(&cluster, &[]).await;
    let began = Instant::now();
    let slow = async {
        let both = futures::join!(app.post("/ingest/slow"), app.post("/ingest/slow"));
        let texts = [both.0.problem(502, true), both.1.problem(502, true)].map(|body| body.to_string());
        assert!(texts.iter().any(|text| text.contains("did not respond within 2000 ms")), "{texts:?}");
        assert!(texts.iter().any(|text| text.contains("another fetch of the source")), "{texts:?}");
    };
    let fast = async {
        assert_eq!(app.post("/ingest/fast").await.status, 202);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    };
    futures::join!(slow, fast);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_sent_while_the_api_allows_none() {
    let (cluster, api) = (Cluster::start(), Api::start([]).await);
    let other = Api::start([ok("{\"l\":[]}")]).await;
    let more = format!("  other: {{pull: {{url: '{}', records: /l}}, event: {{id: /id}}}}\n", other.url);
    let date = "Date: Tue, 24 Nov 2026 06:30:00 GMT\r\nRetry-After: Tue, 24 Nov 2026 06:30:39 GMT\r\n";
    for (status, headers, seconds) in [
        ("429 Too Many Requests", "Retry-After: 17\r\n", 17),
        ("429 Too Many Requests", date, 39),
        ("429 Too Many Requests", "", 60),
        ("503 Unavailable", "Retry-After: 5\r\n", 5),
        ("403 Forbidden", "X-Own-Wait: 9\r\nRetry-After: 1\r\n", 9),
        ("200 OK", "X-Poll-Interval: 30\r\n", 30),
    ] {
        api.set([http(status, headers, "{\"l\":[{\"id\":1}]}")]);
        let app = pull(&api.url, "records: /l, wait: [X-Own-Wait]", &more).on(&cluster, &[]).await;
        let before = api.requests().len();
        let response = app.post("/ingest/api").await;
        assert_eq!(response.status, if status == "200 OK" { 202 } else { 502 }, "{response:?}");
        let (after, body) = app.post("/ingest/api").await.retry_after(502);
        assert!(after <= seconds && after + 2 >= seconds, "{status} {headers}: {after}");
        assert_says(&body, &["allows its next request in"]);
        assert_eq!(api.requests().len(), before + 1, "{status} {headers}");
        assert_eq!(app.post("/ingest/other").await.status, 202, "another source");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_fetched_while_kafka_is_unavailable() {
    let api = Api::start([ok("{\"id\":1}")]).await;
    let file = pull(&api.url, "every: 1s", "");
    let app = Application::start("127.0.0.1:9", &[("SOURCES_FILE", &file.path())]).await;
    app.post("/ingest/api").await.retry_after(503);
    assert!(api.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_job_fetches_a_source_and_belongs_to_it() {
    let (cluster, api) = (Cluster::start(), Api::start([ok("{\"l\":[{\"id\":1}]}")]).await);
    let more = "  other: {pull: {kind: adsbdb}}\n";
    let app = pull(&api.url, "records: /l", more).on(&cluster, &[("MAX_POLL_JOBS", "1")]).await;
    let started = app.post("/ingest/api/poll?interval_sec=0.1&duration_sec=600").await;
    assert_eq!(started.status, 202, "{started:?}");
    let path = started.header("location").unwrap().to_owned();
    assert!(path.starts_with("/ingest/api/poll/"), "{path}");
    app.post("/ingest/api/poll").await.retry_after(429);
    let began = Instant::now();
    while app.get(&path).await.json()["sent"].as_u64().unwrap() < 3 {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(app.get("/ingest/api/poll").await.json()["jobs"].as_array().unwrap().len(), 1);
    assert_eq!(app.get("/ingest/other/poll").await.json()["jobs"], json!([]));
    assert_eq!(app.get("/ingest/adsbdb/poll").await.json()["jobs"], json!([]));
    app.get(&path.replace("api", "other")).await.problem(404, false);
    assert_eq!(app.metric("slipstream_poll_jobs").await, Some(1.0));
    let cancelled = app.request("DELETE", &path, &[], "").await.json();
    assert_eq!(cancelled["state"], "cancelled");
    assert_eq!(app.counters.accepted(), 1, "the record did not change");
    let interval = app.post("/ingest/api/poll?duration_sec=1").await.json();
    assert_eq!(interval["interval_sec"], 60, "that of the file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adsbdb_is_the_same_as_an_entry_of_a_file() {
    let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap();
    let (cluster, url) = (Cluster::start(), simulator.base_url());
    let file = File::new("sources:\n  adsbdb: {pull: {kind: adsbdb}}\n  planes: {pull: {kind: adsbdb}}\n");
    let app = file.on(&cluster, &[("ADSBDB_BASE_URL", &url)]).await;
    for source in ["adsbdb", "planes"] {
        let response = app.request("POST", &format!("/ingest/{source}"), &[], "ignored").await;
        assert_eq!(response.status, 202, "{response:?}");
        let body = response.json();
        assert_eq!((&body["status"], &body["id"]), (&json!("enqueued"), &body["payload"]["mode_s"]));
        let line = format!("slipstream_pull_requests_total{{source=\"{source}\",outcome=\"ok\"}}");
        assert_eq!(app.metric(&line).await, Some(1.0));
        let line = format!("slipstream_events_accepted_total{{source=\"{source}\"}}");
        assert_eq!(app.metric(&line).await, Some(1.0));
    }
    assert_eq!(app.metric(r#"slipstream_upstream_requests_total{outcome="ok"}"#).await, Some(2.0));
    simulator.set_fault(Some(Fault::RateLimited { seconds: 60 }));
    for source in ["planes", "adsbdb"] {
        let body = app.post(&format!("/ingest/{source}")).await.problem(502, true);
        assert_says(&body, &["ADSBDB's rate limit is active"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_openapi_document_describes_each_source_with_its_schema() {
    let (cluster, api) = (Cluster::start(), Api::start([]).await);
    let file = File::new(&format!(
        "{ORDERS}  api: {{description: An API, pull: {{url: '{}', records: /l}}, event: {{id: /id}}}}\n",
        api.url
    ));
    let app = file.on(&cluster, &[]).await;
    let document = app.get("/openapi.json").await.json();
    let schema = &document["components"]["schemas"]["Record_orders"];
    assert_eq!(schema["properties"]["no"]["type"], "integer");
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
    let paths = document["paths"].as_object().unwrap();
    for path in ["/ingest/orders", "/ingest/orders/batch", "/ingest/api", "/ingest/api/poll"] {
        let operation = &paths[path]["post"];
        assert!(
            operation["responses"]["202"].is_object() && operation["responses"]["405"].is_object(),
            "{path}"
        );
    }
    assert!(paths["/ingest/api"]["post"]["responses"]["200"].is_object());
    assert!(paths["/ingest/api/poll/{job_id}"]["delete"].is_object());
    assert!(!paths.contains_key("/ingest/{source}") && !paths.contains_key("/ingest/api/batch"));
    let operations = paths.values().flat_map(|methods| methods.as_object().unwrap().values());
    let mut ids: Vec<&str> = operations.map(|operation| operation["operationId"].as_str().unwrap()).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all, "{ids:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_never_ends_or_is_not_utf8_has_its_own_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        for slow in [false, true, true] {
            let (mut connection, _) = listener.accept().await.unwrap();
            head(&mut connection).await;
            connection.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n\"\xff").await.unwrap();
            while slow && connection.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    });
    let cluster = Cluster::start();
    let app = pull(&url, "records: /l", "").on(&cluster, &[]).await;
    assert_says(&app.post("/ingest/api").await.problem(502, true), &["it is not UTF-8"]);
    let began = Instant::now();
    assert_says(&app.post("/ingest/api").await.problem(502, true), &["did not respond within 1000 ms"]);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_a_validator_is_kept_only_after_every_record_is_stored() {
    let answer = |body: &str| http("200 OK", "ETag: \"1\"\r\n", body);
    let (cluster, api) = (Cluster::start(), Api::start([]).await);
    let file = pull(&api.url, "records: ''", "");
    let app = file.on(&cluster, &[("DELIVERY_TIMEOUT_MS", "1000")]).await;
    for body in [r#"[{"id":1}]"#, r#"[{"x":1}]"#] {
        api.set([answer(body)]);
        let before = api.requests().len();
        cluster.mock.broker_round_trip_time(-1, Duration::from_secs(60)).unwrap();
        let response = app.post("/ingest/api").await;
        assert!(response.status == 504 || response.status == 207, "{response:?}");
        cluster.mock.broker_round_trip_time(-1, Duration::ZERO).unwrap();
        let began = Instant::now();
        loop {
            let response = app.post("/ingest/api").await;
            if matches!(response.status, 202 | 207) && response.json()["results"][1].is_null() {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "{response:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let requests = api.requests();
        assert!(requests[before..].iter().all(|request| !request.contains("if-none-match")), "{requests:?}");
        app.post("/ingest/api").await;
        assert!(api.requests().last().unwrap().contains("if-none-match"));
        // Another validator, so that the next answer is fetched without one.
        api.set([http("404 Not Found", "", "")]);
        app.post("/ingest/api").await.problem(502, true);
        api.set([http("200 OK", "", "[]")]);
        assert_eq!(app.post("/ingest/api").await.status, 202);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g3_a_record_that_returns_to_older_content_after_a_failed_send_is_sent_again() {
    let (cluster, api) = (Cluster::start(), Api::start([]).await);
    let file = pull(&api.url, "records: ''", "");
    let app = file.on(&cluster, &[("DELIVERY_TIMEOUT_MS", "1000")]).await;
    let version = |tag: u32, value: u32| {
        http("200 OK", &format!("ETag: \"{tag}\"\r\n"), &format!("[{{\"id\":1,\"v\":{value}}}]"))
    };
    api.set([version(1, 1)]);
    assert_eq!(app.post("/ingest/api").await.statuses(), [202]);
    // The broker may have stored the second version: nobody knows.
    api.set([version(2, 2)]);
    cluster.mock.broker_round_trip_time(-1, Duration::from_secs(60)).unwrap();
    assert_eq!(app.post("/ingest/api").await.status, 504);
    cluster.mock.broker_round_trip_time(-1, Duration::ZERO).unwrap();
    api.set([version(1, 1)]);
    let began = Instant::now();
    loop {
        let response = app.post("/ingest/api").await;
        if response.status == 202 {
            assert_eq!(response.statuses(), [202], "sent again: {response:?}");
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{response:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!api.requests().last().unwrap().contains("if-none-match"), "the old validator is void");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g3_the_last_revision_of_an_id_in_an_answer_is_the_last_that_is_sent() {
    let (cluster, api) = (Cluster::start(), Api::start([]).await);
    let app = pull(&api.url, "records: ''", "").on(&cluster, &[]).await;
    api.set([ok(r#"[{"id":"a","v":1},{"id":"a","v":2},{"id":"a","v":2}]"#)]);
    for _ in 0..3 {
        let response = app.post("/ingest/api").await;
        assert_eq!(response.statuses(), [202, 202]);
        assert_eq!(response.json()["unchanged"], 1, "the third equals the second");
    }
    api.set([ok(r#"[{"id":"a","v":2}]"#)]);
    assert_eq!(app.post("/ingest/api").await.json()["unchanged"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_beyond_max_pages_are_reported_while_there_are_new_records() {
    let (cluster, api) = (Cluster::start(), Api::start([]).await);
    let paging = "records: /l, paging: {next: /n, max_pages: 2}";
    let app = pull(&api.url, paging, "").on(&cluster, &[]).await;
    api.set([ok(&page(&[1], r#","n":"?p=2""#)), ok(&page(&[2], r#","n":"?p=3""#))]);
    let response = app.post("/ingest/api").await;
    assert_eq!((response.statuses(), &response.json()["has_more"]), (vec![202, 202], &json!(true)));
    api.set([ok(&page(&[1], r#","n":"?p=2""#)), ok(&page(&[2], r#","n":"?p=3""#))]);
    let response = app.post("/ingest/api").await;
    assert_eq!(response.json()["unchanged"], 2);
    assert!(response.json()["has_more"].is_null(), "{response:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_is_early_by_less_than_half_a_second_waits() {
    let (cluster, api) = (Cluster::start(), Api::start([]).await);
    let app = pull(&api.url, "records: ''", "").on(&cluster, &[]).await;
    api.set([http("200 OK", "X-Poll-Interval: 2\r\n", "[]")]);
    let began = Instant::now();
    assert_eq!(app.post("/ingest/api").await.status, 202);
    app.post("/ingest/api").await.problem(502, true);
    tokio::time::sleep(Duration::from_millis(1_700).saturating_sub(began.elapsed())).await;
    assert_eq!(app.post("/ingest/api").await.status, 202);
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g6_a_missing_topic_of_one_source_does_not_hold_up_another() {
    let cluster = Cluster::start();
    let file = File::new(
        "sources:\n  lost: {push: {}, topic: no.such.topic, event: {id: /id}}\n  kept: {push: {}, event: {id: \
         /id}}\n",
    );
    let settings = [("SOURCES_FILE", &*file.path())];
    // The mock cannot create topics.
    let app = Application::start_on(&cluster.mock.bootstrap_servers(), &cluster.topic, &settings).await;
    let post = async |path: &str| app.request("POST", path, &JSON, r#"{"id":1}"#).await;
    let began = Instant::now();
    while post("/ingest/kept").await.status != 202 {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (_, body) = post("/ingest/lost").await.retry_after(503);
    assert_says(&body, &["topic no.such.topic cannot be created"]);
    assert_eq!(app.get("/readyz").await.status, 200);
    let health = app.get("/health").await.json();
    assert_eq!(health["status"], "degraded");
    assert!(health["cause"].as_str().unwrap().contains("topic no.such.topic cannot be created"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_job_waits_as_long_as_the_api_says_and_counts_no_failure() {
    let (cluster, api) = (Cluster::start(), Api::start([]).await);
    api.set([http("200 OK", "X-Poll-Interval: 1\r\n", "{\"l\":[{\"id\":1}]}")]);
    let app = pull(&api.url, "records: /l", "").on(&cluster, &[]).await;
    let started = app.post("/ingest/api/poll?interval_sec=0.1&duration_sec=2.5").await;
    let path = started.header("location").unwrap().to_owned();
    let began = Instant::now();
    while app.get(&path).await.json()["state"] != "done" {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let job = app.get(&path).await.json();
    assert_eq!(job["failed"], 0, "{job}");
    assert!(matches!(api.requests().len(), 2 | 3), "{:?}", api.requests());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_to_another_origin_gets_no_header_of_the_file() {
    let (cluster, other) = (Cluster::start(), Api::start([ok(r#"{"id":1}"#)]).await);
    let redirect = http("302 Found", &format!("Location: {}/y\r\n", other.url), "");
    let api = Api::start([redirect]).await;
    let app = pull(&api.url, "headers: {X-Token: secret}", "").on(&cluster, &[]).await;
    assert_says(&app.post("/ingest/api").await.problem(502, true), &["redirects to another origin"]);
    assert!(other.requests().is_empty());
    let app = pull(&api.url, "every: 1s", "").on(&cluster, &[]).await;
    assert_eq!(app.post("/ingest/api").await.status, 202);
    assert_eq!(other.requests().len(), 1);
}

#[tokio::test]
async fn a_faulty_file_ends_the_binary_with_2_and_one_line_for_each_fault() {
    let file =
        File::new("sources:\n  a: {push: {}, event: {id: /a}, x: 1}\n  b: {push: {}, event: {id: '('}}\n");
    let path = file.path();
    for arguments in [&[][..], &["--check-config"]] {
        let mut command = crate::binary::producer(&[("KAFKA_BROKER", "k:1"), ("SOURCES_FILE", &path)]);
        let output = command.args(arguments).output().await.unwrap();
        assert_eq!(output.status.code(), Some(2));
        let stderr = String::from_utf8(output.stderr).unwrap();
        for line in ["2", "3"] {
            let begin = format!("{path}:{line}:");
            assert!(stderr.lines().any(|found| found.starts_with(&begin)), "{begin} in {stderr}");
        }
    }
}
