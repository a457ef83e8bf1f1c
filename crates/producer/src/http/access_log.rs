//! The id, the span and the log line of a request.

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::response::Response;
use uuid::Uuid;

use crate::http::auth::ApiKeyName;
use crate::http::head;
use crate::traces::{RequestSpan, Traces};

/// The header of the id, in requests and responses.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_ID_CHARS: usize = 128;

/// A request whose response was not sent yet.
#[derive(Debug)]
pub struct RequestLog {
    id: HeaderValue,
    method: Method,
    span: RequestSpan,
}

impl RequestLog {
    pub fn begin(traces: &Traces, request: &mut Request, route: &str) -> Self {
        let id = request_id(request.headers());
        let span = traces.begin(request, route, &id);
        Self { id, method: request.method().clone(), span }
    }

    /// Ends the span, writes the log line and adds the id to the response.
    pub fn end(self, response: &mut Response, route: &str, duration: Duration) {
        let status = response.status();
        self.span.end(status);
        let key = response.extensions().get::<ApiKeyName>().map(|name| name.0.as_ref());
        tracing::debug!(
            method = self.method.as_str(),
            route,
            status = status.as_u16(),
            duration_ms = duration.as_secs_f64() * 1000.0,
            request_id = self.id.to_str().unwrap_or_default(),
            key,
            "request finished"
        );
        response.headers_mut().insert(REQUEST_ID, self.id);
    }
}

/// The id that the client sent, if it is one value of visible ASCII characters; else a new id.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let valid = |id: &&HeaderValue| {
        (1..=MAX_ID_CHARS).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    head::single_value(headers, &REQUEST_ID).ok().flatten().filter(valid).cloned().unwrap_or_else(new_id)
}

fn new_id() -> HeaderValue {
    let mut text = Uuid::encode_buffer();
    #[expect(clippy::expect_used, reason = "36 visible characters are a valid header value")]
    HeaderValue::from_str(Uuid::now_v7().hyphenated().encode_lower(&mut text))
        .expect("a UUID is a valid header value")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_of(text: &[u8]) -> HeaderValue {
        request_id(&HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_bytes(text).unwrap())]))
    }

    #[test]
    fn an_id_of_up_to_128_visible_characters_is_kept() {
        for kept in [&b"a"[..], b"!~", &[b'x'; 128]] {
            assert_eq!(id_of(kept).as_bytes(), kept);
        }
    }

    #[test]
    fn any_other_id_is_replaced_by_a_new_one() {
        for replaced in [&b""[..], b"a b", b"a\tb", b"\xc3\xa9", &[b'x'; 129]] {
            let id = id_of(replaced);
            assert_eq!(Uuid::parse_str(id.to_str().unwrap()).unwrap().get_version_num(), 7);
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
        let two = ["a", "b"].map(|id| (REQUEST_ID, HeaderValue::from_static(id)));
        assert_eq!(request_id(&HeaderMap::from_iter(two)).len(), Uuid::encode_buffer().len() - 9);
    }
}
