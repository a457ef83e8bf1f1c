//! Reading a request body within limits of size and time. gzip and zstd bodies are decompressed
//! while they arrive.
//!
//! - The size limit bounds the decompressed size. A decoder needs one chunk and its window of
//!   memory, whatever the size of the body. All zstd decoders share [`zstd_memory`].
//! - After an error up to [`MAX_DRAIN_BYTES`] more are read and discarded. So a client that is
//!   still sending reads the response.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::io::StreamReader;

use crate::error::ApiError;
use crate::http::headers::{self, ContentCoding};
use crate::state::Shutdown;

/// Number of bytes beyond the size limit that are read and discarded.
pub const MAX_DRAIN_BYTES: usize = 1024 * 1024;

/// The limits of a body.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimits {
    /// Maximum size after decompression.
    pub max_bytes: usize,
    /// The variable that sets the maximum size.
    pub variable: &'static str,
    /// Maximum time to wait for the client.
    pub timeout: Duration,
}

/// Reads the body of a JSON request.
///
/// # Errors
/// - 400: the body is empty or cannot be read.
/// - 408, 413: a limit was exceeded.
/// - 415: the media type or the coding is not supported.
/// - 503: no memory is left to decompress the body, or the shutdown ended the request.
pub async fn read_json(
    headers: &HeaderMap,
    body: Body,
    limits: BodyLimits,
    shutdown: &Shutdown,
    zstd_memory: &Arc<Semaphore>,
) -> Result<Bytes, ApiError> {
    let read = async {
        let media_type = headers::check_json(headers);
        let mut body = LimitedBody::open(headers, body, limits, media_type, zstd_memory).await?;
        // Most bodies arrive in one chunk, which is not copied.
        let (mut first, mut joined) = (Bytes::new(), BytesMut::new());
        loop {
            match body.next().await {
                Ok(Some(chunk)) if first.is_empty() && joined.is_empty() => first = chunk,
                Ok(Some(chunk)) => {
                    joined.extend_from_slice(&std::mem::take(&mut first));
                    joined.extend_from_slice(&chunk);
                }
                Ok(None) => break,
                Err(error) => {
                    body.drain_after(&error).await;
                    return Err(error);
                }
            }
        }
        let body = if joined.is_empty() { first } else { joined.freeze() };
        if body.iter().all(u8::is_ascii_whitespace) { Err(ApiError::EmptyBody) } else { Ok(body) }
    };
    // `biased`: most bodies are complete already, so that the second branch is not polled.
    tokio::select! {
        biased;
        body = read => body,
        () = shutdown.abandoned.cancelled() => Err(ApiError::shutting_down(None)),
    }
}

/// A body that is read within its limits.
pub struct LimitedBody {
    decoder: Decoder,
    limits: BodyLimits,
    /// Number of bytes read so far, after decompression.
    read_bytes: usize,
    /// How much longer the client may be waited for.
    time_left: Duration,
}

impl LimitedBody {
    /// Checks the headers before the first byte is read. `media_type` is the check of the media
    /// type by the caller; its error comes after those of size and coding.
    ///
    /// # Errors
    /// 413, 415, 503.
    pub async fn open(
        headers: &HeaderMap,
        body: Body,
        limits: BodyLimits,
        media_type: Result<(), ApiError>,
        zstd_memory: &Arc<Semaphore>,
    ) -> Result<Self, ApiError> {
        let check = || {
            check_length(headers, limits)?;
            let coding = ContentCoding::of(headers)?;
            media_type?;
            Ok((coding, reserve_memory(coding, limits.max_bytes, zstd_memory)?))
        };
        let stream = body.into_data_stream();
        let open = |decoder| Self { decoder, limits, read_bytes: 0, time_left: limits.timeout };
        match check() {
            Ok((coding, memory)) => Ok(open(Decoder::new(coding, stream, limits.max_bytes, memory))),
            Err(error) => {
                // With `Expect: 100-continue` the client sends no body, because nothing asks it to
                // continue.
                if !headers.contains_key(header::EXPECT) {
                    open(Decoder::Plain(stream)).drain().await;
                }
                Err(error)
            }
        }
    }

