//! What applies to every request: admission, span and access log, checks of the head, CORS,
//! authentication, the limit of requests in flight, and metrics.
//!
//! It is a function and no layer of the router: each layer costs a request several allocations.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use events::EventId;
use http_body::Body as _;
use uuid::Uuid;

use crate::error::{ApiError, Rejection};
use crate::http::auth::{ApiKeyName, SourceScope, authenticate};
use crate::http::body::{self, MAX_DRAIN_BYTES};
use crate::http::cors::CorsRequest;
use crate::http::headers::{self, IDEMPOTENCY_KEY, idempotency_key};
use crate::http::path::event_id;
use crate::state::{Admission, AppState, Permit};
use crate::traces::{RequestSpan, Traces};

/// Calls `next` between the steps above, or rejects the request. A request on an `extra`
/// connection, beyond MAX_CONNECTIONS, is always rejected.
pub async fn run<F: Future<Output = Response>>(
    state: &AppState,
    matched: Matched,
    extra: bool,
    mut request: Request,
    next: impl FnOnce(Request, Admission, Option<Permit>) -> F,
) -> Response {
    let started = Instant::now();
    let route = matched.endpoint.path;
    let admission = state.shutdown.admit();
    let log = RequestLog::begin(&state.traces, &mut request, route);
    let origins = state.config.http.cors_origins.as_ref();
    let cors = origins.map(|origins| CorsRequest::new(origins, &mut request));
    let (mut key, mut scope) = (None, None);
    let checked = match check(state, matched, cors.as_ref(), &request, (&mut key, &mut scope)) {
        Ok(_) if extra => Err(overloaded(ApiError::too_many_connections(), matched, &request)),
        checked => checked,
    };
    if let Some(scope) = scope {
        request.extensions_mut().insert(scope);
    }
    let mut response = match checked {
        Ok(permit) => next(request, admission, permit).await,
        // Boxed: most requests are not rejected, and need no memory for this future.
        Err(response) => Box::pin(reject(*response, request)).await,
    };
    if let Some(key) = key {
        state.metrics.authenticated(&key.0, response.status().as_u16());
        response.extensions_mut().insert(key);
    }
    if let Some(cors) = cors {
        cors.add_headers(response.headers_mut());
    }
    let duration = started.elapsed();
    state.metrics.request_finished(route, response.status().as_u16(), duration);
    if let Some(rejection) = response.extensions().get::<Rejection>() {
        if matched.endpoint.events != Events::None {
            state.metrics.events_rejected(rejection.reason, 1);
        }
        if let Some(failure) = &rejection.failure {
            state.set_last_error(failure);
        }
    }
    log.end(&mut response, route, duration);
    response
}

/// Checks the head, whether the request is a preflight, the API key, and the limits. Sets `key` to
/// the name of the API key, and `scope` to its sources. Returns the permit of MAX_IN_FLIGHT, if the endpoint needs one.
///
/// # Errors
/// The response.
fn check(
    state: &AppState,
    matched: Matched,
    cors: Option<&CorsRequest>,
    request: &Request,
    (key, scope): (&mut Option<ApiKeyName>, &mut Option<SourceScope>),
) -> Result<Option<Permit>, Box<Response>> {
    let boxed = |error: ApiError| Box::new(error.into_response());
    headers::check(request).map_err(boxed)?;
    if let Some(response) = cors.and_then(|cors| cors.preflight(request, matched.is_known())) {
        return Err(Box::new(response));
    }
    if let Some(keys) = &state.config.http.api_keys
        && matched.endpoint.auth == Auth::ApiKey
    {
        let (name, sources) = authenticate(keys, request.headers())?;
        (*key, *scope) = (Some(name), sources);
        if let (Some(scope), Some(source)) = (scope, matched.source_in(request.uri().path())) {
            scope.check(source).map_err(boxed)?;
        }
    }
    // Requests that list or cancel poll jobs need no permit, so an operator can send them under
    // overload.
    if !matched.has_method || matched.endpoint.limit != Limit::InFlight {
        return Ok(None);
    }
    let permit = state.in_flight.take();
    permit.map(Some).ok_or_else(|| overloaded(ApiError::too_many_requests(), matched, request))
}

/// The response beyond a limit, with the id of the event, if the head of the request contains it.
fn overloaded(error: ApiError, matched: Matched, request: &Request) -> Box<Response> {
    let single = matched.endpoint.events == Events::One;
    let key = || idempotency_key(request.headers()).ok().flatten();
    let id = if single { matched.event_id_in(request.uri().path()).or_else(key) } else { None };
    Box::new(error.with_head_id(id).into_response())
}

/// An extension of a request whose body was not empty, and was discarded.
#[derive(Debug, Clone, Copy)]
pub struct HadBody;

