//! Authentication. If API_KEYS is set, an endpoint with [`Auth::ApiKey`] requires one of its keys.
//! It is checked before anything else of the request.
//!
//! [`Auth::ApiKey`]: crate::http::endpoint::Auth::ApiKey

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use service::problem::Problem;

use crate::error::Rejection;
use crate::http::api_keys::ApiKeys;
use crate::http::head::{self, SeveralValues};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The error texts of the three ways to fail.
pub const NO_KEY: &str = "an API key is required: send `Authorization: Bearer KEY` or `X-API-Key: KEY`";
pub const SEVERAL_KEYS: &str = "the request has several values of Authorization or X-API-Key: send one key";
pub const UNKNOWN_KEY: &str = "the API key is unknown: send one of the producer's API_KEYS";

/// The name of the API key of a request. It is an extension of the response, for the access log.
#[derive(Debug, Clone)]
pub struct ApiKeyName(pub Arc<str>);

/// Finds the name of the request's API key. An unknown key in one header, such as the credentials
/// of a proxy, does not hide a known key in the other.
///
/// # Errors
/// The 401 response.
pub fn authenticate(keys: &ApiKeys, headers: &HeaderMap) -> Result<ApiKeyName, Box<Response>> {
    let presented = presented_keys(headers).map_err(|_| unauthorized(SEVERAL_KEYS))?;
    let mut detail = NO_KEY;
    for key in presented {
        match keys.name_of(key) {
            Some(name) => return Ok(ApiKeyName(Arc::clone(name))),
            None => detail = UNKNOWN_KEY,
        }
    }
    Err(unauthorized(detail))
}

/// The keys in the headers of a request.
fn presented_keys(headers: &HeaderMap) -> Result<impl Iterator<Item = &[u8]>, SeveralValues> {
    let bearer = head::single_value(headers, &header::AUTHORIZATION)?.and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
    });
    let own = head::single_value(headers, &X_API_KEY)?.map(|value| value.as_bytes().trim_ascii());
    Ok(bearer.into_iter().chain(own))
}

fn unauthorized(detail: &str) -> Box<Response> {
    let mut response = Problem::new(StatusCode::UNAUTHORIZED, detail).into_response();
    let challenge = HeaderValue::from_static("Bearer realm=\"slipstream\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response.extensions_mut().insert(Rejection { reason: "unauthorized", failure: None });
    Box::new(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_key_is_read_from_either_header() {
        let found = |pairs| -> Vec<Vec<u8>> {
            presented_keys(&headers(pairs)).unwrap().map(<[u8]>::to_vec).collect()
        };
        assert!(found(&[]).is_empty());
        assert!(found(&[("authorization", "Basic YTpi")]).is_empty());
        assert_eq!(found(&[("authorization", "bearer  k")]), [b"k"]);
        assert_eq!(found(&[("x-api-key", "k")]), [b"k"]);
        assert_eq!(found(&[("authorization", "Basic YTpi"), ("x-api-key", "k")]), [b"k"]);
        assert_eq!(found(&[("authorization", "Bearer a"), ("x-api-key", "k")]), [b"a", b"k"]);
    }
}
