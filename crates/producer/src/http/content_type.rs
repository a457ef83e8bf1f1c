//! The media types of requests, and hints for bodies that are not JSON.

use axum::http::{HeaderMap, header};

use crate::error::ApiError;
use crate::http::content_coding::{ContentCoding, MAX_VALUE_CHARS};
use crate::http::head;

/// What to send to `POST /ingest`.
pub const SEND_JSON: &str = "send JSON with Content-Type: application/json";

/// Checks the header Content-Type of a JSON request. As in the original system, a request without
/// the header is JSON.
///
/// # Errors
/// 415, or 422 as [`media_type`].
pub fn check_json(headers: &HeaderMap) -> Result<(), ApiError> {
    match media_type(headers)? {
        Some(given) if !is_json(given) => Err(unsupported(given, SEND_JSON)),
        _ => Ok(()),
    }
}

/// The value of Content-Type, unless it is absent or empty.
///
/// # Errors
/// 422: the header has different values.
pub fn media_type(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let value = head::single_value(headers, &header::CONTENT_TYPE).map_err(|_| {
        let msg = "Content-Type should have one value, and has several";
        ApiError::Violations(vec![head::violation("Content-Type", msg)])
    })?;
    Ok(value.map(|value| value.to_str().unwrap_or("?")).filter(|text| !text.is_empty()))
}

/// The error for an unsupported media type. If only the charset is unsupported, the error names it.
pub fn unsupported(given: &str, remedy: &str) -> ApiError {
    let given: String = given.chars().take(MAX_VALUE_CHARS).collect();
    ApiError::UnsupportedMediaType(match charset(&given).filter(|charset| !is_utf8(charset)) {
        Some(charset) if is_supported_type(&given) => {
            format!(
                "the charset {charset:?} is not supported: send the body in UTF-8, and charset=utf-8 or none"
            )
        }
        _ => format!("Content-Type {given:?} is not supported: {remedy}"),
    })
}

/// Whether the type without its parameters is supported.
fn is_supported_type(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default();
    is_json(essence) || is_ndjson(essence)
}

/// Detects the format of a text that is not JSON by its first bytes. Returns what to send instead.
pub fn format_hint(text: &[u8], coding: ContentCoding) -> Option<&'static str> {
    Some(match (text, coding) {
        ([0x1f, 0x8b, ..], ContentCoding::Identity) => {
            "it is compressed with gzip: send it with Content-Encoding: gzip"
        }
        ([0x28, 0xb5, 0x2f, 0xfd, ..], ContentCoding::Identity) => {
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

/// Whether the media type is JSON in UTF-8.
pub fn is_json(media_type: &str) -> bool {
    // The value of most clients is compared first, because parsing costs more.
    media_type == "application/json"
        || is_utf8_of(media_type, |essence| {
            essence == "application/json"
                || (essence.starts_with("application/") && essence.ends_with("+json"))
                || essence == "text/json"
        })
}

/// Whether the media type is NDJSON in UTF-8.
pub fn is_ndjson(media_type: &str) -> bool {
    is_utf8_of(media_type, |essence| {
        matches!(
            essence,
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" | "application/x-jsonlines"
        )
    })
}

/// Whether `accepts` returns true for the type, and the charset is UTF-8.
pub fn is_utf8_of(media_type: &str, accepts: impl FnOnce(&str) -> bool) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    accepts(&essence) && charset(media_type).is_none_or(|charset| is_utf8(&charset))
}

/// The parameter `charset` of a media type, in lower case.
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
    use super::*;

    #[test]
    fn json_has_several_media_types_and_is_utf_8() {
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
    fn the_error_names_the_media_type_or_the_charset() {
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
            let detail = unsupported(given, SEND_JSON).problem().detail;
            assert!(detail.starts_with(words), "{given}: {detail}");
        }
        assert!(unsupported(&"x".repeat(9000), SEND_JSON).problem().detail.len() < 300);
    }

    #[test]
    fn the_first_bytes_of_a_text_that_is_not_json_give_a_hint() {
        for (text, coding, words) in [
            (&b"\x1f\x8b\x08\0"[..], ContentCoding::Identity, "Content-Encoding: gzip"),
            (b"\x28\xb5\x2f\xfd", ContentCoding::Identity, "Content-Encoding: zstd"),
            (b"\x1f\x8b\x08\0", ContentCoding::Gzip, "compressed twice"),
            (b"\x28\xb5\x2f\xfd", ContentCoding::Gzip, "compressed twice"),
            (b"\x1f\x8b\x08\0", ContentCoding::Zstd, "compressed twice"),
            (b"\xef\xbb\xbf{", ContentCoding::Identity, "byte order mark"),
            (b"\xff\xfe{\0", ContentCoding::Identity, "UTF-16"),
            (b"{\0\"\0", ContentCoding::Gzip, "UTF-16"),
            (b"\0{", ContentCoding::Identity, "UTF-16"),
        ] {
            let hint = format_hint(text, coding).unwrap();
            assert!(hint.contains(words), "{text:?}: {hint}");
        }
        for text in [&b""[..], b"{", b"{}", b"NaN", b"\x1f", b"\xef\xbb", b"\0\0\0\0"] {
            assert_eq!(format_hint(text, ContentCoding::Identity), None, "{text:?}");
        }
    }
}
