//! The refusals of the document: made from the errors that handlers answer, not written beside them.

use std::time::Duration;

use axum::http::StatusCode;
use events::{EventId, Fault, Rules};
use serde_json::{Value, json};
use service::problem::Problem;

use crate::adsbdb::response::UpstreamError;
use crate::batch::splitter::RIGHT_TYPES;
use crate::config::Config;
use crate::error::ApiError;
use crate::http::auth::{NO_KEY, SEVERAL_KEYS, UNKNOWN_KEY};
use crate::http::body;

/// One way to be refused.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// Names the example.
    pub name: String,
    /// Of the body.
    pub schema: &'static str,
    problem: Problem,
    /// What the body has beside the problem.
    results: Option<Value>,
    /// Headers beside `Retry-After`: name, description, pattern.
    extra: &'static [(&'static str, &'static str, &'static str)],
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        let schema = match error.status() {
            StatusCode::UNPROCESSABLE_ENTITY => "InvalidProblem",
            StatusCode::GATEWAY_TIMEOUT => "UnknownOutcomeProblem",
            _ => "Problem",
        };
        let extra: &[_] = match error {
            ApiError::Coding(_) => {
                &[("Accept-Encoding", "The codings that are taken.", "^[a-z]+(, [a-z]+)*$")]
            }
            ApiError::MethodNotAllowed => &[("Allow", "The methods of this path.", "^[A-Z]+(,[A-Z]+)*$")],
            _ => &[],
        };
        Self { name: error.reason().into(), schema, problem: error.problem(), results: None, extra }
    }
}

impl Refusal {
    /// 401, without a key, with one that is not known and with several. It is answered before a
    /// handler is asked.
    pub fn no_key() -> [Self; 3] {
        [("no_key", NO_KEY), ("several_keys", SEVERAL_KEYS), ("unknown_key", UNKNOWN_KEY)].map(
            |(name, detail)| Self {
                name: name.into(),
                schema: "Problem",
                problem: Problem::new(StatusCode::UNAUTHORIZED, detail),
                results: None,
                extra: &[("WWW-Authenticate", "How to bring a key.", "^Bearer")],
            },
        )
    }

    /// 405.
    pub fn other_method() -> Self {
        ApiError::MethodNotAllowed.into()
    }

    /// 503 of `/readyz`.
    pub fn not_ready() -> Self {
        let detail = "kafka does not answer: 1/1 brokers are down";
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retryable(Duration::from_secs(1));
        Self { name: "not_ready".into(), schema: "Problem", problem, results: None, extra: &[] }
    }

    /// A batch of which `error` is the last result, that of `index`, and no event was accepted.
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
            ApiError::BatchBroken(_) => "batch_broken",
            error => error.reason(),
        };
        Self {
            name: format!("all_{reason}"),
            schema: "BatchProblem",
            problem: ApiError::whole_batch(error.status(), matches!(error, ApiError::BodyCut)),
            results: Some(json!({"accepted": 0, "rejected": index + 1, "results": [last]})),
            extra: &[],
        }
    }

    /// Its status.
    pub fn status(&self) -> u16 {
        self.problem.status.as_u16()
    }

    /// The body.
    pub fn body(&self) -> Value {
        let mut body = serde_json::to_value(&self.problem).unwrap_or_default();
        if let (Value::Object(body), Some(Value::Object(results))) = (&mut body, &self.results) {
            body.extend(results.clone());
        }
        body
    }

    /// The headers that come with it; one is promised only if each of `all` has it.
    pub fn headers(&self, all: &[Self]) -> Vec<(&'static str, Value)> {
        let header = |description: &str, required: bool, schema: Value| json!({"description": description, "required": required, "schema": schema});
        let text = |(name, description, pattern): &(&'static str, &str, &str)| {
            let always = all.iter().all(|refusal| refusal.extra.iter().any(|(known, ..)| known == name));
            (*name, header(description, always, json!({"type": "string", "pattern": pattern})))
        };
        let mut headers: Vec<(&str, Value)> = self.extra.iter().map(text).collect();
        if self.problem.retry_after.is_some() {
            let always = all.iter().all(|refusal| refusal.problem.retry_after.is_some());
            let seconds = json!({"type": "integer", "minimum": 1});
            headers.push(("Retry-After", header("Seconds to wait before trying again.", always, seconds)));
        }
        headers
    }
}

