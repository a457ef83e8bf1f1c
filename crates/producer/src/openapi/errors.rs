//! The error responses of the OpenAPI document. They are created from the errors that the handlers
//! return, so that the document cannot differ from them.

use std::time::Duration;

use axum::http::StatusCode;
use events::{EventId, Rules, Violation};
use serde_json::{Value, json};
use service::problem::Problem;

use crate::adsbdb::UpstreamError;
use crate::batch::splitter::RIGHT_TYPES;
use crate::config::Config;
use crate::error::ApiError;
use crate::http::auth::{NO_KEY, SEVERAL_KEYS, UNKNOWN_KEY};
use crate::http::headers::{self, SUPPORTED_CODINGS};

/// An example of an error response.
#[derive(Debug, Clone)]
pub struct ErrorExample {
    /// The name of the example.
    pub name: String,
    /// The name of the body's schema.
    pub schema: &'static str,
    problem: Problem,
    /// The fields of the body beside those of the problem.
    results: Option<Value>,
    /// Headers beside `Retry-After`: name, description, pattern.
    headers: &'static [(&'static str, &'static str, &'static str)],
}

impl From<ApiError> for ErrorExample {
    fn from(error: ApiError) -> Self {
        let schema = match error.status() {
            StatusCode::UNPROCESSABLE_ENTITY => "InvalidProblem",
            StatusCode::GATEWAY_TIMEOUT => "UnknownOutcomeProblem",
            _ => "Problem",
        };
        let headers: &[_] = match error {
            ApiError::UnsupportedContentCoding { .. } => {
                &[("Accept-Encoding", "The supported codings.", "^[a-z]+(, [a-z]+)*$")]
            }
            ApiError::MethodNotAllowed => &[("Allow", "The methods of this path.", "^[A-Z]+(,[A-Z]+)*$")],
            _ => &[],
        };
        Self { name: error.reason().into(), schema, problem: error.problem(), results: None, headers }
    }
}

impl ErrorExample {
    /// The three 401 responses.
    pub fn unauthorized() -> [Self; 3] {
        [("no_key", NO_KEY), ("several_keys", SEVERAL_KEYS), ("unknown_key", UNKNOWN_KEY)].map(
            |(name, detail)| Self {
                name: name.into(),
                schema: "Problem",
                problem: Problem::new(StatusCode::UNAUTHORIZED, detail),
                results: None,
                headers: &[("WWW-Authenticate", "The authentication scheme.", "^Bearer")],
            },
        )
    }

    /// The 503 response of `/livez`.
    pub fn not_alive() -> Self {
        let detail = "task \"topic maintenance\" ended before the stop signal";
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retryable(Duration::from_secs(1));
        Self { name: "not_alive".into(), schema: "Problem", problem, results: None, headers: &[] }
    }

    /// The 503 response of `/readyz`.
    pub fn not_ready() -> Self {
        let detail = "kafka does not answer: 1/1 brokers are down";
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retryable(Duration::from_secs(1));
        Self { name: "not_ready".into(), schema: "Problem", problem, results: None, headers: &[] }
    }

    /// The response to a batch whose last result is `error`, at `index`, and that has no accepted
    /// event.
    fn last_result(index: usize, error: &ApiError) -> Self {
        let Problem { status, detail, retryable, id, errors, .. } = error.problem();
        let mut last =
            json!({"index": index, "status": status.as_u16(), "detail": detail, "retryable": retryable});
        for (name, value) in [("id", id.map(Value::from)), ("errors", errors)] {
            if let Some(value) = value {
                last[name] = value;
            }
        }
        let reason = match error {
            ApiError::InvalidBatch(_) => "batch_broken",
            error => error.reason(),
        };
        Self {
            name: format!("all_{reason}"),
            schema: "BatchProblem",
            problem: ApiError::whole_batch(error.status(), matches!(error, ApiError::TruncatedBody)),
            results: Some(json!({"accepted": 0, "rejected": index + 1, "results": [last]})),
            headers: &[],
        }
    }

    pub fn status(&self) -> u16 {
        self.problem.status.as_u16()
    }

    pub fn body(&self) -> Value {
        let mut body = serde_json::to_value(&self.problem).unwrap_or_default();
        if let (Value::Object(body), Some(Value::Object(results))) = (&mut body, &self.results) {
            body.extend(results.clone());
        }
        body
    }

