//! Who may bring events, and how many at a time. With API_KEYS set, a request without a known key is a 401 before
//! anything else of it is looked at; beyond MAX_IN_FLIGHT it is a 503 before its body is read. Health, metrics and the
//! documentation are not asked for a key and take no place.

mod keys;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use service::problem::Problem;

pub use keys::ApiKeys;

use crate::app::Producer;
use crate::error::{ApiError, Refused};

/// A refused client that is still sending does not look for an answer: so much is read and thrown away, for so long.
const DRAIN: (usize, Duration) = (1024 * 1024, Duration::from_secs(1));

/// The name of the key that a request was let in with; travels with the response, for the log.
#[derive(Debug, Clone)]
pub struct Holder(pub Arc<str>);

/// Around every route that brings events.
pub async fn admit(State(producer): State<Producer>, mut request: Request, next: Next) -> Response {
    let holder = match &producer.config.entrance.api_keys {
        None => None,
        Some(keys) => match presented(request.headers()).map(|key| keys.holder(key)) {
            Some(Some(holder)) => Some(Arc::clone(holder)),
            unknown => {
                let detail = match unknown {
                    None => "this needs a key: send `Authorization: Bearer KEY` or `X-API-Key: KEY`",
                    Some(_) => "the key is not one of this producer's",
                };
                return refuse(unauthorized(detail), request).await;
            }
        },
    };
    let Some(place) = producer.in_flight.take() else {
        let why = "too many requests are in flight (MAX_IN_FLIGHT)".to_owned();
        let full = ApiError::NotStored { reason: "overloaded", why, id: None };
        return refuse(full.into_response(), request).await;
    };
    // An answer that is written while it is sent keeps it for longer.
    let place = Arc::new(place);
    request.extensions_mut().insert(Arc::clone(&place));
    let mut response = next.run(request).await;
    drop(place);
    if let Some(holder) = holder {
        producer.metrics.answered_to(&holder, response.status().as_u16());
        response.extensions_mut().insert(Holder(holder));
    }
    response
}

/// The key that a request brings.
fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
    });
    bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes().trim_ascii()))
}

fn unauthorized(detail: &str) -> Response {
    let mut response = Problem::new(StatusCode::UNAUTHORIZED, detail).into_response();
    let challenge = HeaderValue::from_static("Bearer realm=\"slipstream\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response.extensions_mut().insert(Refused { reason: "unauthorized", failure: None });
    response
}

/// The answer, once the client has sent what it was about to; if that is too much, the connection ends with it.
async fn refuse(mut response: Response, request: Request) -> Response {
    // With `Expect: 100-continue` the client has not sent anything, and will not.
    let waits = request.headers().contains_key(header::EXPECT);
    if waits || !drained(request.into_body()).await {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Whether the body came to its end.
async fn drained(body: Body) -> bool {
    let mut stream = body.into_data_stream();
    let read = async {
        let mut bytes = 0;
        while let Some(chunk) = stream.next().await {
            match chunk {
                Ok(chunk) if bytes + chunk.len() <= DRAIN.0 => bytes += chunk.len(),
                _ => return false,
            }
        }
        true
    };
    tokio::time::timeout(DRAIN.1, read).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_key_comes_in_either_header() {
        assert_eq!(presented(&headers(&[])), None);
        assert_eq!(presented(&headers(&[("authorization", "Basic YTpi")])), None);
        assert_eq!(presented(&headers(&[("authorization", "bearer  k")])), Some(&b"k"[..]));
        assert_eq!(presented(&headers(&[("x-api-key", "k")])), Some(&b"k"[..]));
        let both = headers(&[("authorization", "Basic YTpi"), ("x-api-key", "k")]);
        assert_eq!(presented(&both), Some(&b"k"[..]), "a proxy's own credentials do not hide it");
    }
}
