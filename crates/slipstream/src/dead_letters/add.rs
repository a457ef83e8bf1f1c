//! `slipstream dead-letters add`: asks the consumer to set one record aside. The consumer makes the dead letter itself, as
//! it alone knows whether the record is unfinished.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use reqwest::{Client, StatusCode, Url};
use serde_json::{Value, json};
use service::{ConfigErrors, ConfigReader, Kind, Secret, parse};
use tokio::task::JoinSet;

use super::options::AddOptions;
use super::text::escaped;
use kafka::BoxError;
use kafka::topic_reader::RecordPosition;

/// How long a consumer may take: it waits 15 s for the dead letter.
const LIMIT: Duration = Duration::from_secs(20);
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

service::settings! {
    /// Whom to ask, and the proof that one may.
    pub struct Settings {
        /// Where the consumer is, as in `http://adsbdb-consumer:8081`. Of a name with several addresses each is asked.
        consumer_base_url: Kind::Required,
        /// The consumer's ADMIN_TOKEN.
        admin_token: Kind::OptionalSecret("none: the consumer refuses"),
    }
}

struct Config {
    consumer: Url,
    token: Option<Secret>,
}

impl Config {
    fn from_environment(
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let (s, mut check) = ConfigReader::read::<Settings>(Settings::VARIABLES, environment);
        let consumer = check.value("consumer_base_url", s.consumer_base_url.as_ref(), parse::base_url);
        let token = check.optional("admin_token", s.admin_token.as_ref(), consumer::admin_token);
        let config = consumer.zip(token).map(|(consumer, token)| Self { consumer, token });
        check.finish(config)
    }
}

/// What one address answered: the body of a 200, or why not.
struct Answer {
    address: SocketAddr,
    outcome: Result<Value, String>,
}

