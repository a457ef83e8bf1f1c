//! `/ingest/adsbdb`, against the simulator.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use devservers::{Fault, Simulator};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::application::{Application, assert_says};
use crate::mock::Cluster;

/// A producer, ADSBDB and a broker.
pub struct World {
    pub simulator: Simulator,
    pub app: Application,
    pub cluster: Cluster,
}

impl World {
    /// Starts them.
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
async fn an_aircraft_becomes_an_event_and_is_shown() {
    let world = World::start(&[]).await;
    for fault in [None, Some(Fault::Nulls), Some(Fault::ExtraField)] {
        world.simulator.set_fault(fault);
        let answer = world.ingest().await;
        assert_eq!(answer.status, 202, "{answer:?}");
        let said = answer.json();
        assert_eq!((&said["status"], &said["id"]), (&json!("enqueued"), &said["payload"]["mode_s"]));
        let fields = said["payload"].as_object().unwrap().len();
        assert_eq!(fields, if fault == Some(Fault::ExtraField) { 12 } else { 11 }, "{said}");
        assert_eq!(said["timestamp"], said["ingested_at"]);
    }
    assert_eq!(world.app.metric(r#"slipstream_events_accepted_total{source="adsbdb"}"#).await, Some(3.0));
    assert_eq!(world.app.metric(r#"slipstream_upstream_requests_total{outcome="ok"}"#).await, Some(3.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_nobody_asked_for_costs_no_answer() {
    let world = World::start(&[]).await;
    let body = "x".repeat(900 * 1024);
    let answer = world.app.request("POST", "/ingest/adsbdb", &[], &body).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let head =
        b"POST /ingest/adsbdb HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 32\r\n\r\n";
    let answer = world.app.raw(&[head]).await;
    assert_eq!((answer.status, answer.header("connection")), (202, Some("close")), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_adsbdb_is_a_502_that_names_it() {
    let world = World::start(&[]).await;
    let mut details = BTreeSet::new();
    for (fault, outcome, detail) in [
        (Fault::NotFound, "status", "ADSBDB answered 404: unknown aircraft"),
        (Fault::ServerError, "status", "ADSBDB answered 500: internal error"),
        (Fault::Reset, "unreachable", "ADSBDB cannot be reached: Connection reset by peer (os error 104)"),
        (
            Fault::Html,
            "nonsense",
            "ADSBDB's answer makes no sense: it is a web page, as from a proxy in between",
        ),
        (Fault::TruncatedJson, "nonsense", "ADSBDB's answer makes no sense: its JSON ends in the middle"),
        (
            Fault::ResponseIsText,
            "nonsense",
            "ADSBDB's answer makes no sense: its `response` is a text and not an object with `aircraft`",
        ),
        // The last, since from then on nobody asks.
        (
            Fault::RateLimited { seconds: 60 },
            "limited",
            "ADSBDB limits the rate of requests, for another 60 s",
        ),
    ] {
        world.simulator.set_fault(Some(fault));
        let line = format!("slipstream_upstream_requests_total{{outcome=\"{outcome}\"}}");
        let before = world.app.metric(&line).await.unwrap_or_default();
        let answer = world.ingest().await;
        assert_eq!(answer.problem(502, true)["detail"], detail, "{fault:?}");
        let limited = matches!(fault, Fault::RateLimited { .. });
        assert_eq!(answer.header("retry-after"), limited.then_some("60"), "{fault:?}");
        assert!(world.app.metric(&line).await.unwrap() > before, "{fault:?}");
        assert!(details.insert(detail), "each has a detail of its own");
    }
    let health = world.app.get("/health").await.json();
    assert_eq!((&health["status"], &health["counters"]["rejected"]), (&json!("ok"), &json!(7)));
    assert!(health["last_error"].as_str().unwrap().contains("limits the rate"), "{health}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adsbdb_that_is_down_is_told_apart_from_one_that_is_slow() {
    let world = World::start(&[("ADSBDB_TIMEOUT_MS", "600")]).await;
    world.simulator.set_fault(Some(Fault::Slow(Duration::from_secs(20))));
    let began = Instant::now();
    assert_says(&world.ingest().await.problem(502, true), &["did not answer within 600 ms"]);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    world.simulator.stop().await;
    let body = world.app.post("/ingest/adsbdb").await.problem(502, true);
    assert_says(&body, &["cannot be reached", "refused"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aircraft_that_kafka_does_not_confirm_is_told_by_its_id() {
    // Slower than it takes to know that the broker is away.
    let settings = [("ADSBDB_TIMEOUT_MS", "20000"), ("DELIVERY_TIMEOUT_MS", "1000")];
    let world = World::start(&settings).await;
    assert_eq!(world.ingest().await.status, 202);
    world.simulator.set_latency(Duration::from_secs(4));
    let (asked, mock) = (world.simulator.requests(), &world.cluster.mock);
    let lose_kafka = async {
        while world.simulator.requests() == asked {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        mock.broker_down(-1).unwrap();
        world.app.readyz(503).await;
    };
    let (answer, ()) = tokio::join!(world.ingest(), lose_kafka);
    let (_, body) = answer.retry_after(503);
    assert_says(&body, &["nothing was stored", "kafka does not answer"]);
    let is_mode_s = |id: &str| id.len() == 6 && id.chars().all(|c| c.is_ascii_hexdigit());
    assert!(body["id"].as_str().is_some_and(is_mode_s), "{body}");

    mock.broker_up(-1).unwrap();
    world.app.readyz(200).await;
    world.simulator.set_latency(Duration::ZERO);
    mock.broker_round_trip_time(-1, Duration::from_secs(60)).unwrap();
    let body = world.ingest().await.problem(504, true);
    assert_says(&body, &["may or may not be stored"]);
    assert!(body["id"].as_str().is_some_and(is_mode_s), "{body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passing_faults_are_retried_twice() {
    let world = World::start(&[]).await;
    for fault in [Fault::ServerError, Fault::Reset] {
        let before = world.simulator.requests();
        world.simulator.set_fault_for(2, fault);
        assert_eq!(world.ingest().await.status, 202, "{fault:?}");
        assert_eq!(world.simulator.requests() - before, 3);
    }
    let before = world.simulator.requests();
    world.simulator.set_fault_for(3, Fault::ServerError);
    world.ingest().await.problem(502, true);
    assert_eq!(world.simulator.requests() - before, 3, "a first attempt and two more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_rate_limit_holds_nobody_asks() {
    let world = World::start(&[]).await;
    world.simulator.set_fault_for(1, Fault::RateLimited { seconds: 2 });
    let answer = world.ingest().await;
    assert_says(&answer.problem(502, true), &["limits the rate"]);
    assert_eq!(answer.retry_after(502).0, 2);
    let asked = world.simulator.requests();
    let line = r#"slipstream_upstream_requests_total{outcome="limited"}"#;
    assert_eq!(world.app.metric(line).await, Some(1.0));
    let limited = Instant::now();
    let answer = world.ingest().await;
    assert!(limited.elapsed() < Duration::from_millis(500));
    assert!(matches!(answer.retry_after(502).0, 1 | 2));
    assert_eq!(world.simulator.requests(), asked, "it was asked although the limit holds");
    while world.ingest().await.status != 202 {
        assert!(limited.elapsed() < Duration::from_secs(5), "the limit is over");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(world.app.metric(line).await, Some(1.0), "questions that nobody asked are not counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_ask_at_a_time() {
    let world = World::start(&[("ADSBDB_MAX_CONCURRENCY", "1")]).await;
    world.simulator.set_latency(Duration::from_millis(200));
    let began = Instant::now();
    let answers = futures::future::join_all((0..3).map(|_| world.ingest())).await;
    assert!(answers.iter().all(|answer| answer.status == 202));
    assert!(began.elapsed() >= Duration::from_millis(600), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_place_in_vain_is_told_so_and_is_no_question_to_adsbdb() {
    let settings = [("ADSBDB_MAX_CONCURRENCY", "1"), ("ADSBDB_TIMEOUT_MS", "2000")];
    let world = World::start(&settings).await;
    world.simulator.set_latency(Duration::from_millis(300));
    let answers = futures::future::join_all((0..12).map(|_| world.ingest())).await;
    let in_vain = "within 1800 ms no place came free to ask ADSBDB";
    let in_vain =
        answers.iter().filter(|answer| answer.status == 502 && answer.text.contains(in_vain)).count();
    assert!(in_vain > 0, "{answers:?}");
    let mut asked = 0.0;
    for outcome in ["ok", "slow"] {
        let line = format!("slipstream_upstream_requests_total{{outcome=\"{outcome}\"}}");
        asked += world.app.metric(&line).await.unwrap_or_default();
    }
    assert_eq!(asked as usize, answers.len() - in_vain, "{answers:?}");
}

/// Answers every question with this; its URL.
async fn always(answer: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            assert_ne!(connection.read(&mut [0; 4096]).await.unwrap(), 0);
            connection.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    url
}

fn http(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_an_aircraft_is_a_502() {
    let cluster = Cluster::start();
    for (body, words) in [
        (r#"{"response":[{"mode_s":"A1"}]}"#, "no `aircraft`"),
        (r#"[{"aircraft":{"mode_s":"A1"}}]"#, "not an object with `response`"),
        (r#"{"response":{"aircraft":[{"mode_s":"A1"}]}}"#, "not an object"),
        (r#"{"response":{"aircraft":{}}}"#, "no fields"),
    ] {
        let url = always(http("200 OK", "", body)).await;
        let app = cluster.application(&[("ADSBDB_BASE_URL", &url)]).await;
        assert_says(&app.post("/ingest/adsbdb").await.problem(502, true), &[words]);
        assert_eq!(app.counters.accepted(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_after_that_is_a_date_is_passed_on_and_limits_the_rate() {
    let cluster = Cluster::start();
    let headers = "Date: Tue, 24 Nov 2026 06:30:00 GMT\r\nRetry-After: Tue, 24 Nov 2026 06:30:39 GMT\r\n";
    let url = always(http("404 Not Found", headers, "")).await;
    let app = cluster.application(&[("ADSBDB_BASE_URL", &url)]).await;
    let (seconds, body) = app.post("/ingest/adsbdb").await.retry_after(502);
    assert_eq!(seconds, 39, "{body}");
    let url = always(http("429 Too Many Requests", headers, "")).await;
    let app = cluster.application(&[("ADSBDB_BASE_URL", &url)]).await;
    for _ in 0..2 {
        let (seconds, body) = app.post("/ingest/adsbdb").await.retry_after(502);
        assert!((37..=39).contains(&seconds), "{seconds}");
        assert_says(&body, &["limits the rate"]);
    }
    assert_eq!(app.metric(r#"slipstream_upstream_requests_total{outcome="limited"}"#).await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_answer_is_not_read_to_its_end() {
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
