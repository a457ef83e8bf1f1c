//! HTTP requests of the commands; probes of producer, consumer and ADSBDB, and of the clocks of both
//! processes.

use std::time::Duration;

use poller::tls::ConnectionDiagnostics;
use reqwest::{Client, header};
use serde_json::Value;

use super::finding::Finding;
use kafka::BoxError;

/// Maximum time for a response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum difference between two clocks; the `Date` header counts in seconds.
const MAX_CLOCK_SKEW_SECONDS: i64 = 5;

struct Response {
    status: reqwest::StatusCode,
    body: Value,
    /// The `Date` header, in epoch seconds.
    date: Option<i64>,
}

/// Creates a client for `url` with a timeout.
pub fn client(url: &str, timeout: Duration) -> Result<Client, BoxError> {
    Ok(builder(url).timeout(timeout).build()?)
}

/// The common settings of clients for `url`.
pub fn builder(url: &str) -> reqwest::ClientBuilder {
    // A further call finds the provider installed, which is no error.
    _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder();
    if url.starts_with("http:") {
        // A server on this machine or in this network, which an internet proxy cannot reach.
        builder = builder.no_proxy();
    }
    builder
}

/// Sends a GET request and returns the JSON body of a 2xx response.
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

/// Checks whether the producer is ready, over the same connection as its clients.
pub async fn producer(config: Option<&poller::Config>) -> Vec<Finding> {
    let agent = concat!("slipstream-check/", env!("CARGO_PKG_VERSION"));
    let target = config.map(|config| (poller::client::http_client(config, agent), config.producer.as_str()));
    let target = target.map(|(client, url)| (client.map_err(BoxError::from), url.trim_end_matches('/')));
    process("producer", "PRODUCER_BASE_URL", target, config.map(ConnectionDiagnostics::new).as_ref()).await
}

/// Checks whether the consumer is ready, and whether it lost records.
pub async fn consumer(base_url: Option<&str>) -> Vec<Finding> {
    let target = base_url.map(|url| (client(url, RESPONSE_TIMEOUT), url));
    let mut findings = process("consumer", "CONSUMER_BASE_URL", target, None).await;
    if let Some(url) = base_url
        && let Ok(health) = request(client(url, RESPONSE_TIMEOUT), &format!("{url}/health")).await
    {
        findings.extend(lost_records(&health.body));
    }
    findings
}

/// Checks for records that Kafka deleted before the consumer read them. The group's offsets do not
/// show such a loss.
fn lost_records(health: &Value) -> Option<Finding> {
    let records = health["counters"]["lost_to_retention"].as_u64().filter(|records| *records > 0)?;
    let cause = format!("records deleted before they were read, since it started: {records}");
    let remedy = "its log contains the offsets; send the events again, and raise retention.ms of the topic";
    Some(Finding::fail("consumer", cause, remedy))
}

/// Checks whether the process at the base URL is ready; `variable` is the name of its variable.
async fn process(
    name: &str,
    variable: &str,
    target: Option<(Result<Client, BoxError>, &str)>,
    peer: Option<&ConnectionDiagnostics>,
) -> Vec<Finding> {
    let Some((client, base_url)) = target else {
        let remedy = format!("set {variable} to its address, as seen from here");
        return vec![Finding::warn(name, format!("not checked: {variable} is not set"), remedy)];
    };
    match request(client, &format!("{base_url}/readyz")).await {
        Ok(response) if response.status.is_success() => {
            let skew =
                response.date.and_then(|date| clock_skew(name, date, jiff::Timestamp::now().as_second()));
            std::iter::once(Finding::ok(name, "is ready")).chain(skew).collect()
        }
        Ok(response) => {
            let detail = response.body["detail"].as_str().unwrap_or("no detail").to_owned();
            let remedy = "docs/operations.md describes each state and its remedy";
            vec![Finding::fail(
                name,
                format!("is not ready ({}): {detail}", response.status.as_u16()),
                remedy,
            )]
        }
        Err(error) => {
            let advice = peer.and_then(|peer| peer.advice(&*error));
            let remedy = advice.unwrap_or_else(|| format!("start it, or correct {variable}"));
            vec![Finding::fail(
                name,
                format!("does not answer at {base_url}: {}", service::http::root_cause(&*error)),
                remedy,
            )]
        }
    }
}

/// Checks whether ADSBDB returns an aircraft.
pub async fn adsbdb(base_url: &str) -> Finding {
    let remedy = "if it stays unavailable, or without internet, set ADSBDB_BASE_URL to the address of `slipstream simulate`";
    match request(client(base_url, RESPONSE_TIMEOUT), &format!("{base_url}/v0/aircraft/random")).await {
        Ok(response)
            if response.body["response"]["aircraft"].as_object().is_some_and(|fields| !fields.is_empty()) =>
        {
            Finding::ok("adsbdb", format!("{base_url} answers"))
        }
        Ok(response) if response.status.is_success() => {
            Finding::warn("adsbdb", format!("{base_url} answers without an aircraft"), remedy)
        }
        Ok(response) => {
            Finding::warn("adsbdb", format!("{base_url} answers with {}", response.status.as_u16()), remedy)
        }
        Err(error) => Finding::warn(
            "adsbdb",
            format!("{base_url} does not answer: {}", service::http::root_cause(&*error)),
            remedy,
        ),
    }
}

async fn request(client: Result<Client, BoxError>, url: &str) -> Result<Response, BoxError> {
    let response = client?.get(url).timeout(RESPONSE_TIMEOUT).send().await?;
    let date = response.headers().get(header::DATE).and_then(|date| date.to_str().ok());
    let date =
        date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok()).map(|date| date.timestamp().as_second());
    Ok(Response { status: response.status(), date, body: response.json().await.unwrap_or(Value::Null) })
}

/// Compares the process's clock with the local one. The producer's clock orders events that have no
/// timestamp.
fn clock_skew(name: &str, theirs: i64, ours: i64) -> Option<Finding> {
    let difference = theirs - ours;
    let side = if difference > 0 { "ahead of" } else { "behind" };
    let cause = format!(
        "its clock is {} s {side} the local one; it orders events without a timestamp",
        difference.abs()
    );
    (difference.abs() > MAX_CLOCK_SKEW_SECONDS)
        .then(|| Finding::warn(format!("{name} clock"), cause, "run NTP on both machines"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lost_records_in_the_consumer_health_are_a_finding() {
        let health = |records| json!({"counters": {"lost_to_retention": records}});
        assert!(lost_records(&health(7)).is_some_and(|found| found.cause.ends_with(": 7")));
        assert_eq!(lost_records(&health(0)), None);
        assert_eq!(lost_records(&Value::Null), None, "an older consumer");
    }
}