    /// Returns the next chunk, decompressed, or `None` at the end. If the body is too long, the
    /// bytes within the limit are returned before the error.
    ///
    /// # Errors
    /// 400: the body cannot be read. 408, 413: a limit was exceeded.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let BodyLimits { max_bytes, variable, timeout } = self.limits;
        if self.read_bytes > max_bytes {
            return Err(ApiError::BodyTooLarge(max_bytes, variable));
        }
        let started = Instant::now();
        let next = tokio::time::timeout(self.time_left, self.decoder.next((max_bytes, variable))).await;
        self.time_left = self.time_left.saturating_sub(started.elapsed());
        match next {
            Ok(Ok(Some(mut chunk))) => {
                let bytes_left = max_bytes - self.read_bytes;
                self.read_bytes += chunk.len();
                chunk.truncate(bytes_left);
                Ok(Some(chunk))
            }
            Ok(outcome) => outcome,
            Err(_) => Err(ApiError::BodyTimeout(timeout)),
        }
    }

    /// Drains the body after `error`, unless the timeout has expired.
    pub async fn drain_after(&mut self, error: &ApiError) {
        if !matches!(error, ApiError::BodyTimeout(_)) {
            self.drain().await;
        }
    }

    /// Reads and discards the rest of the body within the timeout, up to [`MAX_DRAIN_BYTES`] beyond
    /// the size limit. Bytes that stay unread would make the close of the connection a reset, which
    /// can overtake the response.
    pub async fn drain(&mut self) {
        let max = self.limits.max_bytes.saturating_sub(self.read_bytes) + MAX_DRAIN_BYTES;
        discard(self.decoder.undecoded(), max, self.time_left).await;
    }
}

/// Reads and discards a body, up to `max_bytes` and within `timeout`. Returns the number of bytes,
/// and whether the end of the body was read.
pub async fn discard(stream: &mut BodyDataStream, max_bytes: usize, timeout: Duration) -> (usize, bool) {
    let mut bytes = 0;
    let read = async {
        while let Some(chunk) = stream.next().await {
            let Ok(chunk) = chunk else { return false };
            bytes += chunk.len();
            if bytes > max_bytes {
                return false;
            }
        }
        true
    };
    let ended = tokio::time::timeout(timeout, read).await.unwrap_or(false);
    (bytes, ended)
}

fn check_length(headers: &HeaderMap, limits: BodyLimits) -> Result<(), ApiError> {
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let fits = |length: u64| usize::try_from(length).is_ok_and(|length| length <= limits.max_bytes);
    if length.is_some_and(|length| !fits(length)) {
        return Err(ApiError::BodyTooLarge(limits.max_bytes, limits.variable));
    }
    Ok(())
}

/// Number of bytes that are decompressed at a time.
const CHUNK_BYTES: usize = 32 * 1024;
/// 8 MiB, as RFC 9659 requires. Without this limit a small body could allocate 128 MiB.
const ZSTD_WINDOW_LOG: u32 = 23;
/// Memory of a zstd decoder beside its window: tables, input and output. The window of gzip has
/// 32 KiB, less than the buffers of the body, and is not counted.
const ZSTD_DECODER_BYTES: usize = 640 * 1024;
/// Memory of all zstd decoders. A body of a kilobyte can make its decoder fill the window and then
/// stall; MAX_IN_FLIGHT such bodies would allocate 16 GiB. The limit allows 29 batches, or 372
/// events of 64 KiB.
const ZSTD_MEMORY_BYTES: usize = 256 * 1024 * 1024;

/// Creates the memory limit of all zstd decoders of a process. One permit is one byte.
pub fn zstd_memory() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(ZSTD_MEMORY_BYTES))
}

/// Reserves the memory to decompress a body of up to `max_bytes`. A decoder fills no more of
/// its window than the size of the body.
///
/// # Errors
/// 503: not enough memory is left.
fn reserve_memory(
    coding: ContentCoding,
    max_bytes: usize,
    zstd_memory: &Arc<Semaphore>,
) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
    if coding != ContentCoding::Zstd {
        return Ok(None);
    }
    let bytes = max_bytes.min(1 << ZSTD_WINDOW_LOG) + ZSTD_DECODER_BYTES;
    let permit = Arc::clone(zstd_memory).try_acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX));
    permit.map(Some).map_err(|_| ApiError::overloaded("too many zstd bodies are being decompressed"))
}

