//! HTTP client of the producer, also for `slipstream load`. The only module that uses reqwest.
//!
//! Every call has a deadline. A call succeeds only if its whole response is valid. Redirects are
//! never followed.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Client, Response, StatusCode, redirect};
use serde::Deserialize;
use service::http::{object, root_cause};
use url::Url;

use crate::config::Config;
use crate::tls::{self, ConnectionDiagnostics};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Deadline of a readiness check.
const READY_TIMEOUT: Duration = Duration::from_secs(3);
/// Size at which a response body is cut. Every valid response is smaller: it has at most a result
/// for each record of an answer of 16 MiB.
const MAX_BODY_BYTES: usize = 32 << 20;
/// Characters of a problem's `detail` that an error contains.
const MAX_DETAIL_CHARS: usize = 300;

/// What a successful call did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ingested {
    /// One event.
    Event(Accepted),
    /// The records of an answer.
    Records(RecordCounts),
}

/// The counts of an answer with several records (200, 202, 207).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordCounts {
    /// Records that became events.
    pub accepted: u64,
    /// Records that did not.
    pub rejected: u64,
    /// Records that were sent or dead-lettered before, and have not changed.
    pub unchanged: u64,
    /// Whether the API answered 304 for every page.
    pub not_modified: bool,
}

/// A response with either the fields of an event or those of a batch. The results are not read.
#[derive(Debug, Deserialize)]
struct IngestBody {
    id: Option<String>,
    partition: Option<i32>,
    offset: Option<i64>,
    accepted: Option<u64>,
    rejected: Option<u64>,
    unchanged: Option<u64>,
    not_modified: Option<bool>,
    incomplete: Option<String>,
}

impl IngestBody {
    fn ingested(self, status: StatusCode) -> Option<Ingested> {
        let Self { id, partition, offset, accepted, rejected, unchanged, not_modified, .. } = self;
        if let (Some(accepted), Some(rejected)) = (accepted, rejected) {
            let (unchanged, not_modified) = (unchanged.unwrap_or_default(), not_modified.unwrap_or_default());
            let counts = RecordCounts { accepted, rejected, unchanged, not_modified };
            return Some(Ingested::Records(counts));
        }
        let event = Accepted { id: id?, partition: partition?, offset };
        (status == StatusCode::ACCEPTED).then_some(Ingested::Event(event))
    }
}

/// An event that the producer accepted (202).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Id of the event.
    pub id: String,
    /// Partition of the event.
    pub partition: i32,
    /// Offset of the event in the partition. The producer may leave it out.
    pub offset: Option<i64>,
}

/// A failed call. `Display` is the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct CallError {
    /// The reason. It completes a sentence that begins with the name of the producer.
    pub reason: String,
    /// The `Retry-After` of the response.
    pub retry_after: Option<Duration>,
}

impl CallError {
    fn without_response(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), retry_after: None }
    }
}

