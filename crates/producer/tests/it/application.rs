//! A producer under test, with verbs.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use producer::{App, Config, Counters, RunError};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Nothing that a test waits for takes longer.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A producer that runs in this process.
pub struct Application {
    pub address: SocketAddr,
    pub topic: String,
    pub counters: Counters,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<Result<(), RunError>>>>,
}

/// A name that no other test uses.
pub fn unique(what: &str) -> String {
    format!("{what}.{:016x}", fastrand::u64(..))
}

impl Application {
    /// Starts one that talks to `bootstrap`, with a topic of its own.
    pub async fn start(bootstrap: &str, settings: &[(&str, &str)]) -> Self {
        Self::start_on(bootstrap, &unique("events"), settings).await
    }

    /// Starts one for `topic`. Every timeout is short, unless `settings` say otherwise.
    pub async fn start_on(bootstrap: &str, topic: &str, settings: &[(&str, &str)]) -> Self {
        let mut environment = vec![
            ("KAFKA_BROKER", bootstrap),
            ("KAFKA_TOPIC", topic),
            ("KAFKA_PARTITIONS", "3"),
            ("LISTEN_ADDR", "127.0.0.1:0"),
            ("ADSBDB_BASE_URL", "http://127.0.0.1:9"),
        ];
        environment.extend(testkit::process::as_entry());
        environment.retain(|(name, _)| settings.iter().all(|(set, _)| set != name));
        let pairs = environment.iter().chain(settings).map(|(name, value)| ((*name).into(), (*value).into()));
        let app = App::build(Config::from_environment(pairs).unwrap()).await.unwrap();
        let (address, counters, stop) = (app.address(), app.counters(), CancellationToken::new());
        let task = Mutex::new(Some(tokio::spawn(app.run_until(stop.clone()))));
        Self { address, topic: topic.into(), counters, stop, task }
    }

    /// One that runs elsewhere.
    pub fn at(address: SocketAddr) -> Self {
        Self {
            address,
            topic: String::new(),
            counters: Counters::default(),
            stop: CancellationToken::new(),
            task: Mutex::new(None),
        }
    }

    /// Waits until `/readyz` answers `status`, and tells how long that took.
    pub async fn readyz(&self, status: u16) -> Duration {
        let began = Instant::now();
        loop {
            let answer = self.get("/readyz").await;
            if answer.status == status {
                return began.elapsed();
            }
            assert!(began.elapsed() < PATIENCE, "no {status} from /readyz: {answer:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ready, or the test fails.
    pub async fn ready(self) -> Self {
        self.readyz(200).await;
        self
    }

    /// `GET path`.
    pub async fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], "").await
    }

    /// `POST path` without a body.
    pub async fn post(&self, path: &str) -> Answer {
        self.request("POST", path, &[], "").await
    }

    /// `POST /ingest` of a JSON body.
    pub async fn ingest(&self, body: &str) -> Answer {
        self.request("POST", "/ingest", &[("Content-Type", "application/json")], body).await
    }

    /// `POST /ingest/batch` of lines.
    pub async fn batch(&self, lines: &[&str]) -> Answer {
        let headers = [("Content-Type", "application/x-ndjson")];
        self.request("POST", "/ingest/batch", &headers, &lines.join("\n")).await
    }

    /// One request with any body on a connection of its own.
    pub async fn post_bytes(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut head = format!("POST {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        self.raw(&[head.as_bytes(), body]).await
    }

    /// One request on a connection of its own.
    pub async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        ask(self.address, method, path, headers, body).await
    }

    /// Sends `parts` as they are, all of them, and only then reads the answer.
    pub async fn raw(&self, parts: &[&[u8]]) -> Answer {
        send(self.address, parts).await
    }

