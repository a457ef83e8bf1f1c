//! The names and types of the metrics.

use std::time::Duration;

use serde_json::json;
use testkit::{Process, Stack, eventually, http};

/// Metrics of every process.
const PROCESS: [&str; 4] = [
    "process_cpu_seconds counter",
    "process_resident_memory_bytes gauge",
    "process_open_fds gauge",
    "process_start_time_seconds gauge",
];
const PRODUCER: [&str; 8] = [
    "slipstream_http_requests counter",
    "slipstream_http_request_duration_seconds histogram",
    "slipstream_events_accepted counter",
    "slipstream_events_rejected counter",
    "slipstream_kafka_delivery_seconds histogram",
    "slipstream_kafka_queue_records gauge",
    "slipstream_upstream_requests counter",
    "slipstream_poll_jobs gauge",
];
const CONSUMER: [&str; 10] = [
    "slipstream_records_read counter",
    "slipstream_records_finished counter",
    "slipstream_write_seconds histogram",
    "slipstream_write_batch_records histogram",
    "slipstream_freshness_seconds histogram",
    "slipstream_lag_records gauge",
    "slipstream_committed_lag_records gauge",
    "slipstream_records_lost_to_retention counter",
    "slipstream_store_up gauge",
    "slipstream_kafka_up gauge",
];

async fn metrics(process: &Process) -> String {
    eventually("metrics", Duration::from_secs(60), || async {
        http::text(&process.url("/metrics")).await.ok()
    })
    .await
}

async fn has(process: &Process, types: &[&str]) {
    for told in types {
        let line = format!("# TYPE {told}");
        let there = || async { metrics(process).await.lines().any(|found| found == line).then_some(()) };
        eventually(&line, Duration::from_secs(10), there).await;
    }
    assert!(metrics(process).await.ends_with("# EOF\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_process_has_the_documented_metrics() {
    let stack = Stack::shared().await;
    let names = stack.names();
    // Nothing listens on port 1: ADSBDB is unavailable.
    let producer = stack.producer(&names, &[("ADSBDB_BASE_URL", "http://127.0.0.1:1")]);
    let consumer = stack.consumer(&names, &[]);
    producer.ready().await;
    consumer.ready().await;
    let base = producer.url("");
    let poller = Process::start("poller", &[("PRODUCER_BASE_URL", &base), ("INTERVAL_SEC", "60")]);
    let body = json!({"id": "one", "source": "manual", "payload": {}});
    assert_eq!(http::post(&producer.url("/ingest"), &body).await.unwrap().status, 202);
    let refused = json!({"id": "two", "source": "manual", "payload": 7});
    assert_eq!(http::post(&producer.url("/ingest"), &refused).await.unwrap().status, 422);
    assert_eq!(http::post(&producer.url("/ingest/adsbdb"), &json!({})).await.unwrap().status, 502);
    let finished = r#"slipstream_records_finished_total{outcome="inserted"} 1"#;
    eventually("the event is finished", Duration::from_secs(60), || async {
        metrics(&consumer).await.lines().any(|line| line == finished).then_some(())
    })
    .await;
    has(&producer, &[&PROCESS[..], &PRODUCER].concat()).await;
    has(&consumer, &[&PROCESS[..], &CONSUMER].concat()).await;
    has(&poller, &PROCESS).await;
    let told = metrics(&producer).await;
    for line in [
        r#"slipstream_events_accepted_total{source="manual"} 1"#,
        r#"slipstream_http_requests_total{route="/ingest",status="202"} 1"#,
        "slipstream_kafka_delivery_seconds_count 1",
    ] {
        assert!(told.lines().any(|found| found == line), "no {line} in\n{told}");
    }
    for process in [poller, producer, consumer] {
        assert!(process.terminate().await.code().is_some());
    }
}
