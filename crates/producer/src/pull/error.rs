//! Why an API returned no records.

use std::time::Duration;

use thiserror::Error;

use crate::error::ApiError;

/// Why an API returned no records. Each text continues `the API of NAME `.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PullError {
    /// The client cannot be created.
    #[error("gets no request: {0}")]
    NoClient(String),
    /// There is no connection.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// There was no complete response in time.
    #[error("did not respond within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// No request was sent: another fetch of the source was running for this time.
    #[error("got no request: another fetch of the source has been running for {} ms", .0.as_millis())]
    Busy(Duration),
    /// No request was sent, or the response was a rejection: the API allows none for this time.
    #[error("allows its next request in {} s", .0.as_secs().max(1))]
    RateLimited(Duration),
    /// The status is no success.
    #[error("returned status {status}")]
    Status {
        /// The status.
        status: u16,
        /// The time to wait that the response names.
        retry_after: Option<Duration>,
    },
    /// There were too many redirects, or one to another origin.
    #[error("redirects {0}")]
    Redirect(&'static str),
    /// The response exceeds the maximum size.
    #[error("returned more than {0} bytes")]
    TooLarge(usize),
    /// The pages have too many records.
    #[error("returned more than {0} records")]
    TooManyRecords(usize),
    /// The response cannot be used.
    #[error("returned an invalid response: {0}")]
    InvalidResponse(String),
    /// The only record of the response cannot be stored, and is in the dead-letter topic.
    #[error("returned a record that cannot be stored: {0}")]
    InvalidRecord(String),
    /// No memory is left for the response.
    #[error("returned a response for which no memory is left: too many are being read")]
    NoMemory,
}

impl PullError {
    /// Whether an immediate retry can help.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(_) | Self::Timeout(_) | Self::Status { status: 500.., retry_after: None }
        )
    }

    /// When a retry can help, if it is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited(time) => Some(*time),
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Value of the metric label `outcome`.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::NoClient(_) | Self::Unreachable(_) => "unreachable",
            Self::Timeout(_) | Self::Busy(_) => "slow",
            Self::RateLimited(_) => "limited",
            Self::Status { .. } | Self::Redirect(_) => "status",
            Self::NoMemory => "overloaded",
            Self::TooLarge(_)
            | Self::TooManyRecords(_)
            | Self::InvalidResponse(_)
            | Self::InvalidRecord(_) => "nonsense",
        }
    }

    /// The error response. `source` is the name of the source.
    pub(crate) fn into_api_error(self, source: &str) -> ApiError {
        ApiError::NoAircraft {
            detail: format!("the API of {source} {self}"),
            retry_after: self.retry_after(),
        }
    }
}

/// One error of each kind that a fetch can have, with its name in the OpenAPI document.
pub(crate) fn example_errors(source: &str) -> impl Iterator<Item = (&'static str, ApiError)> {
    let errors = [
        ("limited", PullError::RateLimited(Duration::from_secs(60))),
        ("slow", PullError::Timeout(Duration::from_secs(10))),
        ("unreachable", PullError::Unreachable("Connection refused (os error 111)".into())),
        ("status", PullError::Status { status: 500, retry_after: None }),
        ("nonsense", PullError::InvalidResponse("it is empty".into())),
    ];
    errors.map(|(name, error)| (name, error.into_api_error(source))).into_iter()
}
