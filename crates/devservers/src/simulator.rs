//! A simulator of ADSBDB: its two aircraft endpoints in the real format, with a sample of 1,000
//! real aircraft, and each fault of the real service on demand. It also serves samples of other
//! public APIs (`apis`).

mod apis;

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::extract::{self, ConnectInfo};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::serve::{IncomingStream, Listener};
use axum::{Json, Router};
use flate2::read::GzDecoder;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::child::lock;
use crate::error::ServerError;

/// A running simulator. It stops when it is dropped.
#[derive(Debug)]
pub struct Simulator {
    address: SocketAddr,
    state: Arc<State>,
    task: tokio::task::JoinHandle<io::Result<()>>,
}

impl Simulator {
    /// Listens on the address. Port 0 is a free port.
    pub async fn start(address: SocketAddr) -> Result<Simulator, ServerError> {
        let listening = |error| ServerError::io("listening on", Path::new(&address.to_string()))(error);
        let listener = TcpListener::bind(address).await.map_err(listening)?;
        let address = listener.local_addr().map_err(listening)?;
        let sample =
            Sample::load().map_err(ServerError::io("reading the sample of", Path::new("aircraft")))?;
        let state = Arc::new(State::new(sample));
        let service = router(Arc::clone(&state)).into_make_service_with_connect_info::<Cut>();
        let stopped = state.stop.clone().cancelled_owned();
        let serve = axum::serve(Connections::from(listener), service).with_graceful_shutdown(stopped);
        Ok(Simulator { address, state, task: tokio::spawn(async move { serve.await }) })
    }

    /// The value for ADSBDB_BASE_URL.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The number of requests for an aircraft.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::Relaxed)
    }

    /// Sets the fault of all following responses; `None` ends it.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.state.plan().set(fault, None);
    }

    /// Sets the fault of the next `requests` responses.
    pub fn set_fault_for(&self, requests: u64, fault: Fault) {
        self.state.plan().set(Some(fault), Some(requests));
    }

    /// Sets the latency of all following responses.
    pub fn set_latency(&self, latency: Duration) {
        self.state.plan().latency = latency;
    }

    /// Sends the pending responses at once and stops listening.
    pub async fn stop(mut self) {
        self.state.stop.cancel();
        match (&mut self.task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "simulator failed"),
            Err(error) => tracing::warn!(%error, "simulator failed"),
        }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.state.stop.cancel();
    }
}

#[derive(Debug)]
struct State {
    pub sample: Sample,
    plan: Mutex<Plan>,
    pub requests: AtomicU64,
    pub stop: CancellationToken,
}

impl State {
    fn new(sample: Sample) -> State {
        let (requests, stop) = (AtomicU64::new(0), CancellationToken::new());
        State { sample, plan: Mutex::default(), requests, stop }
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        lock(&self.plan)
    }

    /// Counts the request and waits for its latency, unless the simulator stops.
    async fn next_fault(&self) -> Option<Fault> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let (fault, mut latency) = {
            let mut plan = self.plan();
            (plan.next(), plan.latency)
        };
        if let Some(Fault::Slow(more)) = fault {
            latency += more;
        }
        if !latency.is_zero() {
            self.stop.run_until_cancelled(tokio::time::sleep(latency)).await;
        }
        fault
    }
}

/// A fault in place of a successful response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 429. The seconds are only in the text of the body, without Retry-After.
    RateLimited {
        /// Duration of the limit.
        seconds: u64,
    },
    /// 500 with a text in the usual body format.
    ServerError,
    /// 404, as for an unknown aircraft.
    NotFound,
    /// A successful response after this delay.
    Slow(Duration),
    /// A connection reset before the first byte of the response.
    Reset,
    /// 200 with an HTML page, as from a proxy.
    Html,
    /// 200 with truncated JSON.
    TruncatedJson,
    /// 200 with a text in place of the aircraft.
    ResponseIsText,
    /// A successful response with an unknown field.
    ExtraField,
    /// A successful response with null in each nullable field.
    Nulls,
}

