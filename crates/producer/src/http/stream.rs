//! The byte stream of a connection, plain or TLS. It reports each read and write to the
//! [`ConnectionTimer`].
//!
//! hyper itself responds to a head that it cannot parse, and returns the error only afterwards.
//! Such a response is withheld until then, so that a better one can replace it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::http::timeouts::ConnectionTimer;

/// Number of bytes that are read and discarded while a connection is closed. Unread bytes would
/// make the close a reset, which can overtake the response.
const MAX_LINGER_BYTES: usize = 1024 * 1024;
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

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

    /// Sends `response`, if it is not empty, and closes the connection.
    pub async fn finish(&mut self, response: &[u8]) -> io::Result<()> {
        if response.is_empty() {
            return Ok(());
        }
        match &mut self.stream {
            Stream::Plain(stream) => finish(stream, response).await,
            Stream::Tls(stream) => finish(stream, response).await,
        }
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
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => stream.get_ref().0,
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

macro_rules! either {
    ($self:ident, $stream:ident => $call:expr) => {
        match &mut $self.stream {
            Stream::Plain($stream) => $call,
            Stream::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for TimedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = either!(self, stream => Pin::new(stream).poll_read(cx, buffer));
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
        let outcome = either!(self, stream => Pin::new(stream).poll_write(cx, bytes));
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
        let outcome = either!(self, stream => Pin::new(stream).poll_write_vectored(cx, bytes));
        self.report(outcome, |bytes| *bytes)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_reset(cx)?;
        let outcome = either!(self, stream => Pin::new(stream).poll_flush(cx));
        if outcome.is_ready() {
            self.timer.flushed();
        }
        self.report(outcome, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.withheld.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let outcome = either!(self, stream => Pin::new(stream).poll_shutdown(cx));
        self.report(outcome, |()| 0)
    }
}

/// Sends `response`, closes the sending side, and discards the bytes that the client still sends.
async fn finish<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, response: &[u8]) -> io::Result<()> {
    stream.write_all(response).await?;
    stream.shutdown().await?;
    let linger = async {
        let (mut buffer, mut left) = ([0; 4096], MAX_LINGER_BYTES);
        while left > 0 {
            match stream.read(&mut buffer).await {
                Ok(read) if read > 0 => left = left.saturating_sub(read),
                _ => return,
            }
        }
    };
    _ = tokio::time::timeout(LINGER_TIMEOUT, linger).await;
    Ok(())
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
