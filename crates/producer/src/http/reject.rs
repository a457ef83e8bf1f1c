//! Responses that are sent before the body was read. The body is discarded first: a client that is
//! still sending does not read the response.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http_body::Body as _;

/// Number of bytes of a body that are read and discarded.
const MAX_DISCARD_BYTES: usize = 1024 * 1024;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

/// Discards the body of `request` and returns `response`.
pub async fn reject(response: impl IntoResponse, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let mut response = response.into_response();
    if !discard(&parts.headers, body).await.ended {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A body that was discarded.
#[derive(Debug, Clone, Copy)]
pub struct Discarded {
    pub had_bytes: bool,
    /// Whether the end of the body was read. If not, the connection must be closed.
    pub ended: bool,
}

/// Reads and discards a body, up to a limit of size and time.
pub async fn discard(headers: &HeaderMap, body: Body) -> Discarded {
    // With `Expect: 100-continue` the client sends no body, because nothing asks it to continue.
    if headers.contains_key(header::EXPECT) {
        return Discarded { had_bytes: !body.is_end_stream(), ended: false };
    }
    let (mut stream, mut bytes) = (body.into_data_stream(), 0);
    let read = async {
        while let Some(chunk) = stream.next().await {
            let Ok(chunk) = chunk else { return false };
            bytes += chunk.len();
            if bytes > MAX_DISCARD_BYTES {
                return false;
            }
        }
        true
    };
    let ended = tokio::time::timeout(DISCARD_TIMEOUT, read).await.unwrap_or(false);
    Discarded { had_bytes: bytes > 0, ended }
}
