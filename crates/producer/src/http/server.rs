//! The HTTP server: it accepts connections within limits, serves HTTP/1.1 on them, and closes them
//! in order at shutdown.
//!
//! - A slow or silent client blocks only its own connection.
//! - MAX_CONNECTIONS and MAX_IN_FLIGHT bound the memory.
//! - Without free file descriptors new connections wait in the kernel's queue.
//! - At shutdown each connection first finishes its current request.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io::Write;
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
use service::backoff::Backoff;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::error::ApiError;
use crate::http::stream::{ConnectionTimer, Expired, Stream, TimedBody, TimedStream, Timeouts};
use crate::http::tls::Tls;
use crate::metrics::ConnectionMetrics;
use crate::state::{ConnectionPermit, Permits, Shutdown};

/// Minimum and maximum pause after an error of `accept`.
const ACCEPT_BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Serves connections until `shared.close`, then waits for their end. Dropping the future aborts
/// all connections.
pub async fn serve<H: Handler>(socket: TcpListener, max_connections: usize, shared: Shared<H>) {
    let permits = Permits::new(max_connections, shared.metrics.connections.clone());
    let (mut acceptor, shared) = (Acceptor::new(socket), Arc::new(shared));
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            () = shared.close.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            stream = acceptor.accept() => stream,
        };
        let (permit, extra) = match permits.take_for_connection() {
            ConnectionPermit::Regular(permit) => (permit, false),
            ConnectionPermit::Extra(permit) => (permit, true),
            ConnectionPermit::Denied => {
                shared.metrics.rejected();
                reject_connection(stream, shared.tls.is_some());
                continue;
            }
        };
        let connection = serve_connection(stream, Arc::clone(&shared), extra);
        connections.spawn(async move {
            connection.await;
            drop(permit);
        });
    }
    drop(acceptor);
    while connections.join_next().await.is_some() {}
}

/// Accepts connections. After an error, such as the limit of open files, it waits and tries again.
#[derive(Debug)]
struct Acceptor {
    socket: TcpListener,
    backoff: Backoff,
}

impl Acceptor {
    fn new(socket: TcpListener) -> Self {
        Self { socket, backoff: Backoff::new(ACCEPT_BACKOFF.0, ACCEPT_BACKOFF.1) }
    }

    /// Returns the next connection. No connection is lost if the future is dropped.
    async fn accept(&mut self) -> TcpStream {
        loop {
            match self.socket.accept().await {
                Ok((stream, _)) => {
                    if self.backoff.attempts() > 0 {
                        tracing::info!("connections are accepted again");
                        self.backoff.reset();
                    }
                    // Each response is written as a whole, so Nagle's algorithm would only delay
                    // it. An error is ignored: if the socket is broken, the next call fails, too.
                    _ = stream.set_nodelay(true);
                    return stream;
                }
                Err(error) if is_client_error(&error) => {}
                Err(error) => {
                    if self.backoff.attempts() == 0 {
                        tracing::warn!(%error, "connections cannot be accepted");
                    }
                    tokio::time::sleep(self.backoff.next_delay()).await;
                }
            }
        }
    }
}

/// Whether the client closed its connection before it was accepted.
fn is_client_error(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

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
async fn serve_connection<H: Handler>(stream: TcpStream, shared: Arc<Shared<H>>, extra: bool) {
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
            let response = response_to_invalid_head(&error, &read_buf, stream.take_withheld());
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

/// The response to a connection beyond MAX_CONNECTIONS and the extra connections.
const TOO_MANY_CONNECTIONS: &str = "\
    HTTP/1.1 503 Service Unavailable\r\n\
    content-type: application/problem+json\r\n\
    retry-after: 1\r\n\
    connection: close\r\n\
    content-length: 161\r\n\r\n\
    {\"type\":\"about:blank\",\"title\":\"Service Unavailable\",\"status\":503,\
    \"detail\":\"nothing was stored: too many connections are open (MAX_CONNECTIONS)\",\
    \"retryable\":true}";

/// The first bytes of an HTTP/2 client with prior knowledge.
const HTTP_2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The response to the preface. The client cannot parse it, but a person who sees the bytes can.
const HTTP_2_REJECTED: &str = "\
    HTTP/1.1 505 HTTP Version Not Supported\r\n\
    content-type: text/plain; charset=utf-8\r\n\
    connection: close\r\n\
    content-length: 79\r\n\r\n\
    this server speaks HTTP/1.1 only: HTTP/2 must not be used with prior knowledge\n";
/// The text of hyper's error for a Transfer-Encoding whose last coding is not `chunked`. The error
/// has no other distinguishing mark.
const TRANSFER_CODING_ERROR: &str = "invalid transfer-encoding parsed";

/// The response to a head that hyper cannot parse. It is the `withheld` response of hyper, unless
/// there is a better one. `unparsed` contains the bytes of the head.
fn response_to_invalid_head(error: &hyper::Error, unparsed: &[u8], withheld: Vec<u8>) -> Vec<u8> {
    if unparsed.starts_with(HTTP_2_PREFACE) {
        return HTTP_2_REJECTED.into();
    }
    if withheld.is_empty() || error.to_string() != TRANSFER_CODING_ERROR {
        return withheld;
    }
    let problem = ApiError::UnsupportedTransferCoding.problem();
    let body = serde_json::to_string(&problem).unwrap_or_default();
    format!(
        "HTTP/1.1 {}\r\ncontent-type: application/problem+json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        problem.status,
        body.len()
    )
    .into()
}

/// Rejects a connection without any wait: the response is written into the buffer of the socket.
/// A TLS connection is closed, because a response would need a handshake.
fn reject_connection(stream: TcpStream, tls: bool) {
    let Ok(mut stream) = stream.into_std() else { return };
    if !tls && stream.write_all(TOO_MANY_CONNECTIONS.as_bytes()).is_ok() {
        // The client may have closed the connection already.
        _ = stream.shutdown(std::net::Shutdown::Write);
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;

    #[tokio::test]
    async fn a_raw_response_equals_the_response_to_a_parsed_request() {
        let parsed = ApiError::too_many_connections().into_response();
        let body = axum::body::to_bytes(parsed.into_body(), 4096).await.unwrap();
        let (head, raw) = TOO_MANY_CONNECTIONS.split_once("\r\n\r\n").unwrap();
        assert_eq!(raw, std::str::from_utf8(&body).unwrap());
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        let (head, body) = HTTP_2_REJECTED.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{}", body.len());
    }
}
