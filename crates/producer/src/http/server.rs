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
use service::time::Backoff;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::error::ApiError;
use crate::http::stream::{ConnectionTimer, Expired, Stream, TimedBody, TimedStream, Timeouts};
use crate::routes::Dispatcher;
use crate::state::{AppState, Permits};

/// Minimum and maximum pause after an error of `accept`.
const ACCEPT_BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// Maximum time of an extra connection, which gets one response.
const EXTRA_CONNECTION_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum size of the head of a request.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// The parts that all connections share.
struct Server {
    state: AppState,
    dispatcher: Dispatcher,
    /// Closes each connection after its current request.
    close: CancellationToken,
}

/// Serves connections until `close`, then waits for their end. Dropping the future aborts all
/// connections.
pub async fn serve(socket: TcpListener, state: AppState, close: CancellationToken) {
    let permits =
        Permits::new(state.config.http.max_connections, state.metrics.connections.connections.clone());
    let server = Arc::new(Server { dispatcher: Dispatcher::new(state.clone()), state, close });
    let mut backoff = Backoff::new(ACCEPT_BACKOFF.0, ACCEPT_BACKOFF.1);
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            () = server.close.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            stream = accept(&socket, &mut backoff) => stream,
        };
        let Some((permit, extra)) = permits.take_for_connection() else {
            server.state.metrics.connections.rejected();
            reject_connection(stream, server.state.config.http.tls.is_some());
            continue;
        };
        let connection = serve_connection(stream, Arc::clone(&server), extra);
        connections.spawn(async move {
            connection.await;
            drop(permit);
        });
    }
    drop(socket);
    while connections.join_next().await.is_some() {}
}

/// Accepts the next connection. After an error, such as the limit of open files, it waits and tries
/// again. No connection is lost if the future is dropped.
async fn accept(socket: &TcpListener, backoff: &mut Backoff) -> TcpStream {
    loop {
        match socket.accept().await {
            Ok((stream, _)) => {
                if backoff.attempts() > 0 {
                    tracing::info!("connections are accepted again");
                    backoff.reset();
                }
                // Each response is written as a whole, so Nagle's algorithm would only delay it. An
                // error is ignored: if the socket is broken, the next call fails, too.
                _ = stream.set_nodelay(true);
                return stream;
            }
            Err(error) if is_client_error(&error) => {}
            Err(error) => {
                if backoff.attempts() == 0 {
                    tracing::warn!(%error, "connections cannot be accepted");
                }
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

/// Whether the client closed its connection before it was accepted.
fn is_client_error(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Serves `stream` until its end. An `extra` connection, beyond MAX_CONNECTIONS, serves one
/// request.
async fn serve_connection(stream: TcpStream, server: Arc<Server>, extra: bool) {
    let config = &server.state.config;
    let mut timeouts = Timeouts { request: config.request_timeout, idle: config.http.idle_timeout };
    if extra {
        timeouts.request = EXTRA_CONNECTION_TIMEOUT.min(timeouts.request);
        timeouts.idle = timeouts.request;
    }
    let metrics = &server.state.metrics.connections;
    let Some(stream) = handshake(stream, &server.state, timeouts.request).await else { return };
    let timer = Arc::new(ConnectionTimer::new(timeouts));
    let service = service_fn(|request| {
        timer.request_started();
        handle(Arc::clone(&server), Arc::clone(&timer), extra, request)
    });
    let io = TokioIo::new(TimedStream::new(stream, Arc::clone(&timer)));
    // A client may close its sending side after the request and wait for the response
    // (RFC 9112 9.6).
    let mut http = http1::Builder::new();
    let mut connection = http.half_close(true).max_buf_size(MAX_HEAD_BYTES).serve_connection(io, service);
    // Each step polls the token. With one shared token all connections would contend for its lock,
    // so each connection has a child token.
    let mut close = pin!(server.close.child_token().cancelled_owned());
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
        Err(expired) => metrics.closed_on_timeout(expired.step()),
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
async fn handshake(stream: TcpStream, state: &AppState, timeout: Duration) -> Option<Stream> {
    let Some(tls) = &state.config.http.tls else { return Some(Stream::Left(stream)) };
    match tokio::time::timeout(timeout, tls.acceptor.accept(stream)).await {
        Ok(Ok(stream)) => return Some(Stream::Right(Box::new(stream))),
        Ok(Err(error)) => tracing::debug!(%error, "tls handshake failed"),
        Err(_) => {}
    }
    state.metrics.connections.closed_on_timeout(Some("handshake"));
    None
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
async fn handle(
    server: Arc<Server>,
    timer: Arc<ConnectionTimer>,
    extra: bool,
    request: Request<Incoming>,
) -> Result<Response<TimedBody>, Infallible> {
    let mut response = server.dispatcher.handle(request.map(Body::new), extra).await;
    if extra || server.state.shutdown.begun.is_cancelled() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| TimedBody::new(body, timer)))
}

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
    raw_response(&ApiError::UnsupportedTransferCoding)
}

/// The bytes of an error response that closes the connection.
fn raw_response(error: &ApiError) -> Vec<u8> {
    let problem = error.problem();
    let body = serde_json::to_string(&problem).unwrap_or_default();
    let retry_after = problem.retry_after.map(|time| format!("retry-after: {}\r\n", time.as_secs()));
    format!(
        "HTTP/1.1 {}\r\ncontent-type: application/problem+json\r\n{}connection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        problem.status,
        retry_after.unwrap_or_default(),
        body.len()
    )
    .into()
}

/// Rejects a connection without any wait: the response is written into the buffer of the socket.
/// A TLS connection is closed, because a response would need a handshake.
fn reject_connection(stream: TcpStream, tls: bool) {
    let Ok(mut stream) = stream.into_std() else { return };
    if !tls && stream.write_all(&raw_response(&ApiError::too_many_connections())).is_ok() {
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
        let response = String::from_utf8(raw_response(&ApiError::too_many_connections())).unwrap();
        let (head, raw) = response.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{head}");
        assert!(head.contains("\r\nretry-after: 1\r\n"), "{head}");
        assert_eq!(raw, std::str::from_utf8(&body).unwrap());
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        let (head, body) = HTTP_2_REJECTED.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{}", body.len());
    }
}
