//! The one place that asks ADSBDB. Guarantees: an answer within the time limit, retries included; never more than
//! the allowed questions at a time; none while a rate limit is known to hold; a bounded body.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use events::Payload;
use service::backoff::Backoff;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use url::Url;

use super::rate_limit::Gate;
use super::response::{Answer, UpstreamFault};
use crate::config::Config;
use crate::metrics::Metrics;

const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// A first attempt and two more.
const ATTEMPTS: u32 = 3;
/// An aircraft has about 500 bytes.
const MOST_BYTES: usize = 256 * 1024;

/// The client.
#[derive(Debug)]
pub struct Adsbdb {
    http: reqwest::Client,
    url: Url,
    gate: Gate,
    at_a_time: Semaphore,
    limit: Duration,
    metrics: Arc<Metrics>,
}

impl Adsbdb {
    /// Connects when asked.
    ///
    /// # Errors
    /// The base URL cannot be extended, or there is no TLS on this machine.
    pub fn new(config: &Config, metrics: Arc<Metrics>) -> Result<Self, String> {
        // reqwest has no provider of its own here; another part of the process may have chosen the same before.
        _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            // Half of the whole: a question that got lost leaves time for another.
            .timeout(config.adsbdb_timeout / 2)
            .redirect(reqwest::redirect::Policy::limited(2))
            .user_agent(concat!("slipstream/", env!("CARGO_PKG_VERSION")));
        if config.adsbdb_base_url.scheme() == "http" {
            // Not the public service: a simulator, which a proxy for the internet does not know.
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| error.to_string())?;
        let mut url = config.adsbdb_base_url.clone();
        let mut path = url.path_segments_mut().map_err(|()| "ADSBDB_BASE_URL has no path".to_owned())?;
        path.pop_if_empty().extend(["v0", "aircraft", "random"]);
        drop(path);
        Ok(Self {
            http,
            url,
            gate: Gate::default(),
            at_a_time: Semaphore::new(config.adsbdb_max_concurrency),
            limit: config.adsbdb_timeout,
            metrics,
        })
    }

    /// A random aircraft.
    ///
    /// # Errors
    /// There is none; why.
    pub async fn random_aircraft(&self) -> Result<Payload, UpstreamFault> {
        let deadline = Instant::now() + self.limit;
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
        loop {
            let fault = match self.ask(deadline).await {
                Ok(payload) => return Ok(payload),
                Err(fault) => fault,
            };
            let again = Instant::now() + backoff.next_delay();
            if !fault.is_passing() || backoff.attempts() >= ATTEMPTS || again >= deadline {
                return Err(fault);
            }
            tracing::debug!(reason = %fault, "adsbdb gave no aircraft, asking again");
            tokio::time::sleep_until(again).await;
        }
    }

    /// One question, once there is a place for it. Only what is sent is counted.
    async fn ask(&self, deadline: Instant) -> Result<Payload, UpstreamFault> {
        self.pass()?;
        // A permit that comes later leaves too little time for an answer: without this margin each waiting request
        // would get its permit when the request before it times out, and would be sent only to time out as well.
        let wait = self.limit - self.limit / 10;
        let latest = deadline - self.limit / 10;
        // The semaphore is never closed.
        let _permit = tokio::time::timeout_at(latest, self.at_a_time.acquire())
            .await
            .map_err(|_| UpstreamFault::NoPlace(wait))?;
        self.pass()?;
        let outcome = tokio::time::timeout_at(deadline, self.exchange()).await;
        let outcome = outcome.unwrap_or(Err(UpstreamFault::Slow(self.limit)));
        self.metrics.upstream(outcome.as_ref().map_or_else(UpstreamFault::outcome, |_| "ok"));
        if let Err(UpstreamFault::Limited(time)) = &outcome {
            tracing::warn!(seconds = time.as_secs(), "adsbdb limits the rate");
            self.gate.shut(Instant::now().into_std(), *time);
        }
        outcome
    }

    async fn exchange(&self) -> Result<Payload, UpstreamFault> {
        let mut response =
            self.http.get(self.url.clone()).send().await.map_err(|error| self.fault(&error))?;
        let retry_after = service::retry_after(response.headers());
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.fault(&error))? {
            if body.len() + chunk.len() > MOST_BYTES {
                return Err(UpstreamFault::TooLong(MOST_BYTES));
            }
            body.extend_from_slice(&chunk);
        }
        let status = response.status().as_u16();
        Answer { status, retry_after, body: &body }.aircraft()
    }

    fn pass(&self) -> Result<(), UpstreamFault> {
        self.gate.shut_for(Instant::now().into_std()).map_or(Ok(()), |left| Err(UpstreamFault::Limited(left)))
    }

    fn fault(&self, error: &reqwest::Error) -> UpstreamFault {
        if error.is_timeout() && !error.is_connect() {
            return UpstreamFault::Slow(self.limit / 2);
        }
        // The outermost says only that something failed; the innermost says what.
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        UpstreamFault::Unreachable(cause.to_string())
    }
}
