//! A poller that runs in the test process, requests to its listener, and a producer with scripted
//! responses.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use poller::metrics::{CallCounts, Metrics};
use poller::{App, Config};
use service::tasks::Supervisor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A running poller.
pub struct Poller {
    pub address: SocketAddr,
    pub stop: CancellationToken,
    metrics: Metrics,
    task: JoinHandle<ExitCode>,
}

/// The result of a run.
#[derive(Debug)]
pub struct Ended {
    pub code: ExitCode,
    pub counts: CallCounts,
    /// Time from the call of `end` or `stop` to the end of the run.
    pub took: Duration,
}

impl Ended {
    /// Whether the exit code is 1.
    pub fn failed(&self) -> bool {
        self.code == ExitCode::FAILURE
    }
}

/// A configuration for `producer` and `variables`.
pub fn config(producer: SocketAddr, variables: &[(&str, &str)]) -> Config {
    let url = format!("http://{producer}");
    let base = [("PRODUCER_BASE_URL", url.as_str()), ("LISTEN_ADDR", "127.0.0.1:0")];
    let pairs = base.iter().chain(variables).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::from_environment(pairs).unwrap()
}

impl Poller {
    pub async fn start(producer: SocketAddr, variables: &[(&str, &str)]) -> Self {
        Self::start_with(producer, variables, |_| ()).await
    }

    /// Starts a poller with further supervised tasks.
    pub async fn start_with(
        producer: SocketAddr,
        variables: &[(&str, &str)],
        start_tasks: impl FnOnce(&Supervisor) + Send + 'static,
    ) -> Self {
        let app = App::build(config(producer, variables)).await.unwrap();
        let (address, metrics, stop) = (app.address(), app.metrics(), CancellationToken::new());
        let task = tokio::spawn(app.run_with(stop.clone(), start_tasks));
        Self { address, stop, metrics, task }
    }

    pub fn counts(&self) -> CallCounts {
        self.metrics.counts()
    }

    /// Waits until the run ends.
    pub async fn end(self) -> Ended {
        let since = Instant::now();
        let code = tokio::time::timeout(Duration::from_secs(20), self.task).await.unwrap().unwrap();
        Ended { code, counts: self.metrics.counts(), took: since.elapsed() }
    }

    pub async fn stop(self) -> Ended {
        self.stop.cancel();
        self.end().await
    }

    /// The response of the poller's listener, head and body.
    pub async fn get(&self, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: poller\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    }
}

/// Waits up to 10 s until `holds` returns true.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One scripted response to POST /ingest/adsbdb.
#[derive(Debug, Clone)]
pub struct Response {
    status: u16,
    body: String,
    headers: Vec<(&'static str, String)>,
    delay: Duration,
}

impl Response {
    /// A 202: the event is stored.
    pub fn accepted() -> Self {
        let body = r#"{"id":"3F28BC","topic":"events.raw","partition":4,"offset":17,"status":"enqueued",
            "timestamp":1730000000000,"ingested_at":1730000000100,"payload":{"mode_s":"3F28BC"}}"#;
        Self { status: 202, body: body.into(), headers: Vec::new(), delay: Duration::ZERO }
    }

    /// A response about the records of an answer.
    pub fn records(status: u16, body: &str) -> Self {
        Self { status, body: body.into(), ..Self::accepted() }
    }

    /// A problem body with `status`.
    pub fn rejected(status: u16) -> Self {
        let body = format!(r#"{{"status":{status},"detail":"rejected by script","retryable":true}}"#);
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

    /// The same response, sent after `delay`.
    pub fn delayed(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// A response that is never sent.
    pub fn never() -> Self {
        Self::accepted().delayed(Duration::from_secs(3600))
    }
}

/// One received call.
#[derive(Debug, Clone)]
pub struct Call {
    /// Time since the first call.
    pub at: Duration,
    /// No other call was in flight.
    pub was_alone: bool,
    pub authorization: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    script: VecDeque<Response>,
    /// The last response of the script, which repeats.
    last: Option<Response>,
    ready: bool,
    readiness_checks: usize,
    in_flight: usize,
    first: Option<Instant>,
    calls: Vec<Call>,
    /// Names and times of the calls for other sources than `adsbdb`.
    others: Vec<(String, Instant)>,
    /// The response to them.
    other: Option<Response>,
}

/// The server. It ends when it is dropped.
#[derive(Debug)]
pub struct ScriptedProducer {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    _stop: DropGuard,
}

impl ScriptedProducer {
    /// Sends the responses of `script` in order and repeats the last one.
    pub async fn start(script: impl IntoIterator<Item = Response>) -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into(), script).await
    }

    pub async fn start_at(address: SocketAddr, script: impl IntoIterator<Item = Response>) -> Self {
        let script: VecDeque<Response> = script.into_iter().collect();
        let last = script.back().cloned();
        let state = Arc::new(Mutex::new(State { script, last, ready: true, ..State::default() }));
        let router = Router::new()
            .route("/readyz", get(ready))
            .route("/ingest/adsbdb", post(ingest))
            .route("/ingest/{source}", post(ingest_source))
            .with_state(Arc::clone(&state));
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
        Self { address, state, _stop: stop.drop_guard() }
    }

    pub fn set_ready(&self, ready: bool) {
        self.state.lock().unwrap().ready = ready;
    }

    pub fn readiness_checks(&self) -> usize {
        self.state.lock().unwrap().readiness_checks
    }

    /// Sets the response for other sources than `adsbdb`.
    pub fn set_other(&self, response: Response) {
        self.state.lock().unwrap().other = Some(response);
    }

    /// Names and times of the calls for other sources than `adsbdb`.
    pub fn others(&self) -> Vec<(String, Instant)> {
        self.state.lock().unwrap().others.clone()
    }

    pub fn calls(&self) -> Vec<Call> {
        self.state.lock().unwrap().calls.clone()
    }
}

async fn ready(extract::State(state): extract::State<Arc<Mutex<State>>>) -> StatusCode {
    let mut state = state.lock().unwrap();
    state.readiness_checks += 1;
    if state.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

async fn ingest_source(
    extract::State(state): extract::State<Arc<Mutex<State>>>,
    extract::Path(source): extract::Path<String>,
) -> axum::response::Response {
    let response = {
        let mut state = state.lock().unwrap();
        state.others.push((source, Instant::now()));
        state.other.clone().unwrap()
    };
    tokio::time::sleep(response.delay).await;
    answer(response)
}

fn answer(response: Response) -> axum::response::Response {
    let mut answer = (StatusCode::from_u16(response.status).unwrap(), response.body).into_response();
    for (name, value) in response.headers {
        answer.headers_mut().insert(name, value.parse().unwrap());
    }
    answer
}

async fn ingest(
    extract::State(state): extract::State<Arc<Mutex<State>>>,
    headers: HeaderMap,
) -> axum::response::Response {
    let response = {
        let mut state = state.lock().unwrap();
        let first = *state.first.get_or_insert_with(Instant::now);
        let authorization =
            headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
        let call = Call { at: first.elapsed(), was_alone: state.in_flight == 0, authorization };
        state.calls.push(call);
        state.in_flight += 1;
        state.script.pop_front().or_else(|| state.last.clone()).unwrap()
    };
    tokio::time::sleep(response.delay).await;
    state.lock().unwrap().in_flight -= 1;
    answer(response)
}
