//! The names, types and help texts of the metrics, on which dashboards and alerts depend.

use devservers::{Fault, Simulator};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::application::{Application, Cluster, PATIENCE};

const EXPECTED: &str = "\
# HELP slipstream_api_key_requests Authenticated requests, by API key and status.
# TYPE slipstream_api_key_requests counter
# HELP slipstream_connections Open connections.
# TYPE slipstream_connections gauge
# HELP slipstream_connections_cut Connections closed because the client was too slow, by step.
# TYPE slipstream_connections_cut counter
# HELP slipstream_connections_refused Connections rejected because of MAX_CONNECTIONS.
# TYPE slipstream_connections_refused counter
# HELP slipstream_events_accepted Events with a delivery report of Kafka, by source.
# TYPE slipstream_events_accepted counter
# HELP slipstream_events_rejected Events that were not accepted, by reason.
# TYPE slipstream_events_rejected counter
# HELP slipstream_http_request_duration_seconds Time from request to response, by route.
# TYPE slipstream_http_request_duration_seconds histogram
# HELP slipstream_http_requests Requests with a response, by route and status.
# TYPE slipstream_http_requests counter
# HELP slipstream_kafka_delivery_seconds Time from send to delivery report.
# TYPE slipstream_kafka_delivery_seconds histogram
# HELP slipstream_kafka_queue_records Records without a delivery report yet.
# TYPE slipstream_kafka_queue_records gauge
# HELP slipstream_kafka_up Whether Kafka is available and the topic exists.
# TYPE slipstream_kafka_up gauge
# HELP slipstream_poll_jobs Running poll jobs.
# TYPE slipstream_poll_jobs gauge
# HELP slipstream_requests_in_flight Requests that send events and are in flight.
# TYPE slipstream_requests_in_flight gauge
# HELP slipstream_upstream_requests Requests to ADSBDB, by outcome.
# TYPE slipstream_upstream_requests counter";

/// `printf %s secret | sha256sum`.
const KEY: &str = "plant-7:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

/// An application whose metric families all have a value. Families without one are not exposed.
async fn used() -> (Application, Cluster) {
    let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap();
    let (cluster, url) = (Cluster::start(), simulator.base_url());
    let settings = [("ADSBDB_BASE_URL", &*url), ("API_KEYS", KEY), ("REQUEST_TIMEOUT_MS", "300")];
    let app = cluster.application(&settings).await;
    let post = async || app.request("POST", "/ingest/adsbdb", &[("X-API-Key", "secret")], "").await;
    assert_eq!(post().await.status, 202);
    simulator.set_fault(Some(Fault::Html));
    post().await.problem(502, true);
    let mut slow = TcpStream::connect(app.address).await.unwrap();
    slow.write_all(b"GET /li").await.unwrap();
    let mut rest = Vec::new();
    let closed = slow.read_to_end(&mut rest);
    _ = tokio::time::timeout(PATIENCE, closed).await.expect("the connection is closed");
    (app, cluster)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_have_their_names_types_and_help_texts() {
    let (app, _cluster) = used().await;
    let answer = app.get("/metrics").await;
    let media_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!((answer.status, answer.header("content-type")), (200, Some(media_type)));
    let described =
        |line: &&str| line.starts_with("# HELP slipstream_") || line.starts_with("# TYPE slipstream_");
    let lines: Vec<&str> = answer.text.lines().filter(described).collect();
    let mut pairs: Vec<&[&str]> = lines.chunks(2).collect();
    pairs.sort_unstable();
    assert_eq!(pairs.concat().join("\n"), EXPECTED);
    assert!(answer.text.ends_with("# EOF\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_have_the_expected_labels_and_values() {
    let (app, _cluster) = used().await;
    for (line, value) in [
        (r#"slipstream_events_accepted_total{source="adsbdb"}"#, 1.0),
        (r#"slipstream_events_rejected_total{reason="upstream"}"#, 1.0),
        (r#"slipstream_http_requests_total{route="/ingest/adsbdb",status="202"}"#, 1.0),
        (r#"slipstream_http_requests_total{route="/ingest/adsbdb",status="502"}"#, 1.0),
        (r#"slipstream_http_request_duration_seconds_count{route="/ingest/adsbdb"}"#, 2.0),
        (r#"slipstream_upstream_requests_total{outcome="ok"}"#, 1.0),
        (r#"slipstream_upstream_requests_total{outcome="nonsense"}"#, 1.0),
        (r#"slipstream_api_key_requests_total{key="plant-7",status="202"}"#, 1.0),
        (r#"slipstream_connections_cut_total{step="head"}"#, 1.0),
        ("slipstream_kafka_delivery_seconds_count", 1.0),
        ("slipstream_kafka_queue_records", 0.0),
        ("slipstream_kafka_up", 1.0),
        ("slipstream_poll_jobs", 0.0),
    ] {
        assert_eq!(app.metric(line).await, Some(value), "{line}");
    }
}