fn sample_id() -> Option<EventId> {
    EventId::new("order-7").ok()
}

/// What is not JSON.
fn not_json(subject: &'static str) -> Option<ApiError> {
    match events::parse_request(b"{\n  \"source\": manual}", &Rules::default()) {
        Err(refusal @ events::Refusal::NotJson { .. }) => Some(ApiError::refusal(refusal, subject, None)),
        _ => None,
    }
}

/// What a body may be refused for before it is an event.
pub fn of_bodies(config: &Config) -> Vec<ApiError> {
    let rest = [
        ApiError::Empty,
        ApiError::BodyBroken("invalid chunk size".into()),
        ApiError::BodyCut,
        ApiError::BodySlow(config.request_timeout),
        ApiError::BodyTooLarge(config.max_payload_bytes, "MAX_PAYLOAD_BYTES"),
        body::other_media_type("text/plain", body::JSON),
        ApiError::Coding("br".into()),
        ApiError::Invalid(faults()),
    ];
    not_json("body").into_iter().chain(rest).collect()
}

/// What a batch may be refused for before an event of it is taken, and what all its results may be.
pub fn of_batches(config: &Config) -> Vec<Refusal> {
    let too_long = || ApiError::BodyTooLarge(config.max_batch_bytes, "MAX_BATCH_BYTES");
    let whole = [
        ApiError::NoEvents,
        too_long(),
        body::other_media_type("text/plain", RIGHT_TYPES),
        ApiError::Coding("br".into()),
        ApiError::stopping(None),
    ];
    let first = [
        ApiError::BatchBroken("there is no array".into()),
        ApiError::BodyBroken("invalid chunk size".into()),
        ApiError::BodyCut,
        ApiError::BodySlow(config.request_timeout),
        ApiError::EventTooLarge(config.max_payload_bytes),
        too_long(),
        ApiError::Invalid(faults()),
    ];
    let first = not_json("event").into_iter().chain(first).chain(of_delivery());
    let first = first.chain(config.require_id.then_some(ApiError::IdMissing));
    let too_many = ApiError::TooManyEvents(config.max_batch_events);
    let results = first.map(|error| (0, error)).chain([(config.max_batch_events, too_many)]);
    let results = results.map(|(index, error)| Refusal::last_result(index, &error));
    whole.map(Refusal::from).into_iter().chain(results).collect()
}

/// Those of the README's example.
fn faults() -> Vec<Fault> {
    let body = br#"{"source":"system.x","payload":[1],"extra":1}"#;
    match events::parse_request(body, &Rules::default()) {
        Err(events::Refusal::Invalid(faults)) => faults,
        _ => Vec::new(),
    }
}

/// What an event may be refused for on its way to the topic.
pub fn of_delivery() -> Vec<ApiError> {
    let not_stored = |reason, why: &str| ApiError::NotStored { reason, why: why.into(), id: sample_id() };
    let unknown = "kafka did not acknowledge the event in time".to_owned();
    let mut refusals = vec![
        ApiError::RecordTooLarge,
        not_stored("kafka_away", "kafka does not answer: 1/1 brokers are down"),
        not_stored("queue_full", "too many events wait for kafka"),
        not_stored("stopping", "the producer is stopping"),
    ];
    refusals.extend(sample_id().map(|id| ApiError::Unknown { why: unknown, id }));
    refusals
}

/// What ADSBDB may be to blame for.
pub fn of_adsbdb(config: &Config) -> [Refusal; 5] {
    let status = UpstreamError::Status { status: 500, text: None, retry_after: None };
    let named = |name: &str, fault| Refusal { name: name.into(), ..ApiError::Upstream(fault).into() };
    [
        named("limited", UpstreamError::RateLimited(Duration::from_secs(60))),
        named("slow", UpstreamError::Timeout(config.adsbdb_timeout)),
        named("unreachable", UpstreamError::Unreachable("Connection refused (os error 111)".into())),
        named("status", status),
        named("nonsense", UpstreamError::InvalidResponse("not a JSON object".into())),
    ]
}
