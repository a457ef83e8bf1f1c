//! The client of ADSBDB.
//!
//! - A call takes at most ADSBDB_TIMEOUT_MS, retries included.
//! - At most ADSBDB_MAX_CONCURRENCY requests run at a time.
//! - No request is sent while a rate limit is active.
//! - The size of a response is limited.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use events::{Payload, Source};
use serde::Deserialize;
use serde_json::error::Category;
use serde_json::value::RawValue;
use service::http::object;
use service::tasks::lock;
use service::time::Backoff;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use url::Url;

use crate::config::Config;
use crate::error::ApiError;
use crate::metrics::Metrics;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_ATTEMPTS: u32 = 3;
/// Maximum size of a response. An aircraft has about 500 bytes.
const MAX_RESPONSE_BYTES: usize = 256 * 1024;

#[derive(Debug)]
pub struct AdsbdbClient {
    http: reqwest::Client,
    url: Url,
    rate_limit: RateLimit,
    request_permits: Semaphore,
    timeout: Duration,
    metrics: Arc<Metrics>,
}

impl AdsbdbClient {
    /// Creates the client. It connects at the first request.
    ///
    /// # Errors
    /// The base URL cannot have a path, or TLS cannot be set up.
    pub fn new(config: &Config, metrics: Arc<Metrics>) -> Result<Self, String> {
        // reqwest is built without a TLS provider. An error means that another part of the process
        // installed the same provider before.
        _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            // Half of the total time: after a lost request there is time for a retry.
            .timeout(config.adsbdb_timeout / 2)
            .redirect(reqwest::redirect::Policy::limited(2))
            .user_agent(concat!("slipstream/", env!("CARGO_PKG_VERSION")));
        if config.adsbdb_base_url.scheme() == "http" {
            // Not the public service but a simulator, which a proxy to the internet cannot reach.
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| error.to_string())?;
        let mut url = config.adsbdb_base_url.clone();
        let mut path =
            url.path_segments_mut().map_err(|()| "ADSBDB_BASE_URL cannot have a path".to_owned())?;
        path.pop_if_empty().extend(["v0", "aircraft", "random"]);
        drop(path);
        Ok(Self {
            http,
            url,
            rate_limit: RateLimit::default(),
            request_permits: Semaphore::new(config.adsbdb_max_concurrency),
            timeout: config.adsbdb_timeout,
            metrics,
        })
    }

    /// Fetches a random aircraft. Transient errors are retried. `source` is the entry in the sources
    /// file, if there is one.
    ///
    /// # Errors
    /// No aircraft was received. The error states why.
    pub async fn random_aircraft(&self, source: Option<&Source>) -> Result<Payload, UpstreamError> {
        let deadline = Instant::now() + self.timeout;
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
        loop {
            let error = match self.attempt(deadline, source).await {
                Ok(payload) => return Ok(payload),
                Err(error) => error,
            };
            let retry_at = Instant::now() + backoff.next_delay();
            if !error.is_transient() || backoff.attempts() >= MAX_ATTEMPTS || retry_at >= deadline {
                return Err(error);
            }
            tracing::debug!(reason = %error, "request to adsbdb failed, retrying");
            tokio::time::sleep_until(retry_at).await;
        }
    }

    /// Sends one request, as soon as it has a permit. The metric counts only sent requests.
    async fn attempt(&self, deadline: Instant, source: Option<&Source>) -> Result<Payload, UpstreamError> {
        self.check_rate_limit()?;
        // A later permit leaves too little time for a response. Without this margin each waiting
        // request would get its permit when the request before it times out, and time out as well.
        let margin = self.timeout / 10;
        // The semaphore is never closed.
        let _permit = tokio::time::timeout_at(deadline - margin, self.request_permits.acquire())
            .await
            .map_err(|_| UpstreamError::NoPermit(self.timeout - margin))?;
        self.check_rate_limit()?;
        let outcome = tokio::time::timeout_at(deadline, self.request()).await;
        let outcome = outcome.unwrap_or(Err(UpstreamError::Timeout(self.timeout)));
        let label = outcome.as_ref().map_or_else(UpstreamError::outcome, |_| "ok");
        self.metrics.upstream(label);
        if let Some(source) = source {
            self.metrics.pull(source.as_str(), label);
        }
        if let Err(UpstreamError::RateLimited(time)) = &outcome {
            tracing::warn!(seconds = time.as_secs(), "adsbdb rate limit reached");
            self.rate_limit.activate(Instant::now(), *time);
        }
        outcome
    }

