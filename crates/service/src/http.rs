//! HTTP between the processes: error bodies, structs from JSON bodies, the header `Retry-After`,
//! and causes of failed requests.

use std::error::Error;
use std::fmt;
use std::marker::PhantomData;
use std::time::{Duration, SystemTime};

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// The body of an error response: `application/problem+json` (RFC 9457).
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    /// URI of the problem type: `about:blank`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Reason phrase of the status.
    pub title: String,
    /// HTTP status.
    #[serde(serialize_with = "status_number")]
    pub status: StatusCode,
    /// What is wrong and what is right, for people.
    pub detail: String,
    /// Whether a retry of the same request can help.
    pub retryable: bool,
    /// Id of the event, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Every violation as `{loc, msg, type}`, as in FastAPI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errors: Option<serde_json::Value>,
    /// Value of the header `Retry-After`, rounded up to whole seconds, at least 1.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
}

fn status_number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Problem {
    /// A problem that a retry does not solve.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank".into(),
            title: status.canonical_reason().unwrap_or("Error").into(),
            status,
            detail: detail.into(),
            retryable: false,
            id: None,
            errors: None,
            retry_after: None,
        }
    }

    /// Marks the problem as retryable, with `Retry-After: delay` if it is known.
    #[must_use]
    pub fn retryable(mut self, delay: impl Into<Option<Duration>>) -> Self {
        self.retryable = true;
        self.retry_after = delay.into();
        self
    }

    /// Adds the id of the event.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Adds the list of violations.
    #[must_use]
    pub fn with_errors(mut self, errors: serde_json::Value) -> Self {
        self.errors = Some(errors);
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(delay) = self.retry_after {
            let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }
}

/// Deserializes a `T` from a JSON object only. Nested structs need it too.
///
/// A derived `Deserialize` alone also accepts an array: it assigns the items to the fields in
/// order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Self)
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(members))
    }
}

/// Parses a `T` from a JSON object.
///
/// # Errors
/// `bytes` is not JSON, not an object, or not a `T`.
pub fn object<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> serde_json::Result<T> {
    serde_json::from_slice::<Object<T>>(bytes).map(|Object(value)| value)
}

/// The innermost cause of an error, which states what failed. The outer causes of an HTTP client
/// only repeat the URL.
pub fn root_cause<'e>(error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    error.source().map_or(error, root_cause)
}

/// Cap of the delay, so that one response cannot stop a client for long.
const MAX_DELAY: Duration = Duration::from_secs(3600);

/// The delay that the header `Retry-After` of a response demands, in seconds or as a date,
/// at most one hour. `None` if the header is absent or invalid.
///
/// A date counts from the response's `Date`, so that a difference between the clocks has no effect.
/// Without `Date` it counts from the local clock.
#[must_use]
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = text(headers, &header::RETRY_AFTER)?;
    let delay = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        let until = httpdate::parse_http_date(text).ok()?;
        let now = self::text(headers, &header::DATE).and_then(|date| httpdate::parse_http_date(date).ok());
        until.duration_since(now.unwrap_or_else(SystemTime::now)).unwrap_or_default()
    };
    Some(delay.min(MAX_DELAY))
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::value::RawValue;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Outer<'a> {
        #[serde(borrow)]
        raw: &'a RawValue,
        list: Option<Vec<Object<Inner>>>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        number: u8,
    }

    #[test]
    fn a_struct_is_parsed_from_an_object() {
        let outer: Outer<'_> = object(br#" {"raw": [1.50], "list": [{"number": 7}], "other": 1}"#).unwrap();
        assert_eq!((outer.raw.get(), outer.list.unwrap()[0].0.number), ("[1.50]", 7));
    }

    #[test]
    fn a_struct_is_not_parsed_from_an_array() {
        assert!(serde_json::from_slice::<Outer<'_>>(b"[1, null]").is_ok(), "serde alone accepts it");
        for wrong in
            [&b"[1, [[7]]]"[..], b"[1, null]", br#"{"raw": 1, "list": [[7]]}"#, b"null", b"1", b"\"\""]
        {
            let error = object::<Outer<'_>>(wrong).unwrap_err().to_string();
            assert!(error.contains("a JSON object"), "{error}");
        }
    }

    fn seconds(pairs: &[(HeaderName, &str)]) -> Option<u64> {
        let headers = pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        retry_after(&headers).map(|delay| delay.as_secs())
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_at_most_an_hour() {
        for (value, delay) in [
            ("17", Some(17)),
            (" 0 ", Some(0)),
            ("18446744073709551615", Some(3600)),
            ("99999999999999999999999", Some(3600)),
            // The three date formats of HTTP.
            ("Tue, 24 Nov 2026 06:30:39 GMT", Some(39)),
            ("Tuesday, 24-Nov-26 06:31:00 GMT", Some(60)),
            ("Tue Nov 24 06:30:05 2026", Some(5)),
            ("Tue, 24 Nov 2026 06:29:00 GMT", Some(0)),
            ("Thu, 24 Dec 2026 06:29:00 GMT", Some(3600)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("2026-11-24T06:30:39Z", None),
        ] {
            let now = (header::DATE, "Tue, 24 Nov 2026 06:30:00 GMT");
            assert_eq!(seconds(&[(header::RETRY_AFTER, value), now]), delay, "{value}");
        }
        assert_eq!(seconds(&[]), None);
    }

    #[test]
    fn a_date_counts_from_the_local_clock_without_a_date_header() {
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        let delay = seconds(&[(header::RETRY_AFTER, &soon)]).unwrap();
        assert!((90..=100).contains(&delay), "{delay}");
    }
}
