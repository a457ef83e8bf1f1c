//! Requests to the API of one source.
//!
//! - A request takes at most the source's `timeout`. Transient errors are retried twice, if the
//!   retry starts within twice that time.
//! - No request is sent while the API allows none.
//! - A response has at most [`MAX_FETCHED_BYTES`], and all responses of the process share a limit.
//!   Both count decompressed bytes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_compression::tokio::bufread::GzipDecoder;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, DATE, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, RETRY_AFTER,
};
use service::time::Backoff;
use sources::{Auth, HttpApi};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::io::{ReaderStream, StreamReader};
use url::Url;

use crate::adsbdb::RateLimit;
use crate::config::MAX_FETCHED_BYTES;
use crate::metrics::Metrics;
use crate::pull::error::PullError;
use crate::pull::kept::Validators;

/// Memory of all responses that are being read or processed.
const MEMORY_BYTES: usize = 256 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_ATTEMPTS: u32 = 3;
const MAX_REDIRECTS: usize = 5;
/// Time by which a fetch may come before the API allows it. It then waits.
const MAX_EARLY: Duration = Duration::from_millis(500);
/// Number of bytes that are decompressed at a time.
const CHUNK_BYTES: usize = 32 * 1024;
/// Duration of a rate limit if the API does not name it.
const DEFAULT_RATE_LIMIT: Duration = Duration::from_secs(60);

const TOO_MANY_REDIRECTS: &str = "too often";
const OTHER_ORIGIN: &str = "to another origin, and the request has headers or credentials for this one";

/// Creates the memory limit of all responses. One permit is one byte.
pub fn memory_permits() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MEMORY_BYTES))
}

/// The client of one source.
#[derive(Debug)]
pub struct PullClient {
    http: reqwest::Client,
    headers: HeaderMap,
    timeout: Duration,
    /// Headers that name a time to wait.
    wait: Vec<String>,
    rate_limit: RateLimit,
    memory: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    source: Arc<str>,
}

/// A page that was fetched.
#[derive(Debug)]
pub struct Page {
    /// Valid JSON.
    pub text: String,
    pub headers: HeaderMap,
    pub validators: Validators,
    /// When the API allows the next request.
    pub next_request: Option<Instant>,
    _memory: Option<OwnedSemaphorePermit>,
}

/// The answer to a request.
#[derive(Debug)]
pub enum Fetched {
    /// The page has not changed.
    NotModified {
        /// When the API allows the next request.
        next_request: Option<Instant>,
    },
    Page(Page),
}

impl PullClient {
    /// Creates the client. It connects at the first request.
    ///
    /// # Errors
    /// TLS cannot be set up, or a header of the file is invalid.
    pub fn new(
        source: &str,
        api: &HttpApi,
        memory: Arc<Semaphore>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, String> {
        // See the client of ADSBDB.
        _ = rustls::crypto::ring::default_provider().install_default();
        let headers = headers(api)?;
        let has_secrets = api.auth.is_some() || !api.headers.is_empty();
        let origin = api.url.origin();
        let redirects = reqwest::redirect::Policy::custom(move |attempt| {
            if attempt.previous().len() > MAX_REDIRECTS {
                attempt.error(TOO_MANY_REDIRECTS)
            } else if has_secrets && attempt.url().origin() != origin {
                attempt.error(OTHER_ORIGIN)
            } else {
                attempt.follow()
            }
        });
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT.min(api.timeout))
            .redirect(redirects)
            // It would contain the query of the URL, which may be a secret.
            .referer(false)
            .user_agent(concat!("slipstream/", env!("CARGO_PKG_VERSION")));
        if api.url.scheme() == "http" {
            // A proxy to the internet cannot reach a server in the own network.
            builder = builder.no_proxy();
        }
        Ok(Self {
            http: builder.build().map_err(|error| error.to_string())?,
            headers,
            timeout: api.timeout,
            wait: api.wait.clone(),
            rate_limit: RateLimit::default(),
            memory,
            metrics,
            source: source.into(),
        })
    }

    /// Fetches a page. Transient errors are retried.
    ///
    /// # Errors
    /// There is no page. The error states why.
    pub async fn fetch(&self, url: &Url, known: Option<&Validators>) -> Result<Fetched, PullError> {
        let deadline = Instant::now() + self.timeout * 2;
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
        loop {
            self.await_rate_limit().await?;
            let outcome = tokio::time::timeout(self.timeout, self.request(url, known)).await;
            let outcome = outcome.unwrap_or(Err(PullError::Timeout(self.timeout)));
            self.metrics.pull(
                &self.source,
                match &outcome {
                    Ok(Fetched::NotModified { .. }) => "not_modified",
                    Ok(Fetched::Page(_)) => "ok",
                    Err(error) => error.outcome(),
                },
            );
            let error = match outcome {
                Ok(fetched) => return Ok(fetched),
                Err(error) => error,
            };
            if let Some(time) = error.retry_after() {
                tracing::warn!(source = &*self.source, seconds = time.as_secs(), "api allows no request");
                self.wait(time);
            }
            let retry_at = Instant::now() + backoff.next_delay();
            if !error.is_transient() || backoff.attempts() >= MAX_ATTEMPTS || retry_at >= deadline {
                return Err(error);
            }
            tracing::debug!(source = &*self.source, reason = %error, "request to api failed, retrying");
            tokio::time::sleep_until(retry_at).await;
        }
    }

