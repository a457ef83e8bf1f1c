//! The HTTP client of the producer: sends one request and returns the result for each of its
//! events.

use std::sync::Arc;
use std::time::Duration;

use kafka::BoxError;
use poller::tls::ConnectionDiagnostics;
use reqwest::Url;
use reqwest::header::CONTENT_TYPE;
use serde_json::Value;

use super::pending_event::PendingEvent;
use super::response::{AttemptOutcome, EventResponse, parse_batch, parse_single};

/// Maximum time for the producer's health response.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// The client.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    ingest: Url,
    health: Url,
    is_batch: bool,
    timeout: Duration,
    peer: ConnectionDiagnostics,
}

/// The result of an attempt for one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttemptResult {
    /// The producer responded.
    Response(EventResponse),
    /// The connection failed before anything was sent; the cause.
    Unreachable(Arc<str>),
    /// The request ended without a readable response.
    Interrupted,
}

impl AttemptResult {
    /// The status, and the outcome for the event.
    pub fn into_parts(self) -> (Option<u16>, AttemptOutcome) {
        match self {
            Self::Response(EventResponse { status, outcome }) => (Some(status), outcome),
            Self::Unreachable(_) => (None, AttemptOutcome::Retryable),
            Self::Interrupted => (None, AttemptOutcome::Unknown),
        }
    }
}

/// A complete response.
struct Response {
    status: u16,
    retry_after: Option<Duration>,
    body: Vec<u8>,
}

impl Client {
    /// Creates the client; `is_batch` selects the endpoint.
    ///
    /// # Errors
    /// The TLS library finds no certificates.
    pub fn new(config: &poller::Config, is_batch: bool) -> Result<Self, BoxError> {
        let path = if is_batch { "ingest/batch" } else { "ingest" };
        let agent = concat!("slipstream-load/", env!("CARGO_PKG_VERSION"));
        Ok(Self {
            http: poller::client::http_client(config, agent)?,
            ingest: poller::client::endpoint(&config.producer, path),
            health: poller::client::endpoint(&config.producer, "health"),
            is_batch,
            timeout: config.call_timeout,
            peer: ConnectionDiagnostics::new(config),
        })
    }

    /// API_VERSION of the producer, if its `/health` answers.
    pub async fn api_version(&self) -> Option<String> {
        let response = self.http.get(self.health.clone()).timeout(HEALTH_TIMEOUT).send().await.ok()?;
        let health: Value = response.json().await.ok()?;
        health["api_version"].as_str().map(str::to_owned)
    }

    /// Sends `events` in one request. Returns the result for each of them and the `Retry-After` of
    /// the response.
    pub async fn send(&self, events: &[PendingEvent]) -> (Vec<AttemptResult>, Option<Duration>) {
        let bodies: Vec<&str> = events.iter().map(|event| event.body.as_str()).collect();
        let response = match self.post(bodies.join("\n")).await {
            Ok(response) => response,
            Err(error) => {
                let unreachable = || AttemptResult::Unreachable(self.peer.describe(&error).into());
                let result = if error.is_connect() { unreachable() } else { AttemptResult::Interrupted };
                return (vec![result; events.len()], None);
            }
        };
        let parsed = match events {
            [event] if !self.is_batch => vec![parse_single(&event.id, response.status, &response.body)],
            events => {
                let ids: Vec<&str> = events.iter().map(|event| event.id.as_str()).collect();
                parse_batch(&ids, response.status, &response.body)
            }
        };
        (parsed.into_iter().map(AttemptResult::Response).collect(), response.retry_after)
    }

    async fn post(&self, body: String) -> reqwest::Result<Response> {
        let media_type = if self.is_batch { "application/x-ndjson" } else { "application/json" };
        let request = self.http.post(self.ingest.clone()).header(CONTENT_TYPE, media_type).body(body);
        let response = request.timeout(self.timeout).send().await?;
        let (status, retry_after) = (response.status().as_u16(), service::retry_after(response.headers()));
        Ok(Response { status, retry_after, body: response.bytes().await?.to_vec() })
    }
}
