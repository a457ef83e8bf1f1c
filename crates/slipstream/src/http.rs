//! Asking over HTTP: our own processes, and ADSBDB.

use std::time::Duration;

use serde_json::Value;

use kafka::BoxError;

/// A client for `url` that waits no longer than `limit` for an answer.
///
/// # Errors
/// TLS cannot be set up.
pub fn client(url: &str, limit: Duration) -> Result<reqwest::Client, BoxError> {
    Ok(builder(url).timeout(limit).build()?)
}

/// What clients for `url` have in common.
pub fn builder(url: &str) -> reqwest::ClientBuilder {
    // A second call finds the provider installed, which is as good.
    _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder();
    if url.starts_with("http:") {
        // On this machine or in this network: a proxy for the internet does not know it.
        builder = builder.no_proxy();
    }
    builder
}

/// The innermost error says what happened; those around it say that something did.
pub fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// The JSON body of a 2xx answer.
///
/// # Errors
/// No answer within `limit`, another status (the error is then the answer's `detail`), or a body that is not JSON.
pub async fn get(url: &str, limit: Duration) -> Result<Value, BoxError> {
    let answer = client(url, limit)?.get(url).send().await?;
    let well = answer.status().is_success();
    let status = answer.status();
    let body: Value = answer.json().await?;
    if well { Ok(body) } else { Err(body["detail"].as_str().unwrap_or(status.as_str()).into()) }
}
