//! The log: one line per request at debug, and one line per change of state. The metrics.

use std::process::Stdio;
use std::time::Instant;

use devservers::{Fault, Simulator};
use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Wire};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};

use crate::application::{Answer, Application, Cluster, PATIENCE, ask};
use crate::traces::Collector;

/// The binary as a child process, with its log lines so far.
struct Binary {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    lines_so_far: Vec<Value>,
    address: String,
}

impl Binary {
    async fn start(cluster: &Cluster, environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_producer"));
        command.env_clear().env("KAFKA_BROKER", cluster.mock.bootstrap_servers());
        command.env("KAFKA_TOPIC", &cluster.topic).env("LISTEN_ADDR", "127.0.0.1:0");
        command.envs(environment.iter().copied()).kill_on_drop(true);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut binary = Self { _child: child, lines, lines_so_far: Vec::new(), address: String::new() };
        // The two lines come in either order.
        while binary.address.is_empty() || binary.count("kafka is available") == 0 {
            let line = binary.next().await;
            if let Some(address) = line["address"].as_str() {
                binary.address = address.to_owned();
            }
        }
        binary
    }

    async fn next(&mut self) -> Value {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.unwrap_or_else(|_| panic!("nothing after {:?}", self.lines_so_far));
        let line: Value = serde_json::from_str(&line.unwrap().expect("a line")).expect("JSON");
        self.lines_so_far.push(line.clone());
        line
    }

    /// Waits for the next line with this message.
    async fn line(&mut self, message: &str) -> Value {
        loop {
            let line = self.next().await;
            if line["message"] == message {
                return line;
            }
        }
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        ask(self.address.parse().unwrap(), "GET", path, headers, "").await
    }

    /// Number of lines with this message so far.
    fn count(&self, message: &str) -> usize {
        self.lines_so_far.iter().filter(|line| line["message"] == message).count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_is_logged_at_debug_with_the_id_of_its_response() {
    let cluster = Cluster::start();
    let mut binary = Binary::start(&cluster, &[("RUST_LOG", "info,producer=debug")]).await;
    let answer = binary.get("/ingest/adsbdb/poll/none", &[("X-Request-Id", "order-7/a")]).await;
    assert_eq!(answer.header("x-request-id"), Some("order-7/a"));
    let line = binary.line("request finished").await;
    assert_eq!((&line["level"], &line["request_id"]), (&"DEBUG".into(), &"order-7/a".into()));
    assert_eq!((&line["method"], &line["status"]), (&"GET".into(), &404.into()));
    assert_eq!(line["route"], "/ingest/adsbdb/poll/{job_id}");
    assert!(line["duration_ms"].as_f64().is_some_and(|took| (0.0..10_000.0).contains(&took)), "{line}");

    let answer = binary.get("/no/such/path", &[("X-Request-Id", "two words")]).await;
    let id = answer.header("x-request-id").unwrap();
    assert_eq!(id.len(), 36, "{id}");
    assert_eq!(binary.line("request finished").await["request_id"], id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_start_and_the_end_of_an_outage_are_one_line_each() {
    let cluster = Cluster::start();
    let mut binary = Binary::start(&cluster, &[]).await;
    cluster.mock.broker_down(-1).unwrap();
    let lost = binary.line("kafka is unavailable").await;
    assert_eq!(lost["level"], "WARN");
    assert!(lost["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{lost}");
    // Requests that are rejected meanwhile are not logged.
    binary.get("/readyz", &[]).await.retry_after(503);
    cluster.mock.broker_up(-1).unwrap();
    assert_eq!(binary.line("kafka is available again").await["level"], "INFO");
    assert_eq!((binary.count("kafka is unavailable"), binary.count("request finished")), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_outage_is_also_logged_at_its_start_and_its_end() {
    let cluster = Cluster::start();
    let mut binary = Binary::start(&cluster, &[]).await;
    for outages in 1..=2 {
        let began = Instant::now();
        cluster.mock.broker_down(-1).unwrap();
        while binary.get("/readyz", &[]).await.status != 503 {
            assert!(began.elapsed() < PATIENCE, "the outage was not detected");
        }
        cluster.mock.broker_up(-1).unwrap();
        binary.line("kafka is available again").await;
        let counts = (binary.count("kafka is unavailable"), binary.count("kafka is available again"));
        assert_eq!(counts, (outages, outages), "{:?}", binary.lines_so_far);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejecting_collector_is_logged_once_and_otel_variables_apply() {
    let (cluster, collector) = (Cluster::start(), Collector::start().await);
    collector.answer(400);
    let mut binary = Binary::start(
        &cluster,
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=plant-7"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
            ("OTEL_SERVICE_NAME", "front-door"),
            ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ],
    )
    .await;
    binary.get("/livez", &[]).await;
    let rejected = binary.line("traces cannot be exported").await;
    assert_eq!(rejected["level"], "WARN");
    assert!(rejected["reason"].as_str().unwrap().contains("400"), "{rejected}");
    collector.answer(200);
    binary.get("/livez", &[]).await;
    assert_eq!(binary.line("traces are exported again").await["level"], "INFO");
    collector.took(1).await;
    assert_eq!(binary.count("traces cannot be exported"), 1);
    assert_eq!(collector.header("x-tenant").as_deref(), Some("plant-7"));
    for (name, value) in [("service.name", "front-door"), ("deployment.environment.name", "test")] {
        let value_text = format!("{:?}", collector.resource(name));
        assert!(value_text.contains(value), "{name}: {value_text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_series_of_rejected_clients_is_one_warning_and_one_recovery() {
    let cluster = Cluster::start();
    // Each new client requests a producer id and gets a fatal error.
    let refusals = [Wire::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED; 3];
    cluster.mock.request_errors(Api::InitProducerId, &refusals);
    let mut binary = Binary::start(&cluster, &[("RUST_LOG", "info,producer=debug")]).await;
    assert_eq!(binary.line("kafka client works again").await["level"], "INFO");
    let warning = "kafka client had a fatal error, replacing it";
    assert_eq!(binary.count(warning), 1, "{:?}", binary.lines_so_far);
    let again: Vec<&Value> = binary
        .lines_so_far
        .iter()
        .filter(|line| line["message"] == "kafka client had a fatal error again, replacing it")
        .collect();
    assert!(!again.is_empty() && again.iter().all(|line| line["level"] == "DEBUG"), "{again:?}");
}

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
