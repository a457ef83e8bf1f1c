//! An HTTP client for tests.

use std::sync::LazyLock;
use std::time::Duration;

use futures::StreamExt;
use reqwest::header::HeaderMap;
use serde_json::Value;

static CLIENT: LazyLock<reqwest::Client> = LazyLock::new(|| {
    _ = rustls::crypto::ring::default_provider().install_default();
    // Each test has its own runtime. A pooled connection would end with the runtime that opened it.
    let builder =
        reqwest::Client::builder().timeout(Duration::from_secs(30)).no_proxy().pool_max_idle_per_host(0);
    builder.build().expect("a client")
});

/// A response with its whole body.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body; null if it is not JSON.
    pub body: Value,
}

impl Response {
    /// The text of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Sends a GET request.
///
/// # Errors
/// The connection failed or timed out.
pub async fn get(url: &str) -> Result<Response, reqwest::Error> {
    send(CLIENT.get(url)).await
}

/// Sends a POST request with a JSON body.
///
/// # Errors
/// The connection failed or timed out.
pub async fn post(url: &str, body: &Value) -> Result<Response, reqwest::Error> {
    send(CLIENT.post(url).json(body)).await
}

/// Sends a GET request and returns the body as text.
///
/// # Errors
/// The connection failed or timed out.
pub async fn text(url: &str) -> Result<String, reqwest::Error> {
    CLIENT.get(url).send().await?.text().await
}

/// Sends a request with any method and body.
///
/// # Errors
/// The connection failed or timed out.
pub async fn request(
    method: &str,
    url: &str,
    content_type: &str,
    body: &str,
) -> Result<Response, reqwest::Error> {
    let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
    send(CLIENT.request(method, url).header("content-type", content_type).body(body.to_owned())).await
}

async fn send(request: reqwest::RequestBuilder) -> Result<Response, reqwest::Error> {
    let response = request.send().await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = serde_json::from_slice(&response.bytes().await?).unwrap_or(Value::Null);
    Ok(Response { status, headers, body })
}

/// Posts `bodies` to `url` over at most 16 connections, each until the response is 202.
///
/// Retries as a client that honors `retryable` does. Panics if a response is not retryable.
pub async fn post_all(url: &str, bodies: Vec<Value>) {
    futures::stream::iter(bodies).for_each_concurrent(16, |body| post_until_accepted(url, body)).await;
}

async fn post_until_accepted(url: &str, body: Value) {
    loop {
        match post(url, &body).await {
            Ok(response) if response.status == 202 => return,
            Ok(response) => assert_eq!(response.body["retryable"], true, "{response:?}"),
            // The connection was closed: the outcome is unknown, and a retry with the same id is
            // safe.
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
