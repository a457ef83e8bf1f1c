//! The headers of a request: checks that do not depend on the route, and parsers of Idempotency-
//! Key, Content-Type and Content-Encoding.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Version, header};
use events::{EventId, Loc, Violation};
use uuid::Uuid;

use crate::error::ApiError;

/// Checks the headers Host and Transfer-Encoding.
///
/// # Errors
/// - 400: there is not exactly one valid Host (RFC 9112 3.2), which HTTP/1.0 can omit.
/// - 400: Transfer-Encoding names `chunked` twice.
/// - 501: Transfer-Encoding names an unknown coding before `chunked`. A request whose last coding
///   is unknown is rejected by hyper.
pub fn check(request: &Request) -> Result<(), ApiError> {
    check_host(request.version(), request.headers()).map_err(ApiError::InvalidHost)?;
    let codings = request.headers().get_all(header::TRANSFER_ENCODING);
    let codings = codings.iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let mut chunked = 0;
    for coding in codings.map(<[u8]>::trim_ascii).filter(|coding| !coding.is_empty()) {
        if !coding.eq_ignore_ascii_case(b"chunked") {
            return Err(ApiError::UnsupportedTransferCoding);
        }
        chunked += 1;
    }
    if chunked > 1 {
        return Err(ApiError::UnreadableBody("Transfer-Encoding names chunked twice".into()));
    }
    Ok(())
}

fn check_host(version: Version, headers: &HeaderMap) -> Result<(), &'static str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if version == Version::HTTP_10 => Ok(()),
        (None, _) => Err("the request has no Host"),
        (Some(_), Some(_)) => Err("the request has several headers Host"),
        (Some(host), None) if is_host(host.as_bytes()) => Ok(()),
        (Some(_), None) => Err("the header Host is not a host with an optional port"),
    }
}

/// Whether `text` is `uri-host [":" port]` (RFC 3986 3.2.2). The empty text is valid; clients send
/// it for a target without authority.
pub fn is_host(text: &[u8]) -> bool {
    let (host, port) = match text.iter().rposition(|byte| *byte == b']') {
        Some(end) => text.split_at(end + 1),
        None => text.split_at(text.iter().position(|byte| *byte == b':').unwrap_or(text.len())),
    };
    let valid_port = match port.split_first() {
        None | Some((b':', [])) => true,
        Some((b':', digits)) => {
            digits.iter().all(u8::is_ascii_digit)
                && std::str::from_utf8(digits).is_ok_and(|digits| digits.parse::<u16>().is_ok())
        }
        Some(_) => false,
    };
    valid_port
        && match host {
            [b'[', literal @ .., b']'] => is_ip_literal(literal),
            name => is_name(name),
        }
}

fn is_ip_literal(literal: &[u8]) -> bool {
    if let [b'v' | b'V', future @ ..] = literal {
        let mut parts = future.splitn(2, |byte| *byte == b'.');
        let mut part = || parts.next().filter(|part| !part.is_empty());
        return part().is_some_and(|version| version.iter().all(u8::is_ascii_hexdigit))
            && part().is_some_and(|address| address.iter().all(|byte| is_name_char(*byte) || *byte == b':'));
    }
    std::str::from_utf8(literal).is_ok_and(|address| address.parse::<Ipv6Addr>().is_ok())
}

fn is_name(name: &[u8]) -> bool {
    let mut rest = name;
    while let Some((byte, after)) = rest.split_first() {
        rest = match (byte, after) {
            (b'%', [one, two, after @ ..]) if one.is_ascii_hexdigit() && two.is_ascii_hexdigit() => after,
            (byte, after) if is_name_char(*byte) => after,
            _ => return false,
        };
    }
    true
}

/// `unreserved` and `sub-delims`.
fn is_name_char(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

/// The value of a header that can have only one. A repeated value counts once.
///
/// # Errors
/// The header has different values.
pub fn single_value<'h>(
    headers: &'h HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'h HeaderValue>, SeveralValues> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.all(|other| other == value) { Ok(Some(value)) } else { Err(SeveralValues) }
}

/// A header that can have only one value has different values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeveralValues;

/// A violation in the header `name`.
pub fn violation(name: &str, msg: impl Into<String>) -> Violation {
    let loc = vec![Loc::Name("header".into()), Loc::Name(name.into())];
    Violation { loc, msg: msg.into(), kind: "value_error" }
}

/// Parses a quoted string (RFC 8941 3.3.3). Text without quotes is returned unchanged, because some
/// clients send it so. Parameters after the string are ignored.
///
/// # Errors
/// The text begins with a quote and is no quoted string.
fn unquoted(text: &str) -> Result<Cow<'_, str>, &'static str> {
    let Some(quoted) = text.strip_prefix('"') else { return Ok(text.into()) };
    let (mut string, mut rest) = (String::with_capacity(quoted.len()), quoted.chars());
    loop {
        match rest.next() {
            Some('"') => break,
            Some('\\') => match rest.next() {
                Some(escaped @ ('"' | '\\')) => string.push(escaped),
                _ => return Err("in a quoted string, a backslash should precede a quote or a backslash"),
            },
            Some(plain @ ' '..='~') => string.push(plain),
            Some(_) => return Err("a quoted string should have ASCII characters only"),
            None => return Err("the quoted string should end with a quote"),
        }
    }
    let after = rest.as_str();
    let ended = after.is_empty() || after.starts_with(';');
    if ended { Ok(string.into()) } else { Err("nothing should follow the quoted string") }
}

