//! The exported spans, the trace context of records, and a collector that receives the spans.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use rdkafka::message::{Headers, Message, OwnedMessage};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::application::{Application, Cluster, PATIENCE};
use crate::real_broker::records;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn traceparent(record: &OwnedMessage) -> Option<String> {
    let headers = record.headers().unwrap();
    let found = headers.iter().find(|header| header.key == "traceparent");
    found.map(|header| String::from_utf8(header.value.unwrap().to_vec()).unwrap())
}

async fn ingest(app: &Application, id: &str, traceparent: Option<&str>) {
    let event = format!(r#"{{"id":"{id}","source":"manual","payload":{{}}}}"#);
    let headers = traceparent.map(|text| ("traceparent", text));
    let answer = app.request("POST", "/ingest", headers.as_slice(), &event).await;
    assert_eq!(answer.status, 202, "{answer:?}");
}

fn named<'s>(spans: &'s [Span], name: &str) -> &'s Span {
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name} in {spans:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_a_span_of_its_trace_and_its_record_continues_it() {
    let (cluster, collector) = (Cluster::start(), Collector::start().await);
    let endpoint = format!("{}/", collector.endpoint);
    let app = cluster.application(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]).await;
    ingest(&app, "traced", Some(&format!("00-{TRACE}-{PARENT}-01"))).await;
    ingest(&app, "untraced", None).await;
    app.get("/no/such/path").await.problem(404, false);
    let topic = app.topic.clone();
    app.stop().await;

    let spans = collector.spans();
    let span = spans.iter().find(|span| hex(&span.trace_id) == TRACE).expect("the request's trace");
    assert_eq!((span.name.as_str(), hex(&span.parent_span_id).as_str()), ("POST /ingest", PARENT));
    assert_eq!(span.kind, 2, "kind server");
    for (name, value) in [("http.request.method", "POST"), ("http.route", "/ingest"), ("url.path", "/ingest")]
    {
        assert_eq!(attribute(&span.attributes, name), Some(Value::StringValue(value.into())), "{name}");
    }
    assert_eq!(attribute(&span.attributes, "http.response.status_code"), Some(Value::IntValue(202)));
    assert_eq!(collector.resource("service.name"), Some(Value::StringValue("slipstream-producer".into())));
    let unmatched = named(&spans, "GET other");
    assert_eq!(attribute(&unmatched.attributes, "http.response.status_code"), Some(Value::IntValue(404)));
    assert!(unmatched.parent_span_id.is_empty() && unmatched.status.as_ref().is_none_or(|s| s.code == 0));

    let found = records(&cluster.mock.bootstrap_servers(), &topic, 1, |found| found.len() == 2).await;
    let carried = format!("00-{TRACE}-{}-01", hex(&span.span_id));
    assert_eq!(traceparent(&found["traced"]).as_deref(), Some(carried.as_str()));
    assert_eq!(traceparent(&found["untraced"]), None, "the request had no traceparent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_exporter_only_a_valid_traceparent_reaches_the_record() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let right = format!("00-{TRACE}-{PARENT}-00");
    ingest(&app, "right", Some(&right)).await;
    ingest(&app, "no-span", Some(&format!("00-{TRACE}-0000000000000000-01"))).await;
    ingest(&app, "upper", Some(&right.to_uppercase())).await;
    let found = records(&cluster.mock.bootstrap_servers(), &app.topic, 1, |found| found.len() == 3).await;
    assert_eq!(traceparent(&found["right"]), Some(right));
    assert_eq!((traceparent(&found["no-span"]), traceparent(&found["upper"])), (None, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unsampled_trace_is_continued_and_a_failure_marks_its_span() {
    let (cluster, collector) = (Cluster::start(), Collector::start().await);
    let app = cluster.application(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint)]).await;
    ingest(&app, "unsampled", Some(&format!("00-{TRACE}-{PARENT}-00"))).await;
    app.post("/ingest/adsbdb").await.problem(502, true);
    let topic = app.topic.clone();
    app.stop().await;
    let spans = collector.spans();
    assert!(spans.iter().all(|span| hex(&span.trace_id) != TRACE), "{spans:?}");
    let failed = named(&spans, "POST /ingest/adsbdb");
    assert_eq!(failed.status.as_ref().unwrap().code, 2, "an error");
    assert_eq!(attribute(&failed.attributes, "error.type"), Some(Value::StringValue("502".into())));
    let found = records(&cluster.mock.bootstrap_servers(), &topic, 1, |found| !found.is_empty()).await;
    let carried = traceparent(&found["unsampled"]).unwrap();
    assert!(carried.starts_with(&format!("00-{TRACE}-")) && carried.ends_with("-00"), "{carried}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_collector_delays_neither_requests_nor_the_shutdown() {
    let cluster = Cluster::start();
    // The kernel accepts the connections, but no process reads from them.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let app = cluster.application(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]).await;
    let began = Instant::now();
    // More than a batch of the exporter, so that it blocks in a send.
    for _ in 0..600 {
        assert_eq!(app.get("/livez").await.status, 200);
    }
    ingest(&app, "one", None).await;
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let took = app.stop().await;
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[derive(Default)]
struct Kept {
    spans: Vec<Span>,
    /// Of the process that sent the last ones.
    resource: Vec<KeyValue>,
    headers: HeaderMap,
}

/// One on a free port; ends when it is dropped.
pub struct Collector {
    pub endpoint: String,
    kept: Arc<Mutex<Kept>>,
    status: Arc<AtomicU16>,
    _task: AbortOnDropHandle<()>,
}

type Shared = (Arc<Mutex<Kept>>, Arc<AtomicU16>);

impl Collector {
    /// Starts it.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (kept, status) = (Arc::<Mutex<Kept>>::default(), Arc::new(AtomicU16::new(200)));
        let router = axum::Router::new().route("/v1/traces", post(receive));
        let router = router.with_state((Arc::clone(&kept), Arc::clone(&status)));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { endpoint, kept, status, _task: AbortOnDropHandle::new(task) }
    }

    /// It answers so from now on.
    pub fn answer(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    /// What it took so far.
    pub fn spans(&self) -> Vec<Span> {
        self.kept.lock().unwrap().spans.clone()
    }

    /// An attribute of the process that sends.
    pub fn resource(&self, name: &str) -> Option<Value> {
        attribute(&self.kept.lock().unwrap().resource, name)
    }

    /// A header of the last export.
    pub fn header(&self, name: &str) -> Option<String> {
        self.kept.lock().unwrap().headers.get(name).map(|value| value.to_str().unwrap().to_owned())
    }

    /// Waits until it took as many spans.
    pub async fn took(&self, spans: usize) {
        let began = Instant::now();
        while self.spans().len() < spans {
            assert!(began.elapsed() < PATIENCE, "{} of {spans} spans", self.spans().len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn receive(State((kept, status)): State<Shared>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let request = ExportTraceServiceRequest::decode(body).expect("OTLP");
    let status = StatusCode::from_u16(status.load(Ordering::Relaxed)).unwrap();
    if status.is_success() {
        let mut kept = kept.lock().unwrap();
        kept.headers = headers;
        for process in request.resource_spans {
            kept.resource = process.resource.unwrap_or_default().attributes;
            kept.spans.extend(process.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    status
}

/// An attribute's value.
pub fn attribute(attributes: &[KeyValue], name: &str) -> Option<Value> {
    attributes.iter().find(|attribute| attribute.key == name)?.value.clone()?.value
}