/// Reads a body in decompressed chunks.
enum Decoder {
    Plain(BodyDataStream),
    Gzip(Box<GzipDecoder<Compressed>>),
    Zstd { decoder: Box<ZstdDecoder<Compressed>>, _memory: Option<OwnedSemaphorePermit> },
}

type Compressed = StreamReader<LimitedStream, Bytes>;

impl Decoder {
    /// Creates a decoder that reads at most `max_bytes` compressed bytes. It keeps `memory`.
    pub fn new(
        coding: ContentCoding,
        stream: BodyDataStream,
        max_bytes: usize,
        memory: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let compressed = |stream| StreamReader::new(LimitedStream { stream, bytes_left: max_bytes });
        match coding {
            ContentCoding::Identity => Self::Plain(stream),
            ContentCoding::Gzip => {
                let mut decoder = GzipDecoder::new(compressed(stream));
                decoder.multiple_members(true);
                Self::Gzip(Box::new(decoder))
            }
            ContentCoding::Zstd => {
                let window = [DParameter::window_log_max(ZSTD_WINDOW_LOG)];
                let mut decoder = ZstdDecoder::with_params(compressed(stream), &window);
                decoder.multiple_members(true);
                Self::Zstd { decoder: Box::new(decoder), _memory: memory }
            }
        }
    }

    /// Returns the next chunk, or `None` at the end. `limit` is for the error: maximum size and
    /// variable.
    ///
    /// # Errors
    /// 400: the framing or the compression is invalid. 413: the compressed body is too long.
    pub async fn next(&mut self, limit: (usize, &'static str)) -> Result<Option<Bytes>, ApiError> {
        let (outcome, coding) = match self {
            Self::Plain(stream) => {
                let chunk = stream.next().await.transpose();
                return chunk.map_err(|error| read_error(&error));
            }
            Self::Gzip(decoder) => (read_chunk(decoder).await, "gzip"),
            Self::Zstd { decoder, .. } => (read_chunk(decoder).await, "zstd"),
        };
        outcome.map_err(|error| match error.get_ref() {
            Some(cause) if cause.is::<LimitExceeded>() => ApiError::BodyTooLarge(limit.0, limit.1),
            Some(cause) if cause.is::<axum::Error>() => read_error(cause),
            _ => ApiError::UnreadableBody(format!("it cannot be decompressed as {coding}: {error}")),
        })
    }

    /// The stream of compressed chunks.
    fn undecoded(&mut self) -> &mut BodyDataStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Gzip(decoder) => &mut decoder.get_mut().get_mut().stream,
            Self::Zstd { decoder, .. } => &mut decoder.get_mut().get_mut().stream,
        }
    }
}

/// Converts an error of the connection: the framing is invalid, or the client ended the body early.
fn read_error(error: &(dyn Error + 'static)) -> ApiError {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && matches!(io.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData)
        {
            return ApiError::UnreadableBody(io.to_string());
        }
        cause = error.source();
    }
    ApiError::TruncatedBody
}

async fn read_chunk(decoder: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Bytes>> {
    let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
    let read = decoder.read_buf(&mut chunk).await?;
    Ok((read > 0).then(|| chunk.freeze()))
}

/// A stream that fails after a number of bytes.
struct LimitedStream {
    stream: BodyDataStream,
    bytes_left: usize,
}

#[derive(Debug, Error)]
#[error("too long")]
struct LimitExceeded;

impl Stream for LimitedStream {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.poll_next_unpin(context).map(|chunk| {
            let chunk = chunk?.map_err(io::Error::other);
            Some(chunk.and_then(|chunk| match self.bytes_left.checked_sub(chunk.len()) {
                Some(left) => {
                    self.bytes_left = left;
                    Ok(chunk)
                }
                None => Err(io::Error::other(LimitExceeded)),
            }))
        })
    }
}
