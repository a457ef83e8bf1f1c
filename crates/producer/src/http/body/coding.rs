//! Content codings: gzip and zstd, decompressed as the body arrives. Memory is bounded by one chunk and the window,
//! whatever the body claims to become, and for all zstd bodies together by [`zstd_room`]; how much may come out in all is
//! judged by whoever reads.

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

use super::MOST_CHARS;
use crate::error::ApiError;

/// For the header of a 415.
pub const CODINGS: &str = "gzip, zstd";
/// So much is decompressed at a time.
const CHUNK_BYTES: usize = 32 * 1024;
/// 8 MiB, as RFC 9659 says: without a limit one small body could ask for 128 MiB of memory.
const ZSTD_WINDOW_LOG: u32 = 23;
/// What a decoder of zstd takes beside its window: its tables, and the blocks on their way in and out. gzip's window is
/// 32 KiB, less than the body's own buffers.
const ZSTD_OWN_BYTES: usize = 640 * 1024;
/// What the decoders of all zstd bodies may take: a body of a kilobyte can make its decoder fill the window and then stall,
/// and as many as MAX_IN_FLIGHT allows would take 16 GiB. It is room for 29 batches, or for 372 events of at most 64 KiB.
const ZSTD_ROOM_BYTES: usize = 256 * 1024 * 1024;

/// What the decoders of all zstd bodies of a process may take.
pub fn zstd_room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(ZSTD_ROOM_BYTES))
}

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// Not at all.
    Identity,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Coding {
    /// What the header Content-Encoding says.
    ///
    /// # Errors
    /// 415: another coding, or several.
    pub fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let mut found = Self::Identity;
        let values = headers.get_all(header::CONTENT_ENCODING);
        let refused = || {
            let values: Vec<&str> = values.iter().map(|value| value.to_str().unwrap_or("?")).collect();
            ApiError::Coding(values.join(", ").chars().take(MOST_CHARS).collect())
        };
        for value in &values {
            for coding in value.to_str().unwrap_or("?").split(',') {
                let coding = match coding.trim().to_ascii_lowercase().as_str() {
                    "" | "identity" => continue,
                    "gzip" | "x-gzip" => Self::Gzip,
                    "zstd" => Self::Zstd,
                    _ => return Err(refused()),
                };
                if found != Self::Identity {
                    return Err(refused());
                }
                found = coding;
            }
        }
        Ok(found)
    }

    /// The room in `zstd_room` that a body needs which becomes at most `most_bytes`: of the window no more is ever filled.
    ///
    /// # Errors
    /// 503: there is none.
    pub fn room(
        self,
        most_bytes: usize,
        zstd_room: &Arc<Semaphore>,
    ) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
        if self != Self::Zstd {
            return Ok(None);
        }
        let bytes = most_bytes.min(1 << ZSTD_WINDOW_LOG) + ZSTD_OWN_BYTES;
        let room = Arc::clone(zstd_room).try_acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX));
        room.map(Some).map_err(|_| ApiError::overloaded("too many zstd bodies are being decompressed"))
    }
}

/// A body, read in chunks of what it was before it was compressed.
pub enum Reader {
    /// Not compressed.
    Plain(BodyDataStream),
    /// By gzip.
    Gzip(Box<GzipDecoder<Compressed>>),
    /// By zstd.
    Zstd { decoder: Box<ZstdDecoder<Compressed>>, _room: Option<OwnedSemaphorePermit> },
}

type Compressed = StreamReader<Counted, Bytes>;

impl Reader {
    /// Reads `stream` of which no more than `most_bytes` are taken, compressed as they are; keeps its `room`.
    pub fn new(
        coding: Coding,
        stream: BodyDataStream,
        most_bytes: usize,
        room: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let compressed = |stream| StreamReader::new(Counted { stream, left: most_bytes });
        match coding {
            Coding::Identity => Self::Plain(stream),
            Coding::Gzip => {
                let mut decoder = GzipDecoder::new(compressed(stream));
                decoder.multiple_members(true);
                Self::Gzip(Box::new(decoder))
            }
            Coding::Zstd => {
                let window = [DParameter::window_log_max(ZSTD_WINDOW_LOG)];
                let mut decoder = ZstdDecoder::with_params(compressed(stream), &window);
                decoder.multiple_members(true);
                Self::Zstd { decoder: Box::new(decoder), _room: room }
            }
        }
    }

    /// The next chunk, or the end.
    ///
    /// # Errors
    /// 400: the body's framing or its compression is broken; 413: even compressed it is too long.
    pub async fn next(&mut self, limit: (usize, &'static str)) -> Result<Option<Bytes>, ApiError> {
        let (outcome, coding) = match self {
            Self::Plain(stream) => {
                let chunk = stream.next().await.transpose();
                return chunk.map_err(|error| unreadable(&error));
            }
            Self::Gzip(decoder) => (read(decoder).await, "gzip"),
            Self::Zstd { decoder, .. } => (read(decoder).await, "zstd"),
        };
        outcome.map_err(|error| match error.get_ref() {
            Some(cause) if cause.is::<TooMuch>() => ApiError::BodyTooLarge(limit.0, limit.1),
            Some(cause) if cause.is::<axum::Error>() => unreadable(cause),
            _ => ApiError::BodyBroken(format!("it cannot be decompressed as {coding}: {error}")),
        })
    }

    /// The body as it comes.
    pub fn raw(&mut self) -> &mut BodyDataStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Gzip(decoder) => &mut decoder.get_mut().get_mut().stream,
            Self::Zstd { decoder, .. } => &mut decoder.get_mut().get_mut().stream,
        }
    }
}

/// Why the body does not go on: its framing is wrong, or the client has ended it too early.
fn unreadable(error: &(dyn Error + 'static)) -> ApiError {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && matches!(io.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData)
        {
            return ApiError::BodyBroken(io.to_string());
        }
        cause = error.source();
    }
    ApiError::BodyCut
}

async fn read(decoder: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Bytes>> {
    let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
    let read = decoder.read_buf(&mut chunk).await?;
    Ok((read > 0).then(|| chunk.freeze()))
}

/// The body as it comes, and how much more of it may come.
pub struct Counted {
    stream: BodyDataStream,
    left: usize,
}

#[derive(Debug, Error)]
#[error("too long")]
struct TooMuch;

impl Stream for Counted {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.poll_next_unpin(context).map(|chunk| {
            let chunk = chunk?.map_err(io::Error::other);
            Some(chunk.and_then(|chunk| match self.left.checked_sub(chunk.len()) {
                Some(left) => {
                    self.left = left;
                    Ok(chunk)
                }
                None => Err(io::Error::other(TooMuch)),
            }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &str) -> Option<Coding> {
        let headers = HeaderMap::from_iter([(header::CONTENT_ENCODING, value.parse().unwrap())]);
        Coding::of(&headers).ok()
    }

    #[test]
    fn one_known_coding_is_taken() {
        assert_eq!(Coding::of(&HeaderMap::new()).ok(), Some(Coding::Identity));
        assert_eq!(of("identity"), Some(Coding::Identity));
        assert_eq!(of("GZIP"), Some(Coding::Gzip));
        assert_eq!(of("x-gzip"), Some(Coding::Gzip));
        assert_eq!(of("identity, zstd"), Some(Coding::Zstd));
        for wrong in ["br", "deflate", "gzip, gzip", "gzip, zstd", "gzip;q=1"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
