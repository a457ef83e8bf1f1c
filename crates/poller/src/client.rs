//! The producer, as seen from here. The one module that uses reqwest. `slipstream load` reaches the producer in the same
//! way. Every call has a deadline, looks at the whole
//! reply before it calls it a success, and never follows a redirect.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Client, Response, StatusCode, redirect};
use serde::Deserialize;
use service::json::object;
use url::Url;

use crate::config::Config;
use crate::tls::{self, ConnectionDiagnostics, root_cause};

const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// How long the producer may take to say whether it is ready.
const READY_LIMIT: Duration = Duration::from_secs(3);
/// More than any reply of the producer has.
const BODY_BYTES: usize = 1 << 20;

/// An event that the producer took.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Accepted {
    /// The event's id.
    pub id: String,
    /// Where it is kept.
    pub partition: i32,
    /// Its place there; not every acknowledgement tells it.
    pub offset: Option<i64>,
}

/// A call that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// Why, in words.
    pub reason: String,
    /// How long the producer asks to be left alone.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    fn without_answer(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), retry_after: None }
    }
}

/// The client cannot be made, as when the system has no certificates at all and the URL is https.
#[derive(Debug, thiserror::Error)]
pub enum NoClient {
    /// Of the client as a whole.
    #[error("no HTTP client: {}", root_cause(.0))]
    Client(#[from] reqwest::Error),
    /// Of the certificates of PRODUCER_CA_FILE.
    #[error("no HTTP client: {0}")]
    Certificates(#[from] rustls::Error),
}

/// The producer.
#[derive(Debug, Clone)]
pub struct Producer {
    http: Client,
    ready: Url,
    ingest: Url,
    call_timeout: Duration,
    peer: ConnectionDiagnostics,
}

impl Producer {
    /// Nothing is sent before the first call.
    ///
    /// # Errors
    /// The TLS library finds no certificates.
    pub fn new(config: &Config) -> Result<Self, NoClient> {
        Ok(Self {
            http: http_client(config, concat!("slipstream-poller/", env!("CARGO_PKG_VERSION")))?,
            ready: endpoint(&config.producer, "readyz"),
            ingest: endpoint(&config.producer, "ingest/adsbdb"),
            call_timeout: config.call_timeout,
            peer: ConnectionDiagnostics::of(config),
        })
    }

    /// Whether the producer can do its work now.
    ///
    /// # Errors
    /// Why not, or why it could not be asked.
    pub async fn ready(&self) -> Result<(), Refusal> {
        let sent = self.http.get(self.ready.clone()).timeout(READY_LIMIT).send().await;
        let response = sent.map_err(|error| self.failure(&error, READY_LIMIT))?;
        if response.status().is_success() {
            return Ok(());
        }
        Err(refused(response).await)
    }

    /// Has one aircraft fetched and its event stored.
    ///
    /// # Errors
    /// Any answer but the producer's own that says that an event was stored.
    pub async fn ingest_adsbdb(&self) -> Result<Accepted, Refusal> {
        let sent = self.http.post(self.ingest.clone()).timeout(self.call_timeout).send().await;
        let response = sent.map_err(|error| self.failure(&error, self.call_timeout))?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(refused(response).await);
        }
        let body = body(response).await.map_err(|error| self.failure(&error, self.call_timeout))?;
        object(&body)
            .map_err(|_| Refusal::without_answer("answered 202 with a body that is not the producer's"))
    }

    fn failure(&self, error: &reqwest::Error, limit: Duration) -> Refusal {
        let reason = if error.is_connect() {
            format!("cannot be reached: {}", self.peer.reason(error))
        } else if error.is_timeout() {
            format!("did not answer within {} ms", limit.as_millis())
        } else {
            format!("did not answer: {}", self.peer.reason(error))
        };
        Refusal::without_answer(reason)
    }
}

/// A client that brings the configured key, trusts the configured certificates and never follows a redirect.
///
/// # Errors
/// The TLS library finds no certificates.
pub fn http_client(config: &Config, agent: &str) -> Result<Client, NoClient> {
    // The first in this process to install it wins; all of ours install the same.
    _ = rustls::crypto::ring::default_provider().install_default();
    let mut headers = HeaderMap::new();
    if let Some(key) = &config.api_key {
        // The configuration let only keys through that fit.
        if let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {}", key.expose())) {
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
    }
    let mut builder = Client::builder()
        .user_agent(agent)
        .default_headers(headers)
        .connect_timeout(CONNECT_LIMIT)
        // The producer is a neighbour: a proxy for the internet does not know it.
        .no_proxy()
        // A redirected POST would become a GET.
        .redirect(redirect::Policy::none());
    if config.producer.scheme() == "http" {
        // No certificate is needed, so none is loaded and none has to be there.
        builder = builder.tls_certs_only([]);
    } else if let Some(certificates) = &config.authorities {
        builder = builder.tls_backend_preconfigured(tls::client_config(certificates)?);
    }
    Ok(builder.build()?)
}

/// What `path` is at the producer.
pub fn endpoint(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
    url.set_fragment(None);
    url
}

/// The body, cut at [`BODY_BYTES`].
async fn body(mut response: Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > BODY_BYTES {
            break;
        }
    }
    Ok(body)
}

/// What an answer that is not a success says: its status, and the `detail` of its body if it has one.
async fn refused(response: Response) -> Refusal {
    #[derive(Deserialize)]
    struct Problem {
        detail: String,
    }
    let status = response.status();
    let retry_after = service::retry_after(response.headers());
    let body = body(response).await.unwrap_or_default();
    let reason = match object(&body) {
        Ok(Problem { detail }) => {
            format!("answered {status}: {}", detail.chars().take(300).collect::<String>())
        }
        Err(_) => format!("answered {status}"),
    };
    Refusal { reason, retry_after }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_keep_the_path_of_the_base_url() {
        let url = |base: &str| endpoint(&Url::parse(base).unwrap(), "ingest/adsbdb").to_string();
        assert_eq!(url("http://api-producer:8080"), "http://api-producer:8080/ingest/adsbdb");
        assert_eq!(url("https://host/slipstream/#x"), "https://host/slipstream/ingest/adsbdb");
    }
}
