//! `slipstream dead-letters add`: requests from the consumer to set one record aside. The consumer
//! makes the dead letter, because only it has the state of unfinished records.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use reqwest::{Client, StatusCode, Url};
use serde_json::{Value, json};
use service::{ConfigErrors, ConfigReader, Kind, Secret, parse};
use tokio::task::JoinSet;

use super::dead_letter::escaped;
use super::options::AddOptions;
use kafka::BoxError;
use kafka::topic_reader::RecordPosition;

/// Maximum time for the response; the consumer waits up to 15 s for the dead letter.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum time for name resolution, and for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

service::settings! {
    /// The consumer's address and the token.
    pub struct Settings {
        /// Base URL of the consumer, such as `http://adsbdb-consumer:8081`. The request goes to
        /// each address of the name.
        consumer_base_url: Kind::Required,
        /// The consumer's ADMIN_TOKEN.
        admin_token: Kind::OptionalSecret("none: the consumer rejects the request"),
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

/// The result of one address: the body of a 200, or the error.
struct AddressResult {
    address: SocketAddr,
    result: Result<Value, String>,
}

/// Sends the request to each address of the consumer's name. The exit code is 0 if one of them set
/// the record aside.
pub async fn add(
    options: AddOptions,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<ExitCode, BoxError> {
    let config = Config::from_environment(environment)?;
    let usage = |problem| ConfigErrors(vec![("PLACE".to_owned(), problem)]);
    let position = options.place.with_topic().map_err(usage)?;
    let addresses = addresses(&config.consumer).await?;
    let results = request_each(&config, addresses, &position, &options.reason).await?;
    let done = results.iter().find_map(|result| result.result.as_ref().ok());
    let errors = results.iter().filter_map(|result| Some((result.address, result.result.as_ref().err()?)));
    if options.json {
        let errors = errors.map(|(address, why)| json!({"address": address.to_string(), "reason": why}));
        let errors: Vec<Value> = errors.collect();
        let result = json!({"record": position.to_string(), "set_aside": done, "refusals": errors});
        writeln!(std::io::stdout(), "{result}")?;
    } else if let Some(done) = done {
        writeln!(std::io::stdout(), "{position} is set aside as {}", dead_letter_position(done))?;
    } else {
        for (address, why) in errors {
            writeln!(std::io::stderr(), "{address}: {}", escaped(why))?;
        }
        writeln!(std::io::stderr(), "slipstream: {position} is not set aside")?;
    }
    Ok(if done.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The position of the dead letter, in the form that the other subcommands accept.
fn dead_letter_position(done: &Value) -> String {
    let dead_letter = &done["dead_letter"];
    let topic = dead_letter["topic"].as_str().unwrap_or_default();
    escaped(&format!("{topic}/{}@{}", dead_letter["partition"], dead_letter["offset"]))
}

/// All addresses of the consumer's name.
async fn addresses(consumer: &Url) -> Result<BTreeSet<SocketAddr>, BoxError> {
    let host = consumer.host_str().unwrap_or_default();
    let port = consumer.port_or_known_default().unwrap_or_default();
    // Only a URL has brackets around an IPv6 address.
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let found = tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::lookup_host((name, port))).await;
    let found = found.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut)).flatten();
    Ok(found.map_err(|error| format!("CONSUMER_BASE_URL: {host} has no address: {error}"))?.collect())
}

/// Sends the request to all addresses concurrently.
async fn request_each(
    config: &Config,
    addresses: BTreeSet<SocketAddr>,
    position: &RecordPosition,
    reason: &str,
) -> Result<Vec<AddressResult>, BoxError> {
    let url = config.consumer.as_str().trim_end_matches('/');
    let host = config.consumer.host_str().unwrap_or_default();
    let body = json!({
        "topic": position.topic,
        "partition": position.partition,
        "offset": position.offset,
        "reason": reason,
    });
    let mut requests = JoinSet::new();
    for address in addresses {
        let builder =
            crate::check::http::builder(url).connect_timeout(CONNECT_TIMEOUT).timeout(RESPONSE_TIMEOUT);
        let client = builder.resolve(host, address).build()?;
        let (url, token, body) = (format!("{url}/admin/dead-letters"), config.token.clone(), body.clone());
        requests.spawn(async move {
            let result = request(&client, &url, token.as_ref(), &body).await;
            AddressResult { address, result }
        });
    }
    let mut results = requests.join_all().await;
    results.sort_by_key(|result| result.address);
    Ok(results)
}

async fn request(client: &Client, url: &str, token: Option<&Secret>, body: &Value) -> Result<Value, String> {
    let mut request = client.post(url).json(body);
    if let Some(token) = token {
        request = request.bearer_auth(token.expose());
    }
    let answer = match request.send().await {
        Ok(answer) => answer,
        Err(error) if error.is_connect() => {
            return Err(format!(
                "no consumer answers (CONSUMER_BASE_URL): {}",
                service::http::root_cause(&error)
            ));
        }
        Err(error) => {
            let why = service::http::root_cause(&error);
            return Err(format!("no response, so the record may or may not be set aside; try again: {why}"));
        }
    };
    let status = answer.status();
    let body: Value = answer.json().await.unwrap_or_default();
    match (status, body["detail"].as_str()) {
        (StatusCode::OK, _) if body["dead_letter"].is_object() => Ok(body),
        (status, Some(detail)) => Err(format!("{}: {detail}", status.as_u16())),
        (status, None) => {
            Err(format!("{}: the response is not from a consumer of this version", status.as_u16()))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one request on the loopback address `127.0.0.HOST`.
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
    async fn one_address_that_sets_the_record_aside_is_enough() {
        let done = r#"{"dead_letter":{"topic":"t.dlq","partition":1,"offset":4}}"#;
        let refusal = r#"{"detail":"this consumer does not have t/1"}"#;
        let first = consumer(1, 0, "404 Not Found", refusal).await;
        let port = first.port();
        let second = consumer(2, port, "200 OK", done).await;
        let unused = SocketAddr::from(([127, 0, 0, 3], port));
        let environment = [
            ("CONSUMER_BASE_URL".to_owned(), format!("http://consumers.test:{port}")),
            ("ADMIN_TOKEN".to_owned(), "correct-horse".to_owned()),
        ];
        let config = Config::from_environment(environment).unwrap();
        let position = RecordPosition { topic: "t".into(), partition: 1, offset: 7 };
        let results = request_each(&config, [first, second, unused].into(), &position, "why").await.unwrap();
        let [rejected, set_aside, away] = &results[..] else { panic!("{} results", results.len()) };
        assert_eq!(rejected.result, Err("404: this consumer does not have t/1".into()));
        assert_eq!(dead_letter_position(set_aside.result.as_ref().unwrap()), "t.dlq/1@4");
        assert!(away.result.as_ref().unwrap_err().contains("no consumer answers"), "{:?}", away.result);
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
