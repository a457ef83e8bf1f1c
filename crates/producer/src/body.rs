//! Reading a body within limits of size and time. Memory stays within the size limit whatever the client sends; a
//! client that sends too much still sees its answer, if it is not more than [`DRAIN_BYTES`] over.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::time::Instant;

use crate::error::ApiError;
use crate::stopping::Stopping;

/// A client that is still sending does not look for an answer: so much more is read and thrown away.
const DRAIN_BYTES: usize = 1024 * 1024;

/// What a body may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Its size.
    pub bytes: usize,
    /// How long it may take to arrive.
    pub time: Duration,
}

/// The body of a JSON request.
///
/// # Errors
/// 400 empty or broken, 408 slow, 413 too large, 415 not JSON by its header, 503 stopping meanwhile.
pub async fn json(
    headers: &HeaderMap,
    body: Body,
    limits: Limits,
    stopping: &Stopping,
) -> Result<Bytes, ApiError> {
    let deadline = Instant::now() + limits.time;
    let mut rest = Rest { stream: body.into_data_stream(), deadline };
    let read = async {
        if let Err(error) = judge_headers(headers, limits.bytes) {
            // With `Expect: 100-continue` the client has not sent anything, and will not.
            if !headers.contains_key(header::EXPECT) {
                rest.drain().await;
            }
            return Err(error);
        }
        match tokio::time::timeout_at(deadline, rest.read(limits.bytes)).await {
            Ok(Ok(bytes)) if bytes.iter().all(u8::is_ascii_whitespace) => Err(ApiError::Empty),
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(error)) => {
                if matches!(error, ApiError::BodyTooLarge(_)) {
                    rest.drain().await;
                }
                Err(error)
            }
            Err(_) => Err(ApiError::BodySlow(limits.time)),
        }
    };
    tokio::select! {
        read = read => read,
        () = stopping.given_up() => Err(ApiError::stopping(None)),
    }
}

/// What can be refused before a byte of the body is read.
fn judge_headers(headers: &HeaderMap, most_bytes: usize) -> Result<(), ApiError> {
    let content_length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if content_length
        .and_then(|length| length.parse::<u64>().ok())
        .is_some_and(|length| usize::try_from(length).map_or(true, |length| length > most_bytes))
    {
        return Err(ApiError::BodyTooLarge(most_bytes));
    }
    if headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return Err(ApiError::MediaType(
            "the body must not be compressed: Content-Encoding is not supported",
        ));
    }
    match headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default()) {
        // As in the original: who says nothing sends JSON.
        None | Some("") => Ok(()),
        Some(media_type) if is_json(media_type) => Ok(()),
        Some(_) => Err(ApiError::MediaType("the body must be JSON: send Content-Type: application/json")),
    }
}

fn is_json(media_type: &str) -> bool {
    let mut parts = media_type.split(';').map(|part| part.trim().to_ascii_lowercase());
    let essence = parts.next().unwrap_or_default();
    let json = essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
        || essence == "text/json";
    json && parts.all(|parameter| match parameter.split_once('=') {
        Some(("charset", charset)) => matches!(charset.trim_matches('"'), "utf-8" | "utf8" | "us-ascii"),
        _ => true,
    })
}

struct Rest {
    stream: axum::body::BodyDataStream,
    deadline: Instant,
}

impl Rest {
    async fn read(&mut self, most_bytes: usize) -> Result<Bytes, ApiError> {
        let mut read = BytesMut::new();
        while let Some(chunk) = self.stream.next().await {
            let chunk = chunk.map_err(|error| ApiError::BodyBroken(error.to_string()))?;
            if read.len() + chunk.len() > most_bytes {
                return Err(ApiError::BodyTooLarge(most_bytes));
            }
            read.extend_from_slice(&chunk);
        }
        Ok(read.freeze())
    }

    /// Reads and throws away, within [`DRAIN_BYTES`] and the deadline.
    async fn drain(&mut self) {
        let read_on = async {
            let mut read = 0;
            while let Some(Ok(chunk)) = self.stream.next().await {
                read += chunk.len();
                if read > DRAIN_BYTES {
                    break;
                }
            }
        };
        _ = tokio::time::timeout_at(self.deadline, read_on).await;
    }
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
