//! The binary's log: a line for each request at debug, and one for each change of state.

use std::process::Stdio;
use std::time::Instant;

use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Wire};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::application::{Answer, PATIENCE, ask};
use crate::collector::Collector;
use crate::mock::Cluster;

/// The binary as a child, and what it said so far.
struct Binary {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    said: Vec<Value>,
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
        let mut binary = Self { _child: child, lines, said: Vec::new(), address: String::new() };
        // In either order.
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
        let line = line.unwrap_or_else(|_| panic!("nothing after {:?}", self.said));
        let line: Value = serde_json::from_str(&line.unwrap().expect("a line")).expect("JSON");
        self.said.push(line.clone());
        line
    }

    /// Waits for the next line of this message.
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

    /// How many lines of this message came.
    fn count(&self, message: &str) -> usize {
        self.said.iter().filter(|line| line["message"] == message).count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_is_a_line_at_debug_under_the_id_that_its_answer_has() {
    let cluster = Cluster::start();
    let mut binary = Binary::start(&cluster, &[("RUST_LOG", "info,producer=debug")]).await;
    let answer = binary.get("/ingest/adsbdb/poll/none", &[("X-Request-Id", "order-7/a")]).await;
    assert_eq!(answer.header("x-request-id"), Some("order-7/a"));
    let line = binary.line("request answered").await;
    assert_eq!((&line["level"], &line["request_id"]), (&"DEBUG".into(), &"order-7/a".into()));
    assert_eq!((&line["method"], &line["status"]), (&"GET".into(), &404.into()));
    assert_eq!(line["route"], "/ingest/adsbdb/poll/{job_id}");
    assert!(line["duration_ms"].as_f64().is_some_and(|took| (0.0..10_000.0).contains(&took)), "{line}");

    let answer = binary.get("/no/such/path", &[("X-Request-Id", "two words")]).await;
    let id = answer.header("x-request-id").unwrap();
    assert_eq!(id.len(), 36, "{id}");
    assert_eq!(binary.line("request answered").await["request_id"], id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_lost_and_kafka_back_are_a_line_each() {
    let cluster = Cluster::start();
    let mut binary = Binary::start(&cluster, &[]).await;
    cluster.mock.broker_down(-1).unwrap();
    let lost = binary.line("kafka is unavailable").await;
    assert_eq!(lost["level"], "WARN");
    assert!(lost["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{lost}");
    // Requests that are refused meanwhile add nothing.
    binary.get("/readyz", &[]).await.retry_after(503);
    cluster.mock.broker_up(-1).unwrap();
    assert_eq!(binary.line("kafka is available again").await["level"], "INFO");
    assert_eq!((binary.count("kafka is unavailable"), binary.count("request answered")), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_that_ends_as_soon_as_it_is_known_is_a_line_each_too() {
    let cluster = Cluster::start();
    let mut binary = Binary::start(&cluster, &[]).await;
    for outages in 1..=2 {
        let began = Instant::now();
        cluster.mock.broker_down(-1).unwrap();
        while binary.get("/readyz", &[]).await.status != 503 {
            assert!(began.elapsed() < PATIENCE, "nobody knows of it");
        }
        cluster.mock.broker_up(-1).unwrap();
        binary.line("kafka is available again").await;
        let told = (binary.count("kafka is unavailable"), binary.count("kafka is available again"));
        assert_eq!(told, (outages, outages), "{:?}", binary.said);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_refuses_is_a_line_and_the_sdk_reads_its_own_variables() {
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
    let refused = binary.line("traces cannot be exported").await;
    assert_eq!(refused["level"], "WARN");
    assert!(refused["reason"].as_str().unwrap().contains("400"), "{refused}");
    collector.answer(200);
    binary.get("/livez", &[]).await;
    assert_eq!(binary.line("traces are exported again").await["level"], "INFO");
    collector.took(1).await;
    assert_eq!(binary.count("traces cannot be exported"), 1);
    assert_eq!(collector.header("x-tenant").as_deref(), Some("plant-7"));
    for (name, value) in [("service.name", "front-door"), ("deployment.environment.name", "test")] {
        let told = format!("{:?}", collector.resource(name));
        assert!(told.contains(value), "{name}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_are_refused_one_after_another_are_one_warning_and_one_line_when_one_works() {
    let cluster = Cluster::start();
    // Each new client asks for a producer id, and is refused for good.
    let refusals = [Wire::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED; 3];
    cluster.mock.request_errors(Api::InitProducerId, &refusals);
    let mut binary = Binary::start(&cluster, &[("RUST_LOG", "info,producer=debug")]).await;
    assert_eq!(binary.line("kafka client works again").await["level"], "INFO");
    let warning = "kafka client had a fatal error, replacing it";
    assert_eq!(binary.count(warning), 1, "{:?}", binary.said);
    let again: Vec<&Value> = binary
        .said
        .iter()
        .filter(|line| line["message"] == "kafka client had a fatal error again, replacing it")
        .collect();
    assert!(!again.is_empty() && again.iter().all(|line| line["level"] == "DEBUG"), "{again:?}");
}
