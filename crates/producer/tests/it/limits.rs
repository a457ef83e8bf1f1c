//! MAX_CONNECTIONS and MAX_IN_FLIGHT: beyond them requests get a 503, except health and metrics.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::application::{Application, Cluster, PATIENCE, assert_says};

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
