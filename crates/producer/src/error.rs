//! Every answer that is not 2xx, and what it tells the client (G4): the status, whether trying again helps and when,
//! and the id to try again with.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use events::{EventId, Fault, Refusal};
use service::problem::Problem;

use crate::adsbdb::response::UpstreamError;
use crate::http::body::CODINGS;
use crate::kafka::delivery_error::DeliveryError;

/// After a refusal that was not the client's fault.
const SOON: Duration = Duration::from_secs(1);

/// Why a request was refused, or did not end well.
#[derive(Debug)]
pub enum ApiError {
    /// There is no body.
    Empty,
    /// The body, or an event of a batch, is not JSON.
    NotJson {
        /// Which of them.
        subject: &'static str,
        /// What is wrong.
        message: String,
        /// Where, from 1.
        line: usize,
        /// Where, from 1.
        column: usize,
        /// What is probably meant, and what to send instead.
        hint: Option<&'static str>,
    },
    /// The framing of the body or its compression is wrong.
    BodyBroken(String),
    /// The connection ended, or its sending side, before the body did.
    BodyCut,
    /// There is no Host, or no valid one, or more than one.
    Host(&'static str),
    /// The body comes in a transfer coding that is not known.
    TransferCoding,
    /// REQUIRE_ID is set, and the event has none.
    IdMissing,
    /// An Idempotency-Key where no event is sent.
    KeyNotTaken,
    /// A number of seconds that is not above 0.
    NotPositive(&'static str),
    /// The start of a poll job has something that no poll job takes; what.
    JobInput(String),
    /// No such path.
    NoSuchPath,
    /// No such poll job.
    NoSuchJob,
    /// The path has other methods.
    MethodNotAllowed,
    /// The body did not arrive in time.
    BodySlow(Duration),
    /// The body is longer than this, which the variable sets.
    BodyTooLarge(usize, &'static str),
    /// An event of a batch is longer than this.
    EventTooLarge(usize),
    /// A batch has more events than this.
    TooManyEvents(usize),
    /// A batch has no events.
    NoEvents,
    /// What is around the events of a batch is not as it should be.
    BatchBroken(String),
    /// The broker takes no record of this size.
    RecordTooLarge,
    /// The body is of another type or charset; what is wrong, and what is right.
    MediaType(String),
    /// The body is compressed in another way than those that are taken: what its header says.
    Coding(String),
    /// The request breaks rules: all of them.
    Invalid(Vec<Fault>),
    /// So many poll jobs run; the first ends after the delay.
    JobsFull(usize, Duration),
    /// ADSBDB gave no aircraft.
    Upstream(UpstreamError),
    /// Nothing was stored.
    NotStored {
        /// For metrics.
        reason: &'static str,
        /// For people.
        why: String,
        /// The event's id, where it has one already.
        id: Option<EventId>,
    },
    /// The event may or may not be stored.
    Unknown {
        /// For people.
        why: String,
        /// The event's id.
        id: EventId,
    },
}

impl ApiError {
    /// The producer is stopping, and nothing was stored.
    pub fn stopping(id: Option<EventId>) -> Self {
        Self::NotStored { reason: "stopping", why: "the producer is stopping".into(), id }
    }

    /// There is no room, and nothing was stored.
    pub fn overloaded(why: &str) -> Self {
        Self::NotStored { reason: "overloaded", why: why.into(), id: None }
    }

    /// The same, with the id that the request named, if it named one and nothing was stored.
    #[must_use]
    pub fn naming(mut self, named: Option<EventId>) -> Self {
        if let Self::NotStored { id: id @ None, .. } = &mut self {
            *id = named;
        }
        self
    }

    /// Of what is not JSON, `subject`; another hint than its own counts more.
    pub fn refusal(refusal: Refusal, subject: &'static str, other: Option<&'static str>) -> Self {
        match refusal {
            Refusal::Empty => Self::Empty,
            Refusal::NotJson { message, line, column, hint } => {
                Self::NotJson { subject, message, line, column, hint: other.or(hint) }
            }
            Refusal::Invalid(faults) => Self::Invalid(faults),
        }
    }

    /// Between two commas of a batch is no event.
    pub fn nothing_for_an_event() -> Self {
        let (message, hint) = ("there is nothing".into(), Some("a comma stands between two events only"));
        Self::NotJson { subject: "event", message, line: 1, column: 1, hint }
    }

    /// The problem of a batch of which no event was accepted; `cut` is whether its body was cut
    /// off.
    pub fn whole_batch(status: StatusCode, cut: bool) -> Problem {
        let problem = Problem::new(status, "no event was accepted: see results");
        match status {
            StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => problem.retryable(None),
            StatusCode::SERVICE_UNAVAILABLE => problem.retryable(SOON),
            _ if cut => problem.retryable(None),
            _ => problem,
        }
    }

    /// What became of the event of `id`.
    pub fn not_sent(error: DeliveryError, id: EventId) -> Self {
        match error {
            DeliveryError::TooLarge => Self::RecordTooLarge,
            DeliveryError::NotStored { reason, detail } => {
                Self::NotStored { reason, why: detail, id: Some(id) }
            }
            DeliveryError::Unknown(why) => Self::Unknown { why, id },
        }
    }

    /// A word for metrics, from a fixed set.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Empty | Self::NoEvents => "empty",
            Self::NotJson { .. } => "not_json",
            Self::BodyBroken(_) | Self::BatchBroken(_) => "body_broken",
            Self::BodyCut => "body_cut",
            Self::Host(_) => "host",
            Self::TransferCoding => "transfer_coding",
            Self::IdMissing => "id_missing",
            Self::KeyNotTaken => "idempotency_key",
            Self::NotPositive(_) => "not_positive",
            Self::JobInput(_) => "job_input",
            Self::NoSuchPath | Self::NoSuchJob => "not_found",
            Self::MethodNotAllowed => "method",
            Self::BodySlow(_) => "body_slow",
            Self::BodyTooLarge(..) => "body_too_large",
            Self::EventTooLarge(_) => "event_too_large",
            Self::TooManyEvents(_) => "too_many_events",
            Self::RecordTooLarge => "record_too_large",
            Self::MediaType(_) => "media_type",
            Self::Coding(_) => "content_coding",
            Self::Invalid(_) => "invalid",
            Self::JobsFull(..) => "jobs_full",
            Self::Upstream(_) => "upstream",
            Self::NotStored { reason, .. } => reason,
            Self::Unknown { .. } => "unconfirmed",
        }
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Empty
            | Self::NoEvents
            | Self::BatchBroken(_)
            | Self::NotJson { .. }
            | Self::BodyBroken(_)
            | Self::BodyCut
            | Self::Host(_)
            | Self::IdMissing
            | Self::KeyNotTaken
            | Self::NotPositive(_)
            | Self::JobInput(_) => StatusCode::BAD_REQUEST,
            Self::NoSuchPath | Self::NoSuchJob => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodySlow(_) => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge(..)
            | Self::EventTooLarge(_)
            | Self::TooManyEvents(_)
            | Self::RecordTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::MediaType(_) | Self::Coding(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::JobsFull(..) => StatusCode::TOO_MANY_REQUESTS,
            Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
            Self::Upstream(_) => StatusCode::BAD_GATEWAY,
            Self::NotStored { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unknown { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::Empty => "the body is empty: send one event as a JSON object".into(),
            Self::NotJson { subject, message, line, column, hint } => {
                let hint = hint.map(|hint| format!("; {hint}")).unwrap_or_default();
                format!("the {subject} is not JSON: {message} at line {line} column {column}{hint}")
            }
            Self::BodyBroken(why) => format!("the body cannot be read: {why}"),
            Self::BodyCut => "the body was cut off before its end: send the request again".into(),
            Self::Host(why) => format!("{why}: send one header Host, as in `Host: example.com:8080`"),
            Self::TransferCoding => {
                "the only Transfer-Encoding that is known is chunked; compress with Content-Encoding".into()
            }
            Self::IdMissing => {
                "the event has no id, and this producer requires one: send `id`, not null, or with POST /ingest the \
                 header Idempotency-Key"
                    .into()
            }
            Self::KeyNotTaken => "the header Idempotency-Key is for POST /ingest only".into(),
            Self::NotPositive(name) => format!("{name} must be a number of seconds above 0"),
            Self::JobInput(what) => {
                format!("{what}; a poll job takes the query parameters interval_sec and duration_sec, and no body")
            }
            Self::NoSuchPath => "there is nothing at this path".into(),
            Self::NoSuchJob => "there is no poll job of this id".into(),
            Self::MethodNotAllowed => "this path has other methods: see the header Allow".into(),
            Self::BodySlow(limit) => format!("the body did not arrive within {} ms", limit.as_millis()),
            Self::BodyTooLarge(limit, variable) => format!("the body is longer than {limit} bytes ({variable})"),
            Self::EventTooLarge(limit) => format!("the event is longer than {limit} bytes (MAX_PAYLOAD_BYTES)"),
            Self::TooManyEvents(limit) => {
                format!("the batch has more than {limit} events (MAX_BATCH_EVENTS): send the rest in another")
            }
            Self::NoEvents => "the batch is empty: send at least one event".into(),
            Self::BatchBroken(why) => format!("the batch cannot be read: {why}"),
            Self::RecordTooLarge => "the event is larger than kafka's limit for a record".into(),
            Self::MediaType(what) => what.clone(),
            Self::Coding(given) => {
                format!("Content-Encoding {given:?} is not supported: compress with one of {CODINGS}, once, or not")
            }
            Self::Invalid(faults) => match faults.as_slice() {
                [one] => format!("the request breaks a rule: {one}"),
                several => format!("the request breaks {} rules: see errors", several.len()),
            },
            Self::JobsFull(0, _) => "poll jobs are not allowed (MAX_POLL_JOBS is 0)".into(),
            Self::JobsFull(most, _) => {
                format!("{most} poll jobs are running, and no more are allowed (MAX_POLL_JOBS)")
            }
            Self::Upstream(fault) => fault.to_string(),
            Self::NotStored { why, .. } => format!("nothing was stored: {why}"),
            Self::Unknown { why, .. } => {
                format!(
                    "the event may or may not be stored: {why}; sending it again with the same id is safe"
                )
            }
        }
    }

    /// The answer's body and headers.
    pub fn problem(&self) -> Problem {
        let problem = Problem::new(self.status(), self.detail());
        match self {
            Self::BodySlow(_) | Self::BodyCut => problem.retryable(None),
            Self::Invalid(faults) => problem.with_errors(serde_json::json!(faults)),
            Self::JobsFull(0, _) => problem,
            Self::JobsFull(_, free_in) => problem.retryable((*free_in).max(SOON)),
            Self::Upstream(fault) => problem.retryable(fault.retry_after()),
            Self::NotStored { id, .. } => {
                let problem = problem.retryable(SOON);
                match id {
                    Some(id) => problem.with_id(id.as_str()),
                    None => problem,
                }
            }
            Self::Unknown { id, .. } => problem.retryable(None).with_id(id.as_str()),
            _ => problem,
        }
    }
}

/// What the traffic log needs to know of a refusal; travels with the response.
#[derive(Debug, Clone)]
pub struct Refused {
    /// For metrics.
    pub reason: &'static str,
    /// Set where the client is not to blame.
    pub failure: Option<String>,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = self.problem();
        let ours = problem.status.is_server_error() && !matches!(self, Self::TransferCoding);
        let failure = ours.then(|| problem.detail.clone());
        let mut response = problem.into_response();
        response.extensions_mut().insert(Refused { reason: self.reason(), failure });
        if matches!(self, Self::Coding(_)) {
            response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static(CODINGS));
        }
        if matches!(
            self,
            Self::BodySlow(_)
                | Self::BodyTooLarge(..)
                | Self::BodyBroken(_)
                | Self::BodyCut
                | Self::TransferCoding
        ) {
            // The rest of the body, if it ever comes, must not be read as the next request.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
