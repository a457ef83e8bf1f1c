//! The route table.

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};

use crate::app::Producer;
use crate::error::ApiError;
use crate::{access, adsbdb, batch, ingest, openapi, poll, traffic};

/// Routes whose refusals are events that were not accepted.
pub const TAKES_EVENTS: &[&str] = &["/ingest", "/ingest/batch", "/ingest/adsbdb"];

/// Every path of the producer.
pub fn router(producer: Producer) -> Router {
    let limit = from_fn_with_state(producer.clone(), access::limit);
    let upstream = Router::new()
        .route("/ingest/adsbdb", post(adsbdb::ingest_aircraft).route_layer(limit.clone()))
        .route("/ingest/adsbdb/poll", get(poll::list).merge(post(poll::start).route_layer(limit.clone())))
        .route("/ingest/adsbdb/poll/{job_id}", get(poll::show).delete(poll::cancel))
        .route_layer(from_fn(traffic::no_idempotency_key));
    Router::new()
        .route("/ingest", post(ingest::ingest).route_layer(limit.clone()))
        .route("/ingest/batch", post(batch::ingest_batch).route_layer(limit))
        .merge(upstream)
        .route_layer(from_fn_with_state(producer.clone(), access::admit))
        .with_state(producer.clone())
        .merge(service::health::routes(Arc::new(producer.clone())))
        .merge(openapi::routes(&producer.config))
        .fallback(|| async { ApiError::NoSuchPath })
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .layer(from_fn_with_state(producer, traffic::watch))
}