    async fn request(&self) -> Result<Payload, UpstreamError> {
        let mut response =
            self.http.get(self.url.clone()).send().await.map_err(|error| self.transport_error(&error))?;
        let retry_after = service::retry_after(response.headers());
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.transport_error(&error))? {
            if body.len() + chunk.len() > MAX_RESPONSE_BYTES {
                return Err(UpstreamError::TooLarge(MAX_RESPONSE_BYTES));
            }
            body.extend_from_slice(&chunk);
        }
        let status = response.status().as_u16();
        Response { status, retry_after, body: &body }.aircraft()
    }

    fn check_rate_limit(&self) -> Result<(), UpstreamError> {
        let remaining = self.rate_limit.remaining(Instant::now());
        remaining.map_or(Ok(()), |remaining| Err(UpstreamError::RateLimited(remaining)))
    }

    fn transport_error(&self, error: &reqwest::Error) -> UpstreamError {
        if error.is_timeout() && !error.is_connect() {
            return UpstreamError::Timeout(self.timeout / 2);
        }
        UpstreamError::Unreachable(service::http::root_cause(error).to_string())
    }
}

/// The end of the active rate limit, if there is one.
#[derive(Debug, Default)]
pub struct RateLimit(Mutex<Option<Instant>>);

impl RateLimit {
    /// How long the rate limit is still active. `None` if it is not.
    pub fn remaining(&self, now: Instant) -> Option<Duration> {
        let mut until = lock(&self.0);
        let remaining =
            until.and_then(|until| until.checked_duration_since(now)).filter(|left| !left.is_zero());
        if remaining.is_none() {
            *until = None;
        }
        remaining
    }

    /// Activates the rate limit for `time`. An active one that ends later stays.
    pub fn activate(&self, now: Instant, time: Duration) {
        let mut until = lock(&self.0);
        *until = Some(now + time).max(*until);
    }
}

/// Duration of a rate limit if ADSBDB does not name it.
const DEFAULT_RATE_LIMIT: Duration = Duration::from_secs(60);
/// Maximum duration that is accepted from ADSBDB. A longer one is cut.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// Maximum length of ADSBDB's error text in our own error.
const MAX_TEXT_CHARS: usize = 200;

/// Why ADSBDB returned no aircraft.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UpstreamError {
    /// There is no connection.
    #[error("ADSBDB cannot be reached: {0}")]
    Unreachable(String),
    /// There was no response in time.
    #[error("ADSBDB did not respond within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// No request was sent: no permit became free within this time.
    #[error("no permit for a request to ADSBDB became free within {} ms (ADSBDB_MAX_CONCURRENCY)", .0.as_millis())]
    NoPermit(Duration),
    /// The rate limit is active for this time.
    #[error("ADSBDB's rate limit is active for another {} s", .0.as_secs().max(1))]
    RateLimited(Duration),
    /// The status is neither 200 nor 429.
    #[error("ADSBDB returned status {status}{}", suffix(.text))]
    Status {
        status: u16,
        /// The text of the error body.
        text: Option<String>,
        retry_after: Option<Duration>,
    },
    /// The response exceeds the maximum size.
    #[error("ADSBDB returned more than {0} bytes")]
    TooLarge(usize),
    /// The response does not have the documented form.
    #[error("ADSBDB returned an invalid response: {0}")]
    InvalidResponse(String),
    /// The aircraft is not a valid payload.
    #[error("ADSBDB returned an aircraft that cannot be stored: {0}")]
    InvalidPayload(String),
}

fn suffix(text: &Option<String>) -> String {
    text.as_ref().map(|text| format!(": {text}")).unwrap_or_default()
}

impl From<UpstreamError> for ApiError {
    fn from(error: UpstreamError) -> Self {
        Self::NoAircraft { detail: error.to_string(), retry_after: error.retry_after() }
    }
}

