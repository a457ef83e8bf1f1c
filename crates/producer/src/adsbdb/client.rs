//! The client of ADSBDB.
//!
//! - A call takes at most ADSBDB_TIMEOUT_MS, retries included.
//! - At most ADSBDB_MAX_CONCURRENCY requests run at a time.
//! - No request is sent while a rate limit is active.
//! - The size of a response is limited.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use events::Payload;
use service::backoff::Backoff;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use url::Url;

use super::rate_limit::RateLimit;
use super::response::{Response, UpstreamError};
use crate::config::Config;
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

    /// Fetches a random aircraft. Transient errors are retried.
    ///
    /// # Errors
    /// No aircraft was received. The error states why.
    pub async fn random_aircraft(&self) -> Result<Payload, UpstreamError> {
        let deadline = Instant::now() + self.timeout;
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
        loop {
            let error = match self.attempt(deadline).await {
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
    async fn attempt(&self, deadline: Instant) -> Result<Payload, UpstreamError> {
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
        self.metrics.upstream(outcome.as_ref().map_or_else(UpstreamError::outcome, |_| "ok"));
        if let Err(UpstreamError::RateLimited(time)) = &outcome {
            tracing::warn!(seconds = time.as_secs(), "adsbdb rate limit reached");
            self.rate_limit.activate(Instant::now().into_std(), *time);
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
        let remaining = self.rate_limit.remaining(Instant::now().into_std());
        remaining.map_or(Ok(()), |remaining| Err(UpstreamError::RateLimited(remaining)))
    }

    fn transport_error(&self, error: &reqwest::Error) -> UpstreamError {
        if error.is_timeout() && !error.is_connect() {
            return UpstreamError::Timeout(self.timeout / 2);
        }
        // Only the innermost error states the cause.
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        UpstreamError::Unreachable(cause.to_string())
    }
}
