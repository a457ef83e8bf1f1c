//! Error responses: `application/problem+json` (RFC 9457), with `retryable` and `Retry-After`.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// The body of an error response.
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    /// URI of the problem type: `about:blank`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Reason phrase of the status.
    pub title: String,
    /// HTTP status.
    #[serde(serialize_with = "status_number")]
    pub status: StatusCode,
    /// What is wrong and what is right, for people.
    pub detail: String,
    /// Whether a retry of the same request can help.
    pub retryable: bool,
    /// Id of the event, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Every violation as `{loc, msg, type}`, as in FastAPI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errors: Option<serde_json::Value>,
    /// Value of the header `Retry-After`, rounded up to whole seconds, at least 1.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
}

fn status_number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Problem {
    /// A problem that a retry does not solve.
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

    /// Marks the problem as retryable, with `Retry-After: delay` if it is known.
    #[must_use]
    pub fn retryable(mut self, delay: impl Into<Option<Duration>>) -> Self {
        self.retryable = true;
        self.retry_after = delay.into();
        self
    }

    /// Adds the id of the event.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Adds the list of violations.
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