/// The faults of the next responses.
#[derive(Debug, Default)]
struct Plan {
    pub latency: Duration,
    fault: Option<Fault>,
    /// Number of responses that are left; `None` is unlimited.
    left: Option<u64>,
}

impl Plan {
    fn set(&mut self, fault: Option<Fault>, left: Option<u64>) {
        (self.fault, self.left) = (fault, left);
    }

    /// The fault of the next response.
    fn next(&mut self) -> Option<Fault> {
        match &mut self.left {
            None => self.fault,
            Some(0) => None,
            Some(left) => {
                *left -= 1;
                self.fault
            }
        }
    }
}

// The endpoints and their responses, byte for byte in the format of ADSBDB.

type Shared = extract::State<Arc<State>>;

fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/v0/aircraft/random", get(random))
        .route("/v0/aircraft/{id}", get(by_id))
        .merge(apis::routes())
        .route("/livez", get(async || Json(json!({"status": "alive"}))))
        .fallback(async || text(StatusCode::NOT_FOUND, "not found"))
        .with_state(state)
}

async fn random(extract::State(state): Shared, ConnectInfo(cut): ConnectInfo<Cut>) -> Response {
    let fault = state.next_fault().await;
    answer(state.sample.random(), fault, &cut)
}

async fn by_id(
    extract::State(state): Shared,
    ConnectInfo(cut): ConnectInfo<Cut>,
    extract::Path(id): extract::Path<String>,
) -> Response {
    let fault = state.next_fault().await;
    answer(state.sample.find(&id), fault, &cut)
}

fn answer(aircraft: Option<&str>, fault: Option<Fault>, cut: &Cut) -> Response {
    let Some(aircraft) = aircraft else { return unknown() };
    match fault {
        None | Some(Fault::Slow(_)) => good(aircraft),
        Some(Fault::RateLimited { seconds }) => {
            text(StatusCode::TOO_MANY_REQUESTS, &format!("rate limited for {seconds} seconds"))
        }
        Some(Fault::ServerError) => text(StatusCode::INTERNAL_SERVER_ERROR, "internal error"),
        Some(Fault::NotFound) => unknown(),
        Some(Fault::Reset) => {
            cut.reset();
            StatusCode::OK.into_response()
        }
        Some(Fault::Html) => {
            Html("<!doctype html><title>Sign in</title><h1>Sign in to this network</h1>").into_response()
        }
        Some(Fault::TruncatedJson) => {
            let whole = envelope(aircraft);
            let half = whole.char_indices().nth(whole.chars().count() / 2).map_or(0, |(half, _)| half);
            json_body(StatusCode::OK, whole[..half].to_owned())
        }
        Some(Fault::ResponseIsText) => text(StatusCode::OK, "aircraft"),
        Some(Fault::ExtraField) => {
            good(&changed(aircraft, |fields| fields["first_flight"] = json!("1998-05-17")))
        }
        Some(Fault::Nulls) => good(&changed(aircraft, |fields| {
            for name in ["registered_owner_operator_flag_code", "url_photo", "url_photo_thumbnail"] {
                fields[name] = Value::Null;
            }
        })),
    }
}

fn good(aircraft: &str) -> Response {
    json_body(StatusCode::OK, envelope(aircraft))
}

fn envelope(aircraft: &str) -> String {
    format!("{{\"response\":{{\"aircraft\":{aircraft}}}}}")
}

fn unknown() -> Response {
    text(StatusCode::NOT_FOUND, "unknown aircraft")
}

/// The body of an error: a text in place of the aircraft.
fn text(status: StatusCode, response: &str) -> Response {
    json_body(status, json!({ "response": response }).to_string())
}

