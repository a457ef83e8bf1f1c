//! The byte stream of a connection, plain or TLS, and its timeouts. The stream reports each read
//! and write to the [`ConnectionTimer`].
//!
//! hyper itself responds to a head that it cannot parse, and returns the error only afterwards.
//! Such a response is withheld until then, so that a better one can replace it.
//!
//! The timeouts of a connection, by its phase:
//!
//! - Idle: IDLE_TIMEOUT_MS until the first byte of the next request.
//! - Head: REQUEST_TIMEOUT_MS from that byte to the end of the head.
//! - Request: none here; the handler has its own timeouts.
//! - Response: each wait until the client reads, and all waits of a response together, take at most
//!   REQUEST_TIMEOUT_MS. The sum may be a second longer for each [`MIN_BYTES_PER_SECOND`] read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

/// Number of bytes that are read and discarded while a connection is closed. Unread bytes would
/// make the close a reset, which can overtake the response.
const MAX_LINGER_BYTES: usize = 1024 * 1024;
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// A plain or a TLS stream.
pub type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// A stream that reports to a timer.
pub struct TimedStream {
    stream: Stream,
    timer: Arc<ConnectionTimer>,
    withheld: Vec<u8>,
}

impl TimedStream {
    pub fn new(stream: Stream, timer: Arc<ConnectionTimer>) -> Self {
        Self { stream, timer, withheld: Vec::new() }
    }

    /// The response of hyper itself, if there is one.
    pub fn take_withheld(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.withheld)
    }

    /// Sends `response`, if it is not empty, closes the sending side, and discards the bytes that
    /// the client still sends.
    pub async fn finish(&mut self, response: &[u8]) -> io::Result<()> {
        if response.is_empty() {
            return Ok(());
        }
        self.stream.write_all(response).await?;
        self.stream.shutdown().await?;
        let linger = async {
            let (mut buffer, mut left) = ([0; 4096], MAX_LINGER_BYTES);
            while left > 0 {
                match self.stream.read(&mut buffer).await {
                    Ok(read) if read > 0 => left = left.saturating_sub(read),
                    _ => return,
                }
            }
        };
        _ = tokio::time::timeout(LINGER_TIMEOUT, linger).await;
        Ok(())
    }

    /// Withholds bytes that belong to the response of no request. Returns whether it did.
    fn withhold(&mut self, bytes: &[u8]) -> bool {
        let withheld = !self.timer.is_responding();
        if withheld {
            self.withheld.extend_from_slice(bytes);
        }
        withheld
    }

    /// Detects a reset while a request is handled. hyper does not read then and would not detect
    /// it.
    fn poll_reset(&self, cx: &mut Context<'_>) -> io::Result<()> {
        let socket = match &self.stream {
            Either::Left(stream) => stream,
            Either::Right(stream) => stream.get_ref().0,
        };
        if self.timer.is_in_request()
            && socket.poll_read_ready(cx).is_ready()
            && let Some(error) = socket.take_error()?
        {
            return Err(error);
        }
        Ok(())
    }

    /// Reports the outcome of a write to the timer. `bytes` returns the number of bytes written.
    fn report<T>(
        &self,
        outcome: Poll<io::Result<T>>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        match &outcome {
            Poll::Pending => self.timer.write_blocked(),
            Poll::Ready(outcome) => self.timer.write_progressed(outcome.as_ref().map_or(0, bytes)),
        }
        outcome
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.timer.bytes_received();
        }
        outcome
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.withhold(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.report(outcome, |bytes| *bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.timer.is_responding() {
            bytes.iter().for_each(|bytes| _ = self.withhold(bytes));
            return Poll::Ready(Ok(bytes.iter().map(|bytes| bytes.len()).sum()));
        }
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.report(outcome, |bytes| *bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_reset(cx)?;
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        if outcome.is_ready() {
            self.timer.flushed();
        }
        self.report(outcome, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.withheld.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let outcome = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.report(outcome, |()| 0)
    }
}

/// The body of a response. It reports its end to a timer.
pub struct TimedBody {
    body: Body,
    timer: Arc<ConnectionTimer>,
}

impl TimedBody {
    pub fn new(body: Body, timer: Arc<ConnectionTimer>) -> Self {
        Self { body, timer }
    }
}

impl Drop for TimedBody {
    fn drop(&mut self) {
        self.timer.response_ended();
    }
}

impl http_body::Body for TimedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The timeouts of all connections.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For the head of a request from its first byte, and for each wait until the client reads.
    pub request: Duration,
    /// From the start, or from the end of a response, to the first byte of the next request.
    pub idle: Duration,
}

/// Minimum read rate of a client whose response takes longer than the timeout. A slower client
/// would hold memory for too long.
const MIN_BYTES_PER_SECOND: u64 = 32 * 1024;

/// No deadline.
const NEVER: u64 = u64::MAX;
/// Stands for no deadline, because a timer needs one.
const FAR_FUTURE: Duration = Duration::from_secs(24 * 60 * 60);

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const REQUEST: u8 = 2;

/// The step of the client whose timeout expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// It sent no request.
    Idle,
    /// It did not complete the head of a request.
    Head,
    /// It did not read a response.
    Response,
}

