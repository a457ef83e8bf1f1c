//! HTTP requests to the processes and to ADSBDB.

use std::time::Duration;

use serde_json::Value;

use kafka::BoxError;

/// Creates a client for `url` with a timeout.
///
/// # Errors
/// TLS cannot be set up.
pub fn client(url: &str, timeout: Duration) -> Result<reqwest::Client, BoxError> {
    Ok(builder(url).timeout(timeout).build()?)
}

/// The common settings of clients for `url`.
pub fn builder(url: &str) -> reqwest::ClientBuilder {
    // A further call finds the provider installed, which is no error.
    _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder();
    if url.starts_with("http:") {
        // A server on this machine or in this network, which an internet proxy cannot reach.
        builder = builder.no_proxy();
    }
    builder
}

/// The text of the innermost error, which is the cause.
pub fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Sends a GET request and returns the JSON body of a 2xx response.
///
/// # Errors
/// No response within `timeout`, another status (the error is then the response's `detail`), or a
/// body that is not JSON.
pub async fn get(url: &str, timeout: Duration) -> Result<Value, BoxError> {
    let response = client(url, timeout)?.get(url).send().await?;
    let status = response.status();
    let body: Value = response.json().await?;
    if status.is_success() {
        Ok(body)
    } else {
        Err(body["detail"].as_str().unwrap_or(status.as_str()).into())
    }
}