    /// Sends no request for `time`.
    pub fn wait(&self, time: Duration) {
        self.rate_limit.activate(Instant::now(), time);
    }

    /// How long no request is sent.
    pub fn waits(&self) -> Option<Duration> {
        self.rate_limit.remaining(Instant::now())
    }

    /// Waits if a request is allowed soon. A schedule with the interval that the API names would
    /// otherwise be too early by milliseconds.
    async fn await_rate_limit(&self) -> Result<(), PullError> {
        match self.waits() {
            Some(remaining) if remaining > MAX_EARLY => Err(PullError::RateLimited(remaining)),
            Some(remaining) => {
                tokio::time::sleep(remaining).await;
                Ok(())
            }
            None => Ok(()),
        }
    }

    async fn request(&self, url: &Url, known: Option<&Validators>) -> Result<Fetched, PullError> {
        let mut request = self.http.get(url.clone()).headers(self.headers.clone());
        let known = known.cloned().unwrap_or_default();
        let is_conditional = known != Validators::default();
        if let Some(etag) = known.etag {
            request = request.header(IF_NONE_MATCH, etag);
        }
        if let Some(last_modified) = known.last_modified {
            request = request.header(IF_MODIFIED_SINCE, last_modified);
        }
        let asked = Instant::now();
        let mut response = request.send().await.map_err(|error| self.transport_error(error))?;
        let headers = std::mem::take(response.headers_mut());
        let wait = self.named_wait(&headers);
        match response.status().as_u16() {
            304 if is_conditional => {
                return Ok(Fetched::NotModified { next_request: wait.map(|wait| asked + wait) });
            }
            200..=299 => {}
            429 => return Err(PullError::RateLimited(wait.unwrap_or(DEFAULT_RATE_LIMIT))),
            status => return Err(PullError::Status { status, retry_after: wait }),
        }
        let is_gzip = is_gzip(&headers).map_err(|reason| PullError::InvalidResponse(reason.into()))?;
        let next_request = wait.map(|wait| asked + wait);
        let (body, memory) = self.read(chunks(response, is_gzip)).await?;
        let validators = validators(&headers);
        let text = json_text(Vec::from(body)).map_err(|reason| PullError::InvalidResponse(reason.into()))?;
        Ok(Fetched::Page(Page { text, headers, validators, next_request, _memory: memory }))
    }

    /// Reads a body within the limits.
    async fn read(
        &self,
        mut chunks: BoxStream<'static, io::Result<Bytes>>,
    ) -> Result<(BytesMut, Option<OwnedSemaphorePermit>), PullError> {
        let (mut body, mut memory) = (BytesMut::new(), None::<OwnedSemaphorePermit>);
        while let Some(chunk) = chunks.next().await.transpose().map_err(|error| self.body_error(error))? {
            if body.len() + chunk.len() > MAX_FETCHED_BYTES {
                return Err(PullError::TooLarge(MAX_FETCHED_BYTES));
            }
            let bytes = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            let permit = Arc::clone(&self.memory).try_acquire_many_owned(bytes);
            let permit = permit.map_err(|_| PullError::NoMemory)?;
            match &mut memory {
                Some(memory) => memory.merge(permit),
                None => memory = Some(permit),
            }
            body.extend_from_slice(&chunk);
        }
        Ok((body, memory))
    }

    /// The time to wait that the headers of a response name, at most an hour.
    fn named_wait(&self, headers: &HeaderMap) -> Option<Duration> {
        let own = self.wait.iter().map(String::as_str);
        own.chain(["retry-after", "x-poll-interval"]).find_map(|name| {
            let mut one = HeaderMap::from_iter([(RETRY_AFTER, headers.get(name)?.clone())]);
            if let Some(date) = headers.get(DATE) {
                one.insert(DATE, date.clone());
            }
            service::retry_after(&one)
        })
    }

    /// The error of a body: that of the connection, or of the decompression.
    fn body_error(&self, error: io::Error) -> PullError {
        match error.downcast::<reqwest::Error>() {
            Ok(error) => self.transport_error(error),
            Err(_) => PullError::InvalidResponse("it cannot be decompressed as gzip".into()),
        }
    }

    fn transport_error(&self, error: reqwest::Error) -> PullError {
        // The query of the URL may be a secret.
        let error = error.without_url();
        let cause = service::http::root_cause(&error).to_string();
        if error.is_redirect() {
            let other = cause.contains(OTHER_ORIGIN);
            return PullError::Redirect(if other { OTHER_ORIGIN } else { TOO_MANY_REDIRECTS });
        }
        if error.is_timeout() && !error.is_connect() {
            return PullError::Timeout(self.timeout);
        }
        PullError::Unreachable(cause)
    }
}

