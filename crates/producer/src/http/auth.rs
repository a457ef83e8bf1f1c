//! Who may bring events, and how many at a time. With API_KEYS set, a request without a known key is a 401 before
//! anything else of it is looked at; beyond MAX_IN_FLIGHT it is a 503 before its body is read. Health, metrics and the
//! documentation are not asked for a key and take no place; poll jobs can be looked at and cancelled without a place, or
//! an operator could not while there are too many requests.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http_body::Body as _;
use service::problem::Problem;

use crate::app::Producer;
use crate::error::{ApiError, Refused};
use crate::http::api_keys::ApiKeys;
use crate::http::head::{self, Different};
use crate::http::permits::Place;
use crate::routes;
use crate::routes::ingest;

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// So much of an unwanted body is read, for so long.
const DRAIN: (usize, Duration) = (1024 * 1024, Duration::from_secs(1));

/// A request without a key.
pub const NO_KEY: &str = "this needs a key: send `Authorization: Bearer KEY` or `X-API-Key: KEY`";
/// A request whose key is not one.
pub const SEVERAL_KEYS: &str = "the request has several values of Authorization or X-API-Key: send one key";
/// A request with a key that is none of API_KEYS.
pub const UNKNOWN_KEY: &str = "the key is not one of this producer's";

/// The name of the key that a request was let in with; travels with the response, for the log.
#[derive(Debug, Clone)]
pub struct Holder(pub Arc<str>);

/// Lets a request in to what `next` does with it and with its place, or refuses it.
pub async fn admit<F: Future<Output = Response>>(
    producer: &Producer,
    route: &str,
    request: Request,
    next: impl FnOnce(Request, Option<Place>) -> F,
) -> Response {
    let keys = producer.config.entrance.api_keys.as_ref().filter(|_| routes::needs_key(route));
    let Some(keys) = keys else { return limit(producer, route, request, next).await };
    let holder = match holder(keys, request.headers()) {
        Ok(holder) => holder,
        Err(detail) => return refuse(unauthorized(detail), request).await,
    };
    let mut response = limit(producer, route, request, next).await;
    producer.metrics.answered_to(&holder, response.status().as_u16());
    response.extensions_mut().insert(Holder(holder));
    response
}

async fn limit<F: Future<Output = Response>>(
    producer: &Producer,
    route: &str,
    request: Request,
    next: impl FnOnce(Request, Option<Place>) -> F,
) -> Response {
    if !routes::makes_records(route, request.method()) {
        return next(request, None).await;
    }
    match producer.in_flight.take() {
        Some(place) => next(request, Some(place)).await,
        None => {
            let error = overloaded().naming(ingest::id_in_head(route, request.headers()));
            refuse(error, request).await
        }
    }
}

/// There is no place for a further request.
pub fn overloaded() -> ApiError {
    ApiError::overloaded("too many requests are in flight (MAX_IN_FLIGHT)")
}

/// Whose key a request brings. A proxy's own credentials in one header do not hide the key in the other.
fn holder(keys: &ApiKeys, headers: &HeaderMap) -> Result<Arc<str>, &'static str> {
    let mut refusal = NO_KEY;
    for key in presented(headers).map_err(|_| SEVERAL_KEYS)? {
        match keys.holder(key) {
            Some(holder) => return Ok(Arc::clone(holder)),
            None => refusal = UNKNOWN_KEY,
        }
    }
    Err(refusal)
}

/// What may be the key of a request.
fn presented(headers: &HeaderMap) -> Result<impl Iterator<Item = &[u8]>, Different> {
    let bearer = head::only(headers, &header::AUTHORIZATION)?.and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
    });
    let own = head::only(headers, &X_API_KEY)?.map(|value| value.as_bytes().trim_ascii());
    Ok(bearer.into_iter().chain(own))
}

fn unauthorized(detail: &str) -> Response {
    let mut response = Problem::new(StatusCode::UNAUTHORIZED, detail).into_response();
    let challenge = HeaderValue::from_static("Bearer realm=\"slipstream\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response.extensions_mut().insert(Refused { reason: "unauthorized", failure: None });
    response
}

/// The refusal of a request whose body was not read, once the client has sent what it was about to.
pub async fn refuse(refusal: impl IntoResponse, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let mut response = refusal.into_response();
    if !spent(&parts.headers, body).await.ended {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// What became of a body that nobody wants.
#[derive(Debug, Clone, Copy)]
pub struct Spent {
    /// It is not empty.
    pub had_bytes: bool,
    /// It came to its end. If not, it is too long or was never sent, and the connection has to end with the answer.
    pub ended: bool,
}

/// Reads and throws away a body that nobody wants: a client that is still sending does not look for an answer.
pub async fn spent(headers: &HeaderMap, body: Body) -> Spent {
    // With `Expect: 100-continue` the client has not sent anything, and will not.
    if headers.contains_key(header::EXPECT) {
        return Spent { had_bytes: !body.is_end_stream(), ended: false };
    }
    let (mut stream, mut bytes) = (body.into_data_stream(), 0);
    let read = async {
        while let Some(chunk) = stream.next().await {
            let Ok(chunk) = chunk else { return false };
            bytes += chunk.len();
            if bytes > DRAIN.0 {
                return false;
            }
        }
        true
    };
    let ended = tokio::time::timeout(DRAIN.1, read).await.unwrap_or(false);
    Spent { had_bytes: bytes > 0, ended }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_key_comes_in_either_header() {
        let found =
            |pairs| -> Vec<Vec<u8>> { presented(&headers(pairs)).unwrap().map(<[u8]>::to_vec).collect() };
        assert!(found(&[]).is_empty());
        assert!(found(&[("authorization", "Basic YTpi")]).is_empty());
        assert_eq!(found(&[("authorization", "bearer  k")]), [b"k"]);
        assert_eq!(found(&[("x-api-key", "k")]), [b"k"]);
        assert_eq!(found(&[("authorization", "Basic YTpi"), ("x-api-key", "k")]), [b"k"]);
        assert_eq!(found(&[("authorization", "Bearer a"), ("x-api-key", "k")]), [b"a", b"k"]);
    }
}
