//! Reading a body within limits of size and time, decompressed. Memory stays within the size limit, and that of zstd's
//! decoders within [`zstd_room`], whatever clients send; a client that sends too much still sees its answer, if it is not
//! more than [`DRAIN_BYTES`] over.

mod coding;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::sync::Semaphore;
use tokio::time::Instant;

pub use coding::{CODINGS, zstd_room};
use coding::{Coding, Reader};

use crate::error::ApiError;
use crate::stopping::Stopping;

/// A client that is still sending does not look for an answer: beyond its limit, so much more is read and thrown away.
const DRAIN_BYTES: usize = 1024 * 1024;

/// What a body may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Its size, decompressed.
    pub bytes: usize,
    /// The variable that sets it.
    pub variable: &'static str,
    /// How long it may be waited for.
    pub time: Duration,
}

/// The body of a JSON request.
///
/// # Errors
/// 400 empty or broken, 408 slow, 413 too large, 415 not JSON by its header, 503 no room to decompress it, or stopping
/// meanwhile.
pub async fn json(
    headers: &HeaderMap,
    body: Body,
    limits: Limits,
    stopping: &Stopping,
    zstd_room: &Arc<Semaphore>,
) -> Result<Bytes, ApiError> {
    let read = async {
        let media = judge_media_type(headers);
        let mut incoming = Incoming::open(headers, body, limits, media, zstd_room).await?;
        // Most bodies come in one chunk, which is not copied.
        let (mut first, mut read) = (Bytes::new(), BytesMut::new());
        loop {
            match incoming.next().await {
                Ok(Some(chunk)) if first.is_empty() && read.is_empty() => first = chunk,
                Ok(Some(chunk)) => {
                    read.extend_from_slice(&std::mem::take(&mut first));
                    read.extend_from_slice(&chunk);
                }
                Ok(None) => break,
                Err(error) => {
                    incoming.drain_after(&error).await;
                    return Err(error);
                }
            }
        }
        let body = if read.is_empty() { first } else { read.freeze() };
        if body.iter().all(u8::is_ascii_whitespace) { Err(ApiError::Empty) } else { Ok(body) }
    };
    // Most bodies have come with their head: then nothing is waited for.
    tokio::select! {
        biased;
        read = read => read,
        () = stopping.given_up() => Err(ApiError::stopping(None)),
    }
}

/// A body on its way in.
pub struct Incoming {
    reader: Reader,
    limits: Limits,
    read: usize,
    /// How much longer the client may be waited for.
    left: Duration,
}

impl Incoming {
    /// Judges what can be judged before a byte of the body is read; `media` is the judgement of its type.
    ///
    /// # Errors
    /// 413, 415, 503.
    pub async fn open(
        headers: &HeaderMap,
        body: Body,
        limits: Limits,
        media: Result<(), ApiError>,
        zstd_room: &Arc<Semaphore>,
    ) -> Result<Self, ApiError> {
        let judge = || {
            judge_length(headers, limits)?;
            let coding = Coding::of(headers)?;
            media?;
            Ok((coding, coding.room(limits.bytes, zstd_room)?))
        };
        let stream = body.into_data_stream();
        let opened = |reader| Self { reader, limits, read: 0, left: limits.time };
        match judge() {
            Ok((coding, room)) => Ok(opened(Reader::new(coding, stream, limits.bytes, room))),
            Err(error) => {
                // With `Expect: 100-continue` the client has not sent anything, and will not.
                if !headers.contains_key(header::EXPECT) {
                    opened(Reader::Plain(stream)).drain().await;
                }
                Err(error)
            }
        }
    }

    /// The next chunk, decompressed, or the end. Of a body that is too long, what is within the limit comes first.
    ///
    /// # Errors
    /// 400 broken, 408 slow, 413 too large.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let limit = (self.limits.bytes, self.limits.variable);
        if self.read > limit.0 {
            return Err(ApiError::BodyTooLarge(limit.0, limit.1));
        }
        let began = Instant::now();
        let next = tokio::time::timeout(self.left, self.reader.next(limit)).await;
        self.left = self.left.saturating_sub(began.elapsed());
        match next {
            Ok(Ok(Some(mut chunk))) => {
                let room = limit.0 - self.read;
                self.read += chunk.len();
                chunk.truncate(room);
                Ok(Some(chunk))
            }
            Ok(outcome) => outcome,
            Err(_) => Err(ApiError::BodySlow(self.limits.time)),
        }
    }

    /// Reads on after what broke the body, unless the client was waited for long enough.
    pub async fn drain_after(&mut self, error: &ApiError) {
        if !matches!(error, ApiError::BodySlow(_)) {
            self.drain().await;
        }
    }

    /// Reads and throws away what the body may still hold and [`DRAIN_BYTES`] more, within what is left of the time.
    /// If a part of it stayed unread, the connection's end would be a reset that overtakes the answer.
    pub async fn drain(&mut self) {
        let most = self.limits.bytes.saturating_sub(self.read) + DRAIN_BYTES;
        let stream = self.reader.raw();
        let read_on = async {
            let mut read = 0;
            while let Some(Ok(chunk)) = stream.next().await {
                read += chunk.len();
                if read > most {
                    break;
                }
            }
        };
        _ = tokio::time::timeout(self.left, read_on).await;
    }
}

fn judge_length(headers: &HeaderMap, limits: Limits) -> Result<(), ApiError> {
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| usize::try_from(length).map_or(true, |length| length > limits.bytes)) {
        return Err(ApiError::BodyTooLarge(limits.bytes, limits.variable));
    }
    Ok(())
}

/// As in the original: who says nothing sends JSON.
fn judge_media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    if media_type(headers).is_none_or(is_json) { Ok(()) } else { Err(ApiError::JSON_WANTED) }
}

/// The header Content-Type, if it says anything.
pub fn media_type(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::CONTENT_TYPE)?;
    Some(value.to_str().unwrap_or("?")).filter(|text| !text.is_empty())
}

/// Whether it is JSON in UTF-8.
pub fn is_json(media_type: &str) -> bool {
    // What most clients send is known without taking it apart.
    media_type == "application/json"
        || is_utf8_of(media_type, |essence| {
            essence == "application/json"
                || (essence.starts_with("application/") && essence.ends_with("+json"))
                || essence == "text/json"
        })
}

/// Whether it is one of those that `known` tells, and UTF-8.
pub fn is_utf8_of(media_type: &str, known: impl FnOnce(&str) -> bool) -> bool {
    let mut parts = media_type.split(';').map(|part| part.trim().to_ascii_lowercase());
    known(&parts.next().unwrap_or_default())
        && parts.all(|parameter| match parameter.split_once('=') {
            Some(("charset", charset)) => matches!(charset.trim_matches('"'), "utf-8" | "utf8" | "us-ascii"),
            _ => true,
        })
}

#[cfg(test)]
mod tests {
    use super::is_json;

    #[test]
    fn json_has_several_names_and_is_utf_8() {
        for right in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/cloudevents+json; charset=\"utf-8\"",
        ] {
            assert!(is_json(right), "{right}");
        }
        for wrong in ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1"] {
            assert!(!is_json(wrong), "{wrong}");
        }
    }
}