    /// The headers of the response. A header is `required` only if all errors of the status have
    /// it.
    pub fn headers(&self, all: &[Self]) -> Vec<(&'static str, Value)> {
        let header = |description: &str, required: bool, schema: Value| json!({"description": description, "required": required, "schema": schema});
        let text = |(name, description, pattern): &(&'static str, &str, &str)| {
            let always = all.iter().all(|error| error.headers.iter().any(|(known, ..)| known == name));
            (*name, header(description, always, json!({"type": "string", "pattern": pattern})))
        };
        let mut headers: Vec<(&str, Value)> = self.headers.iter().map(text).collect();
        if self.problem.retry_after.is_some() {
            let always = all.iter().all(|error| error.problem.retry_after.is_some());
            let seconds = json!({"type": "integer", "minimum": 1});
            headers.push(("Retry-After", header("Seconds to wait before trying again.", always, seconds)));
        }
        headers
    }
}

fn unsupported_coding() -> ApiError {
    ApiError::UnsupportedContentCoding { given: "br".into(), supported: SUPPORTED_CODINGS }
}

fn example_id() -> Option<EventId> {
    EventId::new("order-7").ok()
}

/// The error for invalid JSON.
fn not_json(subject: &'static str) -> Option<ApiError> {
    match events::parse_request(b"{\n  \"source\": manual}", &Rules::default()) {
        Err(error @ events::RequestError::NotJson { .. }) => {
            Some(ApiError::from_parser(error, subject, None))
        }
        _ => None,
    }
}

/// The errors of the body of `POST /ingest`.
pub fn body_errors(config: &Config) -> Vec<ApiError> {
    let rest = [
        ApiError::EmptyBody,
        ApiError::UnreadableBody("invalid chunk size".into()),
        ApiError::TruncatedBody,
        ApiError::BodyTimeout(config.request_timeout),
        ApiError::BodyTooLarge(config.max_payload_bytes, "MAX_PAYLOAD_BYTES"),
        headers::unsupported_media_type("text/plain", headers::SEND_JSON),
        unsupported_coding(),
        ApiError::Violations(violations()),
    ];
    not_json("body").into_iter().chain(rest).collect()
}

/// The errors of a whole batch, and the responses whose results are all errors.
pub fn batch_errors(config: &Config) -> Vec<ErrorExample> {
    let too_long = || ApiError::BodyTooLarge(config.max_batch_bytes, "MAX_BATCH_BYTES");
    let whole = [
        ApiError::EmptyBatch,
        too_long(),
        headers::unsupported_media_type("text/plain", RIGHT_TYPES),
        unsupported_coding(),
        ApiError::shutting_down(None),
    ];
    let first = [
        ApiError::InvalidBatch("there is no array".into()),
        ApiError::UnreadableBody("invalid chunk size".into()),
        ApiError::TruncatedBody,
        ApiError::BodyTimeout(config.request_timeout),
        ApiError::EventTooLarge(config.max_payload_bytes),
        too_long(),
        ApiError::Violations(violations()),
    ];
    let first = not_json("event").into_iter().chain(first).chain(delivery_errors());
    let first = first.chain(config.require_id.then_some(ApiError::MissingId));
    let too_many = ApiError::TooManyEvents(config.max_batch_events);
    let results = first.map(|error| (0, error)).chain([(config.max_batch_events, too_many)]);
    let results = results.map(|(index, error)| ErrorExample::last_result(index, &error));
    whole.map(ErrorExample::from).into_iter().chain(results).collect()
}

/// The violations of the example in the manual.
fn violations() -> Vec<Violation> {
    let body = br#"{"source":"system.x","payload":[1],"extra":1}"#;
    match events::parse_request(body, &Rules::default()) {
        Err(events::RequestError::Invalid(violations)) => violations,
        _ => Vec::new(),
    }
}

/// The errors of the delivery to Kafka.
pub fn delivery_errors() -> Vec<ApiError> {
    let not_stored =
        |reason, detail: &str| ApiError::NotStored { reason, detail: detail.into(), id: example_id() };
    let detail = "kafka did not acknowledge the event in time".to_owned();
    let mut errors = vec![
        ApiError::RecordTooLarge,
        not_stored("kafka_away", "kafka does not answer: 1/1 brokers are down"),
        not_stored("queue_full", "too many events are waiting for kafka"),
        not_stored("stopping", "the producer is shutting down"),
    ];
    errors.extend(example_id().map(|id| ApiError::UnknownOutcome { detail, id }));
    errors
}

/// The errors of ADSBDB.
pub fn adsbdb_errors(config: &Config) -> [ErrorExample; 5] {
    let status = UpstreamError::Status { status: 500, text: None, retry_after: None };
    let named = |name: &str, fault| ErrorExample { name: name.into(), ..ApiError::from(fault).into() };
    [
        named("limited", UpstreamError::RateLimited(Duration::from_secs(60))),
        named("slow", UpstreamError::Timeout(config.adsbdb_timeout)),
        named("unreachable", UpstreamError::Unreachable("Connection refused (os error 111)".into())),
        named("status", status),
        named("nonsense", UpstreamError::InvalidResponse("not a JSON object".into())),
    ]
}