/// A reason why the HTTP client cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// reqwest failed, for example because the URL is https and the system has no certificates.
    #[error("no HTTP client: {}", root_cause(.0))]
    Client(#[from] reqwest::Error),
    /// A certificate of PRODUCER_CA_FILE is invalid.
    #[error("no HTTP client: {0}")]
    Certificates(#[from] rustls::Error),
}

/// Client of one producer.
#[derive(Debug, Clone)]
pub struct ProducerClient {
    http: Client,
    ready: Url,
    base: Url,
    call_timeout: Duration,
    diagnostics: ConnectionDiagnostics,
}

impl ProducerClient {
    /// Creates the client. Sends nothing yet.
    ///
    /// # Errors
    /// The URL is https and there are no valid certificates.
    pub fn new(config: &Config) -> Result<Self, ClientError> {
        Ok(Self {
            http: http_client(config, concat!("slipstream-poller/", env!("CARGO_PKG_VERSION")))?,
            ready: endpoint(&config.producer, "readyz"),
            base: config.producer.clone(),
            call_timeout: config.call_timeout,
            diagnostics: ConnectionDiagnostics::new(config),
        })
    }

    /// Checks the readiness of the producer.
    ///
    /// # Errors
    /// The producer is not ready, or it did not respond within 3 s.
    pub async fn ready(&self) -> Result<(), CallError> {
        let sent = self.http.get(self.ready.clone()).timeout(READY_TIMEOUT).send().await;
        let response = sent.map_err(|error| self.failure(&error, READY_TIMEOUT))?;
        if response.status().is_success() {
            return Ok(());
        }
        Err(rejection(response).await)
    }

    /// Makes the producer fetch a source.
    ///
    /// # Errors
    /// The response is not a valid 200, 202 or 207. The call timed out. Or the fetch was incomplete:
    /// later pages or acknowledgements of Kafka are missing.
    pub async fn ingest(&self, source: &str) -> Result<Ingested, CallError> {
        let url = endpoint(&self.base, &format!("ingest/{source}"));
        let sent = self.http.post(url).timeout(self.call_timeout).send().await;
        let response = sent.map_err(|error| self.failure(&error, self.call_timeout))?;
        let status = response.status();
        if ![StatusCode::OK, StatusCode::ACCEPTED, StatusCode::MULTI_STATUS].contains(&status) {
            return Err(rejection(response).await);
        }
        let body = body(response).await.map_err(|error| self.failure(&error, self.call_timeout))?;
        let body: Option<IngestBody> = object(&body).ok();
        if let Some(reason) = body.as_ref().and_then(|body| body.incomplete.as_ref()) {
            let reason: String = reason.chars().take(MAX_DETAIL_CHARS).collect();
            return Err(CallError::without_response(format!("sent a part of the records: {reason}")));
        }
        let ingested = body.and_then(|body| body.ingested(status));
        ingested.ok_or_else(|| {
            let status = status.as_u16();
            CallError::without_response(format!("answered {status} with a body that is not the producer's"))
        })
    }

    fn failure(&self, error: &reqwest::Error, timeout: Duration) -> CallError {
        let reason = if error.is_connect() {
            format!("cannot be reached: {}", self.diagnostics.describe(error))
        } else if error.is_timeout() {
            format!("did not answer within {} ms", timeout.as_millis())
        } else {
            format!("did not answer: {}", self.diagnostics.describe(error))
        };
        CallError::without_response(reason)
    }
}

/// An HTTP client with the configured key and certificates. It never follows a redirect.
///
/// # Errors
/// The URL is https and there are no valid certificates.
pub fn http_client(config: &Config, user_agent: &str) -> Result<Client, ClientError> {
    // The first installation in this process wins. All of them install the same provider.
    _ = rustls::crypto::ring::default_provider().install_default();
    let mut headers = HeaderMap::new();
    if let Some(key) = &config.api_key {
        // The configuration accepts only keys that are valid in a header.
        if let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {}", key.expose())) {
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
    }
    let mut builder = Client::builder()
        .user_agent(user_agent)
        .default_headers(headers)
        .connect_timeout(CONNECT_TIMEOUT)
        // The producer is on the local network, which a proxy for the internet cannot reach.
        .no_proxy()
        // A redirected POST would become a GET.
        .redirect(redirect::Policy::none());
    if config.producer.scheme() == "http" {
        // Plain HTTP needs no certificates. The system may have none.
        builder = builder.tls_certs_only([]);
    } else if let Some(certificates) = &config.ca_certificates {
        builder = builder.tls_backend_preconfigured(tls::client_config(certificates)?);
    }
    Ok(builder.build()?)
}

/// The URL of `path` at the producer, below the path of the base URL.
pub fn endpoint(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
    url.set_fragment(None);
    url
}

/// Reads the body, up to about [`MAX_BODY_BYTES`].
async fn body(mut response: Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_BODY_BYTES {
            break;
        }
    }
    Ok(body)
}

/// The error of a response: its status, and the `detail` of a problem body.
async fn rejection(response: Response) -> CallError {
    #[derive(Deserialize)]
    struct Problem {
        detail: String,
    }
    let status = response.status();
    let retry_after = service::retry_after(response.headers());
    let body = body(response).await.unwrap_or_default();
    let reason = match object(&body) {
        Ok(Problem { detail }) => {
            format!("answered {status}: {}", detail.chars().take(MAX_DETAIL_CHARS).collect::<String>())
        }
        Err(_) => format!("answered {status}"),
    };
    CallError { reason, retry_after }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_keeps_the_path_of_the_base_url() {
        let url = |base: &str| endpoint(&Url::parse(base).unwrap(), "ingest/adsbdb").to_string();
        assert_eq!(url("http://api-producer:8080"), "http://api-producer:8080/ingest/adsbdb");
        assert_eq!(url("https://host/slipstream/#x"), "https://host/slipstream/ingest/adsbdb");
    }
}
