//! Content codings: gzip and zstd bodies are decompressed while they arrive.
//!
//! A decoder needs one chunk and its window of memory, whatever the size of the body. All zstd
//! decoders share [`zstd_memory`]. The reader limits the decompressed size.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use axum::body::BodyDataStream;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::io::StreamReader;

use crate::error::ApiError;

/// The value of Accept-Encoding in a 415 response.
pub const SUPPORTED_CODINGS: &str = "gzip, zstd";
/// Number of characters of a header value that an error repeats.
pub const MAX_VALUE_CHARS: usize = 100;
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

/// The compression of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentCoding {
    /// No compression.
    Identity,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl ContentCoding {
    /// Parses the header Content-Encoding.
    ///
    /// # Errors
    /// 415: the coding is unknown, or there are several.
    pub fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let mut found = Self::Identity;
        let values = headers.get_all(header::CONTENT_ENCODING);
        let unsupported = || {
            let values: Vec<&str> = values.iter().map(|value| value.to_str().unwrap_or("?")).collect();
            let given = values.join(", ").chars().take(MAX_VALUE_CHARS).collect();
            ApiError::UnsupportedContentCoding { given, supported: SUPPORTED_CODINGS }
        };
        for value in &values {
            for coding in value.to_str().unwrap_or("?").split(',') {
                let coding = match coding.trim().to_ascii_lowercase().as_str() {
                    "" | "identity" => continue,
                    "gzip" | "x-gzip" => Self::Gzip,
                    "zstd" => Self::Zstd,
                    _ => return Err(unsupported()),
                };
                if found != Self::Identity {
                    return Err(unsupported());
                }
                found = coding;
            }
        }
        Ok(found)
    }

    /// Reserves the memory to decompress a body of up to `max_bytes`. A decoder fills no more of
    /// its window than the size of the body.
    ///
    /// # Errors
    /// 503: not enough memory is left.
    pub fn reserve_memory(
        self,
        max_bytes: usize,
        zstd_memory: &Arc<Semaphore>,
    ) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
        if self != Self::Zstd {
            return Ok(None);
        }
        let bytes = max_bytes.min(1 << ZSTD_WINDOW_LOG) + ZSTD_DECODER_BYTES;
        let permit = Arc::clone(zstd_memory).try_acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX));
        permit.map(Some).map_err(|_| ApiError::overloaded("too many zstd bodies are being decompressed"))
    }
}

/// Reads a body in decompressed chunks.
pub enum Decoder {
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
    pub fn undecoded(&mut self) -> &mut BodyDataStream {
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
pub struct LimitedStream {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Option<ContentCoding> {
        let headers = HeaderMap::from_iter([(header::CONTENT_ENCODING, value.parse().unwrap())]);
        ContentCoding::of(&headers).ok()
    }

    #[test]
    fn one_known_coding_is_supported() {
        assert_eq!(ContentCoding::of(&HeaderMap::new()).ok(), Some(ContentCoding::Identity));
        assert_eq!(parse("identity"), Some(ContentCoding::Identity));
        assert_eq!(parse("GZIP"), Some(ContentCoding::Gzip));
        assert_eq!(parse("x-gzip"), Some(ContentCoding::Gzip));
        assert_eq!(parse("identity, zstd"), Some(ContentCoding::Zstd));
        for wrong in ["br", "deflate", "gzip, gzip", "gzip, zstd", "gzip;q=1"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
