//! Pages of other origins (CORS_ALLOWED_ORIGINS), as the Fetch standard describes it: the answer to
//! a preflight, and the headers that let a page of an allowed origin read an answer. No page gets
//! them with credentials of the browser: the producer knows no cookies, and a page that has an API
//! key sends it itself.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use url::Url;

use crate::http::body::is_utf8_of;
use crate::http::head;
use crate::routes;

/// What a page may send: the methods of all routes, and every header that the producer reads.
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, DELETE");
const HEADERS: HeaderValue = HeaderValue::from_static(
    "Authorization, Content-Encoding, Content-Type, Idempotency-Key, traceparent, tracestate, X-API-Key, X-Request-Id",
);
/// What it may read beside the body and what any page may read.
const EXPOSED: HeaderValue = HeaderValue::from_static("Location, Retry-After, X-Request-Id");
/// How long a browser may keep the answer to a preflight, in seconds; none keeps it longer than a
/// day.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");
const ANY: HeaderValue = HeaderValue::from_static("*");

/// The origins of CORS_ALLOWED_ORIGINS.
#[derive(Debug, Clone)]
pub enum Origins {
    /// `*`
    Any,
    /// As browsers write them.
    These(Arc<[HeaderValue]>),
}

impl Origins {
    /// The parser of the variable.
    ///
    /// # Errors
    /// An entry that is not an origin as browsers write it; `*` beside others; no entry at all.
    pub fn parse(text: &str) -> Result<Self, String> {
        let names: Vec<&str> = text.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
        match names.as_slice() {
            [] => Err("names no origin".into()),
            ["*"] => Ok(Self::Any),
            names => names.iter().map(|name| origin(name)).collect::<Result<_, _>>().map(Self::These),
        }
    }

    /// The value of Access-Control-Allow-Origin for a request, if it comes from a page that is
    /// allowed.
    fn allow(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let (origin, None) = (origins.next()?, origins.next()) else { return None };
        match self {
            Self::Any => Some(ANY),
            Self::These(origins) => origins.contains(origin).then(|| origin.clone()),
        }
    }
}

/// An origin as browsers write it: a scheme, a host, and a port that is not the scheme's own.
fn origin(name: &str) -> Result<HeaderValue, String> {
    if name == "*" {
        return Err("names * beside other origins: it stands for all of them".into());
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
            return Err(format!("names {name:?}, which is not an origin as browsers write it: {written:?}"));
        }
    }
    if host.is_empty() || host.contains('*') || !head::is_host(host.as_bytes()) {
        return Err(wrong());
    }
    HeaderValue::from_str(name).map_err(|_| wrong())
}

/// A request to a producer that allows origins.
#[derive(Debug)]
pub struct Visit {
    allow: Option<HeaderValue>,
    /// Whether the answer would be another for another origin.
    varies: bool,
}

impl Visit {
    /// Looks at where `request` comes from. The body of `navigator.sendBeacon`, which can say no
    /// more than text/plain without credentials, is JSON if the page is allowed.
    pub fn of(origins: &Origins, request: &mut Request) -> Self {
        let headers = request.headers_mut();
        let allow = origins.allow(headers);
        if allow.is_some() && is_plain_text(headers) {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        Self { allow, varies: matches!(origins, Origins::These(_)) }
    }

    /// The answer, if the request is the preflight of an allowed page to a route.
    pub fn preflight(&self, request: &Request, route: &str) -> Option<Response> {
        let asks = *request.method() == Method::OPTIONS
            && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if !asks || self.allow.is_none() || route == routes::OTHER {
            return None;
        }
        let permitted = [
            (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS),
            (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE),
        ];
        Some((StatusCode::NO_CONTENT, permitted).into_response())
    }

    /// Lets the page read the answer, if it is allowed.
    pub fn show(self, headers: &mut HeaderMap) {
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
    let media_type = head::only(headers, &header::CONTENT_TYPE).ok().flatten();
    media_type
        .and_then(|value| value.to_str().ok())
        .is_some_and(|text| is_utf8_of(text, |essence| essence == "text/plain"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_as_browsers_write_them() {
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
    fn what_is_not_an_origin_is_named_with_the_remedy_where_there_is_one() {
        for (wrong, words) in [
            (",", "names no origin"),
            ("app.example.com", "\"app.example.com\", which is not an origin such as"),
            ("https://a.example/", "browsers write it: \"https://a.example\""),
            ("https://a.example/app", "browsers write it: \"https://a.example\""),
            ("https://a.example:443", "browsers write it: \"https://a.example\""),
            ("HTTPS://A.example", "browsers write it: \"https://a.example\""),
            ("https://b\u{fc}cher.example", "browsers write it: \"https://xn--bcher-kva.example\""),
            ("https://user@a.example", "browsers write it: \"https://a.example\""),
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
