//! The producer's side of HTTP: answers as a test scripts them, and keeps what it was asked.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// One scripted answer to POST /ingest/adsbdb.
#[derive(Debug, Clone)]
pub struct Answer {
    status: u16,
    body: String,
    headers: Vec<(&'static str, String)>,
    after: Duration,
}

impl Answer {
    /// An event was stored.
    pub fn accepted() -> Self {
        let body = r#"{"id":"3F28BC","topic":"events.raw","partition":4,"offset":17,"status":"enqueued",
            "timestamp":1730000000000,"ingested_at":1730000000100,"payload":{"mode_s":"3F28BC"}}"#;
        Self { status: 202, body: body.into(), headers: Vec::new(), after: Duration::ZERO }
    }

    /// A problem body.
    pub fn refused(status: u16) -> Self {
        let body = format!(r#"{{"status":{status},"detail":"refused by script","retryable":true}}"#);
        Self { status, body, ..Self::accepted() }
    }

    pub fn with_body(self, body: &str) -> Self {
        Self { body: body.into(), ..self }
    }

    pub fn with_header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn retry_after(self, seconds: u64) -> Self {
        self.with_header("retry-after", &seconds.to_string())
    }

    /// Given only after a while.
    pub fn after(self, after: Duration) -> Self {
        Self { after, ..self }
    }

    /// Never given.
    pub fn never() -> Self {
        Self::accepted().after(Duration::from_secs(3600))
    }
}

/// One call as it was seen.
#[derive(Debug, Clone)]
pub struct Call {
    /// Since the first call.
    pub at: Duration,
    /// The call was answered before the next one came.
    pub alone: bool,
    pub authorization: Option<String>,
}

#[derive(Debug, Default)]
struct Seen {
    script: VecDeque<Answer>,
    last: Option<Answer>,
    ready: bool,
    asked_ready: usize,
    in_flight: usize,
    first: Option<Instant>,
    calls: Vec<Call>,
}

/// The server; it ends when this is dropped.
#[derive(Debug)]
pub struct FarSide {
    pub address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    _stop: DropGuard,
}

impl FarSide {
    /// Gives these answers in turn, the last one for ever.
    pub async fn start(script: impl IntoIterator<Item = Answer>) -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into(), script).await
    }

    pub async fn start_at(address: SocketAddr, script: impl IntoIterator<Item = Answer>) -> Self {
        let script: VecDeque<Answer> = script.into_iter().collect();
        let last = script.back().cloned();
        let seen = Arc::new(Mutex::new(Seen { script, last, ready: true, ..Seen::default() }));
        let router = Router::new()
            .route("/readyz", get(ready))
            .route("/ingest/adsbdb", post(ingest))
            .with_state(Arc::clone(&seen));
        let socket = TcpListener::bind(address).await.unwrap();
        let address = socket.local_addr().unwrap();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                ended = axum::serve(socket, router) => ended.unwrap(),
                () = stopped.cancelled() => {}
            }
        });
        Self { address, seen, _stop: stop.drop_guard() }
    }

    pub fn set_ready(&self, ready: bool) {
        self.seen.lock().unwrap().ready = ready;
    }

    pub fn asked_ready(&self) -> usize {
        self.seen.lock().unwrap().asked_ready
    }

    pub fn calls(&self) -> Vec<Call> {
        self.seen.lock().unwrap().calls.clone()
    }
}

async fn ready(State(seen): State<Arc<Mutex<Seen>>>) -> StatusCode {
    let mut seen = seen.lock().unwrap();
    seen.asked_ready += 1;
    if seen.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

async fn ingest(State(seen): State<Arc<Mutex<Seen>>>, headers: HeaderMap) -> Response {
    let answer = {
        let mut seen = seen.lock().unwrap();
        let first = *seen.first.get_or_insert_with(Instant::now);
        let authorization =
            headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
        let call = Call { at: first.elapsed(), alone: seen.in_flight == 0, authorization };
        seen.calls.push(call);
        seen.in_flight += 1;
        seen.script.pop_front().or_else(|| seen.last.clone()).unwrap()
    };
    tokio::time::sleep(answer.after).await;
    seen.lock().unwrap().in_flight -= 1;
    let mut response = (StatusCode::from_u16(answer.status).unwrap(), answer.body).into_response();
    for (name, value) in answer.headers {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}