impl UpstreamError {
    /// When a retry can help, if it is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited(time) => Some(*time),
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether an immediate retry can help.
    fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Timeout(_) | Self::Status { status: 500.., .. })
    }

    /// Value of the metric label `outcome`.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Timeout(_) | Self::NoPermit(_) => "slow",
            Self::RateLimited(_) => "limited",
            Self::Status { .. } => "status",
            Self::TooLarge(_) | Self::InvalidResponse(_) | Self::InvalidPayload(_) => "nonsense",
        }
    }
}

/// A response of ADSBDB.
#[derive(Debug)]
pub struct Response<'a> {
    pub status: u16,
    pub retry_after: Option<Duration>,
    pub body: &'a [u8],
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    response: &'a RawValue,
}

#[derive(Deserialize)]
struct AircraftResponse<'a> {
    #[serde(borrow)]
    aircraft: &'a RawValue,
}

impl Response<'_> {
    /// The aircraft in the response, its text unchanged.
    ///
    /// # Errors
    /// The response contains no aircraft.
    pub fn aircraft(&self) -> Result<Payload, UpstreamError> {
        match self.status {
            200 => aircraft_in(self.body),
            429 => {
                let named = self.error_text().as_deref().and_then(seconds_in).or(self.retry_after);
                Err(UpstreamError::RateLimited(named.unwrap_or(DEFAULT_RATE_LIMIT).min(MAX_RETRY_AFTER)))
            }
            status => {
                let retry_after = self.retry_after.map(|time| time.min(MAX_RETRY_AFTER));
                Err(UpstreamError::Status { status, text: self.error_text(), retry_after })
            }
        }
    }

    /// The text of an error body, `{"response": "<text>"}`.
    fn error_text(&self) -> Option<String> {
        let envelope: Envelope<'_> = object(self.body).ok()?;
        let text: String = serde_json::from_str(envelope.response.get()).ok()?;
        Some(text.chars().filter(|c| !c.is_control()).take(MAX_TEXT_CHARS).collect())
    }
}

fn aircraft_in(body: &[u8]) -> Result<Payload, UpstreamError> {
    let invalid = |reason: &str| UpstreamError::InvalidResponse(reason.into());
    let envelope: Envelope<'_> = object(body).map_err(|error| {
        let is_html = body.trim_ascii_start().starts_with(b"<");
        invalid(match error.classify() {
            _ if is_html => "it is a web page, as a proxy in between returns it",
            Category::Eof if body.is_empty() => "it is empty",
            Category::Eof => "its JSON is cut off",
            Category::Syntax | Category::Io => "it is not JSON",
            Category::Data => "it is not an object with `response`",
        })
    })?;
    let response = envelope.response.get();
    let found: AircraftResponse<'_> = object(response.as_bytes()).map_err(|_| {
        invalid(if response.starts_with('"') {
            "its `response` is a text and not an object with `aircraft`"
        } else {
            "there is no `aircraft` in its `response`"
        })
    })?;
    let Some(members) = found.aircraft.get().strip_prefix('{') else {
        return Err(invalid("its `aircraft` is not an object"));
    };
    if members.trim_start().starts_with('}') {
        return Err(invalid("its `aircraft` has no fields"));
    }
    Payload::parse(found.aircraft.get()).map_err(|faults| {
        let faults: Vec<String> = faults.iter().take(5).map(ToString::to_string).collect();
        UpstreamError::InvalidPayload(faults.join("; "))
    })
}

