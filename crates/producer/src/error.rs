//! Every error response of the HTTP API: its status, its text, and whether a retry can help (G4).
//!
//! This module depends on no other. Modules convert their errors into an [`ApiError`].

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use events::{EventId, Loc, RequestError, Violation};
use service::http::Problem;
use service::plural::counted;

/// `Retry-After` of a rejection that the client did not cause.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Values of the label `reason` of `slipstream_events_rejected_total`.
pub const REJECTION_REASONS: &[&str] = &[
    "empty",
    "not_json",
    "body_broken",
    "body_cut",
    "id_missing",
    "idempotency_key",
    "host",
    "transfer_coding",
    "unauthorized",
    "forbidden",
    "not_found",
    "method",
    "body_slow",
    "media_type",
    "content_coding",
    "invalid",
    "body_too_large",
    "event_too_large",
    "too_many_events",
    "record_too_large",
    "upstream",
    "kafka_away",
    "kafka_refused",
    "queue_full",
    "overloaded",
    "stopping",
    "unconfirmed",
];

/// The reason of an error response.
#[derive(Debug)]
pub enum ApiError {
    EmptyBody,
    /// The body, or an event of a batch, is not JSON.
    InvalidJson {
        /// "body" or "event".
        subject: &'static str,
        message: String,
        /// Line of the error, from 1.
        line: usize,
        /// Column of the error, from 1.
        column: usize,
        /// What the client probably sent, and what it should send.
        hint: Option<&'static str>,
    },
    /// The framing or the compression of the body is invalid.
    UnreadableBody(String),
    /// The client closed the connection or its sending side before the end of the body.
    TruncatedBody,
    /// The request does not have exactly one valid Host.
    InvalidHost(&'static str),
    /// The request has a Transfer-Encoding other than `chunked`.
    UnsupportedTransferCoding,
    /// REQUIRE_ID is set, and the event has no id.
    MissingId,
    /// The request has an Idempotency-Key and is not a `POST /ingest`.
    UnexpectedIdempotencyKey,
    /// The parameter is not a number of seconds above 0.
    NotPositive(&'static str),
    /// The request to start a poll job has a body or an unknown parameter.
    InvalidJobRequest(String),
    PathNotFound,
    /// The sources file has no such source.
    SourceNotFound,
    /// The source has no endpoint of this kind. The text names the right one.
    OtherEndpoint(String),
    /// The API key is not for this source.
    SourceForbidden(String),
    JobNotFound,
    MethodNotAllowed,
    /// The body was not received within this time.
    BodyTimeout(Duration),
    /// The body has more bytes than this limit; the variable sets it.
    BodyTooLarge(usize, &'static str),
    /// An event of a batch has more bytes than this limit.
    EventTooLarge(usize),
    /// A batch has more events than this limit.
    TooManyEvents(usize),
    EmptyBatch,
    /// The body of a batch is no array of JSON values.
    InvalidBatch(String),
    /// Kafka rejected the record because of its size.
    RecordTooLarge,
    /// The media type or charset is not supported. The text also states what is supported.
    UnsupportedMediaType(String),
    /// The Content-Encoding is not supported.
    UnsupportedContentCoding {
        /// The value of the header.
        given: String,
        /// The value of Accept-Encoding in the response.
        supported: &'static str,
    },
    /// The request violates rules; all violations are listed.
    Violations(Vec<Violation>),
    /// This number of poll jobs is running; the first ends after the delay.
    TooManyJobs(usize, Duration),
    /// ADSBDB returned no aircraft.
    NoAircraft {
        detail: String,
        retry_after: Option<Duration>,
    },
    /// Nothing was stored.
    NotStored {
        /// The label of the metric.
        reason: &'static str,
        detail: String,
        /// The event's id, if it is known.
        id: Option<EventId>,
    },
    /// The event may or may not be stored.
    UnknownOutcome {
        detail: String,
        id: EventId,
    },
}

impl ApiError {
    /// The producer is shutting down, and nothing was stored.
    pub fn shutting_down(id: Option<EventId>) -> Self {
        Self::NotStored { reason: "stopping", detail: "the producer is shutting down".into(), id }
    }

    /// The request has a body, but the source is fetched: a record in it would be lost.
    pub fn unexpected_body(source: &str) -> Self {
        let msg = format!("The source {source} is fetched, so the request should have no body");
        Self::Violations(vec![Violation {
            loc: vec![Loc::Name("body".into())],
            msg,
            kind: "unexpected_body",
        }])
    }

    /// A limit was reached, and nothing was stored.
    pub fn overloaded(detail: &str) -> Self {
        Self::NotStored { reason: "overloaded", detail: detail.into(), id: None }
    }

    /// More than MAX_IN_FLIGHT requests.
    pub fn too_many_requests() -> Self {
        Self::overloaded("too many requests are in flight (MAX_IN_FLIGHT)")
    }

    /// More than MAX_CONNECTIONS connections.
    pub fn too_many_connections() -> Self {
        Self::overloaded("too many connections are open (MAX_CONNECTIONS)")
    }

    /// Adds the id that the head of the request contains, if nothing was stored and no id is known.
    #[must_use]
    pub fn with_head_id(mut self, head_id: Option<EventId>) -> Self {
        if let Self::NotStored { id: id @ None, .. } = &mut self {
            *id = head_id;
        }
        self
    }

    /// Converts the rejection of the parser. `hint` replaces the hint of the parser.
    pub fn from_parser(error: RequestError, subject: &'static str, hint: Option<&'static str>) -> Self {
        match error {
            RequestError::Empty => Self::EmptyBody,
            RequestError::NotJson { message, line, column, hint: other } => {
                Self::InvalidJson { subject, message, line, column, hint: hint.or(other) }
            }
            RequestError::Invalid(violations) => Self::Violations(violations),
        }
    }

    /// A batch has no value between two commas.
    pub fn missing_event() -> Self {
        let (message, hint) = ("the element is empty".into(), Some("a comma stands between two events only"));
        Self::InvalidJson { subject: "event", message, line: 1, column: 1, hint }
    }

    /// The problem of a batch of which no event was accepted. `truncated` states whether its body
    /// was incomplete.
    pub fn whole_batch(status: StatusCode, truncated: bool) -> Problem {
        let problem = Problem::new(status, "no event was accepted: see results");
        match status {
            StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => problem.retryable(None),
            StatusCode::SERVICE_UNAVAILABLE => problem.retryable(RETRY_AFTER),
            _ if truncated => problem.retryable(None),
            _ => problem,
        }
    }

    /// The status, and the `reason` label of the metric.
    fn class(&self) -> (StatusCode, &'static str) {
        match self {
            Self::EmptyBody | Self::EmptyBatch => (StatusCode::BAD_REQUEST, "empty"),
            Self::InvalidJson { .. } => (StatusCode::BAD_REQUEST, "not_json"),
            Self::UnreadableBody(_) | Self::InvalidBatch(_) => (StatusCode::BAD_REQUEST, "body_broken"),
            Self::TruncatedBody => (StatusCode::BAD_REQUEST, "body_cut"),
            Self::InvalidHost(_) => (StatusCode::BAD_REQUEST, "host"),
            Self::MissingId => (StatusCode::BAD_REQUEST, "id_missing"),
            Self::UnexpectedIdempotencyKey => (StatusCode::BAD_REQUEST, "idempotency_key"),
            Self::NotPositive(_) => (StatusCode::BAD_REQUEST, "not_positive"),
            Self::InvalidJobRequest(_) => (StatusCode::BAD_REQUEST, "job_input"),
            Self::PathNotFound | Self::SourceNotFound | Self::OtherEndpoint(_) | Self::JobNotFound => {
                (StatusCode::NOT_FOUND, "not_found")
            }
            Self::SourceForbidden(_) => (StatusCode::FORBIDDEN, "forbidden"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method"),
            Self::BodyTimeout(_) => (StatusCode::REQUEST_TIMEOUT, "body_slow"),
            Self::BodyTooLarge(..) => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::EventTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "event_too_large"),
            Self::TooManyEvents(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too_many_events"),
            Self::RecordTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "record_too_large"),
            Self::UnsupportedMediaType(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "media_type"),
            Self::UnsupportedContentCoding { .. } => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_coding"),
            Self::Violations(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            Self::TooManyJobs(..) => (StatusCode::TOO_MANY_REQUESTS, "jobs_full"),
            Self::UnsupportedTransferCoding => (StatusCode::NOT_IMPLEMENTED, "transfer_coding"),
            Self::NoAircraft { .. } => (StatusCode::BAD_GATEWAY, "upstream"),
            Self::NotStored { reason, .. } => (StatusCode::SERVICE_UNAVAILABLE, reason),
            Self::UnknownOutcome { .. } => (StatusCode::GATEWAY_TIMEOUT, "unconfirmed"),
        }
    }

    /// The `reason` label of the metric.
    pub fn reason(&self) -> &'static str {
        self.class().1
    }

    pub fn status(&self) -> StatusCode {
        self.class().0
    }

    #[expect(clippy::too_many_lines, reason = "one arm per error")]
    fn detail(&self) -> String {
        match self {
            Self::EmptyBody => "the body is empty: send one event as a JSON object".into(),
            Self::InvalidJson { subject, message, line, column, hint } => {
                let hint = hint.map(|hint| format!("; {hint}")).unwrap_or_default();
                format!("the {subject} is not JSON: {message} at line {line} column {column}{hint}")
            }
            Self::UnreadableBody(reason) => format!("the body cannot be read: {reason}"),
            Self::TruncatedBody => "the body is incomplete: send the request again".into(),
            Self::InvalidHost(reason) => {
                format!("{reason}: send one header Host, as in `Host: example.com:8080`")
            }
            Self::UnsupportedTransferCoding => {
                "Transfer-Encoding must be chunked: to compress the body, use Content-Encoding".into()
            }
            Self::MissingId => "the event has no id, and this producer requires one: send `id`, or with \
                 POST /ingest the header Idempotency-Key"
                .into(),
            Self::UnexpectedIdempotencyKey => "the header Idempotency-Key is for POST /ingest only".into(),
            Self::NotPositive(name) => format!("{name} must be a number of seconds above 0"),
            Self::InvalidJobRequest(reason) => format!(
                "{reason}; a poll job has the query parameters interval_sec and duration_sec, and \
                 no body"
            ),
            Self::PathNotFound => "this path does not exist".into(),
            Self::SourceNotFound => {
                "the sources file has no such source: GET /openapi.json lists all endpoints".into()
            }
            Self::OtherEndpoint(reason) => reason.clone(),
            Self::SourceForbidden(source) => {
                format!("the API key is not for the source {source}: API_KEYS names the sources of a key")
            }
            Self::JobNotFound => "no poll job has this id".into(),
            Self::MethodNotAllowed => {
                "this path does not allow the method: the header Allow lists its methods".into()
            }
            Self::BodyTimeout(timeout) => {
                format!("the body was not received within {} ms", timeout.as_millis())
            }
            Self::BodyTooLarge(limit, variable) => {
                format!("the body is longer than {limit} bytes ({variable})")
            }
            Self::EventTooLarge(limit) => {
                format!("the event is longer than {limit} bytes (MAX_PAYLOAD_BYTES)")
            }
            Self::TooManyEvents(limit) => {
                let limit = counted(*limit, "event");
                format!("the batch has more than {limit} (MAX_BATCH_EVENTS): send the rest in another batch")
            }
            Self::EmptyBatch => "the batch is empty: send at least one event".into(),
            Self::InvalidBatch(reason) => format!("the batch cannot be read: {reason}"),
            Self::RecordTooLarge => "the event is larger than kafka's limit for a record".into(),
            Self::UnsupportedMediaType(detail) => detail.clone(),
            Self::UnsupportedContentCoding { given, supported } => format!(
                "Content-Encoding {given:?} is not supported: compress the body once, with one of \
                 {supported}, or not at all"
            ),
            Self::Violations(violations) => match violations.as_slice() {
                [one] => format!("the request breaks a rule: {one}"),
                several => format!("the request breaks {} rules: see errors", several.len()),
            },
            Self::TooManyJobs(0, _) => "poll jobs are disabled (MAX_POLL_JOBS is 0)".into(),
            Self::TooManyJobs(max, _) => {
                format!("{max} poll jobs are running, which is the maximum (MAX_POLL_JOBS)")
            }
            Self::NoAircraft { detail, .. } => detail.clone(),
            Self::NotStored { detail, .. } => format!("nothing was stored: {detail}"),
            Self::UnknownOutcome { detail, .. } => format!(
                "the event may or may not be stored: {detail}; sending it again with the same id is safe"
            ),
        }
    }

    /// The body and the headers of the response.
    pub fn problem(&self) -> Problem {
        let problem = Problem::new(self.status(), self.detail());
        match self {
            Self::BodyTimeout(_) | Self::TruncatedBody => problem.retryable(None),
            Self::Violations(violations) => problem.with_errors(serde_json::json!(violations)),
            Self::TooManyJobs(0, _) => problem,
            Self::TooManyJobs(_, free_in) => problem.retryable((*free_in).max(RETRY_AFTER)),
            Self::NoAircraft { retry_after, .. } => problem.retryable(*retry_after),
            Self::NotStored { id, .. } => {
                let problem = problem.retryable(RETRY_AFTER);
                match id {
                    Some(id) => problem.with_id(id.as_str()),
                    None => problem,
                }
            }
            Self::UnknownOutcome { id, .. } => problem.retryable(None).with_id(id.as_str()),
            _ => problem,
        }
    }

    /// Whether the rest of the body may still arrive, so that the connection must be closed. Else
    /// the rest would be read as the next request.
    fn closes_connection(&self) -> bool {
        matches!(
            self,
            Self::BodyTimeout(_)
                | Self::BodyTooLarge(..)
                | Self::UnreadableBody(_)
                | Self::TruncatedBody
                | Self::UnsupportedTransferCoding
        )
    }
}

/// An extension of error responses, from which the middleware counts rejections.
#[derive(Debug, Clone)]
pub struct Rejection {
    /// The `reason` label of the metric.
    pub reason: &'static str,
    /// The text for `last_error` in `/health`, unless the client caused the error.
    pub failure: Option<String>,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = self.problem();
        let client_error =
            !problem.status.is_server_error() || matches!(self, Self::UnsupportedTransferCoding);
        let failure = (!client_error).then(|| problem.detail.clone());
        let mut response = problem.into_response();
        response.extensions_mut().insert(Rejection { reason: self.reason(), failure });
        if let Self::UnsupportedContentCoding { supported, .. } = self {
            response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static(supported));
        }
        if self.closes_connection() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
