//! One connection: the TLS handshake, then HTTP/1.1 requests until the client, a timeout or the
//! shutdown ends it. A shutdown waits for the current request.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::http::raw_response;
use crate::http::stream::{Stream, TimedBody, TimedStream};
use crate::http::timeouts::{ConnectionTimer, Expired, Timeouts};
use crate::http::tls::Tls;
use crate::metrics::ConnectionMetrics;
use crate::shutdown::Shutdown;

/// Maximum time of an extra connection, which gets one response.
const EXTRA_CONNECTION_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum size of the head of a request.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Handles the requests of all connections.
pub trait Handler: Send + Sync + 'static {
    /// Handles a request. On an `extra` connection, beyond MAX_CONNECTIONS, it rejects all requests
    /// but those of exempt endpoints.
    fn handle(&self, request: Request<Body>, extra: bool) -> impl Future<Output = Response<Body>> + Send;
}

/// The parts that all connections share.
#[derive(Debug)]
pub struct Shared<H> {
    pub handler: H,
    pub timeouts: Timeouts,
    /// The certificate, if TLS is enabled.
    pub tls: Option<Tls>,
    /// After the shutdown began, responses announce the end of their connection.
    pub shutdown: Shutdown,
    /// Closes each connection after its current request.
    pub close: CancellationToken,
    pub metrics: ConnectionMetrics,
}

/// Serves `stream` until its end. An `extra` connection, beyond MAX_CONNECTIONS, serves one
/// request.
pub async fn serve<H: Handler>(stream: TcpStream, shared: Arc<Shared<H>>, extra: bool) {
    let timeouts = match shared.timeouts {
        Timeouts { request, .. } if extra => {
            let request = EXTRA_CONNECTION_TIMEOUT.min(request);
            Timeouts { request, idle: request }
        }
        timeouts => timeouts,
    };
    let Some(stream) = handshake(stream, &shared, timeouts.request).await else { return };
    let timer = Arc::new(ConnectionTimer::new(timeouts));
    let service = service_fn(|request| {
        timer.request_started();
        handle(Arc::clone(&shared), Arc::clone(&timer), extra, request)
    });
    let io = TokioIo::new(TimedStream::new(stream, Arc::clone(&timer)));
    // A client may close its sending side after the request and wait for the response
    // (RFC 9112 9.6).
    let mut http = http1::Builder::new();
    let mut connection = http.half_close(true).max_buf_size(MAX_HEAD_BYTES).serve_connection(io, service);
    // Each step polls the token. With one shared token all connections would contend for its lock,
    // so each connection has a child token.
    let mut close = pin!(shared.close.child_token().cancelled_owned());
    let mut sleep = pin!(sleep_until(timer.deadline()));
    let mut closing = false;
    let ended = poll_fn(|cx| {
        if !closing && close.as_mut().poll(cx).is_ready() {
            closing = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(ended) => Poll::Ready(Ok(ended)),
            Poll::Pending => poll_deadline(&timer, sleep.as_mut(), cx).map(Err),
        }
    });
    match ended.await {
        Err(expired) => shared.metrics.closed_on_timeout(expired.step()),
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            let http1::Parts { io, read_buf, .. } = connection.into_parts();
            let mut stream = io.into_inner();
            let response = raw_response::to_invalid_head(&error, &read_buf, stream.take_withheld());
            // Boxed, so that other connections need no memory for this future.
            _ = tokio::time::timeout(timeouts.request, Box::pin(stream.finish(&response))).await;
        }
    }
}

/// Performs the TLS handshake, if TLS is enabled. Returns `None` if it failed or timed out.
async fn handshake<H>(stream: TcpStream, shared: &Shared<H>, timeout: Duration) -> Option<Stream> {
    let Some(tls) = &shared.tls else { return Some(Stream::Plain(stream)) };
    match tokio::time::timeout(timeout, tls.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => Some(Stream::Tls(Box::new(stream))),
        Ok(Err(error)) => {
            tracing::debug!(%error, "tls handshake failed");
            shared.metrics.closed_on_timeout(Some("handshake"));
            None
        }
        Err(_) => {
            shared.metrics.closed_on_timeout(Some("handshake"));
            None
        }
    }
}

/// Ready when a timeout has expired. The sleep is reset only to an earlier deadline, or when it
/// ends too early. So it costs a busy connection nothing.
fn poll_deadline(timer: &ConnectionTimer, mut sleep: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<Expired> {
    let deadline = timer.deadline();
    if deadline < sleep.deadline() {
        sleep.as_mut().reset(deadline);
    }
    while sleep.as_mut().poll(cx).is_ready() {
        if let Some(expired) = timer.expired() {
            return Poll::Ready(expired);
        }
        sleep.as_mut().reset(timer.deadline());
    }
    Poll::Pending
}

/// Handles one request.
async fn handle<H: Handler>(
    shared: Arc<Shared<H>>,
    timer: Arc<ConnectionTimer>,
    extra: bool,
    request: Request<Incoming>,
) -> Result<Response<TimedBody>, Infallible> {
    let mut response = shared.handler.handle(request.map(Body::new), extra).await;
    if extra || shared.shutdown.has_begun() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| TimedBody::new(body, timer)))
}
