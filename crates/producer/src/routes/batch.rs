//! `POST /ingest/batch`: many events in one body, a JSON array or NDJSON. They are judged and sent while the body
//! still arrives. Guarantees: each event has a result of its own, in input order, as true as the answer of
//! `POST /ingest`; one bad event harms no other; events of one id keep their order; memory is bounded by the limits
//! of the batch, not by how much of it is bad, and for all batches together by [`crate::batch::results::room`]: when that is used
//! up, a batch ends there, with a 503 as its last result.

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;

use crate::app::Producer;
use crate::batch::ingest::Intake;
use crate::batch::response;
use crate::batch::splitter::{Format, Piece, RIGHT_TYPES, Splitter};
use crate::body::{self, Coding, Incoming, Limits};
use crate::error::ApiError;
use crate::ingest::{IDEMPOTENCY_KEY, traceparent};
use crate::serving::Place;
use crate::stopping::Admission;

/// So many bytes tell what a body is that is not JSON.
const TELLING_BYTES: usize = 4;

/// Other requests get their turn after so many events.
const TURN: usize = 64;

/// The handler.
pub async fn ingest_batch(
    State(producer): State<Producer>,
    Extension(admission): Extension<Admission>,
    Extension(place): Extension<Arc<Place>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let config = &producer.config;
    let limits =
        Limits { bytes: config.max_batch_bytes, variable: "MAX_BATCH_BYTES", time: config.request_timeout };
    let format = if parts.headers.contains_key(IDEMPOTENCY_KEY) {
        Err(ApiError::KeyNotTaken)
    } else {
        format(&parts.headers)
    };
    let splitter = Splitter::new(*format.as_ref().unwrap_or(&Format::Array), config.max_payload_bytes);
    let format = format.map(|_| ());
    let mut incoming = Incoming::open(&parts.headers, body, limits, format, &producer.zstd_room).await?;
    if !admission.granted() {
        incoming.drain().await;
        return Err(ApiError::stopping(None));
    }
    let mut intake = Intake::new(&producer, traceparent(&parts.headers));
    let coding = Coding::of(&parts.headers)?;
    let broken = read(&producer, (&mut incoming, coding), splitter, &mut intake).await.err();
    if let Some(error) = &broken {
        intake.broke(error);
        tokio::select! {
            () = incoming.drain_after(error) => {}
            () = producer.stopping.given_up() => {}
        }
    } else if intake.events() == 0 {
        return Err(ApiError::NoEvents);
    }
    // Its decoder need not wait for Kafka.
    drop(incoming);
    let (summary, journal, outcomes) = intake.finish().await;
    let mut response = response::answer(producer.clone(), &summary, (journal, outcomes), (admission, place));
    if broken.is_some() {
        // The rest of the body, if it ever comes, must not be read as the next request.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// What the header Content-Type says. As with `POST /ingest`, who says nothing sends JSON.
fn format(headers: &HeaderMap) -> Result<Format, ApiError> {
    match body::media_type(headers)? {
        None => Ok(Format::Array),
        Some(media_type) if body::is_json(media_type) => Ok(Format::Array),
        Some(media_type) if body::is_lines(media_type) => Ok(Format::Lines),
        Some(media_type) => Err(body::other_media_type(media_type, RIGHT_TYPES)),
    }
}

/// Reads the body to its end, or to what breaks it: the error is then the last result.
async fn read(
    producer: &Producer,
    (incoming, coding): (&mut Incoming, Coding),
    mut splitter: Splitter,
    intake: &mut Intake<'_>,
) -> Result<(), ApiError> {
    let mut next = first(producer, incoming).await?;
    if let Some(what) = next.as_deref().and_then(|first| splitter.misfit(first, coding)) {
        return Err(ApiError::BatchBroken(what.into()));
    }
    while let Some(chunk) = next {
        splitter.feed(chunk);
        while let Some(piece) = splitter.next().map_err(ApiError::BatchBroken)? {
            take(producer, piece, intake).await?;
        }
        next = chunk_of(producer, incoming).await?;
    }
    if let Some(piece) = splitter.last().map_err(ApiError::BatchBroken)? {
        take(producer, piece, intake).await?;
    }
    Ok(())
}

async fn chunk_of(producer: &Producer, incoming: &mut Incoming) -> Result<Option<Bytes>, ApiError> {
    tokio::select! {
        chunk = incoming.next() => chunk,
        () = producer.stopping.given_up() => Err(ApiError::stopping(None)),
    }
}

/// The first chunk, with as many of those after it as it takes to know what the body is.
async fn first(producer: &Producer, incoming: &mut Incoming) -> Result<Option<Bytes>, ApiError> {
    let Some(mut first) = chunk_of(producer, incoming).await? else { return Ok(None) };
    while first.len() < TELLING_BYTES
        && let Some(chunk) = chunk_of(producer, incoming).await?
    {
        first = [first, chunk].concat().into();
    }
    Ok(Some(first))
}

async fn take(producer: &Producer, piece: Piece, intake: &mut Intake<'_>) -> Result<(), ApiError> {
    let config = &producer.config;
    if intake.events() == config.max_batch_events {
        return Err(ApiError::TooManyEvents(config.max_batch_events));
    }
    if producer.stopping.has_given_up() {
        return Err(ApiError::stopping(None));
    }
    match piece {
        Piece::Event(text) => intake.take(&text).await?,
        Piece::TooLong => intake.refuse(&ApiError::EventTooLarge(config.max_payload_bytes), None)?,
    }
    if intake.events().is_multiple_of(TURN) {
        tokio::task::yield_now().await;
    }
    Ok(())
}
