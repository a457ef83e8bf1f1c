//! The producer, as the load sees it: one request, and what it did to each event in it.

use std::sync::Arc;
use std::time::Duration;

use poller::tls::ConnectionDiagnostics;
use reqwest::Url;
use reqwest::header::CONTENT_TYPE;
use serde_json::Value;

use super::answer::{Outcome, Told, to_batch, to_one};
use super::sending::Sending;
use crate::Failure;

/// How long the producer may take to say which version it is.
const HEALTH_LIMIT: Duration = Duration::from_secs(2);

/// The producer.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    ingest: Url,
    health: Url,
    batched: bool,
    limit: Duration,
    peer: ConnectionDiagnostics,
}

/// How an attempt ended for one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// With an answer.
    Told(Told),
    /// Before anything was sent; why.
    Unreachable(Arc<str>),
    /// Without an answer that can be read.
    Cut,
}

impl Ended {
    /// The status, and what it did to the event.
    pub fn split(self) -> (Option<u16>, Outcome) {
        match self {
            Self::Told(Told { status, outcome }) => (Some(status), outcome),
            Self::Unreachable(_) => (None, Outcome::Later),
            Self::Cut => (None, Outcome::Unknown),
        }
    }
}

/// An answer, read whole.
struct Answer {
    status: u16,
    retry_after: Option<Duration>,
    body: Vec<u8>,
}

impl Client {
    /// Nothing is sent yet; `batched` chooses the endpoint.
    ///
    /// # Errors
    /// The TLS library finds no certificates.
    pub fn new(config: &poller::Config, batched: bool) -> Result<Self, Failure> {
        let path = if batched { "ingest/batch" } else { "ingest" };
        let agent = concat!("slipstream-load/", env!("CARGO_PKG_VERSION"));
        Ok(Self {
            http: poller::client::http_client(config, agent)?,
            ingest: poller::client::endpoint(&config.producer, path),
            health: poller::client::endpoint(&config.producer, "health"),
            batched,
            limit: config.call_timeout,
            peer: ConnectionDiagnostics::new(config),
        })
    }

    /// API_VERSION of the producer, if it answers.
    pub async fn api_version(&self) -> Option<String> {
        let answer = self.http.get(self.health.clone()).timeout(HEALTH_LIMIT).send().await.ok()?;
        let health: Value = answer.json().await.ok()?;
        health["api_version"].as_str().map(str::to_owned)
    }

    /// Sends `events`, one request; how that ended for each of them, and how long the producer asks to be left alone.
    pub async fn send(&self, events: &[Sending]) -> (Vec<Ended>, Option<Duration>) {
        let lines: Vec<&str> = events.iter().map(|sending| sending.body.as_str()).collect();
        let answer = match self.post(lines.join("\n")).await {
            Ok(answer) => answer,
            Err(error) => {
                let unreachable = || Ended::Unreachable(self.peer.describe(&error).into());
                let ended = if error.is_connect() { unreachable() } else { Ended::Cut };
                return (vec![ended; events.len()], None);
            }
        };
        let told = match events {
            [one] if !self.batched => vec![to_one(&one.id, answer.status, &answer.body)],
            events => {
                let ids: Vec<&str> = events.iter().map(|sending| sending.id.as_str()).collect();
                to_batch(&ids, answer.status, &answer.body)
            }
        };
        (told.into_iter().map(Ended::Told).collect(), answer.retry_after)
    }

    async fn post(&self, body: String) -> reqwest::Result<Answer> {
        let media_type = if self.batched { "application/x-ndjson" } else { "application/json" };
        let request = self.http.post(self.ingest.clone()).header(CONTENT_TYPE, media_type).body(body);
        let response = request.timeout(self.limit).send().await?;
        let (status, retry_after) = (response.status().as_u16(), service::retry_after(response.headers()));
        Ok(Answer { status, retry_after, body: response.bytes().await?.to_vec() })
    }
}
