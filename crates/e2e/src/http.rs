//! A client as a user's would be.

use std::sync::LazyLock;
use std::time::Duration;

use serde_json::Value;

static CLIENT: LazyLock<reqwest::Client> = LazyLock::new(|| {
    _ = rustls::crypto::ring::default_provider().install_default();
    // No idle connections: each test has a runtime of its own, and a pooled one would die with it.
    let builder =
        reqwest::Client::builder().timeout(Duration::from_secs(30)).no_proxy().pool_max_idle_per_host(0);
    builder.build().expect("a client")
});

/// An answer, read whole.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: reqwest::header::HeaderMap,
    /// Its body; null where it is not JSON.
    pub body: Value,
}

impl Answer {
    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// GET.
///
/// # Errors
/// No answer.
pub async fn get(url: &str) -> Result<Answer, reqwest::Error> {
    send(CLIENT.get(url)).await
}

/// POST of a JSON body.
///
/// # Errors
/// No answer.
pub async fn post(url: &str, body: &Value) -> Result<Answer, reqwest::Error> {
    send(CLIENT.post(url).json(body)).await
}

/// GET of a text.
///
/// # Errors
/// No answer.
pub async fn text(url: &str) -> Result<String, reqwest::Error> {
    CLIENT.get(url).send().await?.text().await
}

/// Any request, its body as it is.
///
/// # Errors
/// No answer.
pub async fn request(
    method: &str,
    url: &str,
    content_type: &str,
    body: &str,
) -> Result<Answer, reqwest::Error> {
    let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
    send(CLIENT.request(method, url).header("content-type", content_type).body(body.to_owned())).await
}

async fn send(request: reqwest::RequestBuilder) -> Result<Answer, reqwest::Error> {
    let answer = request.send().await?;
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let body = serde_json::from_slice(&answer.bytes().await?).unwrap_or(Value::Null);
    Ok(Answer { status, headers, body })
}

/// Posts `bodies` to `url` over 16 connections at a time, each until it is answered with 202, as a client that
/// honours `retryable` does; panics at an answer that says not to try again.
pub async fn post_all(url: &str, bodies: Vec<Value>) {
    use futures::StreamExt;
    futures::stream::iter(bodies).for_each_concurrent(16, |body| post_until_accepted(url, body)).await;
}

async fn post_until_accepted(url: &str, body: Value) {
    loop {
        match post(url, &body).await {
            Ok(answer) if answer.status == 202 => return,
            Ok(answer) => assert_eq!(answer.body["retryable"], true, "{answer:?}"),
            // The connection was cut: the outcome is unknown, and sending the same id again is safe.
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
