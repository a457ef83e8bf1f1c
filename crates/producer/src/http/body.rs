//! Reading a request body within limits of size and time, decompressed.
//!
//! - The size limit bounds the memory of a body, and `zstd_memory` bounds that of all zstd
//!   decoders.
//! - After an error up to [`MAX_DRAIN_BYTES`] more are read and discarded. So a client that is
//!   still sending reads the response.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::error::ApiError;
use crate::http::content_coding::{ContentCoding, Decoder};
use crate::http::content_type;
use crate::shutdown::Shutdown;

/// Number of bytes beyond the size limit that are read and discarded.
const MAX_DRAIN_BYTES: usize = 1024 * 1024;

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
        let media_type = content_type::check_json(headers);
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
        () = shutdown.abandoned() => Err(ApiError::shutting_down(None)),
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
            Ok((coding, coding.reserve_memory(limits.max_bytes, zstd_memory)?))
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
        let stream = self.decoder.undecoded();
        let drain = async {
            let mut drained = 0;
            while let Some(Ok(chunk)) = stream.next().await {
                drained += chunk.len();
                if drained > max {
                    break;
                }
            }
        };
        _ = tokio::time::timeout(self.time_left, drain).await;
    }
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
