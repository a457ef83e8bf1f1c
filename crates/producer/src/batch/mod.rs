//! `POST /ingest/batch`: many events in one body, a JSON array or NDJSON. They are validated and
//! sent while the body arrives. No event waits for the delivery report of another.
//!
//! - Each event has its own result, in input order, as reliable as the response of `POST /ingest`.
//! - One bad event does not affect the others. Events of one id keep their order.
//! - The limits of a batch bound its memory, however many of its events are bad. The results of all
//!   batches share one limit. A batch that reaches it ends there, with a 503 as its last result.

pub mod results;
pub mod splitter;

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use events::{Event, NewEvent, RequestError, Source};
use sources::Context;
use uuid::Uuid;

use crate::batch::results::Results;
use crate::batch::splitter::{Format, Piece, RIGHT_TYPES, Splitter};
use crate::error::ApiError;
use crate::extraction::{Extraction, extract};
use crate::http::auth::SourceScope;
use crate::http::body::{BodyLimits, LimitedBody};
use crate::http::headers::{self, ContentCoding, IDEMPOTENCY_KEY, id_of, new_id};
use crate::kafka::batch_publisher::BatchPublisher;
use crate::kafka::delivery::{DeliveryError, Record};
use crate::kafka::delivery_tracker::DeliveryState;
use crate::state::{Admission, AppState, Permit};
use crate::traces::traceparent;

/// Number of bytes that suffice to detect a body that is not JSON.
const MAGIC_BYTES: usize = 4;
/// Number of events after which other tasks may run.
const EVENTS_PER_YIELD: usize = 64;

/// The handler of `POST /ingest/batch`.
pub async fn ingest_batch(
    State(state): State<AppState>,
    Extension(admission): Extension<Admission>,
    Extension(permit): Extension<Arc<Permit>>,
    request: Request,
) -> Result<Response, ApiError> {
    ingest_all(state, None, admission, permit, request).await
}

/// Ingests the events of a batch request, or its records if they are of a `source` of the file.
pub async fn ingest_all(
    state: AppState,
    source: Option<&sources::Source>,
    admission: Admission,
    permit: Arc<Permit>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let config = &state.config;
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
    let mut incoming = LimitedBody::open(&parts.headers, body, limits, format, &state.zstd_memory).await?;
    if !admission.granted() {
        incoming.drain().await;
        return Err(ApiError::shutting_down(None));
    }
    let scope = parts.extensions.get::<SourceScope>();
    let mut batch = Batch::new(&state, source, scope, traceparent(&parts.headers));
    let coding = ContentCoding::of(&parts.headers)?;
    let body_error = batch.read(&mut incoming, coding, splitter).await.err();
    if let Some(error) = &body_error {
        batch.reject_rest(error);
        tokio::select! {
            () = incoming.drain_after(error) => {}
            () = state.shutdown.abandoned.cancelled() => {}
        }
    } else if batch.results.len() == 0 {
        return Err(ApiError::EmptyBatch);
    }
    // Releases the memory of the decoder before the wait for Kafka.
    drop(incoming);
    let mut response = batch.settle().await.into_response((admission, Some(permit)));
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

/// A batch whose events all have an outcome.
#[derive(Debug)]
pub struct Settled {
    pub results: Results,
    pub accepted: usize,
    pub states: Vec<DeliveryState>,
    pub errors: Vec<DeliveryError>,
}

impl Settled {
    /// Creates the response, which holds `held` until its end.
    pub fn into_response(self, held: (Admission, Option<Arc<Permit>>)) -> Response {
        self.results.into_response(self.accepted, (self.states, self.errors), held)
    }
}

/// The events of one batch request. Of each event only its id or its rejection is kept.
pub struct Batch<'s> {
    state: &'s AppState,
    /// The source of all records. `None` if the batch has events in envelopes.
    source: Option<&'s sources::Source>,
    /// The sources that the API key is for.
    scope: Option<&'s SourceScope>,
    traceparent: Option<&'s str>,
    publisher: BatchPublisher<'s>,
    pub results: Results,
    /// Metric labels of the sources so far.
    labels: Vec<String>,
    /// The source of the last event, and the index of its label. Most batches have one source.
    last_source: Option<(Source, usize)>,
}

