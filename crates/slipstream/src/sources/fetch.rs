//! The one GET request of `sources try --fetch`.

use std::time::{Duration, Instant};

use ::sources::{Auth, HttpApi, NextPage};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kafka::BoxError;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Response, Url, redirect};

use crate::check::http;

/// Maximum size of an answer.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// Maximum number of redirects, all on the host of the URL.
const MAX_REDIRECTS: usize = 5;
/// Timeout of a request to ADSBDB.
const ADSBDB_TIMEOUT: Duration = Duration::from_secs(10);

/// The answer of an API.
pub struct Answer {
    pub text: String,
    pub took: Duration,
}

/// Fetches the first page of a source.
///
/// # Errors
/// The reason, without the query of the URL and without secrets.
pub async fn fetch(api: &HttpApi) -> Result<Answer, BoxError> {
    let mut url = api.url.clone();
    if let Some(NextPage::Offset { param, size, size_param }) = api.paging.as_ref().map(|paging| &paging.next)
    {
        let mut query = url.query_pairs_mut();
        query.append_pair(param, "0");
        if let Some(size_param) = size_param {
            query.append_pair(size_param, &size.to_string());
        }
    }
    get(url, headers(api)?, api.timeout).await
}

/// Fetches an aircraft of ADSBDB.
///
/// # Errors
/// As [`fetch`].
pub async fn fetch_aircraft(base_url: &str) -> Result<Answer, BoxError> {
    let url = format!("{base_url}/v0/aircraft/random");
    get(url.parse()?, HeaderMap::new(), ADSBDB_TIMEOUT).await
}

fn headers(api: &HttpApi) -> Result<HeaderMap, BoxError> {
    let mut headers = HeaderMap::new();
    let mut insert = |name: &str, value: String| -> Result<(), BoxError> {
        let mut value = HeaderValue::from_str(&value)?;
        value.set_sensitive(true);
        headers.insert(HeaderName::from_bytes(name.as_bytes())?, value);
        Ok(())
    };
    for (name, value) in &api.headers {
        insert(name, value.expose().to_owned())?;
    }
    match &api.auth {
        None => {}
        Some(Auth::Bearer(token)) => insert(AUTHORIZATION.as_str(), format!("Bearer {}", token.expose()))?,
        Some(Auth::Basic { user, password }) => {
            let pair = STANDARD.encode(format!("{user}:{}", password.expose()));
            insert(AUTHORIZATION.as_str(), format!("Basic {pair}"))?;
        }
        Some(Auth::Header { name, value }) => insert(name, value.expose().to_owned())?,
    }
    Ok(headers)
}

async fn get(url: Url, headers: HeaderMap, timeout: Duration) -> Result<Answer, BoxError> {
    let mut named = url.clone();
    named.set_query(url.query().map(|_| "***"));
    let start = Instant::now();
    let text = request(url, headers, timeout).await.map_err(|error| format!("{named}: {error}"))?;
    Ok(Answer { text, took: start.elapsed() })
}

async fn request(url: Url, headers: HeaderMap, timeout: Duration) -> Result<String, BoxError> {
    // A secret in a header must not reach another host.
    let same_host = redirect::Policy::custom(|attempt| {
        let is_same = attempt.previous().last().is_some_and(|from| {
            from.host_str() == attempt.url().host_str()
                && (from.scheme() == "http" || attempt.url().scheme() == "https")
        });
        if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("more than 5 redirects")
        } else if is_same {
            attempt.follow()
        } else {
            attempt.stop()
        }
    });
    let client = http::builder(url.as_str())
        .timeout(timeout)
        .redirect(same_host)
        .user_agent(concat!("slipstream/", env!("CARGO_PKG_VERSION")))
        .build()?;
    // The text of a reqwest error names the URL with its query.
    let cause = |error: reqwest::Error| -> BoxError {
        if error.is_timeout() {
            return format!("no answer within {} ms", timeout.as_millis()).into();
        }
        service::http::root_cause(&error.without_url()).to_string().into()
    };
    let response = client.get(url).headers(headers).send().await.map_err(cause)?;
    let status = response.status();
    if !status.is_success() {
        return Err(format!("answered {status}").into());
    }
    let body = read(response, cause).await?;
    String::from_utf8(body).map_err(|_| "answered with a body that is not UTF-8".into())
}

async fn read(
    mut response: Response,
    cause: impl Fn(reqwest::Error) -> BoxError,
) -> Result<Vec<u8>, BoxError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(&cause)? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(format!("answered with more than {MAX_ANSWER_BYTES} bytes").into());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