fn json_body(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn changed(aircraft: &str, change: impl FnOnce(&mut Value)) -> String {
    // Each line of the sample was parsed at the start.
    let mut fields = serde_json::from_str(aircraft).unwrap_or_else(|_| json!({}));
    change(&mut fields);
    fields.to_string()
}

/// One JSON object per line. README.md in this folder names the source.
const LINES: &[u8] = include_bytes!("../sample/aircraft.jsonl.gz");

#[derive(Debug)]
struct Sample {
    aircraft: Vec<String>,
    /// Index by mode_s and by registration, in upper case.
    index: HashMap<String, usize>,
}

impl Sample {
    fn load() -> io::Result<Sample> {
        let mut text = String::new();
        GzDecoder::new(LINES).read_to_string(&mut text)?;
        let aircraft: Vec<String> = text.lines().map(str::to_owned).collect();
        let mut index = HashMap::with_capacity(2 * aircraft.len());
        for (position, line) in aircraft.iter().enumerate() {
            let fields: Value = serde_json::from_str(line)?;
            for name in ["mode_s", "registration"] {
                if let Some(id) = fields[name].as_str() {
                    index.insert(id.to_ascii_uppercase(), position);
                }
            }
        }
        Ok(Sample { aircraft, index })
    }

    fn random(&self) -> Option<&str> {
        fastrand::choice(&self.aircraft).map(String::as_str)
    }

    /// The aircraft with this mode_s or registration, ignoring case.
    fn find(&self, id: &str) -> Option<&str> {
        self.index.get(&id.to_ascii_uppercase()).map(|position| self.aircraft[*position].as_str())
    }
}

/// A listener for connections that a handler can reset before the first byte of the response.
struct Connections(TcpListener);

struct Connection {
    stream: TcpStream,
    cut: Cut,
}

/// A handler's reference to its connection.
#[derive(Clone, Debug, Default)]
struct Cut(Arc<AtomicBool>);

impl Cut {
    /// Makes the next write reset the connection.
    fn reset(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl From<TcpListener> for Connections {
    fn from(listener: TcpListener) -> Connections {
        Connections(listener)
    }
}

impl Listener for Connections {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // The method of the listener with the same name does not retry after an error.
        let (stream, address) = Listener::accept(&mut self.0).await;
        (Connection { stream, cut: Cut::default() }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl Connected<IncomingStream<'_, Connections>> for Cut {
    fn connect_info(stream: IncomingStream<'_, Connections>) -> Cut {
        stream.io().cut.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.cut.0.load(Ordering::Relaxed) {
            // The client receives a reset instead of an end of stream.
            self.stream.set_zero_linger()?;
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.cut.0.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_lasts_for_as_many_answers_as_it_was_set_for() {
        let mut plan = Plan::default();
        assert_eq!(plan.next(), None);
        plan.set(Some(Fault::Html), Some(2));
        assert_eq!([plan.next(), plan.next(), plan.next()], [Some(Fault::Html), Some(Fault::Html), None]);
        plan.set(Some(Fault::Reset), None);
        assert_eq!([plan.next(), plan.next()], [Some(Fault::Reset), Some(Fault::Reset)]);
    }

    const FIELDS: [&str; 11] = [
        "type",
        "icao_type",
        "manufacturer",
        "mode_s",
        "registration",
        "registered_owner_country_iso_name",
        "registered_owner_country_name",
        "registered_owner_operator_flag_code",
        "registered_owner",
        "url_photo",
        "url_photo_thumbnail",
    ];

    #[test]
    fn every_aircraft_has_the_eleven_fields_and_only_three_are_ever_null() {
        let sample = Sample::load().unwrap();
        assert_eq!(sample.aircraft.len(), 1000);
        for line in &sample.aircraft {
            let fields: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
            assert_eq!(fields.len(), FIELDS.len(), "{line}");
            for name in FIELDS {
                let nullable = name.starts_with("url_photo") || name.ends_with("_flag_code");
                assert!(fields[name].is_string() || nullable && fields[name].is_null(), "{name} of {line}");
            }
        }
    }

    #[test]
    fn an_aircraft_is_found_by_either_name_in_either_case() {
        let sample = Sample::load().unwrap();
        let line = sample.find("00800a").unwrap();
        assert!(
            line.contains("\"mode_s\":\"00800A\"") && line.contains("\"registration\":\"ZS-ZEN\""),
            "{line}"
        );
        assert_eq!(sample.find("zs-zen"), Some(line));
        assert_eq!(sample.find("nothing"), None);
    }
}
