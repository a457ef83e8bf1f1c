//! What happens to every request: it is admitted or not (stopping), measured, and counted with its refusal.

use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;

use http_body::Body as _;

use crate::app::Producer;
use crate::error::{ApiError, Refused};
use crate::http::access_log::Followed;
use crate::http::cors::Visit;
use crate::http::permits::Place;
use crate::http::{auth as access, head};
use crate::routes;
use crate::routes::ingest::IDEMPOTENCY_KEY;
use crate::shutdown::Admission;

/// Around every route and fallback.
pub async fn watch<F: Future<Output = Response>>(
    producer: &Producer,
    mut request: Request,
    next: impl FnOnce(Request, Admission, Option<Place>) -> F,
) -> Response {
    let started = Instant::now();
    let route = routes::named(request.uri().path());
    let admission = producer.stopping.admit();
    let followed = Followed::begin(&producer.traces, &mut request, route);
    let visit = producer.config.entrance.origins.as_ref().map(|origins| Visit::of(origins, &mut request));
    let mut response = match head::judge(&request) {
        // Apart, as the preflight: most requests need no room for either.
        Err(error) => Box::pin(access::refuse(error, request)).await,
        Ok(()) => match visit.as_ref().and_then(|visit| visit.preflight(&request, route)) {
            Some(response) => Box::pin(access::refuse(response, request)).await,
            None => {
                let admitted = |request, place| next(request, admission, place);
                access::admit(producer, route, request, admitted).await
            }
        },
    };
    if let Some(visit) = visit {
        visit.show(response.headers_mut());
    }
    let took = started.elapsed();
    producer.metrics.answered(route, response.status().as_u16(), took);
    if let Some(refused) = response.extensions().get::<Refused>() {
        if routes::takes_events(route) {
            producer.metrics.rejected(refused.reason, 1);
        }
        if let Some(failure) = &refused.failure {
            producer.note_failure(failure);
        }
    }
    followed.end(&mut response, route, took);
    response
}

/// Marks a request whose body was read and thrown away.
#[derive(Debug, Clone, Copy)]
pub struct HadBody;

/// Around the routes that take neither an id nor a body: whoever sends an id there expects what will not happen, and a
/// body is read and thrown away first, or its client might never see the answer.
pub async fn takes_nothing(request: Request, next: Next) -> Response {
    if request.headers().contains_key(IDEMPOTENCY_KEY) {
        return access::refuse(ApiError::KeyNotTaken, request).await;
    }
    let (mut parts, body) = request.into_parts();
    if body.is_end_stream() {
        return next.run(Request::from_parts(parts, body)).await;
    }
    let spent = access::spent(&parts.headers, body).await;
    if spent.had_bytes {
        parts.extensions.insert(HadBody);
    }
    let mut response = next.run(Request::from_parts(parts, Body::empty())).await;
    if !spent.ended {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
