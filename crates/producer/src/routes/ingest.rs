//! `POST /ingest`: one event in, one record acknowledged. [`accept`] is the step that every endpoint shares: a valid
//! event becomes a record, and the broker's word becomes the answer.

use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use events::{Draft, Event, EventId, Fault, Payload, Refusal};
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::app::Producer;
use crate::error::ApiError;
use crate::http::body::{self, Coding, Limits};
use crate::http::head;
use crate::kafka::delivery::Record;
use crate::routes;
use crate::shutdown::Admission;
use crate::traces::TRACEPARENT;

/// The header that may bring the id.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Most answers fit, so that none is moved while it is written.
const ANSWER_BYTES: usize = 512;

/// What a 202 says.
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
    /// Shows the payload too, where the client has not sent it.
    #[must_use]
    pub fn showing(mut self, payload: &Payload) -> Self {
        self.payload = RawValue::from_string(payload.as_str().to_owned()).ok();
        self
    }
}

impl IntoResponse for Accepted {
    fn into_response(self) -> Response {
        let payload = self.payload.as_ref().map_or(0, |payload| payload.get().len());
        let mut body = Vec::with_capacity(ANSWER_BYTES + payload);
        // It only fails where a map has keys that are no texts.
        _ = serde_json::to_writer(&mut body, &self);
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = StatusCode::ACCEPTED;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// The handler.
pub async fn ingest(
    State(producer): State<Producer>,
    Extension(admission): Extension<Admission>,
    request: Request,
) -> Result<Accepted, ApiError> {
    let (parts, body) = request.into_parts();
    let (draft, id) = read(&producer, &parts.headers, body).await?;
    if !admission.granted() {
        return Err(ApiError::stopping(Some(id)));
    }
    accept(&producer, draft, id, traceparent(&parts.headers)).await
}

async fn read(producer: &Producer, headers: &HeaderMap, body: Body) -> Result<(Draft, EventId), ApiError> {
    let config = &producer.config;
    let limits = Limits {
        bytes: config.max_payload_bytes,
        variable: "MAX_PAYLOAD_BYTES",
        time: config.request_timeout,
    };
    let body = body::json(headers, body, limits, &producer.stopping, &producer.zstd_room).await;
    let body = body.map_err(|error| error.naming(id_in_head(routes::SINGLE, headers)))?;
    let (draft, key) = match (events::parse_request(&body, &producer.rules), idempotency_key(headers)) {
        (Ok(draft), Ok(key)) => (draft, key),
        (Ok(_), Err(fault)) => return Err(ApiError::Invalid(vec![fault])),
        (Err(Refusal::Invalid(mut faults)), key) => {
            faults.extend(key.err());
            return Err(ApiError::Invalid(faults));
        }
        (Err(refusal), _) => {
            let hint = body::looks_like(&body, Coding::of(headers)?);
            return Err(ApiError::refusal(refusal, "body", hint));
        }
    };
    match (draft.id.clone(), key) {
        (Some(id), Some(key)) if id != key => Err(ApiError::Invalid(vec![key_fault(
            "Idempotency-Key should be the event's id where both are given",
        )])),
        (Some(id), _) | (None, Some(id)) => Ok((draft, id)),
        (None, None) if config.require_id => Err(ApiError::IdMissing),
        (None, None) => Ok((draft, new_id())),
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<EventId>, Fault> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter().map(|value| {
        let text = std::str::from_utf8(value.as_bytes()).map_err(|_| "Id should be UTF-8".to_owned())?;
        EventId::new(head::unquoted(text)?)
    });
    let Some(key) = keys.next().transpose().map_err(key_fault)? else { return Ok(None) };
    if keys.all(|other| other.as_ref() == Ok(&key)) {
        Ok(Some(key))
    } else {
        Err(key_fault("Idempotency-Key should have one value, and has several"))
    }
}

/// The id that a request names before its body is read: a refusal that says to try again says with which id.
pub fn id_in_head(route: &str, headers: &HeaderMap) -> Option<EventId> {
    if route == routes::SINGLE { idempotency_key(headers).ok()? } else { None }
}

fn key_fault(msg: impl Into<String>) -> Fault {
    head::fault("Idempotency-Key", msg)
}

/// An id for an event that brings none; such ids are in the order of time.
pub fn new_id() -> EventId {
    id_of(Uuid::now_v7())
}

/// The id that a UUID is.
#[expect(clippy::expect_used, reason = "36 printable characters are an id")]
pub fn id_of(uuid: Uuid) -> EventId {
    let text = &mut Uuid::encode_buffer();
    EventId::new(&*uuid.hyphenated().encode_lower(text)).expect("a UUID is an id")
}

/// The trace context that goes into a header of the record: judged and, with an exporter, carried on by `traces`.
pub fn traceparent(headers: &HeaderMap) -> Option<&str> {
    headers.get(TRACEPARENT)?.to_str().ok()
}

/// Makes the event a record and waits for the broker's acknowledgement.
///
/// # Errors
/// 413, 503 or 504; the latter two with the id.
pub async fn accept(
    producer: &Producer,
    draft: Draft,
    id: EventId,
    traceparent: Option<&str>,
) -> Result<Accepted, ApiError> {
    let ingested_at = producer.clock.stamp(&id).await;
    let event = Event::new(draft, id, ingested_at, &producer.config.api_version);
    let value = event.to_json();
    let record =
        Record { key: event.id.as_str(), value: &value, timestamp_ms: ingested_at.get(), traceparent };
    let timer = producer.metrics.delivery_timer();
    let stored = match producer.kafka.send(record).await {
        Ok(stored) => stored,
        Err(error) => return Err(ApiError::not_sent(error, event.id)),
    };
    producer.metrics.accepted(&event.source, timer);
    Ok(Accepted {
        id: event.id,
        topic: producer.config.topic.name.clone(),
        partition: stored.partition,
        offset: stored.offset,
        status: "enqueued",
        timestamp: event.timestamp.get(),
        ingested_at: ingested_at.get(),
        payload: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(axum::http::HeaderName::from_static(name), value.parse().unwrap())])
    }

    #[test]
    fn an_idempotency_key_is_an_id() {
        assert_eq!(idempotency_key(&HeaderMap::new()), Ok(None));
        let id = idempotency_key(&with(IDEMPOTENCY_KEY, "order-7")).unwrap().unwrap();
        assert_eq!(id.as_str(), "order-7");
        let fault = idempotency_key(&with(IDEMPOTENCY_KEY, &"x".repeat(257))).unwrap_err();
        assert!(fault.to_string().starts_with("header.Idempotency-Key: "), "{fault}");
    }
}
