//! What applies to every request: admission, span and access log, checks of the head, CORS,
//! authentication, the limit of requests in flight, and metrics.
//!
//! It is a function and no layer of the router: each layer costs a request several allocations.

use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use events::EventId;
use http_body::Body as _;

use crate::error::{ApiError, Rejection};
use crate::http::access_log::RequestLog;
use crate::http::auth::authenticate;
use crate::http::cors::CorsRequest;
use crate::http::endpoint::{Auth, Events, Matched};
use crate::http::event_id::{IDEMPOTENCY_KEY, idempotency_key};
use crate::http::head;
use crate::http::permits::Permit;
use crate::http::reject::{discard, reject};
use crate::shutdown::Admission;
use crate::state::AppState;

/// Calls `next` between the steps above, or rejects the request.
pub async fn run<F: Future<Output = Response>>(
    state: &AppState,
    matched: Matched,
    mut request: Request,
    next: impl FnOnce(Request, Admission, Option<Permit>) -> F,
) -> Response {
    let started = Instant::now();
    let route = matched.endpoint.path;
    let admission = state.shutdown.admit();
    let log = RequestLog::begin(&state.traces, &mut request, route);
    let origins = state.config.http.cors_origins.as_ref();
    let cors = origins.map(|origins| CorsRequest::new(origins, &mut request));
    let mut response = match head::check(&request) {
        // Boxed, as the preflight: most requests have neither, and need no memory for their
        // futures.
        Err(error) => Box::pin(reject(error, request)).await,
        Ok(()) => match cors.as_ref().and_then(|cors| cors.preflight(&request, matched)) {
            Some(response) => Box::pin(reject(response, request)).await,
            None => {
                let next = |request, permit| next(request, admission, permit);
                check_key(state, matched, request, next).await
            }
        },
    };
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

/// Rejects a request without a known key, if its endpoint requires one.
async fn check_key<F: Future<Output = Response>>(
    state: &AppState,
    matched: Matched,
    request: Request,
    next: impl FnOnce(Request, Option<Permit>) -> F,
) -> Response {
    let required = matched.endpoint.auth == Auth::ApiKey;
    let keys = state.config.http.api_keys.as_ref().filter(|_| required);
    let Some(keys) = keys else { return take_permit(state, matched, request, next).await };
    let name = match authenticate(keys, request.headers()) {
        Ok(name) => name,
        Err(response) => return reject(*response, request).await,
    };
    let mut response = take_permit(state, matched, request, next).await;
    state.metrics.authenticated(&name.0, response.status().as_u16());
    response.extensions_mut().insert(name);
    response
}

/// Rejects a request beyond MAX_IN_FLIGHT. Requests that list or cancel poll jobs need no permit,
/// so an operator can send them under overload.
async fn take_permit<F: Future<Output = Response>>(
    state: &AppState,
    matched: Matched,
    request: Request,
    next: impl FnOnce(Request, Option<Permit>) -> F,
) -> Response {
    if !matched.needs_permit() {
        return next(request, None).await;
    }
    match state.in_flight.take() {
        Some(permit) => next(request, Some(permit)).await,
        None => {
            let id = head_id(matched, request.headers());
            reject(ApiError::too_many_requests().with_head_id(id), request).await
        }
    }
}

/// The id of the event, if the head of the request contains it.
pub fn head_id(matched: Matched, headers: &HeaderMap) -> Option<EventId> {
    if matched.endpoint.events == Events::One { idempotency_key(headers).ok()? } else { None }
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
    let discarded = discard(&parts.headers, body).await;
    if discarded.had_bytes {
        parts.extensions.insert(HadBody);
    }
    let mut response = next.run(Request::from_parts(parts, Body::empty())).await;
    if !discarded.ended {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
