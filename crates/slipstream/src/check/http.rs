//! Probes what answers over HTTP: producer, consumer and ADSBDB, and whether their clocks agree with ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use poller::tls::ConnectionDiagnostics;
use reqwest::{Client, header};
use serde_json::Value;

use super::finding::Finding;
use crate::http::root;
use kafka::BoxError;

const LIMIT: Duration = Duration::from_secs(5);

/// Clocks may differ by this; the header counts in seconds.
const SKEW_SECONDS: i64 = 5;

struct Answer {
    status: reqwest::StatusCode,
    body: Value,
    /// By the clock of the one who answered, in seconds of the epoch.
    date: Option<i64>,
}

/// Whether the producer can do its work; it is reached as its clients reach it.
pub async fn producer(config: Option<&poller::Config>) -> Vec<Finding> {
    let agent = concat!("slipstream-check/", env!("CARGO_PKG_VERSION"));
    let place = config.map(|config| (poller::client::http_client(config, agent), config.producer.as_str()));
    let place = place.map(|(client, url)| (client.map_err(BoxError::from), url.trim_end_matches('/')));
    process("producer", "PRODUCER_BASE_URL", place, config.map(ConnectionDiagnostics::new).as_ref()).await
}

/// Whether the consumer can do its work.
pub async fn consumer(base_url: Option<&str>) -> Vec<Finding> {
    let place = base_url.map(|url| (crate::http::client(url, LIMIT), url));
    let mut findings = process("consumer", "CONSUMER_BASE_URL", place, None).await;
    if let Some(url) = base_url
        && let Ok(health) = ask(crate::http::client(url, LIMIT), &format!("{url}/health")).await
    {
        findings.extend(lost(&health.body));
    }
    findings
}

/// Records that Kafka deleted before this consumer read them: the group's offsets no longer show the loss.
fn lost(health: &Value) -> Option<Finding> {
    let records = health["counters"]["lost_to_retention"].as_u64().filter(|records| *records > 0)?;
    let cause = format!("records deleted before they were read, since it started: {records}");
    let remedy = "its log names the offsets; send the events again, and raise retention.ms of the topic";
    Some(Finding::fail("consumer", cause, remedy))
}

/// Whether the process at the base URL, which `variable` names, can do its work.
async fn process(
    name: &str,
    variable: &str,
    place: Option<(Result<Client, BoxError>, &str)>,
    peer: Option<&ConnectionDiagnostics>,
) -> Vec<Finding> {
    let Some((client, base_url)) = place else {
        let remedy = format!("set {variable} to its address, as seen from here");
        return vec![Finding::warn(name, format!("was not asked: {variable} is not set"), remedy)];
    };
    match ask(client, &format!("{base_url}/readyz")).await {
        Ok(answer) if answer.status.is_success() => {
            let skew = answer.date.and_then(|date| skew(name, date, now()));
            std::iter::once(Finding::ok(name, "is ready")).chain(skew).collect()
        }
        Ok(answer) => {
            let said = answer.body["detail"].as_str().unwrap_or("it does not say why").to_owned();
            let remedy = "docs/operations.md says what each state means and what to do";
            vec![Finding::fail(name, format!("is not ready ({}): {said}", answer.status.as_u16()), remedy)]
        }
        Err(error) => {
            let advice = peer.and_then(|peer| peer.advice(&*error));
            let remedy = advice.unwrap_or_else(|| format!("start it, or correct {variable}"));
            vec![Finding::fail(name, format!("does not answer at {base_url}: {}", root(&*error)), remedy)]
        }
    }
}

/// Whether ADSBDB gives us an aircraft.
pub async fn adsbdb(base_url: &str) -> Finding {
    let remedy =
        "nothing, if it comes back; without internet, ADSBDB_BASE_URL can name `slipstream simulate`";
    match ask(crate::http::client(base_url, LIMIT), &format!("{base_url}/v0/aircraft/random")).await {
        Ok(answer)
            if answer.body["response"]["aircraft"].as_object().is_some_and(|fields| !fields.is_empty()) =>
        {
            Finding::ok("adsbdb", format!("{base_url} answers"))
        }
        Ok(answer) if answer.status.is_success() => {
            Finding::warn("adsbdb", format!("{base_url} answers, but with no aircraft"), remedy)
        }
        Ok(answer) => {
            Finding::warn("adsbdb", format!("{base_url} answers with {}", answer.status.as_u16()), remedy)
        }
        Err(error) => {
            Finding::warn("adsbdb", format!("{base_url} does not answer: {}", root(&*error)), remedy)
        }
    }
}

async fn ask(client: Result<Client, BoxError>, url: &str) -> Result<Answer, BoxError> {
    let answer = client?.get(url).timeout(LIMIT).send().await?;
    let date = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok());
    let date =
        date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok()).map(|date| date.timestamp().as_second());
    Ok(Answer { status: answer.status(), date, body: answer.json().await.unwrap_or(Value::Null) })
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed())
}

/// Which event is newer is decided by the clocks of those who sent it.
fn skew(name: &str, theirs: i64, ours: i64) -> Option<Finding> {
    let apart = theirs - ours;
    let side = if apart > 0 { "ahead of" } else { "behind" };
    let cause = format!(
        "its clock is {} s {side} ours: events without a timestamp of their own are ordered by it",
        apart.abs()
    );
    (apart.abs() > SKEW_SECONDS)
        .then(|| Finding::warn(format!("{name} clock"), cause, "run NTP on both machines"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lost_records_in_the_consumer_s_health_are_a_finding() {
        let health = |records| json!({"counters": {"lost_to_retention": records}});
        assert!(lost(&health(7)).is_some_and(|found| found.cause.ends_with(": 7")));
        assert_eq!(lost(&health(0)), None);
        assert_eq!(lost(&Value::Null), None, "an older consumer");
    }
}
