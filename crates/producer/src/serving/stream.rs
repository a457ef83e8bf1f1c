//! One connection's bytes, in the clear or through TLS, with each step told to its [`Watch`].

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::watch::Watch;

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
}

impl Watched {
    /// Watches `stream`.
    pub fn new(stream: Stream, watch: Arc<Watch>) -> Self {
        Self { stream, watch }
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
        let outcome = either!(self, stream => Pin::new(stream).poll_write(cx, bytes));
        self.told(outcome, |bytes| *bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
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
        let outcome = either!(self, stream => Pin::new(stream).poll_flush(cx));
        self.told(outcome, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = either!(self, stream => Pin::new(stream).poll_shutdown(cx));
        self.told(outcome, |()| 0)
    }
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