impl Expired {
    /// The `step` label of the metric. An idle connection is not counted.
    pub fn step(self) -> Option<&'static str> {
        match self {
            Self::Idle => None,
            Self::Head => Some("head"),
            Self::Response => Some("answer"),
        }
    }
}

/// The phase and the deadlines of a connection. Its stream, its requests and its task share it; all
/// run in one task. Times are in milliseconds since the start.
#[derive(Debug)]
pub struct ConnectionTimer {
    timeouts: Timeouts,
    started: Instant,
    phase: AtomicU8,
    /// Whether bytes that are written belong to the response of a request.
    responding: AtomicBool,
    /// Deadline of the phase.
    deadline_ms: AtomicU64,
    /// Deadline of the current wait until the client reads.
    read_deadline_ms: AtomicU64,
    /// Start of the current wait; [`NEVER`] if the client reads.
    wait_started_ms: AtomicU64,
    /// Duration of the earlier waits of this response.
    waited_ms: AtomicU64,
    /// Bytes of this response that the client read.
    read_bytes: AtomicU64,
}

impl ConnectionTimer {
    pub fn new(timeouts: Timeouts) -> Self {
        let timer = Self {
            timeouts,
            started: Instant::now(),
            phase: AtomicU8::new(IDLE),
            responding: AtomicBool::new(false),
            deadline_ms: AtomicU64::new(NEVER),
            read_deadline_ms: AtomicU64::new(NEVER),
            wait_started_ms: AtomicU64::new(NEVER),
            waited_ms: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
        };
        timer.deadline_ms.store(timer.after(timeouts.idle), Ordering::Relaxed);
        timer
    }

    /// The time after `timeout` from now.
    fn after(&self, timeout: Duration) -> u64 {
        u64::try_from((self.started.elapsed() + timeout).as_millis()).unwrap_or(NEVER)
    }

    fn enter(&self, phase: u8, deadline_ms: u64) {
        self.phase.store(phase, Ordering::Relaxed);
        self.deadline_ms.store(deadline_ms, Ordering::Relaxed);
    }

    /// Bytes were received from the client.
    fn bytes_received(&self) {
        if self.phase.load(Ordering::Relaxed) == IDLE {
            self.enter(HEAD, self.after(self.timeouts.request));
        }
    }

    /// The head of a request is complete.
    pub fn request_started(&self) {
        self.enter(REQUEST, NEVER);
        self.responding.store(true, Ordering::Relaxed);
        self.waited_ms.store(0, Ordering::Relaxed);
        self.read_bytes.store(0, Ordering::Relaxed);
    }

    /// The last byte of the response was handed to hyper.
    fn response_ended(&self) {
        self.enter(IDLE, self.after(self.timeouts.idle));
    }

    /// All buffered bytes were written.
    fn flushed(&self) {
        if !self.is_in_request() {
            self.responding.store(false, Ordering::Relaxed);
        }
    }

    /// Whether bytes that are written belong to the response of a request.
    fn is_responding(&self) -> bool {
        self.responding.load(Ordering::Relaxed)
    }

    /// Whether a request is being handled, or its response has not ended.
    fn is_in_request(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == REQUEST
    }

    /// The buffer is full, because the client does not read.
    fn write_blocked(&self) {
        if self.wait_started_ms.load(Ordering::Relaxed) == NEVER {
            let (waited, read) =
                (self.waited_ms.load(Ordering::Relaxed), self.read_bytes.load(Ordering::Relaxed));
            let earned = Duration::from_millis(read.saturating_mul(1000) / MIN_BYTES_PER_SECOND);
            let left = (self.timeouts.request + earned).saturating_sub(Duration::from_millis(waited));
            self.wait_started_ms.store(self.after(Duration::ZERO), Ordering::Relaxed);
            self.read_deadline_ms.store(self.after(left.min(self.timeouts.request)), Ordering::Relaxed);
        }
    }

