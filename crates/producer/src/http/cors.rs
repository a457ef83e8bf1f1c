//! Cross-origin requests (CORS_ALLOWED_ORIGINS), as the Fetch standard defines them: the response
//! to a preflight, and the headers that allow a page to read a response.
//!
//! Credentials of the browser are never allowed. The producer uses no cookies, and a page with an
//! API key sends it in a header.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use url::Url;

use crate::http::headers::{self, is_utf8_of};

/// The methods of all endpoints.
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, DELETE");
/// Every request header that the producer reads.
const HEADERS: HeaderValue = HeaderValue::from_static(
    "Authorization, Content-Encoding, Content-Type, Idempotency-Key, traceparent, tracestate, X-API-Key, X-Request-Id",
);
/// The response headers that a page can read, beside those that the standard allows.
const EXPOSED: HeaderValue = HeaderValue::from_static("Location, Retry-After, X-Request-Id");
/// Seconds for which a browser can cache the response to a preflight. No browser accepts more than
/// a day.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");
const ANY: HeaderValue = HeaderValue::from_static("*");

/// The origins of CORS_ALLOWED_ORIGINS.
#[derive(Debug, Clone)]
pub enum Origins {
    /// `*`
    Any,
    /// A list of origins, serialized as browsers do it.
    List(Arc<[HeaderValue]>),
}

impl Origins {
    /// Parses the variable.
    ///
    /// # Errors
    /// An entry is not an origin as browsers serialize it, `*` is one of several entries, or there
    /// is no entry.
    pub fn parse(text: &str) -> Result<Self, String> {
        let names: Vec<&str> = text.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
        match names.as_slice() {
            [] => Err("names no origin".into()),
            ["*"] => Ok(Self::Any),
            names => names.iter().map(|name| origin(name)).collect::<Result<_, _>>().map(Self::List),
        }
    }

    /// The value of Access-Control-Allow-Origin, if the page that sent the request is allowed.
    fn allow(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let (origin, None) = (origins.next()?, origins.next()) else { return None };
        match self {
            Self::Any => Some(ANY),
            Self::List(origins) => origins.contains(origin).then(|| origin.clone()),
        }
    }
}

/// Parses an origin as browsers serialize it: scheme, host, and a port unless it is the default.
fn origin(name: &str) -> Result<HeaderValue, String> {
    if name == "*" {
        return Err("names * beside other origins: * means all origins".into());
    }
    let wrong = || format!("names {name:?}, which is not an origin such as https://app.example.com:8443");
    let (scheme, host) = name.split_once("://").ok_or_else(wrong)?;
    let in_scheme = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
    let valid = scheme.starts_with(|c: char| c.is_ascii_lowercase()) && scheme.chars().all(in_scheme);
    let is_page = matches!(scheme, "http" | "https");
    if is_page || !valid {
        let written = Url::parse(name).map_err(|_| wrong())?.origin();
        let written = if written.is_tuple() { written.ascii_serialization() } else { return Err(wrong()) };
        if written != name {
            return Err(format!("names {name:?}, which is not an origin: browsers write {written:?}"));
        }
    }
    if host.is_empty() || host.contains('*') || !headers::is_host(host.as_bytes()) {
        return Err(wrong());
    }
    HeaderValue::from_str(name).map_err(|_| wrong())
}

/// The CORS headers of one request, if CORS_ALLOWED_ORIGINS is set.
#[derive(Debug)]
pub struct CorsRequest {
    /// Access-Control-Allow-Origin.
    allow: Option<HeaderValue>,
    /// Whether the response depends on the origin.
    varies: bool,
}

impl CorsRequest {
    /// Checks the origin of `request`. A `text/plain` body of an allowed page becomes JSON, because
    /// `navigator.sendBeacon` can send no other type without a preflight.
    pub fn new(origins: &Origins, request: &mut Request) -> Self {
        let headers = request.headers_mut();
        let allow = origins.allow(headers);
        if allow.is_some() && is_plain_text(headers) {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        Self { allow, varies: matches!(origins, Origins::List(_)) }
    }

    /// The response, if the request is the preflight of an allowed page to a known path.
    pub fn preflight(&self, request: &Request, is_known_path: bool) -> Option<Response> {
        let is_preflight = *request.method() == Method::OPTIONS
            && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if !is_preflight || self.allow.is_none() || !is_known_path {
            return None;
        }
        let allowed = [
            (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS),
            (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE),
        ];
        Some((StatusCode::NO_CONTENT, allowed).into_response())
    }

    /// Adds the headers that allow the page to read the response.
    pub fn add_headers(self, headers: &mut HeaderMap) {
        if self.varies {
            headers.append(header::VARY, HeaderValue::from_static("origin"));
        }
        if let Some(allow) = self.allow {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allow);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }
}

fn is_plain_text(headers: &HeaderMap) -> bool {
    let media_type = headers::single_value(headers, &header::CONTENT_TYPE).ok().flatten();
    media_type
        .and_then(|value| value.to_str().ok())
        .is_some_and(|text| is_utf8_of(text, |essence| essence == "text/plain"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_as_browsers_serialize_it_is_valid() {
        for right in [
            "https://app.example.com",
            "http://localhost:5173",
            "https://a.example, http://[::1]:3000 ,",
            "https://xn--bcher-kva.example",
            "chrome-extension://abcdefghijklmnop",
            "capacitor://localhost",
            "*",
        ] {
            Origins::parse(right).unwrap_or_else(|why| panic!("{right}: {why}"));
        }
    }

    #[test]
    fn an_invalid_origin_is_named_with_its_correction() {
        for (wrong, words) in [
            (",", "names no origin"),
            ("app.example.com", "\"app.example.com\", which is not an origin such as"),
            ("https://a.example/", "browsers write \"https://a.example\""),
            ("https://a.example/app", "browsers write \"https://a.example\""),
            ("https://a.example:443", "browsers write \"https://a.example\""),
            ("HTTPS://A.example", "browsers write \"https://a.example\""),
            ("https://b\u{fc}cher.example", "browsers write \"https://xn--bcher-kva.example\""),
            ("https://user@a.example", "browsers write \"https://a.example\""),
            ("https://*.example.com", "not an origin"),
            ("https://", "not an origin"),
            ("https://a.example:99999", "not an origin"),
            ("https://a b", "not an origin"),
            ("null", "not an origin"),
            ("file:///x", "not an origin"),
            ("chrome-extension://", "not an origin"),
            ("app://a/b", "not an origin"),
            ("*, https://a.example", "beside other origins"),
            ("https://a.example;https://b.example", "not an origin"),
        ] {
            let why = Origins::parse(wrong).unwrap_err();
            assert!(why.contains(words), "{wrong}: {why}");
        }
    }
}
