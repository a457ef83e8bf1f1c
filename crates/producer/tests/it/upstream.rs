//! `/ingest/adsbdb` and its poll jobs, against the simulator.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use servers::{Fault, Simulator};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::application::{Application, PATIENCE, assert_says};
use crate::mock::Cluster;

struct World {
    simulator: Simulator,
    app: Application,
    _cluster: Cluster,
}

impl World {
    async fn start(settings: &[(&str, &str)]) -> Self {
        let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap();
        let cluster = Cluster::start();
        let url = simulator.base_url();
        let mut all = vec![("ADSBDB_BASE_URL", url.as_str())];
        all.extend(settings);
        let app = cluster.application(&all).await;
        Self { simulator, app, _cluster: cluster }
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
async fn each_fault_of_adsbdb_is_a_502_that_names_it() {
    let world = World::start(&[]).await;
    for (fault, words) in [
        (Fault::ServerError, "ADSBDB answered 500"),
        (Fault::NotFound, "ADSBDB answered 404"),
        (Fault::Reset, "ADSBDB cannot be reached"),
        (Fault::Html, "not a JSON object"),
        (Fault::TruncatedJson, "not a JSON object"),
        (Fault::ResponseIsText, "no `aircraft`"),
    ] {
        world.simulator.set_fault(Some(fault));
        assert_says(&world.ingest().await.problem(502, true), &[words]);
    }
    let health = world.app.get("/health").await.json();
    assert_eq!((&health["status"], &health["counters"]["rejected"]), (&json!("ok"), &json!(6)));
    assert!(health["last_error"].as_str().unwrap().contains("no `aircraft`"), "{health}");
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
    let limited = Instant::now();
    let answer = world.ingest().await;
    assert!(limited.elapsed() < Duration::from_millis(500));
    assert!(matches!(answer.retry_after(502).0, 1 | 2));
    assert_eq!(world.simulator.requests(), asked, "it was asked although the limit holds");
    while world.ingest().await.status != 202 {
        assert!(limited.elapsed() < Duration::from_secs(5), "the limit is over");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
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

async fn job(app: &Application, location: &str, until: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let job = app.get(location).await.json();
        if until(&job) {
            return job;
        }
        assert!(began.elapsed() < PATIENCE, "{job}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_job_calls_on_schedule_and_ends() {
    let world = World::start(&[]).await;
    let app = &world.app;
    let answer = app.post("/ingest/adsbdb/poll?interval_sec=0.2&duration_sec=1").await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let said = answer.json();
    let id = said["job_id"].as_str().unwrap();
    let expected = json!({"status": "started", "job_id": id, "interval_sec": 0.2, "duration_sec": 1});
    assert_eq!(said, expected);
    let location = answer.header("location").unwrap();
    assert_eq!(location, format!("/ingest/adsbdb/poll/{id}"));
    assert_eq!(app.metric("slipstream_poll_jobs").await, Some(1.0));

    let ended = job(app, location, |job| job["status"] == "finished").await;
    assert_eq!(ended["accepted"], ended["calls"], "{ended}");
    let calls = ended["calls"].as_u64().unwrap();
    assert!((1..=5).contains(&calls), "{ended}");
    assert_eq!((app.counters.accepted(), world.simulator.requests()), (calls, calls));
    assert_eq!(app.get("/ingest/adsbdb/poll").await.json()["jobs"][0], ended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_a_slow_job_do_not_overlap() {
    let world = World::start(&[]).await;
    world.simulator.set_latency(Duration::from_millis(300));
    let answer = world.app.post("/ingest/adsbdb/poll?interval_sec=0.01&duration_sec=1").await;
    let location = answer.header("location").unwrap();
    let ended = job(&world.app, location, |job| job["status"] == "finished").await;
    let calls = ended["calls"].as_u64().unwrap();
    assert!((2..=4).contains(&calls), "a second holds four calls of 0.3 s at most: {ended}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_counts_its_failures_and_waits_for_a_rate_limit() {
    let world = World::start(&[]).await;
    world.simulator.set_fault(Some(Fault::RateLimited { seconds: 60 }));
    let answer = world.app.post("/ingest/adsbdb/poll?interval_sec=0.01&duration_sec=0.5").await;
    let location = answer.header("location").unwrap();
    let ended = job(&world.app, location, |job| job["status"] == "finished").await;
    assert_eq!((&ended["calls"], &ended["failed"]), (&json!(1), &json!(1)), "{ended}");
    assert!(ended["last_error"].as_str().unwrap().contains("limits the rate"), "{ended}");
    assert_eq!(world.app.counters.rejected(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_jobs_than_allowed_are_a_429_until_one_is_cancelled() {
    let world = World::start(&[("MAX_POLL_JOBS", "1")]).await;
    let app = &world.app;
    let poll = "/ingest/adsbdb/poll?interval_sec=1&duration_sec=30";
    let first = app.post(poll).await;
    let (seconds, body) = app.post(poll).await.retry_after(429);
    assert!((25..=30).contains(&seconds), "{seconds}");
    assert_says(&body, &["1 poll jobs are running"]);
    let cancelled = app.request("DELETE", first.header("location").unwrap(), &[], "").await;
    assert_eq!((cancelled.status, &cancelled.json()["status"]), (200, &json!("cancelled")));
    assert_eq!(app.post(poll).await.status, 202);
    assert_eq!(app.get("/ingest/adsbdb/poll").await.json()["jobs"].as_array().unwrap().len(), 2);
    assert!(world.app.stop().await < Duration::from_secs(3), "a job does not hold up the end");
}
