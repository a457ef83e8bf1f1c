//! A collector of traces: receives OTLP over HTTP, and keeps what it was sent.

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
use prost::Message;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::application::PATIENCE;

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

    /// A header of what was sent last.
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