/// The N of "rate limited for N seconds".
fn seconds_in(text: &str) -> Option<Duration> {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.windows(2).find_map(|pair| match pair {
        [number, unit] if unit.to_ascii_lowercase().starts_with("second") => {
            number.parse().ok().map(Duration::from_secs)
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_limit_is_active_until_its_latest_end() {
        let (limit, now) = (RateLimit::default(), Instant::now());
        assert_eq!(limit.remaining(now), None);
        limit.activate(now, Duration::from_secs(60));
        limit.activate(now, Duration::from_secs(5));
        assert_eq!(limit.remaining(now + Duration::from_secs(20)), Some(Duration::from_secs(40)));
        assert_eq!(limit.remaining(now + Duration::from_secs(60)), None);
        assert_eq!(limit.remaining(now), None, "it does not become active again");
    }

    fn classify(status: u16, body: &str) -> Result<String, UpstreamError> {
        let response = Response { status, retry_after: None, body: body.as_bytes() };
        response.aircraft().map(|payload| payload.as_str().to_owned())
    }

    #[test]
    fn an_aircraft_passes_through_byte_for_byte() {
        let aircraft = r#"{"mode_s":"A1",  "new_upstream": [1.0, 2.50e0]}"#;
        let body = format!(r#"{{"response": {{"other": 1, "aircraft": {aircraft}}} }}"#);
        assert_eq!(classify(200, &body).unwrap(), aircraft);
    }

    #[test]
    fn each_invalid_response_has_its_own_reason() {
        for (body, part) in [
            ("", "it is empty"),
            (" <html>", "a web page"),
            ("aircraft", "not JSON"),
            (r#"{"response":{"aircraft":{"mode_s":"#, "is cut off"),
            (r#"{"answer":1}"#, "not an object with `response`"),
            ("[]", "not an object with `response`"),
            // A parser that accepts arrays for objects would find an aircraft in these.
            (r#"[{"aircraft":{"mode_s":"A1"}}]"#, "not an object with `response`"),
            (r#"[[{"mode_s":"A1"}]]"#, "not an object with `response`"),
            (r#"{"response":[{"mode_s":"A1"}]}"#, "no `aircraft`"),
            (r#"{"response":[{"aircraft":{"mode_s":"A1"}}]}"#, "no `aircraft`"),
            (r#"{"response":{"aircraft":[{"mode_s":"A1"}]}}"#, "`aircraft` is not an object"),
            (r#"{"response":{"aircraft":{}}}"#, "`aircraft` has no fields"),
            (r#"{"response":{"aircraft": { } }}"#, "`aircraft` has no fields"),
            (r#"{"response":{"aircraft":null}}"#, "`aircraft` is not an object"),
            (r#"{"response":"text"}"#, "is a text"),
            (r#"{"response":{}}"#, "no `aircraft`"),
            (r#"{"response":{"aircraft":[]}}"#, "not an object"),
            (r#"{"response":{"aircraft":{"mode_s":["a"],"registration":["b"]}}}"#, "cannot be stored"),
        ] {
            let error = classify(200, body).unwrap_err().to_string();
            assert!(error.contains(part), "{body}: {error}");
        }
    }

    #[test]
    fn the_duration_of_a_rate_limit_comes_from_its_text() {
        let limited = |body| classify(429, body).unwrap_err().retry_after().unwrap().as_secs();
        assert_eq!(limited(r#"{"response":"rate limited for 17 seconds"}"#), 17);
        assert_eq!(limited(r#"{"response":"rate limited for 1 second."}"#), 1);
        assert_eq!(limited(r#"{"response":"too many"}"#), 60);
        assert_eq!(limited("nonsense"), 60);
        assert_eq!(limited(r#"["rate limited for 17 seconds"]"#), 60);
        assert_eq!(limited(r#"{"response":"rate limited for 999999999 seconds"}"#), 3600);
    }

    #[test]
    fn another_status_is_reported_with_its_text() {
        let error = classify(404, r#"{"response":"unknown aircraft"}"#).unwrap_err();
        assert_eq!(error.to_string(), "ADSBDB returned status 404: unknown aircraft");
        assert!(!error.is_transient());
        let error = classify(503, "down").unwrap_err();
        assert_eq!(error.to_string(), "ADSBDB returned status 503");
        assert!(error.is_transient());
        assert_eq!(error.retry_after(), None);
    }

    #[test]
    fn retry_after_is_used_up_to_an_hour() {
        let after = |status, body: &str, seconds| {
            let retry_after = Some(Duration::from_secs(seconds));
            let response = Response { status, retry_after, body: body.as_bytes() };
            response.aircraft().unwrap_err().retry_after().map(|time| time.as_secs())
        };
        assert_eq!(after(503, "down", 7), Some(7));
        assert_eq!(after(503, "down", 1_000_000), Some(3600));
        assert_eq!(after(429, "too many", 7), Some(7));
        assert_eq!(
            after(429, r#"{"response":"rate limited for 9 seconds"}"#, 7),
            Some(9),
            "the text has precedence"
        );
    }
}
