//! `POST /ingest/adsbdb`: fetches one aircraft from ADSBDB and ingests it as one event of source
//! `adsbdb`. The aircraft's text is the payload, byte for byte.

use axum::extract::{Extension, Request, State};
use events::Draft;
use tokio_util::sync::CancellationToken;

use crate::app::Producer;
use crate::error::ApiError;
use crate::routes::ingest::{Accepted, accept, new_id, traceparent};
use crate::shutdown::Admission;

/// The handler of `POST /ingest/adsbdb`. It ignores the body.
pub async fn ingest_aircraft(
    State(producer): State<Producer>,
    Extension(admission): Extension<Admission>,
    request: Request,
) -> Result<Accepted, ApiError> {
    if !admission.granted() {
        return Err(ApiError::stopping(None));
    }
    fetch_and_ingest(&producer, traceparent(request.headers()), &CancellationToken::new()).await
}

/// Fetches an aircraft and ingests it. `cancelled` ends the request to ADSBDB. It does not end the
/// delivery of an event that Kafka received.
///
/// # Errors
/// 502, and the errors of [`accept`].
pub async fn fetch_and_ingest(
    producer: &Producer,
    traceparent: Option<&str>,
    cancelled: &CancellationToken,
) -> Result<Accepted, ApiError> {
    // The event could not be stored, so ADSBDB gets no request.
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
