//! `POST /ingest/adsbdb`: fetches one aircraft from ADSBDB and publishes it as an event of the
//! source `adsbdb`. The payload is the JSON text of the aircraft, unchanged.

use axum::extract::{Extension, Request, State};
use events::Draft;
use tokio_util::sync::CancellationToken;

use crate::error::ApiError;
use crate::http::event_id::new_id;
use crate::routes::ingest::{Accepted, publish};
use crate::shutdown::Admission;
use crate::state::AppState;
use crate::traces::traceparent;

/// The handler of `POST /ingest/adsbdb`. It ignores the body.
pub async fn ingest_aircraft(
    State(producer): State<AppState>,
    Extension(admission): Extension<Admission>,
    request: Request,
) -> Result<Accepted, ApiError> {
    if !admission.granted() {
        return Err(ApiError::shutting_down(None));
    }
    fetch_and_ingest(&producer, traceparent(request.headers()), &CancellationToken::new()).await
}

/// Fetches an aircraft and ingests it. `cancelled` ends the request to ADSBDB. It does not end the
/// delivery of an event that Kafka received.
///
/// # Errors
/// 502, and the errors of [`publish`].
pub async fn fetch_and_ingest(
    producer: &AppState,
    traceparent: Option<&str>,
    cancelled: &CancellationToken,
) -> Result<Accepted, ApiError> {
    // The event could not be stored, so ADSBDB gets no request.
    if let Err(detail) = producer.kafka.ready() {
        return Err(ApiError::NotStored { reason: "kafka_away", detail, id: None });
    }
    let payload = tokio::select! {
        payload = producer.adsbdb.random_aircraft() => payload?,
        () = cancelled.cancelled() => return Err(ApiError::shutting_down(None)),
        () = producer.shutdown.abandoned() => return Err(ApiError::shutting_down(None)),
    };
    let id = events::aircraft_id(&payload).unwrap_or_else(new_id);
    let draft =
        Draft { id: None, timestamp: None, source: producer.adsbdb_source.clone(), payload: payload.clone() };
    publish(producer, draft, id, traceparent).await.map(|accepted| accepted.with_payload(&payload))
}