    /// The client read `bytes`.
    fn write_progressed(&self, bytes: usize) {
        self.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.read_deadline_ms.store(NEVER, Ordering::Relaxed);
        let since = self.wait_started_ms.swap(NEVER, Ordering::Relaxed);
        if since != NEVER {
            let waited = self.after(Duration::ZERO).saturating_sub(since);
            self.waited_ms.fetch_add(waited, Ordering::Relaxed);
        }
    }

    /// The next deadline.
    pub fn deadline(&self) -> Instant {
        match self.deadline_ms.load(Ordering::Relaxed).min(self.read_deadline_ms.load(Ordering::Relaxed)) {
            NEVER => Instant::now() + FAR_FUTURE,
            ms => self.started + Duration::from_millis(ms),
        }
    }

    /// The step whose deadline has passed, if any.
    pub fn expired(&self) -> Option<Expired> {
        let now = self.after(Duration::ZERO);
        if self.read_deadline_ms.load(Ordering::Relaxed) <= now {
            return Some(Expired::Response);
        }
        let expired = self.deadline_ms.load(Ordering::Relaxed) <= now;
        expired
            .then(|| if self.phase.load(Ordering::Relaxed) == HEAD { Expired::Head } else { Expired::Idle })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Advances the time and returns the step that expired.
    fn after(timer: &mut ConnectionTimer, time_ms: u64) -> Option<Expired> {
        timer.started -= Duration::from_millis(time_ms);
        timer.expired()
    }

    fn timer() -> ConnectionTimer {
        ConnectionTimer::new(Timeouts { request: Duration::from_secs(100), idle: Duration::from_secs(1000) })
    }

    #[test]
    fn the_timeout_of_a_head_starts_at_its_first_byte() {
        let mut timer = timer();
        assert_eq!(after(&mut timer, 900_000), None);
        timer.bytes_received();
        assert_eq!(after(&mut timer, 60_000), None);
        timer.bytes_received();
        assert_eq!(after(&mut timer, 40_000), Some(Expired::Head));
    }

    #[test]
    fn the_idle_timeout_applies_only_between_requests() {
        let mut timer = timer();
        timer.bytes_received();
        timer.request_started();
        assert_eq!(after(&mut timer, 5_000_000), None);
        assert!(timer.deadline() > Instant::now() + FAR_FUTURE / 2);
        timer.response_ended();
        assert_eq!(after(&mut timer, 990_000), None);
        assert!(timer.deadline() > Instant::now());
        assert_eq!(after(&mut timer, 10_000), Some(Expired::Idle));
        assert!(timer.deadline() <= Instant::now());
    }

    #[test]
    fn a_blocked_write_expires_in_any_phase() {
        let mut timer = timer();
        timer.bytes_received();
        timer.request_started();
        timer.write_blocked();
        assert_eq!(after(&mut timer, 90_000), None);
        timer.write_blocked();
        assert_eq!(after(&mut timer, 10_000), Some(Expired::Response));
        timer.write_progressed(1);
        assert_eq!(after(&mut timer, 1_000_000), None);
    }

    /// Reads `bytes` every 50 s. Returns the number of reads after which the timeout expires.
    fn reads_until_expired(timer: &mut ConnectionTimer, bytes: u64) -> Option<usize> {
        (0..100).find(|_| {
            timer.write_blocked();
            let expired = after(timer, 50_000);
            timer.write_progressed(usize::try_from(bytes).unwrap());
            expired == Some(Expired::Response)
        })
    }

    #[test]
    fn a_response_expires_if_the_client_reads_too_slowly() {
        let mut timer = timer();
        timer.request_started();
        assert_eq!(reads_until_expired(&mut timer, 1), Some(1), "as if nothing were read");
        timer.response_ended();
        timer.request_started();
        assert_eq!(
            reads_until_expired(&mut timer, MIN_BYTES_PER_SECOND * 25),
            Some(2),
            "half of the time is earned"
        );
        timer.response_ended();
        timer.request_started();
        assert_eq!(reads_until_expired(&mut timer, MIN_BYTES_PER_SECOND * 51), None);
        timer.response_ended();
        timer.request_started();
        timer.write_progressed(usize::try_from(MIN_BYTES_PER_SECOND).unwrap() * 1000);
        assert_eq!(after(&mut timer, 1_000_000), None, "the time of the server does not count");
        timer.write_blocked();
        assert_eq!(after(&mut timer, 100_000), Some(Expired::Response), "and no single wait may be longer");
    }
}
