//! Checks of the head of a request that do not depend on its route, and parsers of header values.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Version, header};
use events::{Fault, Loc};

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
pub fn violation(name: &str, msg: impl Into<String>) -> Fault {
    let loc = vec![Loc::Name("header".into()), Loc::Name(name.into())];
    Fault { loc, msg: msg.into(), kind: "value_error" }
}

/// Parses a quoted string (RFC 8941 3.3.3). Text without quotes is returned unchanged, because some
/// clients send it so. Parameters after the string are ignored.
///
/// # Errors
/// The text begins with a quote and is no quoted string.
pub fn unquoted(text: &str) -> Result<Cow<'_, str>, &'static str> {
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
}