/// Asks each address of the consumer's name. The exit code is 0 if one of them set the record aside.
pub async fn add(
    options: AddOptions,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<ExitCode, BoxError> {
    let config = Config::from_environment(environment)?;
    let usage = |problem| ConfigErrors(vec![("PLACE".to_owned(), problem)]);
    let place = options.place.whole().map_err(usage)?;
    let addresses = addresses(&config.consumer).await?;
    let answers = ask_each(&config, addresses, &place, &options.reason).await?;
    let done = answers.iter().find_map(|answer| answer.outcome.as_ref().ok());
    let refusals = answers.iter().filter_map(|answer| Some((answer.address, answer.outcome.as_ref().err()?)));
    if options.json {
        let refusals: Vec<Value> =
            refusals.map(|(address, why)| json!({"address": address.to_string(), "reason": why})).collect();
        let result = json!({"record": place.to_string(), "set_aside": done, "refusals": refusals});
        writeln!(std::io::stdout(), "{result}")?;
    } else if let Some(done) = done {
        writeln!(std::io::stdout(), "{place} is set aside as {}", letter(done))?;
    } else {
        for (address, why) in refusals {
            writeln!(std::io::stderr(), "{address}: {}", escaped(why))?;
        }
        writeln!(std::io::stderr(), "slipstream: {place} is not set aside")?;
    }
    Ok(if done.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The place of the dead letter, as the other commands take it.
fn letter(done: &Value) -> String {
    let letter = &done["dead_letter"];
    let topic = letter["topic"].as_str().unwrap_or_default();
    escaped(&format!("{topic}/{}@{}", letter["partition"], letter["offset"]))
}

/// Every address of the consumer's name.
async fn addresses(consumer: &Url) -> Result<BTreeSet<SocketAddr>, BoxError> {
    let host = consumer.host_str().unwrap_or_default();
    let port = consumer.port_or_known_default().unwrap_or_default();
    // An IPv6 address is in brackets in a URL only.
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let found = tokio::time::timeout(CONNECT_LIMIT, tokio::net::lookup_host((name, port))).await;
    let found = found.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut)).flatten();
    Ok(found.map_err(|error| format!("CONSUMER_BASE_URL: {host} has no address: {error}"))?.collect())
}

/// Asks the consumers at these addresses, all at the same time.
async fn ask_each(
    config: &Config,
    addresses: BTreeSet<SocketAddr>,
    place: &RecordPosition,
    reason: &str,
) -> Result<Vec<Answer>, BoxError> {
    let url = config.consumer.as_str().trim_end_matches('/');
    let host = config.consumer.host_str().unwrap_or_default();
    let body = json!({
        "topic": place.topic,
        "partition": place.partition,
        "offset": place.offset,
        "reason": reason,
    });
    let mut asked = JoinSet::new();
    for address in addresses {
        let builder = crate::http::builder(url).connect_timeout(CONNECT_LIMIT).timeout(LIMIT);
        let client = builder.resolve(host, address).build()?;
        let (url, token, body) = (format!("{url}/admin/dead-letters"), config.token.clone(), body.clone());
        asked.spawn(async move {
            let outcome = ask(&client, &url, token.as_ref(), &body).await;
            Answer { address, outcome }
        });
    }
    let mut answers = asked.join_all().await;
    answers.sort_by_key(|answer| answer.address);
    Ok(answers)
}

async fn ask(client: &Client, url: &str, token: Option<&Secret>, body: &Value) -> Result<Value, String> {
    let mut request = client.post(url).json(body);
    if let Some(token) = token {
        request = request.bearer_auth(token.expose());
    }
    let answer = match request.send().await {
        Ok(answer) => answer,
        Err(error) if error.is_connect() => {
            return Err(format!("no consumer answers (CONSUMER_BASE_URL): {}", crate::http::root(&error)));
        }
        Err(error) => {
            let why = crate::http::root(&error);
            return Err(format!("no answer, so the record may or may not be set aside; ask again: {why}"));
        }
    };
    let status = answer.status();
    let body: Value = answer.json().await.unwrap_or_default();
    match (status, body["detail"].as_str()) {
        (StatusCode::OK, _) if body["dead_letter"].is_object() => Ok(body),
        (status, Some(detail)) => Err(format!("{}: {detail}", status.as_u16())),
        (status, None) => Err(format!("{}: no consumer of this version answers there", status.as_u16())),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one request on the loopback address `127.0.0.HOST`, then ends.
    async fn consumer(host: u8, port: u16, status: &'static str, body: &'static str) -> SocketAddr {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, host], port))).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let count = stream.read(&mut request).await.unwrap();
            let request = String::from_utf8_lossy(&request[..count]).to_ascii_lowercase();
            assert!(request.contains("host: consumers.test:"), "{request}");
            assert!(request.contains("authorization: bearer correct-horse"), "{request}");
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn each_address_is_asked_and_one_that_sets_it_aside_is_enough() {
        let done = r#"{"dead_letter":{"topic":"t.dlq","partition":1,"offset":4}}"#;
        let refusal = r#"{"detail":"this consumer does not have t/1"}"#;
        let first = consumer(1, 0, "404 Not Found", refusal).await;
        let port = first.port();
        let second = consumer(2, port, "200 OK", done).await;
        let silent = SocketAddr::from(([127, 0, 0, 3], port));
        let environment = [
            ("CONSUMER_BASE_URL".to_owned(), format!("http://consumers.test:{port}")),
            ("ADMIN_TOKEN".to_owned(), "correct-horse".to_owned()),
        ];
        let config = Config::from_environment(environment).unwrap();
        let place = RecordPosition { topic: "t".into(), partition: 1, offset: 7 };
        let answers = ask_each(&config, [first, second, silent].into(), &place, "why").await.unwrap();
        let [refused, set_aside, away] = &answers[..] else { panic!("{} answers", answers.len()) };
        assert_eq!(refused.outcome, Err("404: this consumer does not have t/1".into()));
        assert_eq!(letter(set_aside.outcome.as_ref().unwrap()), "t.dlq/1@4");
        assert!(away.outcome.as_ref().unwrap_err().contains("no consumer answers"), "{:?}", away.outcome);
    }

    #[tokio::test]
    async fn the_addresses_of_a_url_are_those_of_its_host() {
        for (url, wanted) in [
            ("http://127.0.0.1:8081", "127.0.0.1:8081"),
            ("http://[::1]:8081", "[::1]:8081"),
            ("https://127.0.0.1", "127.0.0.1:443"),
        ] {
            let found = addresses(&Url::parse(url).unwrap()).await.unwrap();
            assert_eq!(found, [wanted.parse().unwrap()].into(), "{url}");
        }
    }
}