impl<'s> Batch<'s> {
    pub fn new(
        state: &'s AppState,
        source: Option<&'s sources::Source>,
        scope: Option<&'s SourceScope>,
        traceparent: Option<&'s str>,
    ) -> Self {
        let delivery_seconds = state.metrics.delivery_seconds();
        let abandoned = state.shutdown.abandoned.clone();
        Self {
            state,
            source,
            scope,
            traceparent,
            publisher: BatchPublisher::new(&state.kafka, traceparent, delivery_seconds, abandoned),
            results: Results::new(Arc::clone(&state.batch_memory)),
            labels: Vec::new(),
            last_source: None,
        }
    }

    /// Reads the body to its end and sends its events.
    ///
    /// # Errors
    /// The error ends the batch.
    async fn read(
        &mut self,
        incoming: &mut LimitedBody,
        coding: ContentCoding,
        mut splitter: Splitter,
    ) -> Result<(), ApiError> {
        let mut next = self.first_chunk(incoming).await?;
        if let Some(reason) = next.as_deref().and_then(|first| splitter.misfit(first, coding)) {
            return Err(ApiError::InvalidBatch(reason.into()));
        }
        while let Some(chunk) = next {
            splitter.feed(chunk);
            while let Some(piece) = splitter.next().map_err(ApiError::InvalidBatch)? {
                self.ingest(piece).await?;
            }
            next = self.next_chunk(incoming).await?;
        }
        if let Some(piece) = splitter.last().map_err(ApiError::InvalidBatch)? {
            self.ingest(piece).await?;
        }
        Ok(())
    }

    async fn next_chunk(&self, incoming: &mut LimitedBody) -> Result<Option<Bytes>, ApiError> {
        tokio::select! {
            chunk = incoming.next() => chunk,
            () = self.state.shutdown.abandoned.cancelled() => Err(ApiError::shutting_down(None)),
        }
    }

    /// Reads the first chunk. Following chunks are appended until it has [`MAGIC_BYTES`].
    async fn first_chunk(&self, incoming: &mut LimitedBody) -> Result<Option<Bytes>, ApiError> {
        let Some(mut first) = self.next_chunk(incoming).await? else { return Ok(None) };
        while first.len() < MAGIC_BYTES
            && let Some(chunk) = self.next_chunk(incoming).await?
        {
            first = [first, chunk].concat().into();
        }
        Ok(Some(first))
    }

