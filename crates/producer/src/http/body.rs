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

use coding::Reader;
pub use coding::{CODINGS, Coding, zstd_room};

use crate::error::ApiError;
use crate::http::head;
use crate::shutdown::Stopping;

/// A client that is still sending does not look for an answer: beyond its limit, so much more is read and thrown away.
const DRAIN_BYTES: usize = 1024 * 1024;
/// So much of a header's value is repeated in a refusal.
const MOST_CHARS: usize = 100;

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

/// What is right for one event.
pub const JSON: &str = "send JSON with Content-Type: application/json";

/// The refusal of a media type. One that differs in its charset only is right otherwise.
pub fn other_media_type(given: &str, right: &str) -> ApiError {
    let given: String = given.chars().take(MOST_CHARS).collect();
    ApiError::MediaType(match charset(&given).filter(|charset| !is_utf8(charset)) {
        Some(charset) if is_known(&given) => {
            format!(
                "the charset {charset:?} is not supported: send the body in UTF-8, and charset=utf-8 or none"
            )
        }
        _ => format!("Content-Type {given:?} is not supported: {right}"),
    })
}

fn is_known(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default();
    is_json(essence) || is_lines(essence)
}

/// What a text that is not JSON is by its first bytes, and what to send instead. `coding` is that of its header.
pub fn looks_like(text: &[u8], coding: Coding) -> Option<&'static str> {
    Some(match (text, coding) {
        ([0x1f, 0x8b, ..], Coding::Identity) => {
            "it is compressed with gzip: send it with Content-Encoding: gzip"
        }
        ([0x28, 0xb5, 0x2f, 0xfd, ..], Coding::Identity) => {
            "it is compressed with zstd: send it with Content-Encoding: zstd"
        }
        ([0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..], _) => "it is compressed twice: compress it once",
        ([0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, b'{' | b'[', ..] | [b'{' | b'[', 0, ..], _) => {
            "it is in UTF-16 or UTF-32: send it in UTF-8"
        }
        ([0xef, 0xbb, 0xbf, ..], _) => "it begins with a byte order mark: send it without",
        _ => return None,
    })
}

/// As in the original: who says nothing sends JSON.
fn judge_media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    match media_type(headers)? {
        Some(given) if !is_json(given) => Err(other_media_type(given, JSON)),
        _ => Ok(()),
    }
}

/// The header Content-Type, if it says anything.
///
/// # Errors
/// 422: it has different values.
pub fn media_type(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let value = head::only(headers, &header::CONTENT_TYPE).map_err(|_| {
        let msg = "Content-Type should have one value, and has several";
        ApiError::Invalid(vec![head::fault("Content-Type", msg)])
    })?;
    Ok(value.map(|value| value.to_str().unwrap_or("?")).filter(|text| !text.is_empty()))
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

/// Whether it is NDJSON in UTF-8.
pub fn is_lines(media_type: &str) -> bool {
    is_utf8_of(media_type, |essence| {
        matches!(
            essence,
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" | "application/x-jsonlines"
        )
    })
}

/// Whether it is one of those that `known` tells, and UTF-8.
pub fn is_utf8_of(media_type: &str, known: impl FnOnce(&str) -> bool) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    known(&essence) && charset(media_type).is_none_or(|charset| is_utf8(&charset))
}

/// The charset that a media type names, in lower case.
fn charset(media_type: &str) -> Option<String> {
    let mut parameters = media_type.split(';').skip(1).filter_map(|parameter| parameter.split_once('='));
    let (_, value) = parameters.find(|(name, _)| name.trim().eq_ignore_ascii_case("charset"))?;
    Some(value.trim().trim_matches('"').to_ascii_lowercase())
}

fn is_utf8(charset: &str) -> bool {
    matches!(charset, "utf-8" | "utf8" | "us-ascii")
}

#[cfg(test)]
mod tests {
    use super::{Coding, JSON, is_json, looks_like, other_media_type};

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

    #[test]
    fn a_refused_media_type_is_told_what_differs() {
        for (given, words) in [
            ("text/plain", r#"Content-Type "text/plain" is not supported: send JSON"#),
            ("text/plain; charset=latin1", r#"Content-Type "text/plain; charset=latin1" is not supported"#),
            (
                "application/json; charset=latin1",
                r#"the charset "latin1" is not supported: send the body in UTF-8"#,
            ),
            ("application/json;Charset = \"UTF-16\"", r#"the charset "utf-16" is not supported"#),
            ("text/json; charset=iso-8859-1; x=y", r#"the charset "iso-8859-1" is not supported"#),
            ("application/x-ndjson; charset=cp1252", r#"the charset "cp1252" is not supported"#),
        ] {
            let detail = other_media_type(given, JSON).problem().detail;
            assert!(detail.starts_with(words), "{given}: {detail}");
        }
        assert!(other_media_type(&"x".repeat(9000), JSON).problem().detail.len() < 300);
    }

    #[test]
    fn the_first_bytes_of_what_is_not_json_name_it() {
        for (text, coding, words) in [
            (&b"\x1f\x8b\x08\0"[..], Coding::Identity, "Content-Encoding: gzip"),
            (b"\x28\xb5\x2f\xfd", Coding::Identity, "Content-Encoding: zstd"),
            (b"\x1f\x8b\x08\0", Coding::Gzip, "compressed twice"),
            (b"\x28\xb5\x2f\xfd", Coding::Gzip, "compressed twice"),
            (b"\x1f\x8b\x08\0", Coding::Zstd, "compressed twice"),
            (b"\xef\xbb\xbf{", Coding::Identity, "byte order mark"),
            (b"\xff\xfe{\0", Coding::Identity, "UTF-16"),
            (b"{\0\"\0", Coding::Gzip, "UTF-16"),
            (b"\0{", Coding::Identity, "UTF-16"),
        ] {
            let hint = looks_like(text, coding).unwrap();
            assert!(hint.contains(words), "{text:?}: {hint}");
        }
        for text in [&b""[..], b"{", b"{}", b"NaN", b"\x1f", b"\xef\xbb", b"\0\0\0\0"] {
            assert_eq!(looks_like(text, Coding::Identity), None, "{text:?}");
        }
    }
}
