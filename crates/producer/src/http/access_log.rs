//! What follows a request from its head to its answer: its id, its span, and its line in the log.

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::response::Response;
use uuid::Uuid;

use crate::http::auth::Holder;
use crate::http::head;
use crate::traces::{RequestSpan, Traces};

/// In the request, where its client names it, and in every answer.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A longer one is no name.
const MOST_CHARACTERS: usize = 128;

/// A request on its way.
#[derive(Debug)]
pub struct Followed {
    id: HeaderValue,
    method: Method,
    span: RequestSpan,
}

impl Followed {
    /// A request came in at `route`.
    pub fn begin(traces: &Traces, request: &mut Request, route: &str) -> Self {
        let id = request_id(request.headers());
        let span = traces.begin(request, route, &id);
        Self { id, method: request.method().clone(), span }
    }

    /// It is answered.
    pub fn end(self, response: &mut Response, route: &str, took: Duration) {
        let status = response.status();
        self.span.end(status);
        let key = response.extensions().get::<Holder>().map(|holder| holder.0.as_ref());
        tracing::debug!(
            method = self.method.as_str(),
            route,
            status = status.as_u16(),
            duration_ms = took.as_secs_f64() * 1000.0,
            request_id = self.id.to_str().unwrap_or_default(),
            key,
            "request answered"
        );
        response.headers_mut().insert(REQUEST_ID, self.id);
    }
}

/// The client's own, if it is one and can stand in a log and in an answer; else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let visible = |id: &&HeaderValue| {
        (1..=MOST_CHARACTERS).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    head::only(headers, &REQUEST_ID).ok().flatten().filter(visible).cloned().unwrap_or_else(new_id)
}

fn new_id() -> HeaderValue {
    let mut text = Uuid::encode_buffer();
    #[expect(clippy::expect_used, reason = "36 visible characters are a header's value")]
    HeaderValue::from_str(Uuid::now_v7().hyphenated().encode_lower(&mut text))
        .expect("a UUID is a header's value")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_of(text: &[u8]) -> HeaderValue {
        request_id(&HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_bytes(text).unwrap())]))
    }

    #[test]
    fn an_id_of_at_most_128_visible_characters_is_kept() {
        for kept in [&b"a"[..], b"!~", &[b'x'; 128]] {
            assert_eq!(id_of(kept).as_bytes(), kept);
        }
    }

    #[test]
    fn any_other_is_replaced_by_a_new_one() {
        for replaced in [&b""[..], b"a b", b"a\tb", b"\xc3\xa9", &[b'x'; 129]] {
            let id = id_of(replaced);
            assert_eq!(Uuid::parse_str(id.to_str().unwrap()).unwrap().get_version_num(), 7);
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
        let two = ["a", "b"].map(|id| (REQUEST_ID, HeaderValue::from_static(id)));
        assert_eq!(request_id(&HeaderMap::from_iter(two)).len(), Uuid::encode_buffer().len() - 9);
    }
}
