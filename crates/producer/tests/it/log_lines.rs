//! The log: one line per request at debug, and one line per change of state.

use std::process::Stdio;
use std::time::Instant;

use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Wire};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::application::{Answer, Cluster, PATIENCE, ask};
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
