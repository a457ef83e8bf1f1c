//! `POST /ingest`: one event becomes one record. [`publish`] is the step that the endpoints for
//! single events share.

use std::time::Instant;

use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use events::{Event, EventId, NewEvent, Payload, RequestError};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::error::ApiError;
use crate::http::auth::SourceScope;
use crate::http::body::{BodyLimits, read_json};
use crate::http::headers::{ContentCoding, format_hint, idempotency_key, key_violation, new_id};
use crate::kafka::delivery::Record;
use crate::state::{Admission, AppState};
use crate::traces::traceparent;

/// Capacity for the body of a response without payload. Most fit, and are not reallocated.
const RESPONSE_BYTES: usize = 512;

/// The body of a 202 response.
#[derive(Debug, Serialize)]
pub struct Accepted {
    id: EventId,
    topic: String,
    partition: i32,
    offset: i64,
    status: &'static str,
    timestamp: i64,
    ingested_at: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Box<RawValue>>,
}

impl Accepted {
    /// Adds the payload, for a client that did not send it.
    #[must_use]
    pub fn with_payload(mut self, payload: &Payload) -> Self {
        self.payload = RawValue::from_string(payload.as_str().to_owned()).ok();
        self
    }
}

impl IntoResponse for Accepted {
    fn into_response(self) -> Response {
        let payload = self.payload.as_ref().map_or(0, |payload| payload.get().len());
        let mut body = Vec::with_capacity(RESPONSE_BYTES + payload);
        // Serialization fails only for maps whose keys are not strings.
        _ = serde_json::to_writer(&mut body, &self);
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = StatusCode::ACCEPTED;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// The handler of `POST /ingest`.
pub async fn ingest(
    State(state): State<AppState>,
    Extension(admission): Extension<Admission>,
    request: Request,
) -> Result<Accepted, ApiError> {
    let (parts, body) = request.into_parts();
    let (draft, id) = read_event(&state, &parts.headers, body).await?;
    if let Some(scope) = parts.extensions.get::<SourceScope>() {
        scope.check(draft.source.as_str())?;
    }
    if !admission.granted() {
        return Err(ApiError::shutting_down(Some(id)));
    }
    publish(&state, draft, id, traceparent(&parts.headers)).await
}

/// Reads the body of an event or a record.
///
/// # Errors
/// Those of [`read_json`], with the id that the head of the request contains.
pub async fn read_body(state: &AppState, headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
    let limits = BodyLimits {
        max_bytes: state.config.max_payload_bytes,
        variable: "MAX_PAYLOAD_BYTES",
        timeout: state.config.request_timeout,
    };
    let body = read_json(headers, body, limits, &state.shutdown, &state.zstd_memory).await;
    body.map_err(|error| error.with_head_id(idempotency_key(headers).ok().flatten()))
}

/// Reads and validates the event of a request, and determines its id.
async fn read_event(
    state: &AppState,
    headers: &HeaderMap,
    body: Body,
) -> Result<(NewEvent, EventId), ApiError> {
    let config = &state.config;
    let body = read_body(state, headers, body).await?;
    let parsed = events::parse_request(&body, &state.rules);
    let parsed = parsed.and_then(|draft| match state.sources.check_envelope(&draft) {
        Ok(()) => Ok(draft),
        Err(violations) => Err(RequestError::Invalid(violations)),
    });
    let (draft, key) = match (parsed, idempotency_key(headers)) {
        (Ok(draft), Ok(key)) => (draft, key),
        (Ok(_), Err(violation)) => return Err(ApiError::Violations(vec![violation])),
        (Err(RequestError::Invalid(mut violations)), key) => {
            violations.extend(key.err());
            return Err(ApiError::Violations(violations));
        }
        (Err(error), _) => {
            let hint = format_hint(&body, ContentCoding::of(headers)?);
            return Err(ApiError::from_parser(error, "body", hint));
        }
    };
    match (draft.id.clone(), key) {
        (Some(id), Some(key)) if id != key => Err(ApiError::Violations(vec![key_violation(
            "Idempotency-Key should be the event's id where both are given",
        )])),
        (Some(id), _) | (None, Some(id)) => Ok((draft, id)),
        (None, None) if config.require_id => Err(ApiError::MissingId),
        (None, None) => Ok((draft, new_id())),
    }
}

/// Sends the event to Kafka and waits for its delivery report.
///
/// # Errors
/// 413, 503 or 504; the last two contain the id.
pub async fn publish(
    state: &AppState,
    draft: NewEvent,
    id: EventId,
    traceparent: Option<&str>,
) -> Result<Accepted, ApiError> {
    let ingested_at = state.clock.stamp(&id).await;
    let event = Event::new(draft, id, ingested_at, &state.config.api_version);
    let value = event.to_json();
    let record =
        Record { key: event.id.as_str(), value: &value, timestamp_ms: ingested_at.get(), traceparent };
    let sent_at = Instant::now();
    let topic = state.sources.topic_of(&event.source);
    let stored = match state.kafka.send_to(topic, record).await {
        Ok(stored) => stored,
        Err(error) => return Err(error.into_api_error(event.id)),
    };
    state.metrics.event_accepted(&event.source, sent_at);
    Ok(Accepted {
        id: event.id,
        topic: topic.to_string(),
        partition: stored.partition,
        offset: stored.offset,
        status: "enqueued",
        timestamp: event.timestamp.get(),
        ingested_at: ingested_at.get(),
        payload: None,
    })
}
