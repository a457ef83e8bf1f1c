//! `/ingest/adsbdb` against the ADSBDB simulator.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use devservers::{Fault, Simulator};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::application::{Application, Cluster, assert_says};

/// A producer, an ADSBDB simulator and a mock broker.
pub struct Stack {
    pub simulator: Simulator,
    pub app: Application,
    pub cluster: Cluster,
}

impl Stack {
    /// Starts all three.
    pub async fn start(settings: &[(&str, &str)]) -> Self {
        let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap();
        let cluster = Cluster::start();
        let url = simulator.base_url();
        let mut all = vec![("ADSBDB_BASE_URL", url.as_str())];
        all.extend(settings);
        let app = cluster.application(&all).await;
        Self { simulator, app, cluster }
    }

    async fn ingest(&self) -> crate::application::Answer {
        self.app.post("/ingest/adsbdb").await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aircraft_becomes_an_event_and_is_in_the_response() {
    let stack = Stack::start(&[]).await;
    for fault in [None, Some(Fault::Nulls), Some(Fault::ExtraField)] {
        stack.simulator.set_fault(fault);
        let response = stack.ingest().await;
        assert_eq!(response.status, 202, "{response:?}");
        let body = response.json();
        assert_eq!((&body["status"], &body["id"]), (&json!("enqueued"), &body["payload"]["mode_s"]));
        let fields = body["payload"].as_object().unwrap().len();
        assert_eq!(fields, if fault == Some(Fault::ExtraField) { 12 } else { 11 }, "{body}");
        assert_eq!(body["timestamp"], body["ingested_at"]);
    }
    assert_eq!(stack.app.metric(r#"slipstream_events_accepted_total{source="adsbdb"}"#).await, Some(3.0));
    assert_eq!(stack.app.metric(r#"slipstream_upstream_requests_total{outcome="ok"}"#).await, Some(3.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unexpected_body_is_ignored() {
    let stack = Stack::start(&[]).await;
    let body = "x".repeat(900 * 1024);
    let response = stack.app.request("POST", "/ingest/adsbdb", &[], &body).await;
    assert_eq!(response.status, 202, "{response:?}");
    let head =
        b"POST /ingest/adsbdb HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 32\r\n\r\n";
    let response = stack.app.raw(&[head]).await;
    assert_eq!((response.status, response.header("connection")), (202, Some("close")), "{response:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_error_of_adsbdb_is_a_502_that_names_it() {
    let stack = Stack::start(&[]).await;
    let mut details = BTreeSet::new();
    for (fault, outcome, detail) in [
        (Fault::NotFound, "status", "ADSBDB returned status 404: unknown aircraft"),
        (Fault::ServerError, "status", "ADSBDB returned status 500: internal error"),
        (Fault::Reset, "unreachable", "ADSBDB cannot be reached: Connection reset by peer (os error 104)"),
        (
            Fault::Html,
            "nonsense",
            "ADSBDB returned an invalid response: it is a web page, as a proxy in between returns it",
        ),
        (Fault::TruncatedJson, "nonsense", "ADSBDB returned an invalid response: its JSON is cut off"),
        (
            Fault::ResponseIsText,
            "nonsense",
            "ADSBDB returned an invalid response: its `response` is a text and not an object with `aircraft`",
        ),
        // The last, because no request is sent after it.
        (Fault::RateLimited { seconds: 60 }, "limited", "ADSBDB's rate limit is active for another 60 s"),
    ] {
        stack.simulator.set_fault(Some(fault));
        let line = format!("slipstream_upstream_requests_total{{outcome=\"{outcome}\"}}");
        let before = stack.app.metric(&line).await.unwrap_or_default();
        let response = stack.ingest().await;
        assert_eq!(response.problem(502, true)["detail"], detail, "{fault:?}");
        let limited = matches!(fault, Fault::RateLimited { .. });
        assert_eq!(response.header("retry-after"), limited.then_some("60"), "{fault:?}");
        assert!(stack.app.metric(&line).await.unwrap() > before, "{fault:?}");
        assert!(details.insert(detail), "each error has its own detail");
    }
    let health = stack.app.get("/health").await.json();
    assert_eq!((&health["status"], &health["counters"]["rejected"]), (&json!("ok"), &json!(7)));
    assert!(health["last_error"].as_str().unwrap().contains("rate limit is active"), "{health}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_and_a_slow_adsbdb_have_different_errors() {
    let stack = Stack::start(&[("ADSBDB_TIMEOUT_MS", "600")]).await;
    stack.simulator.set_fault(Some(Fault::Slow(Duration::from_secs(20))));
    let began = Instant::now();
    assert_says(&stack.ingest().await.problem(502, true), &["did not respond within 600 ms"]);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    stack.simulator.stop().await;
    let body = stack.app.post("/ingest/adsbdb").await.problem(502, true);
    assert_says(&body, &["cannot be reached", "refused"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aircraft_that_is_not_acknowledged_is_reported_with_its_id() {
    // ADSBDB responds only after the outage of the broker is detected.
    let settings = [("ADSBDB_TIMEOUT_MS", "20000"), ("DELIVERY_TIMEOUT_MS", "1000")];
    let stack = Stack::start(&settings).await;
    assert_eq!(stack.ingest().await.status, 202);
    stack.simulator.set_latency(Duration::from_secs(4));
    let (requests, mock) = (stack.simulator.requests(), &stack.cluster.mock);
    let disconnect = async {
        while stack.simulator.requests() == requests {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        mock.broker_down(-1).unwrap();
        stack.app.readyz(503).await;
    };
    let (response, ()) = tokio::join!(stack.ingest(), disconnect);
    let (_, body) = response.retry_after(503);
    assert_says(&body, &["nothing was stored", "kafka does not answer"]);
    let is_mode_s = |id: &str| id.len() == 6 && id.chars().all(|c| c.is_ascii_hexdigit());
    assert!(body["id"].as_str().is_some_and(is_mode_s), "{body}");

    mock.broker_up(-1).unwrap();
    stack.app.readyz(200).await;
    stack.simulator.set_latency(Duration::ZERO);
    mock.broker_round_trip_time(-1, Duration::from_secs(60)).unwrap();
    let body = stack.ingest().await.problem(504, true);
    assert_says(&body, &["may or may not be stored"]);
    assert!(body["id"].as_str().is_some_and(is_mode_s), "{body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transient_error_is_retried_twice() {
    let stack = Stack::start(&[]).await;
    for fault in [Fault::ServerError, Fault::Reset] {
        let before = stack.simulator.requests();
        stack.simulator.set_fault_for(2, fault);
        assert_eq!(stack.ingest().await.status, 202, "{fault:?}");
        assert_eq!(stack.simulator.requests() - before, 3);
    }
    let before = stack.simulator.requests();
    stack.simulator.set_fault_for(3, Fault::ServerError);
    stack.ingest().await.problem(502, true);
    assert_eq!(stack.simulator.requests() - before, 3, "one attempt and two retries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_sent_while_a_rate_limit_is_active() {
    let stack = Stack::start(&[]).await;
    stack.simulator.set_fault_for(1, Fault::RateLimited { seconds: 2 });
    let response = stack.ingest().await;
    assert_says(&response.problem(502, true), &["rate limit is active"]);
    assert_eq!(response.retry_after(502).0, 2);
    let requests = stack.simulator.requests();
    let line = r#"slipstream_upstream_requests_total{outcome="limited"}"#;
    assert_eq!(stack.app.metric(line).await, Some(1.0));
    let limited = Instant::now();
    let response = stack.ingest().await;
    assert!(limited.elapsed() < Duration::from_millis(500));
    assert!(matches!(response.retry_after(502).0, 1 | 2));
    assert_eq!(stack.simulator.requests(), requests, "a request was sent despite the rate limit");
    while stack.ingest().await.status != 202 {
        assert!(limited.elapsed() < Duration::from_secs(5), "the rate limit did not end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(stack.app.metric(line).await, Some(1.0), "requests that were not sent are not counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_requests_to_adsbdb_are_limited() {
    let stack = Stack::start(&[("ADSBDB_MAX_CONCURRENCY", "1")]).await;
    stack.simulator.set_latency(Duration::from_millis(200));
    let began = Instant::now();
    let responses = futures::future::join_all((0..3).map(|_| stack.ingest())).await;
    assert!(responses.iter().all(|response| response.status == 202));
    assert!(began.elapsed() >= Duration::from_millis(600), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_a_permit_is_a_502_and_not_sent_to_adsbdb() {
    let settings = [("ADSBDB_MAX_CONCURRENCY", "1"), ("ADSBDB_TIMEOUT_MS", "2000")];
    let stack = Stack::start(&settings).await;
    stack.simulator.set_latency(Duration::from_millis(300));
    let responses = futures::future::join_all((0..12).map(|_| stack.ingest())).await;
    let no_permit = "no permit for a request to ADSBDB became free within 1800 ms";
    let rejected = responses
        .iter()
        .filter(|response| response.status == 502 && response.text.contains(no_permit))
        .count();
    assert!(rejected > 0, "{responses:?}");
    let mut sent = 0.0;
    for outcome in ["ok", "slow"] {
        let line = format!("slipstream_upstream_requests_total{{outcome=\"{outcome}\"}}");
        sent += stack.app.metric(&line).await.unwrap_or_default();
    }
    assert_eq!(sent as usize, responses.len() - rejected, "{responses:?}");
}

/// Starts a server that returns `response` to every request. Returns its URL.
async fn serve(response: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            assert_ne!(connection.read(&mut [0; 4096]).await.unwrap(), 0);
            connection.write_all(response.as_bytes()).await.unwrap();
        }
    });
    url
}

fn http(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_without_an_aircraft_is_a_502() {
    let cluster = Cluster::start();
    for (body, words) in [
        (r#"{"response":[{"mode_s":"A1"}]}"#, "no `aircraft`"),
        (r#"[{"aircraft":{"mode_s":"A1"}}]"#, "not an object with `response`"),
        (r#"{"response":{"aircraft":[{"mode_s":"A1"}]}}"#, "not an object"),
        (r#"{"response":{"aircraft":{}}}"#, "no fields"),
    ] {
        let url = serve(http("200 OK", "", body)).await;
        let app = cluster.application(&[("ADSBDB_BASE_URL", &url)]).await;
        assert_says(&app.post("/ingest/adsbdb").await.problem(502, true), &[words]);
        assert_eq!(app.counters.accepted(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_after_date_is_passed_on_and_sets_the_rate_limit() {
    let cluster = Cluster::start();
    let headers = "Date: Tue, 24 Nov 2026 06:30:00 GMT\r\nRetry-After: Tue, 24 Nov 2026 06:30:39 GMT\r\n";
    let url = serve(http("404 Not Found", headers, "")).await;
    let app = cluster.application(&[("ADSBDB_BASE_URL", &url)]).await;
    let (seconds, body) = app.post("/ingest/adsbdb").await.retry_after(502);
    assert_eq!(seconds, 39, "{body}");
    let url = serve(http("429 Too Many Requests", headers, "")).await;
    let app = cluster.application(&[("ADSBDB_BASE_URL", &url)]).await;
    for _ in 0..2 {
        let (seconds, body) = app.post("/ingest/adsbdb").await.retry_after(502);
        assert!((37..=39).contains(&seconds), "{seconds}");
        assert_says(&body, &["rate limit is active"]);
    }
    assert_eq!(app.metric(r#"slipstream_upstream_requests_total{outcome="limited"}"#).await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_response_is_read_only_up_to_the_limit() {
    let endless = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", endless.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut connection, _) = endless.accept().await.unwrap();
        assert_ne!(connection.read(&mut [0; 1024]).await.unwrap(), 0);
        connection.write_all(b"HTTP/1.1 200 OK\r\n\r\n{\"response\":\"").await.unwrap();
        while connection.write_all(&[b'x'; 4096]).await.is_ok() {}
    });
    let cluster = Cluster::start();
    let app = cluster.application(&[("ADSBDB_BASE_URL", &url)]).await;
    assert_says(&app.post("/ingest/adsbdb").await.problem(502, true), &["more than 262144 bytes"]);
}