/// A layer for endpoints that accept neither an id nor a body. It rejects an id, because the client
/// expects an effect of it, and discards a body.
pub async fn without_body(request: Request, next: Next) -> Response {
    if request.headers().contains_key(IDEMPOTENCY_KEY) {
        return reject(ApiError::UnexpectedIdempotencyKey, request).await;
    }
    let (mut parts, body) = request.into_parts();
    if body.is_end_stream() {
        return next.run(Request::from_parts(parts, body)).await;
    }
    let (had_bytes, ended) = discard(&parts.headers, body).await;
    if had_bytes {
        parts.extensions.insert(HadBody);
    }
    let mut response = next.run(Request::from_parts(parts, Body::empty())).await;
    if !ended {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Discards the body of a request. Returns whether it had bytes, and whether its end was read. If
/// not, the connection must be closed.
pub async fn discard_body(headers: &HeaderMap, body: Body) -> (bool, bool) {
    if body.is_end_stream() { (false, true) } else { discard(headers, body).await }
}

/// One method at one path.
#[derive(Debug)]
pub struct Endpoint {
    pub method: Method,
    /// The path, with parameters in braces. It is the `route` label of metrics and traces.
    pub path: &'static str,
    pub auth: Auth,
    pub limit: Limit,
    pub events: Events,
}

/// The authentication that an endpoint requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    None,
    /// A key of API_KEYS, if that is set.
    ApiKey,
}

/// The limit class of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Only MAX_CONNECTIONS applies.
    Connections,
    /// A request needs one of MAX_IN_FLIGHT permits, too.
    InFlight,
    /// The endpoint is served even on connections beyond MAX_CONNECTIONS.
    Exempt,
}

/// The events that a request to an endpoint contains or fetches. A rejected request counts as
/// rejected events, unless it is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Events {
    None,
    /// One event, whose id can be in the path or in the header Idempotency-Key.
    One,
    Many,
    /// One event that the producer fetches itself.
    Fetched,
}

/// Stands for all paths that are not in the route table. Clients choose paths, but must not choose
/// the values of metric labels.
pub static UNKNOWN: Endpoint = Endpoint {
    method: Method::GET,
    path: "other",
    auth: Auth::None,
    limit: Limit::Connections,
    events: Events::None,
};

/// The endpoint that a request leads to.
#[derive(Debug, Clone, Copy)]
pub struct Matched {
    /// An endpoint of the path; of another method if the path does not have the request's.
    pub endpoint: &'static Endpoint,
    /// Whether the endpoint has the request's method.
    pub has_method: bool,
}

/// An extension of a request whose path had a slash at its end.
#[derive(Debug, Clone, Copy)]
pub struct HadSlash;

impl Endpoint {
    /// Whether `path` leads to this endpoint. A parameter matches one segment.
    pub fn matches(&self, path: &str) -> bool {
        if !self.path.contains('{') {
            return self.path == path;
        }
        let (mut own, mut given) = (self.path.split('/'), path.split('/'));
        loop {
            match (own.next(), given.next()) {
                (None, None) => return true,
                (Some(own), Some(given)) if own == given => {}
                (Some(own), Some(given)) if own.starts_with('{') && !given.is_empty() => {}
                _ => return false,
            }
        }
    }
}

impl Matched {
    /// Finds the endpoint of a request among `endpoints`.
    pub fn find(endpoints: impl Iterator<Item = &'static Endpoint>, method: &Method, path: &str) -> Self {
        let mut same_path = None;
        for endpoint in endpoints.filter(|endpoint| endpoint.matches(path)) {
            if endpoint.method == *method {
                return Self { endpoint, has_method: true };
            }
            same_path = Some(endpoint);
        }
        Self { endpoint: same_path.unwrap_or(&UNKNOWN), has_method: false }
    }

    /// The source that the path names.
    pub fn source_in<'p>(&self, path: &'p str) -> Option<&'p str> {
        let names_source = |step: &str| step == "{source}" || step == "adsbdb";
        self.endpoint.path.split('/').nth(2).filter(|step| names_source(step))?;
        path.split('/').nth(2)
    }

    /// The id of the event that the path names.
    fn event_id_in(&self, path: &str) -> Option<EventId> {
        self.endpoint.path.ends_with("/{id}").then(|| event_id(path.rsplit('/').next()?).ok())?
    }

    /// Whether the path is in the route table.
    pub fn is_known(&self) -> bool {
        !std::ptr::eq(self.endpoint, &raw const UNKNOWN)
    }
}

/// The header of the id, in requests and responses.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_ID_CHARS: usize = 128;

/// A request whose response was not sent yet.
#[derive(Debug)]
struct RequestLog {
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
    headers::single_value(headers, &REQUEST_ID).ok().flatten().filter(valid).cloned().unwrap_or_else(new_id)
}

fn new_id() -> HeaderValue {
    let mut text = Uuid::encode_buffer();
    #[expect(clippy::expect_used, reason = "36 visible characters are a valid header value")]
    HeaderValue::from_str(Uuid::now_v7().hyphenated().encode_lower(&mut text))
        .expect("a UUID is a valid header value")
}

/// Maximum time to discard a body.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

/// Discards the body of `request` and returns `response`.
pub async fn reject(response: impl IntoResponse, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let mut response = response.into_response();
    let (_, ended) = discard(&parts.headers, body).await;
    if !ended {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Reads and discards a body, up to a limit of size and time. Returns whether it had bytes, and
/// whether its end was read. If not, the connection must be closed.
async fn discard(headers: &HeaderMap, body: Body) -> (bool, bool) {
    // With `Expect: 100-continue` the client sends no body, because nothing asks it to continue.
    if headers.contains_key(header::EXPECT) {
        return (!body.is_end_stream(), false);
    }
    let (bytes, ended) = body::discard(&mut body.into_data_stream(), MAX_DRAIN_BYTES, DISCARD_TIMEOUT).await;
    (bytes > 0, ended)
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
