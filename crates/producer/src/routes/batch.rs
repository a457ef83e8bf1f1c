//! `POST /ingest/batch`: many events in one body, a JSON array or NDJSON. They are validated and
//! sent while the body arrives.
//!
//! - Each event has its own result, in input order, as reliable as the response of `POST /ingest`.
//! - One bad event does not affect the others. Events of one id keep their order.
//! - The limits of a batch bound its memory, however many of its events are bad. The results of all
//!   batches share one limit. A batch that reaches it ends there, with a 503 as its last result.

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;

use crate::batch::ingest::BatchIngest;
use crate::batch::response::batch_response;
use crate::batch::splitter::{Format, Piece, RIGHT_TYPES, Splitter};
use crate::error::ApiError;
use crate::http::body::{BodyLimits, LimitedBody};
use crate::http::headers::{self, ContentCoding, IDEMPOTENCY_KEY};
use crate::state::{Admission, AppState, Permit};
use crate::traces::traceparent;

/// Number of bytes that suffice to detect a body that is not JSON.
const MAGIC_BYTES: usize = 4;

/// Number of events after which other tasks may run.
const EVENTS_PER_YIELD: usize = 64;

/// The handler of `POST /ingest/batch`.
pub async fn ingest_batch(
    State(producer): State<AppState>,
    Extension(admission): Extension<Admission>,
    Extension(place): Extension<Arc<Permit>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let config = &producer.config;
    let limits = BodyLimits {
        max_bytes: config.max_batch_bytes,
        variable: "MAX_BATCH_BYTES",
        timeout: config.request_timeout,
    };
    let format = if parts.headers.contains_key(IDEMPOTENCY_KEY) {
        Err(ApiError::UnexpectedIdempotencyKey)
    } else {
        format(&parts.headers)
    };
    let splitter = Splitter::new(*format.as_ref().unwrap_or(&Format::Array), config.max_payload_bytes);
    let format = format.map(|_| ());
    let mut incoming = LimitedBody::open(&parts.headers, body, limits, format, &producer.zstd_memory).await?;
    if !admission.granted() {
        incoming.drain().await;
        return Err(ApiError::shutting_down(None));
    }
    let mut batch = BatchIngest::new(&producer, traceparent(&parts.headers));
    let coding = ContentCoding::of(&parts.headers)?;
    let body_error = read(&producer, (&mut incoming, coding), splitter, &mut batch).await.err();
    if let Some(error) = &body_error {
        batch.reject_rest(error);
        tokio::select! {
            () = incoming.drain_after(error) => {}
            () = producer.shutdown.abandoned() => {}
        }
    } else if batch.event_count() == 0 {
        return Err(ApiError::EmptyBatch);
    }
    // Releases the memory of the decoder before the wait for Kafka.
    drop(incoming);
    let (summary, results, outcome) = batch.finish().await;
    let mut response = batch_response(producer.clone(), &summary, (results, outcome), (admission, place));
    if body_error.is_some() {
        // The rest of the body may still arrive. It must not be read as the next request.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// The format that Content-Type names. Without the header it is a JSON array, as `POST /ingest`
/// accepts JSON without it.
fn format(headers: &HeaderMap) -> Result<Format, ApiError> {
    match headers::media_type(headers)? {
        None => Ok(Format::Array),
        Some(media_type) if headers::is_json(media_type) => Ok(Format::Array),
        Some(media_type) if headers::is_ndjson(media_type) => Ok(Format::Lines),
        Some(media_type) => Err(headers::unsupported_media_type(media_type, RIGHT_TYPES)),
    }
}

/// Reads the body to its end and sends its events. An error ends the batch; it becomes the last
/// result.
async fn read(
    producer: &AppState,
    (incoming, coding): (&mut LimitedBody, ContentCoding),
    mut splitter: Splitter,
    batch: &mut BatchIngest<'_>,
) -> Result<(), ApiError> {
    let mut next = first_chunk(producer, incoming).await?;
    if let Some(reason) = next.as_deref().and_then(|first| splitter.misfit(first, coding)) {
        return Err(ApiError::InvalidBatch(reason.into()));
    }
    while let Some(chunk) = next {
        splitter.feed(chunk);
        while let Some(piece) = splitter.next().map_err(ApiError::InvalidBatch)? {
            ingest(producer, piece, batch).await?;
        }
        next = next_chunk(producer, incoming).await?;
    }
    if let Some(piece) = splitter.last().map_err(ApiError::InvalidBatch)? {
        ingest(producer, piece, batch).await?;
    }
    Ok(())
}

async fn next_chunk(producer: &AppState, incoming: &mut LimitedBody) -> Result<Option<Bytes>, ApiError> {
    tokio::select! {
        chunk = incoming.next() => chunk,
        () = producer.shutdown.abandoned() => Err(ApiError::shutting_down(None)),
    }
}

/// Reads the first chunk. Following chunks are appended until it has [`MAGIC_BYTES`].
async fn first_chunk(producer: &AppState, incoming: &mut LimitedBody) -> Result<Option<Bytes>, ApiError> {
    let Some(mut first) = next_chunk(producer, incoming).await? else { return Ok(None) };
    while first.len() < MAGIC_BYTES
        && let Some(chunk) = next_chunk(producer, incoming).await?
    {
        first = [first, chunk].concat().into();
    }
    Ok(Some(first))
}

/// Sends or rejects one event.
async fn ingest(producer: &AppState, piece: Piece, batch: &mut BatchIngest<'_>) -> Result<(), ApiError> {
    let config = &producer.config;
    if batch.event_count() == config.max_batch_events {
        return Err(ApiError::TooManyEvents(config.max_batch_events));
    }
    if producer.shutdown.is_abandoned() {
        return Err(ApiError::shutting_down(None));
    }
    match piece {
        Piece::Event(text) => batch.ingest(&text).await?,
        Piece::TooLong => batch.reject(&ApiError::EventTooLarge(config.max_payload_bytes), None)?,
    }
    if batch.event_count().is_multiple_of(EVENTS_PER_YIELD) {
        tokio::task::yield_now().await;
    }
    Ok(())
}
