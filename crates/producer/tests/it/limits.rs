//! Limits of connections and requests: clients that are too many, slow or silent, the memory of ten
//! thousand connections, and the limit of open files.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::application::{Application, Cluster, PATIENCE, assert_says};
use crate::binary::{Lines, producer, read_until};

const EVENT: &str = r#"{"id":"a-1","source":"manual","payload":{}}"#;

async fn connect(app: &Application, count: usize) -> Vec<TcpStream> {
    let connections = (0..count).map(|_| TcpStream::connect(app.address));
    futures::future::try_join_all(connections).await.unwrap()
}

/// Waits until this number of connections is open. The connection of the query counts, too.
async fn wait_for_connections(app: &Application, connections: usize) {
    let began = Instant::now();
    while app.metric("slipstream_connections").await != Some(connections as f64) {
        assert!(began.elapsed() < PATIENCE, "{:?}", app.metric("slipstream_connections").await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_max_connections_events_are_rejected_and_health_is_served() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("MAX_CONNECTIONS", "20")]).await;
    let idle = connect(&app, 20).await;
    wait_for_connections(&app, 21).await;
    for path in ["/livez", "/readyz", "/health", "/metrics"] {
        let answer = app.request("GET", path, &[("Connection", "keep-alive")], "").await;
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{path}");
    }
    let named = [("X-Request-Id", "r-1"), ("Idempotency-Key", "a-1")];
    let rejected = app.request("POST", "/ingest", &named, EVENT).await;
    assert_eq!(
        (rejected.header("x-request-id"), rejected.header("connection")),
        (Some("r-1"), Some("close"))
    );
    let (seconds, body) = rejected.retry_after(503);
    assert_eq!((seconds, &body["id"]), (1, &"a-1".into()));
    assert_says(&body, &["nothing was stored", "MAX_CONNECTIONS"]);
    let long = app.ingest(&"x".repeat(900 * 1024)).await;
    assert_says(&long.retry_after(503).1, &["MAX_CONNECTIONS"]);
    for (line, value) in [
        ("slipstream_connections_refused_total", 2.0),
        (r#"slipstream_http_requests_total{route="/ingest",status="503"}"#, 2.0),
        (r#"slipstream_events_rejected_total{reason="overloaded"}"#, 2.0),
        ("slipstream_requests_in_flight", 0.0),
    ] {
        assert_eq!(app.metric(line).await, Some(value), "{line}");
    }
    drop(idle);
    wait_for_connections(&app, 1).await;
    assert_eq!(app.ingest(EVENT).await.status, 202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_extra_connections_a_503_is_sent_unread_until_one_ends() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("MAX_CONNECTIONS", "1")]).await;
    let silent = connect(&app, 1 + 64).await;
    let began = Instant::now();
    let rejected = loop {
        let mut connection = TcpStream::connect(app.address).await.unwrap();
        let mut answer = String::new();
        let read = connection.read_to_string(&mut answer);
        match tokio::time::timeout(Duration::from_millis(200), read).await {
            Ok(read) => break read.map(|_| answer).unwrap(),
            // This connection got one of the last permits, because others were not accepted yet.
            Err(_) => assert!(began.elapsed() < Duration::from_secs(2)),
        }
    };
    assert!(rejected.starts_with("HTTP/1.1 503 ") && rejected.contains("retry-after: 1"), "{rejected}");
    assert!(
        rejected.contains("application/problem+json") && rejected.contains("MAX_CONNECTIONS"),
        "{rejected}"
    );
    // A silent extra connection is closed after two seconds.
    let began = Instant::now();
    loop {
        let answer = app.get_if_let_in("/livez").await;
        if answer.is_some_and(|answer| answer.status == 200) {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(5), "no extra connection was closed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_max_in_flight_events_are_rejected_and_health_is_served() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("MAX_IN_FLIGHT", "3"), ("REQUEST_TIMEOUT_MS", "60000")]).await;
    let head = b"POST /ingest HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: 43\r\n\r\n";
    let mut reading = connect(&app, 3).await;
    for connection in &mut reading {
        connection.write_all(head).await.unwrap();
    }
    let began = Instant::now();
    while app.metric("slipstream_requests_in_flight").await != Some(3.0) {
        assert!(began.elapsed() < PATIENCE);
    }
    let (seconds, body) = app.ingest(EVENT).await.retry_after(503);
    assert_eq!((seconds, body.get("id")), (1, None), "its body was not read");
    assert_says(&body, &["nothing was stored", "MAX_IN_FLIGHT"]);
    let named = app.request("POST", "/ingest", &[("Idempotency-Key", "a-1")], EVENT).await;
    assert_eq!(named.retry_after(503).1["id"], "a-1");
    let named = app.request("POST", "/ingest/batch", &[("Idempotency-Key", "a-1")], EVENT).await;
    assert_eq!(named.retry_after(503).1.get("id"), None, "a batch has no single id");
    app.post("/ingest/adsbdb").await.retry_after(503);
    for path in ["/livez", "/readyz", "/health", "/metrics"] {
        assert_eq!(app.get(path).await.status, 200, "{path}");
    }
    app.post("/ingest/adsbdb/poll").await.retry_after(503);
    app.request("POST", "/ingest/batch", &[], "[]").await.retry_after(503);
    let rejected = app.metric(r#"slipstream_events_rejected_total{reason="overloaded"}"#).await;
    assert_eq!(rejected, Some(5.0));

    for connection in &mut reading {
        connection.write_all(EVENT.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    }
    assert_eq!(app.ingest(EVENT).await.status, 202, "the permits are free again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poll_jobs_can_be_listed_and_cancelled_while_no_permit_is_free() {
    let cluster = Cluster::start();
    let settings =
        [("MAX_IN_FLIGHT", "1"), ("REQUEST_TIMEOUT_MS", "60000"), ("ADSBDB_BASE_URL", "http://127.0.0.1:9")];
    let app = cluster.application(&settings).await;
    let job = app.post("/ingest/adsbdb/poll?interval_sec=600&duration_sec=600").await;
    let job = job.header("location").unwrap().to_owned();
    let mut holder = TcpStream::connect(app.address).await.unwrap();
    holder.write_all(b"POST /ingest HTTP/1.1\r\nHost: t\r\nContent-Length: 43\r\n\r\n").await.unwrap();
    let began = Instant::now();
    while app.metric("slipstream_requests_in_flight").await != Some(1.0) {
        assert!(began.elapsed() < PATIENCE);
    }
    app.post("/ingest/adsbdb/poll").await.retry_after(503);
    assert_eq!(app.get("/ingest/adsbdb/poll").await.json()["jobs"][0]["state"], "running");
    assert_eq!(app.get(&job).await.status, 200);
    let cancelled = app.request("DELETE", &job, &[], "").await;
    assert_eq!((cancelled.status, &cancelled.json()["state"]), (200, &"cancelled".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_client_can_reuse_its_connection() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("MAX_IN_FLIGHT", "1"), ("REQUEST_TIMEOUT_MS", "60000")]).await;
    let mut holder = TcpStream::connect(app.address).await.unwrap();
    holder.write_all(b"POST /ingest HTTP/1.1\r\nHost: t\r\nContent-Length: 43\r\n\r\n").await.unwrap();
    let began = Instant::now();
    while app.metric("slipstream_requests_in_flight").await != Some(1.0) {
        assert!(began.elapsed() < PATIENCE);
    }
    let mut connection = TcpStream::connect(app.address).await.unwrap();
    let request =
        format!("POST /ingest HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{EVENT}", EVENT.len());
    for status in ["503", "202"] {
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let length = connection.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        if status == "503" {
            // The permit becomes free for the second request.
            holder.write_all(EVENT.as_bytes()).await.unwrap();
            assert_ne!(holder.read(&mut [0; 4096]).await.unwrap(), 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_holds_its_permit_until_it_is_sent() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("MAX_IN_FLIGHT", "1"), ("MAX_BATCH_EVENTS", "100000")]).await;
    // The results have hundreds of bytes per line, more than the buffers of the sockets.
    let lines = "{}\n".repeat(50_000);
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut reader = socket.connect(app.address).await.unwrap();
    let head = "POST /ingest/batch HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\
                Content-Type: application/x-ndjson\r\n";
    reader
        .write_all(format!("{head}Content-Length: {}\r\n\r\n{lines}", lines.len()).as_bytes())
        .await
        .unwrap();
    let mut answer = vec![0; 100];
    tokio::time::timeout(PATIENCE, reader.read_exact(&mut answer)).await.expect("an answer").unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 422 "), "{}", String::from_utf8_lossy(&answer));
    assert_says(&app.ingest(EVENT).await.retry_after(503).1, &["MAX_IN_FLIGHT"]);
    drop(reader);
    let began = Instant::now();
    while app.ingest(EVENT).await.status != 202 {
        assert!(began.elapsed() < PATIENCE, "the permit is not free");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

const UNNAMED: &str = r#"{"source":"manual","payload":{}}"#;
const LIMIT: Duration = Duration::from_millis(700);
const SETTINGS: &[(&str, &str)] = &[("REQUEST_TIMEOUT_MS", "700")];

/// Sends `start` at once and `rest` byte by byte. Returns the response and the duration.
async fn send_slowly(app: &Application, start: &str, rest: &str) -> (String, Duration) {
    let began = Instant::now();
    let (mut reader, mut writer) = TcpStream::connect(app.address).await.unwrap().into_split();
    writer.write_all(start.as_bytes()).await.unwrap();
    let bytes: Vec<u8> = rest.bytes().collect();
    let send = async {
        for byte in bytes {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if writer.write_all(&[byte]).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    let read = async {
        // A closed connection may end with a reset.
        _ = reader.read_to_end(&mut answer).await;
    };
    tokio::select! {
        () = send => {}
        ended = tokio::time::timeout(PATIENCE, read) => ended.expect("an end in time"),
    }
    (String::from_utf8(answer).unwrap(), began.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_heads_and_bodies_time_out_and_do_not_affect_others() {
    let cluster = Cluster::start();
    let app = cluster.application(SETTINGS).await;
    let long = "x".repeat(1000);
    let head = "POST /ingest HTTP/1.1\r\nHost: t\r\nContent-Length: 1000\r\n\r\n{";
    let slow_heads = (0..50).map(|_| send_slowly(&app, "POST /ingest HTTP/1.1\r\nHo", &long));
    let slow_bodies = (0..50).map(|_| send_slowly(&app, head, &long));
    let others = async {
        let began = Instant::now();
        while began.elapsed() < LIMIT * 2 {
            let asked = Instant::now();
            assert_eq!(app.ingest(UNNAMED).await.status, 202);
            assert!(asked.elapsed() < LIMIT / 2, "{:?}", asked.elapsed());
        }
    };
    let (heads, bodies, ()) =
        tokio::join!(futures::future::join_all(slow_heads), futures::future::join_all(slow_bodies), others);
    for (answer, took) in heads {
        assert_eq!(answer, "");
        assert!(took >= LIMIT && took < LIMIT * 3, "{took:?}");
    }
    for (answer, took) in bodies {
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.contains("connection: close") && answer.contains("within 700 ms"), "{answer}");
        assert!(took >= LIMIT && took < LIMIT * 3, "{took:?}");
    }
    assert_eq!(app.metric(r#"slipstream_connections_cut_total{step="head"}"#).await, Some(50.0));
    assert_eq!(app.metric("slipstream_requests_in_flight").await, Some(0.0));
    assert_eq!(app.metric("slipstream_connections").await, Some(1.0), "the connection of this query");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_can_be_idle_for_longer_than_the_request_timeout() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("REQUEST_TIMEOUT_MS", "200"), ("IDLE_TIMEOUT_MS", "1500")]).await;
    let request = b"GET /livez HTTP/1.1\r\nHost: t\r\n\r\n";
    let mut connection = TcpStream::connect(app.address).await.unwrap();
    let mut buffer = [0; 1024];
    for pause_ms in [600, 600] {
        connection.write_all(request).await.unwrap();
        assert_ne!(connection.read(&mut buffer).await.unwrap(), 0);
        let silence = tokio::time::timeout(Duration::from_millis(pause_ms), connection.read(&mut buffer));
        assert!(silence.await.is_err(), "the connection stays open");
    }
    let began = Instant::now();
    let end = tokio::time::timeout(PATIENCE, connection.read(&mut buffer)).await.unwrap();
    assert_eq!(end.unwrap(), 0);
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_its_responses_is_disconnected() {
    let cluster = Cluster::start();
    let app = cluster.application(SETTINGS).await;
    let mut connection = TcpStream::connect(app.address).await.unwrap();
    let requests = b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n".repeat(500);
    // The client does not read the responses, so the producer stops to read requests.
    let send = async { while connection.write_all(&requests).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, send).await.expect("the connection is closed");
    assert_eq!(app.metric(r#"slipstream_connections_cut_total{step="answer"}"#).await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_is_too_long_returns_431() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let (mut reader, mut writer) = TcpStream::connect(app.address).await.unwrap().into_split();
    writer.write_all(b"GET /livez HTTP/1.1\r\nHost: t\r\nX: ").await.unwrap();
    let endless = async { while writer.write_all(&[b'x'; 4096]).await.is_ok() {} };
    let mut answer = Vec::new();
    let ended = async { tokio::join!(endless, reader.read_to_end(&mut answer)) };
    _ = tokio::time::timeout(PATIENCE, ended).await.expect("an end in time");
    // A reset may overtake the response.
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

const CONNECTIONS: usize = 10_000;
/// Further open files of this process, its other tests and their brokers.
const OTHER_FILES: u64 = 2_500;

struct Process {
    child: Child,
    lines: Lines,
    address: SocketAddr,
}

impl Process {
    async fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut lines = tokio::io::AsyncBufReadExt::lines(BufReader::new(child.stdout.take().unwrap()));
        let address = read_until(&mut lines, "listening").await["address"].as_str().unwrap().parse().unwrap();
        Self { child, lines, address }
    }

    /// The value of a line in /proc/…/status, in KiB.
    fn status_kib(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap()
    }

    /// CPU time so far, in clock ticks of 10 ms.
    fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id().unwrap())).unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
    }
}

/// Sends a request on a persistent connection and returns the status.
async fn ask(connection: &mut TcpStream, request: &str) -> u16 {
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 8192];
    let read = tokio::time::timeout(PATIENCE, connection.read(&mut answer)).await.expect("an answer in time");
    let text = String::from_utf8_lossy(&answer[..read.unwrap()]).into_owned();
    text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{text:?}"))
}

const LIVEZ: &str = "GET /livez HTTP/1.1\r\nHost: t\r\n\r\n";

async fn idle(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut connections = Vec::with_capacity(count);
    while connections.len() < count {
        let some = (count - connections.len()).min(250);
        let open = (0..some).map(|_| async {
            let mut connection = TcpStream::connect(address).await.unwrap();
            assert_eq!(ask(&mut connection, LIVEZ).await, 200);
            connection
        });
        connections.extend(futures::future::join_all(open).await);
    }
    connections
}

#[testkit::needs(open_files)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_cost_little_memory_and_fail_no_busy_one() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let needed = CONNECTIONS as u64 + OTHER_FILES;
    assert!(
        hard >= needed,
        "{CONNECTIONS} connections need a hard limit of {needed} open files, and it is {hard}: raise it (ulimit -Hn)"
    );
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let cluster = Cluster::start();
    let broker = cluster.mock.bootstrap_servers();
    let process = Process::start(producer(&[
        ("KAFKA_BROKER", &broker),
        ("KAFKA_TOPIC", &cluster.topic),
        ("LISTEN_ADDR", "127.0.0.1:0"),
    ]));
    let process = process.await;
    let mut idle = idle(process.address, CONNECTIONS).await;

    let event = format!(r#"{{"source":"manual","payload":{{"text":"{}"}}}}"#, "x".repeat(1000));
    let request =
        format!("POST /ingest HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{event}", event.len());
    let busy = (0..200).map(|_| async {
        let mut connection = TcpStream::connect(process.address).await.unwrap();
        for _ in 0..20 {
            assert_eq!(ask(&mut connection, &request).await, 202);
        }
    });
    futures::future::join_all(busy).await;

    let memory_kib = process.status_kib("VmHWM");
    assert!(memory_kib < 300 * 1024, "{memory_kib} KiB for {CONNECTIONS} connections");
    for connection in idle.iter_mut().step_by(CONNECTIONS / 100) {
        assert_eq!(ask(connection, LIVEZ).await, 200, "an idle connection is still served");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_out_of_files_waits_without_spinning_and_goes_on() {
    let program = producer(&[]).as_std().get_program().to_owned();
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 60; exec \"$0\""]).arg(program).env_clear();
    limited.env("KAFKA_BROKER", "127.0.0.1:9").env("LISTEN_ADDR", "127.0.0.1:0").kill_on_drop(true);
    limited.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
    let mut process = Process::start(limited).await;
    // The kernel completes connections that the process has not accepted.
    let connections = (0..80).map(|_| TcpStream::connect(process.address));
    let mut connections = futures::future::try_join_all(connections).await.unwrap();
    let warning = read_until(&mut process.lines, "connections cannot be accepted").await;
    assert_eq!(warning["level"], "WARN", "{warning}");

    let (began, ticks) = (Instant::now(), process.ticks());
    let mut last = connections.pop().unwrap();
    let silence = tokio::time::timeout(Duration::from_secs(1), ask(&mut last, LIVEZ)).await;
    assert!(silence.is_err(), "no file descriptor is free");
    let (used, passed) = (process.ticks() - ticks, began.elapsed());
    assert!(used < 30, "{used} ticks of 10 ms in {passed:?}");

    connections.truncate(10);
    let mut buffer = [0; 1024];
    let answer = tokio::time::timeout(PATIENCE, last.read(&mut buffer)).await.expect("an answer").unwrap();
    assert!(buffer[..answer].starts_with(b"HTTP/1.1 200 "));
    let mut next = String::new();
    while next != "connections are accepted again" {
        let line = process.lines.next_line().await.unwrap().expect("more lines");
        next = serde_json::from_str::<serde_json::Value>(&line).unwrap()["message"].as_str().unwrap().into();
        assert_ne!(next, "connections cannot be accepted", "logged once");
    }
}
