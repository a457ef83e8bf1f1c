//! One connection's bytes, in the clear or through TLS, with each step told to its [`Watch`].
//!
//! hyper answers a head that it cannot parse by itself, and says why only when the connection has
//! ended. Such an answer is withheld until then, so that another can be sent in its place.

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

use super::timeouts::Watch;

/// How much a client may still send, and for how long, while its connection is closed: unread bytes
/// would make the end a reset, which can overtake the answer.
const LINGER: (usize, Duration) = (1024 * 1024, Duration::from_secs(1));

/// A connection's bytes.
pub enum Stream {
    /// As they come.
    Plain(TcpStream),
    /// Through TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A stream that is watched.
pub struct Watched {
    stream: Stream,
    watch: Arc<Watch>,
    withheld: Vec<u8>,
}

impl Watched {
    /// Watches `stream`.
    pub fn new(stream: Stream, watch: Arc<Watch>) -> Self {
        Self { stream, watch, withheld: Vec::new() }
    }

    /// The answer that hyper made by itself, if it made one.
    pub fn take_withheld(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.withheld)
    }

    /// Sends `answer`, if there is one, and closes the connection.
    pub async fn finish(&mut self, answer: &[u8]) -> io::Result<()> {
        if answer.is_empty() {
            return Ok(());
        }
        match &mut self.stream {
            Stream::Plain(stream) => finish(stream, answer).await,
            Stream::Tls(stream) => finish(stream, answer).await,
        }
    }

    /// Whether these bytes belong to the answer of no request.
    fn withhold(&mut self, bytes: &[u8]) -> bool {
        let withheld = !self.watch.is_answering();
        if withheld {
            self.withheld.extend_from_slice(bytes);
        }
        withheld
    }

    /// The reset of a connection whose request is worked on: hyper reads nothing meanwhile and
    /// would not notice.
    fn poll_reset(&self, cx: &mut Context<'_>) -> io::Result<()> {
        let socket = match &self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => stream.get_ref().0,
        };
        if self.watch.is_in_request()
            && socket.poll_read_ready(cx).is_ready()
            && let Some(error) = socket.take_error()?
        {
            return Err(error);
        }
        Ok(())
    }

    fn told<T>(&self, outcome: Poll<io::Result<T>>, bytes: impl FnOnce(&T) -> usize) -> Poll<io::Result<T>> {
        match &outcome {
            Poll::Pending => self.watch.write_waits(),
            Poll::Ready(outcome) => self.watch.write_went_on(outcome.as_ref().map_or(0, bytes)),
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

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = either!(self, stream => Pin::new(stream).poll_read(cx, buffer));
        if buffer.filled().len() > before {
            self.watch.bytes_came();
        }
        outcome
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.withhold(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        let outcome = either!(self, stream => Pin::new(stream).poll_write(cx, bytes));
        self.told(outcome, |bytes| *bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.watch.is_answering() {
            bytes.iter().for_each(|bytes| _ = self.withhold(bytes));
            return Poll::Ready(Ok(bytes.iter().map(|bytes| bytes.len()).sum()));
        }
        let outcome = either!(self, stream => Pin::new(stream).poll_write_vectored(cx, bytes));
        self.told(outcome, |bytes| *bytes)
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
            self.watch.flushed();
        }
        self.told(outcome, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.withheld.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let outcome = either!(self, stream => Pin::new(stream).poll_shutdown(cx));
        self.told(outcome, |()| 0)
    }
}

/// Sends `answer` and the end, and reads what the client still sends.
async fn finish<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, answer: &[u8]) -> io::Result<()> {
    stream.write_all(answer).await?;
    stream.shutdown().await?;
    let read_on = async {
        let (mut buffer, mut left) = ([0; 4096], LINGER.0);
        while left > 0 {
            match stream.read(&mut buffer).await {
                Ok(read) if read > 0 => left = left.saturating_sub(read),
                _ => return,
            }
        }
    };
    _ = tokio::time::timeout(LINGER.1, read_on).await;
    Ok(())
}

/// An answer's body; its end is told.
pub struct WatchedBody {
    body: Body,
    watch: Arc<Watch>,
}

impl WatchedBody {
    /// Watches `body`.
    pub fn new(body: Body, watch: Arc<Watch>) -> Self {
        Self { body, watch }
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        self.watch.answer_ended();
    }
}

impl http_body::Body for WatchedBody {
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