/// The header that can contain the id of an event.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The id in the header Idempotency-Key, if the request has one.
///
/// # Errors
/// The value is not a valid id, or the request has several values.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<EventId>, Violation> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter().map(|value| {
        let text = std::str::from_utf8(value.as_bytes()).map_err(|_| "Id should be UTF-8".to_owned())?;
        EventId::new(unquoted(text)?)
    });
    let Some(key) = keys.next().transpose().map_err(key_violation)? else { return Ok(None) };
    if keys.all(|other| other.as_ref() == Ok(&key)) {
        Ok(Some(key))
    } else {
        Err(key_violation("Idempotency-Key should have one value, and has several"))
    }
}

/// A violation in the header Idempotency-Key.
pub fn key_violation(msg: impl Into<String>) -> Violation {
    violation("Idempotency-Key", msg)
}

/// Generates an id. Generated ids are ordered by time.
pub fn new_id() -> EventId {
    id_of(Uuid::now_v7())
}

/// The id that has the text of `uuid`.
#[expect(clippy::expect_used, reason = "36 printable characters are a valid id")]
pub fn id_of(uuid: Uuid) -> EventId {
    let text = &mut Uuid::encode_buffer();
    EventId::new(&*uuid.hyphenated().encode_lower(text)).expect("a UUID is a valid id")
}

/// What to send to `POST /ingest`.
pub const SEND_JSON: &str = "send JSON with Content-Type: application/json";

/// Checks the header Content-Type of a JSON request. As in the original system, a request without
/// the header is JSON.
///
/// # Errors
/// 415, or 422 as [`media_type`].
pub fn check_json(headers: &HeaderMap) -> Result<(), ApiError> {
    match media_type(headers)? {
        Some(given) if !is_json(given) => Err(unsupported_media_type(given, SEND_JSON)),
        _ => Ok(()),
    }
}

/// The value of Content-Type, unless it is absent or empty.
///
/// # Errors
/// 422: the header has different values.
pub fn media_type(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let value = single_value(headers, &header::CONTENT_TYPE).map_err(|_| {
        let msg = "Content-Type should have one value, and has several";
        ApiError::Violations(vec![violation("Content-Type", msg)])
    })?;
    Ok(value.map(|value| value.to_str().unwrap_or("?")).filter(|text| !text.is_empty()))
}

/// The error for an unsupported media type. If only the charset is unsupported, the error names it.
pub fn unsupported_media_type(given: &str, remedy: &str) -> ApiError {
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

/// The value of Accept-Encoding in a 415 response.
pub const SUPPORTED_CODINGS: &str = "gzip, zstd";
/// Number of characters of a header value that an error repeats.
const MAX_VALUE_CHARS: usize = 100;

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
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;
    use proptest::prelude::ProptestConfig;

    use super::*;

    const NAME: HeaderName = HeaderName::from_static("x-one");

    fn values(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (NAME, HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_repeated_value_counts_once_and_different_values_are_an_error() {
        assert_eq!(single_value(&values(&[]), &NAME), Ok(None));
        for same in [&["a"][..], &["a", "a"], &["a", "a", "a"]] {
            assert_eq!(single_value(&values(same), &NAME).unwrap().unwrap(), "a");
        }
        for different in [&["a", "b"][..], &["a", "a", "b"], &["a", "A"], &["", "a"]] {
            assert_eq!(single_value(&values(different), &NAME), Err(SeveralValues));
        }
    }

    proptest::proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn parsing_a_quoted_string_returns_the_quoted_text(text in "[ -~]{0,40}") {
            let quoted = format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""));
            assert_eq!(unquoted(&quoted).unwrap(), text);
            assert_eq!(unquoted(&format!("{quoted};a=1")).unwrap(), text);
            assert!(unquoted(&format!("{quoted}x")).is_err());
            assert!(unquoted(&quoted[..quoted.len() - 1]).is_err());
            if !text.starts_with('"') {
                assert_eq!(unquoted(&text).unwrap(), text);
            }
        }
    }

    fn with(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())])
    }

    #[test]
    fn an_idempotency_key_is_an_id() {
        assert_eq!(idempotency_key(&HeaderMap::new()), Ok(None));
        let id = idempotency_key(&with(IDEMPOTENCY_KEY, "order-7")).unwrap().unwrap();
        assert_eq!(id.as_str(), "order-7");
        let violation = idempotency_key(&with(IDEMPOTENCY_KEY, &"x".repeat(257))).unwrap_err();
        assert!(violation.to_string().starts_with("header.Idempotency-Key: "), "{violation}");
    }

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
            let detail = unsupported_media_type(given, SEND_JSON).problem().detail;
            assert!(detail.starts_with(words), "{given}: {detail}");
        }
        assert!(unsupported_media_type(&"x".repeat(9000), SEND_JSON).problem().detail.len() < 300);
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