    /// As [`Application::ingest`]; `None` if the connection is refused or cut.
    pub async fn try_ingest(&self, body: &str) -> Option<Answer> {
        let mut connection = TcpStream::connect(self.address).await.ok()?;
        let length = body.len();
        let head = format!(
            "POST /ingest HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        connection.write_all(format!("{head}{body}").as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).await.ok()?;
        (!answer.is_empty()).then(|| Answer::parse(&answer))
    }

    /// `GET path`; `None` if the connection is refused, cut or closed.
    pub async fn get_if_let_in(&self, path: &str) -> Option<Answer> {
        let mut connection = TcpStream::connect(self.address).await.ok()?;
        let head = format!("GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
        connection.write_all(head.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).await.ok()?;
        (!answer.is_empty()).then(|| Answer::parse(&answer))
    }

    /// A metric's value.
    pub async fn metric(&self, line: &str) -> Option<f64> {
        let text = self.get("/metrics").await.text;
        text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok())
    }

    /// Begins to stop.
    pub fn begin_to_stop(&self) {
        self.stop.cancel();
    }

    /// Waits for the end.
    pub async fn ended(&self) {
        let task = self.task.lock().await.take().expect("one who waits");
        let ended = tokio::time::timeout(PATIENCE, task).await.expect("an end in time");
        ended.expect("no panic").expect("a clean end");
    }

    /// Stops it, and tells how long that took.
    pub async fn stop(self) -> Duration {
        let began = Instant::now();
        self.begin_to_stop();
        self.ended().await;
        began.elapsed()
    }
}

/// One request on a connection of its own, to whoever listens there.
pub async fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if method == "POST" {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    send(address, &[format!("{head}\r\n{body}").as_bytes()]).await
}

async fn send(address: SocketAddr, parts: &[&[u8]]) -> Answer {
    let mut connection = TcpStream::connect(address).await.unwrap();
    for part in parts {
        connection.write_all(part).await.unwrap();
    }
    let mut answer = Vec::new();
    let read = connection.read_to_end(&mut answer);
    tokio::time::timeout(PATIENCE, read).await.expect("an answer in time").unwrap();
    Answer::parse(&answer)
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub text: String,
}

impl Answer {
    /// The answer that `bytes` are.
    pub fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(&dechunked(bytes)).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        Self { status, headers, text: body.to_owned() }
    }

    /// The result of one event of a batch.
    #[track_caller]
    pub fn result(&self, index: usize) -> Value {
        let result = self.json()["results"][index].clone();
        assert_eq!(result["index"], index, "{self:?}");
        result
    }

    /// The statuses of a batch's events.
    pub fn statuses(&self) -> Vec<u64> {
        let body = self.json();
        let results = body["results"].as_array().unwrap_or_else(|| panic!("no results: {self:?}"));
        let statuses: Vec<u64> = results.iter().map(|result| result["status"].as_u64().unwrap()).collect();
        let accepted = statuses.iter().filter(|status| **status == 202).count();
        assert_eq!(
            (&body["accepted"], &body["rejected"]),
            (&accepted.into(), &(statuses.len() - accepted).into())
        );
        assert!(results.iter().enumerate().all(|(index, result)| result["index"] == index), "{self:?}");
        statuses
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The body.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks that this is a complete problem of `status`, and gives its body.
    #[track_caller]
    pub fn problem(&self, status: u16, retryable: bool) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let body = self.json();
        assert_eq!(body["status"], status);
        assert_eq!(body["retryable"], retryable, "{body}");
        assert!(body["type"].is_string() && body["title"].is_string(), "{body}");
        assert!(body["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{body}");
        body
    }

    /// As [`Answer::problem`], retryable and with Retry-After.
    #[track_caller]
    pub fn retry_after(&self, status: u16) -> (u64, Value) {
        let body = self.problem(status, true);
        let seconds = self.header("retry-after").and_then(|text| text.parse().ok());
        (seconds.unwrap_or_else(|| panic!("no Retry-After: {self:?}")), body)
    }
}

/// The answer with its body in one piece, as it was before the server cut it into chunks.
fn dechunked(answer: &[u8]) -> Vec<u8> {
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    let (head, mut rest) = answer.split_at(end);
    if !String::from_utf8_lossy(head).to_lowercase().contains("\r\ntransfer-encoding: chunked") {
        return answer.to_vec();
    }
    let mut whole = head.to_vec();
    while let Some(line) = rest.windows(2).position(|part| part == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        whole.extend_from_slice(&rest[line + 2..line + 2 + size]);
        rest = &rest[line + 2 + size + 2..];
    }
    whole
}

/// Checks that `text` has each of `parts`.
#[track_caller]
pub fn assert_says(body: &Value, parts: &[&str]) {
    let detail = body["detail"].as_str().unwrap_or_default();
    for part in parts {
        assert!(detail.contains(part), "{part:?} in {detail:?}");
    }
}

/// A cluster of one broker with one topic.
pub struct Cluster {
    pub mock: MockCluster<'static, DefaultProducerContext>,
    pub topic: String,
}

impl Cluster {
    /// Starts it.
    pub fn start() -> Self {
        let mock = MockCluster::new(1).unwrap();
        let topic = unique("events");
        mock.create_topic(&topic, 1, 1).unwrap();
        Self { mock, topic }
    }

    /// A producer that is ready to send to it.
    pub async fn application(&self, settings: &[(&str, &str)]) -> Application {
        Application::start_on(&self.mock.bootstrap_servers(), &self.topic, settings).await.ready().await
    }
}
