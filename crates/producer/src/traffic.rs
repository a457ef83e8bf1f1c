//! What happens to every request: it is admitted or not (stopping), measured, and counted with its refusal.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::Producer;
use crate::error::{ApiError, Refused};
use crate::follow::Followed;
use crate::ingest::IDEMPOTENCY_KEY;
use crate::routes;

/// Around every route and fallback.
pub async fn watch(State(producer): State<Producer>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let path = request.extensions().get::<MatchedPath>().cloned();
    // Paths are the client's choice; a metric's labels are not.
    let route = path.as_ref().map_or("other", MatchedPath::as_str);
    let admission = producer.stopping.admit();
    request.extensions_mut().insert(admission.clone());
    let followed = Followed::begin(&producer.traces, &mut request, route);
    let mut response = next.run(request).await;
    drop(admission);
    producer.metrics.answered(route, response.status().as_u16(), started.elapsed());
    if let Some(refused) = response.extensions().get::<Refused>() {
        if routes::TAKES_EVENTS.contains(&route) {
            producer.metrics.rejected(refused.reason, 1);
        }
        if let Some(failure) = &refused.failure {
            producer.note_failure(failure);
        }
    }
    followed.end(&mut response, route, started.elapsed());
    response
}

/// Around the routes where an id means nothing: whoever sends one there expects what will not happen.
pub async fn no_idempotency_key(request: Request, next: Next) -> Response {
    if request.headers().contains_key(IDEMPOTENCY_KEY) {
        return ApiError::KeyNotTaken.into_response();
    }
    next.run(request).await
}
