//! Error answers: `application/problem+json` as RFC 9457 describes it, with what a client needs to decide
//! whether to try again.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// An answer that is not 2xx.
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    /// A URI that names the kind of problem.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status' own words.
    pub title: String,
    /// The HTTP status.
    #[serde(serialize_with = "status_number")]
    pub status: StatusCode,
    /// What was wrong and what is right, for a person.
    pub detail: String,
    /// Whether sending the same request again can help.
    pub retryable: bool,
    /// The event's id, where the outcome is unknown or the event was not taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Each fault, as FastAPI lists them: `{loc, msg, type}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errors: Option<serde_json::Value>,
    /// The header `Retry-After`, rounded up to whole seconds.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
}

fn status_number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Problem {
    /// A problem that trying again does not solve.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank".into(),
            title: status.canonical_reason().unwrap_or("Error").into(),
            status,
            detail: detail.into(),
            retryable: false,
            id: None,
            errors: None,
            retry_after: None,
        }
    }

    /// Trying again can help; after `delay` where that is known.
    #[must_use]
    pub fn retryable(mut self, delay: impl Into<Option<Duration>>) -> Self {
        self.retryable = true;
        self.retry_after = delay.into();
        self
    }

    /// Names the event.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Lists the faults.
    #[must_use]
    pub fn with_errors(mut self, errors: serde_json::Value) -> Self {
        self.errors = Some(errors);
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(delay) = self.retry_after {
            let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }
}
