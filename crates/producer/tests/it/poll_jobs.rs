//! Poll jobs: their schedule, state, counts and end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use devservers::{Fault, Simulator};
use rdkafka::Message;
use rdkafka::message::OwnedMessage;
use serde_json::{Value, json};

use crate::application::{Application, PATIENCE, assert_says};
use crate::real_broker::{records, shared};
use crate::upstream::Stack;

const JSON: &str = "application/json";

/// Waits until the job meets a condition. Returns it.
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
    let stack = Stack::start(&[]).await;
    let app = &stack.app;
    let response = app.post("/ingest/adsbdb/poll?interval_sec=0.2&duration_sec=1").await;
    assert_eq!((response.status, response.header("content-type")), (202, Some(JSON)), "{response:?}");
    let started = response.json();
    let id = started["job_id"].as_str().unwrap();
    let expected = json!({"status": "started", "job_id": id, "interval_sec": 0.2, "duration_sec": 1});
    assert_eq!(started, expected);
    let location = response.header("location").unwrap();
    assert_eq!(location, format!("/ingest/adsbdb/poll/{id}"));
    assert_eq!(app.metric("slipstream_poll_jobs").await, Some(1.0));

    let ended = job(app, location, |job| job["state"] == "done").await;
    let (sent, skipped) = (ended["sent"].as_u64().unwrap(), ended["skipped_ticks"].as_u64().unwrap());
    assert_eq!((sent + skipped, &ended["failed"]), (5, &json!(0)), "{ended}");
    assert_eq!((app.counters.accepted(), stack.simulator.requests()), (sent, sent));
    assert_eq!((&ended["last_error"], &ended["next_tick_at"]), (&Value::Null, &Value::Null));
    assert!(ended["started_at"].as_str() < ended["ended_at"].as_str(), "{ended}");
    let mut fields: Vec<&String> = ended.as_object().unwrap().keys().collect();
    fields.sort_unstable();
    let expected = [
        "duration_sec",
        "ended_at",
        "failed",
        "interval_sec",
        "job_id",
        "last_error",
        "next_tick_at",
        "sent",
        "skipped_ticks",
        "started_at",
        "state",
    ];
    assert_eq!(fields, expected);
    let jobs = app.get("/ingest/adsbdb/poll").await;
    assert_eq!((jobs.status, jobs.header("content-type")), (200, Some(JSON)));
    assert_eq!(jobs.json()["jobs"][0], ended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_each_aircraft_that_a_poll_job_counts_as_sent_is_on_the_topic() {
    let (bootstrap, simulator) =
        (shared().await, Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap());
    let url = simulator.base_url();
    let app = Application::start(bootstrap, &[("ADSBDB_BASE_URL", &url)]).await.ready().await;
    let response = app.post("/ingest/adsbdb/poll?interval_sec=0.2&duration_sec=1").await;
    let ended = job(&app, response.header("location").unwrap(), |job| job["state"] == "done").await;
    let sent = ended["sent"].as_i64().unwrap();
    assert_eq!((sent > 0, &ended["failed"]), (true, &json!(0)), "{ended}");
    // An aircraft can occur twice, so the offsets of the last records are counted.
    let count = |found: &BTreeMap<String, OwnedMessage>| -> i64 {
        let of = |partition| found.values().filter(move |record| record.partition() == partition);
        (0..3).filter_map(|partition| of(partition).map(|record| record.offset() + 1).max()).sum()
    };
    let found = records(bootstrap, &app.topic, 3, move |found| count(found) >= sent).await;
    assert_eq!(count(&found), sent, "{ended}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_a_slow_job_do_not_overlap() {
    let stack = Stack::start(&[]).await;
    stack.simulator.set_latency(Duration::from_millis(300));
    let response = stack.app.post("/ingest/adsbdb/poll?interval_sec=0.01&duration_sec=1").await;
    let location = response.header("location").unwrap();
    let ended = job(&stack.app, location, |job| job["state"] == "done").await;
    let calls = ended["sent"].as_u64().unwrap();
    assert!((2..=4).contains(&calls), "at most four calls of 0.3 s start within a second: {ended}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_counts_failures_and_waits_for_the_end_of_a_rate_limit() {
    let stack = Stack::start(&[]).await;
    stack.simulator.set_fault(Some(Fault::RateLimited { seconds: 60 }));
    let response = stack.app.post("/ingest/adsbdb/poll?interval_sec=0.01&duration_sec=0.5").await;
    let location = response.header("location").unwrap();
    let ended = job(&stack.app, location, |job| job["state"] == "failed").await;
    assert_eq!((&ended["sent"], &ended["failed"]), (&json!(0), &json!(1)), "{ended}");
    // Ticks at 0.01, 0.02, … 0.49 s: the rate limit is active at all of them but the first.
    assert_eq!(ended["skipped_ticks"], 49, "{ended}");
    assert!(ended["last_error"].as_str().unwrap().contains("rate limit is active"), "{ended}");
    assert_eq!(stack.app.counters.rejected(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_above_the_maximum_is_a_429_until_one_is_cancelled() {
    let stack = Stack::start(&[("MAX_POLL_JOBS", "1")]).await;
    let app = &stack.app;
    let poll = "/ingest/adsbdb/poll?interval_sec=1&duration_sec=30";
    let first = app.post(poll).await;
    let (seconds, body) = app.post(poll).await.retry_after(429);
    assert!((25..=30).contains(&seconds), "{seconds}");
    assert_says(&body, &["1 poll jobs are running"]);
    let cancelled = app.request("DELETE", first.header("location").unwrap(), &[], "").await;
    assert_eq!((cancelled.status, &cancelled.json()["state"]), (200, &json!("cancelled")));
    assert_eq!(app.post(poll).await.status, 202);
    assert_eq!(app.get("/ingest/adsbdb/poll").await.json()["jobs"].as_array().unwrap().len(), 2);
    assert!(stack.app.stop().await < Duration::from_secs(3), "a job does not delay the shutdown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_job_has_a_next_tick_and_a_cancelled_one_has_none() {
    let stack = Stack::start(&[]).await;
    let app = &stack.app;
    let response = app.post("/ingest/adsbdb/poll?interval_sec=30&duration_sec=90").await;
    let location = response.header("location").unwrap();
    let running = job(app, location, |job| {
        job["sent"] == 1 && job["next_tick_at"].as_str() > job["started_at"].as_str()
    })
    .await;
    let seconds = |field: &str| -> i64 {
        let time: Vec<i64> =
            running[field].as_str().unwrap()[11..19].split(':').map(|n| n.parse().unwrap()).collect();
        time[0] * 3600 + time[1] * 60 + time[2]
    };
    let ahead = (seconds("next_tick_at") - seconds("started_at")).rem_euclid(86_400);
    assert!((29..=31).contains(&ahead), "{running}");
    assert_eq!((&running["state"], &running["ended_at"]), (&json!("running"), &Value::Null));
    for _ in 0..2 {
        let cancelled = app.request("DELETE", location, &[], "").await;
        assert_eq!((cancelled.status, cancelled.header("content-type")), (200, Some(JSON)));
        let cancelled = cancelled.json();
        assert_eq!((&cancelled["state"], &cancelled["next_tick_at"]), (&json!("cancelled"), &Value::Null));
    }
    let shown = app.get(location).await;
    assert_eq!((shown.status, shown.header("content-type")), (200, Some(JSON)));
    assert_eq!(shown.json()["sent"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_with_failed_and_successful_calls_counts_both_and_is_done() {
    let stack = Stack::start(&[]).await;
    stack.simulator.set_fault_for(1, Fault::NotFound);
    let response = stack.app.post("/ingest/adsbdb/poll?interval_sec=0.2&duration_sec=1").await;
    let ended = job(&stack.app, response.header("location").unwrap(), |job| job["state"] == "done").await;
    assert_eq!((&ended["failed"], ended["sent"].as_u64() > Some(0)), (&json!(1), true), "{ended}");
    assert!(ended["last_error"].as_str().unwrap().contains("404"), "{ended}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g7_a_shutdown_finishes_the_sent_call_and_ends_the_job() {
    let stack = Stack::start(&[]).await;
    let app = &stack.app;
    let queue_holds = async |records: u64| {
        while app.get("/health").await.json()["counters"]["kafka_queue_records"] != records {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert_eq!(app.post("/ingest/adsbdb").await.status, 202);
    // The first record must leave the queue, or it would count as the job's record.
    queue_holds(0).await;
    stack.cluster.mock.broker_round_trip_time(-1, Duration::from_millis(1000)).unwrap();
    assert_eq!(app.post("/ingest/adsbdb/poll?interval_sec=0.01&duration_sec=600").await.status, 202);
    queue_holds(1).await;
    let began = Instant::now();
    app.begin_to_stop();
    app.ended().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!((app.counters.accepted(), app.counters.rejected()), (2, 0));
}
