//! One connection, from its first byte to its last: TLS if there is a certificate, then HTTP/1.1, until the client or
//! a deadline ends it, or the process does. A stop lets the request in hand end.

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

use super::raw_response as refusal;
use super::server::Shared;
use super::stream::{Stream, Watched, WatchedBody};
use super::timeouts::{Late, Limits, Watch};

/// How long a client beyond the limit of connections may take for its one request.
const RESERVE_LIMIT: Duration = Duration::from_secs(2);
/// The longest head of a request that is read.
const HEAD_BYTES: usize = 64 * 1024;

/// Serves `stream` until it is over. In the `reserve` one request is answered, which is refused unless it asks for
/// health or metrics.
pub async fn run(stream: TcpStream, shared: Arc<Shared>, reserve: bool) {
    let request = if reserve { RESERVE_LIMIT.min(shared.limits.request) } else { shared.limits.request };
    let idle = if reserve { request } else { shared.limits.idle };
    let Some(stream) = secured(stream, &shared, request).await else { return };
    let watch = Arc::new(Watch::new(Limits { request, idle }));
    let service = service_fn(|request| {
        watch.request_began();
        answer(Arc::clone(&shared), Arc::clone(&watch), reserve, request)
    });
    let io = TokioIo::new(Watched::new(stream, Arc::clone(&watch)));
    // A client that ends its sending side after its request waits for the answer (RFC 9112 9.6).
    let mut http = http1::Builder::new();
    let mut connection = http.half_close(true).max_buf_size(HEAD_BYTES).serve_connection(io, service);
    // One of its own: it is looked at at every step, and connections do not wait for each other there.
    let mut close = pin!(shared.close.child_token().cancelled_owned());
    let mut timer = pin!(sleep_until(watch.deadline()));
    let mut closing = false;
    let late = poll_fn(|cx| {
        if !closing && close.as_mut().poll(cx).is_ready() {
            closing = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(ended) => Poll::Ready(Ok(ended)),
            Poll::Pending => poll_deadline(&watch, timer.as_mut(), cx).map(Err),
        }
    });
    match late.await {
        Err(what @ (Late::Head | Late::Write)) => shared.counts.timed_out(what),
        // How a client leaves is its own affair.
        Err(Late::Idle) | Ok(Ok(())) => {}
        Ok(Err(error)) => {
            let http1::Parts { io, read_buf, .. } = connection.into_parts();
            let mut stream = io.into_inner();
            let answer = refusal::to_unparsed(&error, &read_buf, stream.take_withheld());
            // Apart, so that a connection needs no room for it.
            _ = tokio::time::timeout(request, Box::pin(stream.finish(&answer))).await;
        }
    }
}

/// After the TLS handshake, if there is one; `None` if it failed or took too long.
async fn secured(stream: TcpStream, shared: &Shared, limit: Duration) -> Option<Stream> {
    let Some(tls) = &shared.tls else { return Some(Stream::Plain(stream)) };
    match tokio::time::timeout(limit, tls.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => Some(Stream::Tls(Box::new(stream))),
        Ok(Err(error)) => {
            tracing::debug!(%error, "handshake failed");
            shared.counts.handshake_failed();
            None
        }
        Err(_) => {
            shared.counts.handshake_failed();
            None
        }
    }
}

/// Ready when a deadline has passed. The timer is moved only for an earlier deadline, or when it fires too early: a
/// busy connection does not touch it.
fn poll_deadline(watch: &Watch, mut timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<Late> {
    let due = watch.deadline();
    if due < timer.deadline() {
        timer.as_mut().reset(due);
    }
    while timer.as_mut().poll(cx).is_ready() {
        if let Some(late) = watch.late() {
            return Poll::Ready(late);
        }
        timer.as_mut().reset(watch.deadline());
    }
    Poll::Pending
}

/// Answers one request.
async fn answer(
    shared: Arc<Shared>,
    watch: Arc<Watch>,
    reserve: bool,
    request: Request<Incoming>,
) -> Result<Response<WatchedBody>, Infallible> {
    let request = request.map(Body::new);
    let mut response = if reserve && !refusal::is_exempt(request.uri().path()) {
        shared.counts.refused();
        shared.front.turn_away(request).await
    } else {
        shared.front.answer(request).await
    };
    if reserve || shared.stopping.has_begun() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| WatchedBody::new(body, watch)))
}
