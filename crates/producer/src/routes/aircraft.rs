//! `POST /ingest/adsbdb`: one aircraft of ADSBDB becomes one event of the source `adsbdb`, with the aircraft's text
//! byte for byte as its payload.

use axum::extract::{Extension, Request, State};
use events::Draft;
use tokio_util::sync::CancellationToken;

use crate::app::Producer;
use crate::error::ApiError;
use crate::routes::ingest::{Accepted, accept, new_id, traceparent};
use crate::shutdown::Admission;

/// The handler. A body is not looked at.
pub async fn ingest_aircraft(
    State(producer): State<Producer>,
    Extension(admission): Extension<Admission>,
    request: Request,
) -> Result<Accepted, ApiError> {
    if !admission.granted() {
        return Err(ApiError::stopping(None));
    }
    take_one(&producer, traceparent(request.headers()), &CancellationToken::new()).await
}

/// Asks for an aircraft and accepts it. `cancelled` ends the question; an event that Kafka has been given is awaited.
///
/// # Errors
/// 502, and what [`accept`] refuses.
pub async fn take_one(
    producer: &Producer,
    traceparent: Option<&str>,
    cancelled: &CancellationToken,
) -> Result<Accepted, ApiError> {
    // Known to be in vain: ADSBDB is not asked for nothing.
    if let Err(why) = producer.kafka.ready() {
        return Err(ApiError::NotStored { reason: "kafka_away", why, id: None });
    }
    let payload = tokio::select! {
        payload = producer.adsbdb.random_aircraft() => payload.map_err(ApiError::Upstream)?,
        () = cancelled.cancelled() => return Err(ApiError::stopping(None)),
        () = producer.stopping.given_up() => return Err(ApiError::stopping(None)),
    };
    let id = events::aircraft_id(&payload).unwrap_or_else(new_id);
    let draft =
        Draft { id: None, timestamp: None, source: producer.adsbdb_source.clone(), payload: payload.clone() };
    accept(producer, draft, id, traceparent).await.map(|accepted| accepted.showing(&payload))
}