/// The validators of a response. A time without an ETag is one only if the answer was at least a
/// second old: it may otherwise have changed again within that second (RFC 9110, 8.8.2.2).
fn validators(headers: &HeaderMap) -> Validators {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok();
    let time = |name: HeaderName| httpdate::parse_http_date(text(name)?).ok();
    let is_old = || Some(time(DATE)?.duration_since(time(LAST_MODIFIED)?).ok()? >= Duration::from_secs(1));
    let etag = text(ETAG).map(str::to_owned);
    let last_modified = text(LAST_MODIFIED).filter(|_| etag.is_some() || is_old() == Some(true));
    Validators { last_modified: last_modified.map(str::to_owned), etag }
}

/// Whether a response is compressed with gzip.
fn is_gzip(headers: &HeaderMap) -> Result<bool, &'static str> {
    let mut codings = headers.get_all(CONTENT_ENCODING).iter();
    let coding = codings.next().map_or(&b"identity"[..], HeaderValue::as_bytes).to_ascii_lowercase();
    match &*coding {
        _ if codings.next().is_some() => Err("it is compressed more than once"),
        b"identity" => Ok(false),
        b"gzip" | b"x-gzip" => Ok(true),
        _ => Err("it is compressed in another way than gzip, which was requested"),
    }
}

/// The body of a response in chunks, which are decompressed as they arrive.
fn chunks(response: reqwest::Response, is_gzip: bool) -> BoxStream<'static, io::Result<Bytes>> {
    let plain = stream::try_unfold(response, async |mut response| {
        let chunk = response.chunk().await.map_err(io::Error::other)?;
        Ok(chunk.map(|chunk| (chunk, response)))
    });
    if !is_gzip {
        return plain.boxed();
    }
    let mut decoder = GzipDecoder::new(StreamReader::new(plain.boxed()));
    decoder.multiple_members(true);
    ReaderStream::with_capacity(decoder, CHUNK_BYTES).boxed()
}

/// The headers of every request. Values of the file are secrets.
fn headers(api: &HttpApi) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::from_iter([
        (ACCEPT, HeaderValue::from_static("application/json")),
        (ACCEPT_ENCODING, HeaderValue::from_static("gzip")),
    ]);
    let mut insert = |name: &str, value: &str| {
        let parsed = name.parse::<HeaderName>().ok().zip(HeaderValue::from_str(value).ok());
        let (key, mut value) = parsed.ok_or_else(|| format!("the header {name} is invalid"))?;
        value.set_sensitive(true);
        headers.insert(key, value);
        Ok::<_, String>(())
    };
    for (name, value) in &api.headers {
        insert(name, value.expose())?;
    }
    match &api.auth {
        None => {}
        Some(Auth::Bearer(token)) => insert("authorization", &format!("Bearer {}", token.expose()))?,
        Some(Auth::Basic { user, password }) => {
            let pair = STANDARD.encode(format!("{user}:{}", password.expose()));
            insert("authorization", &format!("Basic {pair}"))?;
        }
        Some(Auth::Header { name, value }) => insert(name, value.expose())?,
    }
    Ok(headers)
}

/// The text of a JSON body, without a byte order mark.
fn json_text(body: Vec<u8>) -> Result<String, &'static str> {
    let mut text = String::from_utf8(body).map_err(|_| "it is not UTF-8")?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    match events::parse_json(text.as_bytes()) {
        Ok(_) => Ok(text),
        Err(events::RequestError::Empty) => Err("it is empty"),
        Err(_) if text.trim_ascii_start().starts_with('<') => {
            Err("it is a web page, as a proxy in between returns it")
        }
        Err(_) => Err("it is not JSON, or its JSON is cut off"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_validator_if_the_answer_was_older_than_a_second() {
        let of = |modified: &'static str, etag: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(DATE, HeaderValue::from_static("Sat, 28 Nov 2026 20:15:03 GMT"));
            headers.insert(LAST_MODIFIED, HeaderValue::from_static(modified));
            headers.extend(etag.map(|etag| (ETAG, HeaderValue::from_static(etag))));
            validators(&headers).last_modified.is_some()
        };
        assert!(of("Sat, 28 Nov 2026 20:15:02 GMT", None));
        assert!(!of("Sat, 28 Nov 2026 20:15:03 GMT", None));
        assert!(!of("Sat, 28 Nov 2026 20:15:04 GMT", None));
        assert!(!of("yesterday", None));
        assert!(of("Sat, 28 Nov 2026 20:15:03 GMT", Some("\"a\"")));
    }

    #[test]
    fn each_invalid_body_has_its_own_reason() {
        for (body, reason) in [
            (&b""[..], "it is empty"),
            (b" <html>", "it is a web page, as a proxy in between returns it"),
            (b"{\"a\":", "it is not JSON, or its JSON is cut off"),
            (b"\"\xff\"", "it is not UTF-8"),
        ] {
            assert_eq!(json_text(body.to_vec()), Err(reason));
        }
        assert_eq!(json_text("\u{feff}[1]".into()), Ok("[1]".into()));
    }
}