    /// Sends or rejects the next event.
    async fn ingest(&mut self, piece: Piece) -> Result<(), ApiError> {
        let config = &self.state.config;
        if self.results.len() == config.max_batch_events {
            return Err(ApiError::TooManyEvents(config.max_batch_events));
        }
        if self.state.shutdown.abandoned.is_cancelled() {
            return Err(ApiError::shutting_down(None));
        }
        let draft = match piece {
            Piece::Event(text) => self.parse(&text),
            Piece::TooLong => Err(ApiError::EventTooLarge(config.max_payload_bytes)),
        };
        match draft {
            Ok(draft) => self.send(draft).await?,
            Err(error) => {
                self.results.reject(&error)?;
                self.state.metrics.events_rejected(error.reason(), 1);
            }
        }
        if self.results.len().is_multiple_of(EVENTS_PER_YIELD) {
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    fn parse(&self, text: &[u8]) -> Result<NewEvent, ApiError> {
        let parser_error = |error| match error {
            RequestError::Empty => ApiError::missing_event(),
            error => ApiError::from_parser(error, "event", None),
        };
        if let Some(source) = self.source {
            let record = events::parse_json(text).map_err(parser_error)?;
            let extracted = extract(source, record, Context::default(), self.state.now());
            let Extraction { event, id, .. } =
                extracted.map_err(|fault| ApiError::Violations(fault.violations))?;
            return Ok(NewEvent { id: Some(id), ..event });
        }
        let draft = events::parse_request(text, &self.state.rules).map_err(parser_error)?;
        if let Some(scope) = self.scope {
            scope.check(draft.source.as_str())?;
        }
        self.state.sources.check_envelope(&draft).map_err(ApiError::Violations)?;
        let missing = draft.id.is_none() && self.state.config.require_id;
        if missing { Err(ApiError::MissingId) } else { Ok(draft) }
    }

    /// Sends an event.
    ///
    /// # Errors
    /// 503: there is no memory for its result. It was not sent.
    pub async fn send(&mut self, mut draft: NewEvent) -> Result<(), ApiError> {
        let id = draft.id.take().unwrap_or_else(new_id);
        // No event is sent for whose result there is no memory.
        self.results.reserve(&id)?;
        let label = self.label(&draft.source);
        let ingested_at = self.state.clock.stamp(&id).await;
        let event = Event::new(draft, id, ingested_at, &self.state.config.api_version);
        let value = event.to_json();
        let record = Record {
            key: event.id.as_str(),
            value: &value,
            timestamp_ms: ingested_at.get(),
            traceparent: self.traceparent,
        };
        let topic = self.state.sources.topic_of(&event.source);
        self.publisher.send_to(topic, record).await;
        self.results.push_sent(event.id, label);
        Ok(())
    }

    /// Waits for the outcome of every event so far. Returns which of the sent events from `first`
    /// on are larger than the limit of the broker.
    pub async fn too_large_since(&mut self, first: usize) -> Vec<usize> {
        self.publisher.too_large_since(first).await
    }

    /// Index of the source's metric label in `labels`.
    fn label(&mut self, source: &Source) -> usize {
        if let Some((last, label)) = &self.last_source
            && last == source
        {
            return *label;
        }
        let text = self.state.metrics.label(source);
        let known = self.labels.iter().position(|known| *known == text);
        let label = known.unwrap_or_else(|| {
            self.labels.push(text);
            self.labels.len() - 1
        });
        self.last_source = Some((source.clone(), label));
        label
    }

    /// Adds the last result: the error that ended the batch.
    pub fn reject_rest(&mut self, error: &ApiError) {
        self.results.reject_rest(error);
        self.state.metrics.events_rejected(error.reason(), 1);
    }

    /// Waits for the outcome of each sent event, and counts it in the metrics.
    pub async fn settle(self) -> Settled {
        let Self { state, publisher, mut results, labels, .. } = self;
        let (states, errors) = publisher.finish().await;
        let (mut stored, mut failed) = (vec![0; labels.len()], vec![0; errors.len()]);
        for (label, delivery) in results.sent_labels().zip(&states) {
            match delivery {
                DeliveryState::Stored { .. } => stored[label] += 1,
                DeliveryState::Failed(error) => failed[*error] += 1,
                DeliveryState::Pending => {}
            }
        }
        for (label, count) in labels.iter().zip(&stored).filter(|(_, count)| **count > 0) {
            state.metrics.events_accepted(label, *count);
        }
        for (error, count) in errors.iter().zip(failed).filter(|(_, count)| *count > 0) {
            // Only the status, the reason and the detail are used.
            let error = error.clone().into_api_error(id_of(Uuid::nil()));
            state.metrics.events_rejected(error.reason(), count);
            results.add_status(&error);
            state.set_last_error(&error.problem().detail);
        }
        let accepted = usize::try_from(stored.iter().sum::<u64>()).unwrap_or(usize::MAX);
        Settled { results, accepted, states, errors }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use serde_json::Value;

    use super::*;
    use crate::app::App;
    use crate::config::Config;

    async fn post(app: &App) -> (u16, Value) {
        let request = Request::post("/ingest/batch").header("host", "t");
        let request = request.header("content-type", "application/x-ndjson");
        let response =
            app.dispatcher().handle(request.body(Body::from("{}\n".repeat(1000))).unwrap(), false).await;
        let status = response.status().as_u16();
        (status, serde_json::from_slice(&to_bytes(response.into_body(), usize::MAX).await.unwrap()).unwrap())
    }

    #[tokio::test]
    async fn a_batch_without_memory_for_a_result_ends_there_with_a_503() {
        let app = App::build(Config::without_kafka(&[])).await.unwrap();
        let permits = Arc::clone(&app.state().batch_memory);
        let all = u32::try_from(permits.available_permits()).unwrap();
        let others = Arc::clone(&permits).try_acquire_many_owned(all - 4096).unwrap();
        let (status, body) = post(&app).await;
        let results = body["results"].as_array().unwrap();
        let (last, before) = results.split_last().unwrap();
        // Each takes 32 bytes in the list, and its JSON.
        let bytes: usize = before.iter().map(|result| 32 + result.to_string().len()).sum();
        assert!(bytes <= 4096 && bytes + bytes / before.len() > 4096, "{bytes}");
        assert_eq!(status, 207);
        assert!(before.iter().all(|result| result["status"] == 422), "{body}");
        assert_eq!((&last["status"], &last["retryable"]), (&503.into(), &true.into()));
        let detail = last["detail"].as_str().unwrap();
        assert!(
            detail.starts_with("nothing was stored: ") && detail.ends_with("in another batch"),
            "{detail}"
        );
        assert_eq!(permits.available_permits(), 4096, "the response releases its permits");
        drop(others);
        let (status, body) = post(&app).await;
        assert_eq!((status, body["results"].as_array().map(Vec::len)), (422, Some(1000)));
    }
}
