//! The configuration of the producer. All variables are read and checked before anything starts, so
//! that one error names every wrong variable.

pub mod http;
pub mod settings;
pub mod traces;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use events::Source;
use kafka::topics::{BROKER_DEFAULT, TopicSpec, partitions, replication_factor};
use kafka::{KafkaProperties, check_producer, read_connection};
use service::{ConfigErrors, ConfigReader, parse};
use url::Url;

use crate::config::http::HttpConfig;
use crate::config::settings::Settings;
use crate::config::traces::TraceExport;
use crate::kafka::properties::client_config;

/// The values of the variables, parsed and valid. `settings` documents them.
#[derive(Debug, Clone)]
pub struct Config {
    /// Bootstrap servers.
    pub kafka_broker: String,
    /// The topic, and the options to create it.
    pub topic: TopicSpec,
    /// KAFKA_PROPERTIES.
    pub kafka_properties: KafkaProperties,
    /// API_VERSION.
    pub api_version: String,
    /// MAX_PAYLOAD_BYTES.
    pub max_payload_bytes: usize,
    /// MAX_BATCH_EVENTS.
    pub max_batch_events: usize,
    /// MAX_BATCH_BYTES.
    pub max_batch_bytes: usize,
    /// REQUIRE_ID.
    pub require_id: bool,
    /// `None` accepts all sources.
    pub accept_sources: Option<Vec<Source>>,
    /// ADSBDB_BASE_URL.
    pub adsbdb_base_url: Url,
    /// ADSBDB_TIMEOUT_MS.
    pub adsbdb_timeout: Duration,
    /// ADSBDB_MAX_CONCURRENCY.
    pub adsbdb_max_concurrency: usize,
    /// MAX_POLL_JOBS.
    pub max_poll_jobs: usize,
    /// REQUEST_TIMEOUT_MS.
    pub request_timeout: Duration,
    /// DELIVERY_TIMEOUT_MS.
    pub delivery_timeout: Duration,
    /// `None` if no traces are exported.
    pub traces: Option<TraceExport>,
    /// Port 0 selects a free port.
    pub listen_addr: SocketAddr,
    /// The HTTP server.
    pub http: HttpConfig,
}

impl Config {
    /// A configuration whose Kafka is unavailable, with further variables.
    #[cfg(test)]
    pub fn without_kafka(more: &[(&str, &str)]) -> Self {
        let defaults = [("KAFKA_BROKER", "127.0.0.1:9"), ("LISTEN_ADDR", "127.0.0.1:0")];
        let all = defaults.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Self::from_environment(all).unwrap()
    }

    /// Reads and checks the variables.
    ///
    /// # Errors
    /// Names every variable that is missing or wrong.
    pub fn from_environment(
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let (s, mut check) = ConfigReader::read::<Settings>(Settings::VARIABLES, environment);
        let connection = read_connection(&mut check, s.kafka_broker.as_ref(), s.kafka_properties.as_ref());
        let topic = topic(&s, &mut check);
        let api_version = check.value("api_version", s.api_version.as_ref(), version);
        // The maximum size of a MongoDB document.
        let bytes = parse::number(1..=16 * 1024 * 1024_usize);
        let max_payload_bytes = check.value("max_payload_bytes", s.max_payload_bytes.as_ref(), bytes);
        let events = parse::number(1..=10_000_000_usize);
        let max_batch_events = check.value("max_batch_events", s.max_batch_events.as_ref(), events);
        let bytes = parse::number(1..=1024 * 1024 * 1024_usize);
        let max_batch_bytes = check.value("max_batch_bytes", s.max_batch_bytes.as_ref(), bytes);
        let require_id = check.value("require_id", s.require_id.as_ref(), parse::boolean);
        let accept_sources = check.optional("accept_sources", s.accept_sources.as_ref(), sources);
        let base_url = check.value("adsbdb_base_url", s.adsbdb_base_url.as_ref(), parse::base_url);
        let adsbdb_timeout = check.value("adsbdb_timeout_ms", s.adsbdb_timeout_ms.as_ref(), milliseconds);
        let max_concurrency = check.value(
            "adsbdb_max_concurrency",
            s.adsbdb_max_concurrency.as_ref(),
            parse::number(1..=1000_usize),
        );
        let max_poll_jobs =
            check.value("max_poll_jobs", s.max_poll_jobs.as_ref(), parse::number(0..=10_000_usize));
        let request_timeout = check.value("request_timeout_ms", s.request_timeout_ms.as_ref(), milliseconds);
        let delivery_timeout =
            check.value("delivery_timeout_ms", s.delivery_timeout_ms.as_ref(), milliseconds);
        let traces = TraceExport::read(&s, &mut check);
        let listen_addr = check.value("listen_addr", s.listen_addr.as_ref(), parse::address);
        let http = HttpConfig::read(&s, &mut check);
        let config = (|| {
            let (kafka_broker, kafka_properties) = connection?;
            Some(Self {
                kafka_broker,
                topic: topic?,
                kafka_properties,
                api_version: api_version?,
                max_payload_bytes: max_payload_bytes?,
                max_batch_events: max_batch_events?,
                max_batch_bytes: max_batch_bytes?,
                require_id: require_id?,
                accept_sources: accept_sources?,
                adsbdb_base_url: base_url?,
                adsbdb_timeout: adsbdb_timeout?,
                adsbdb_max_concurrency: max_concurrency?,
                max_poll_jobs: max_poll_jobs?,
                request_timeout: request_timeout?,
                delivery_timeout: delivery_timeout?,
                traces: traces?,
                listen_addr: listen_addr?,
                http: http?,
            })
        })();
        check_properties(config.as_ref(), &mut check);
        check.finish(config)
    }
}

/// Checks KAFKA_PROPERTIES together with the client's own properties, which can contradict them.
fn check_properties(config: Option<&Config>, check: &mut ConfigReader) {
    if let Some(config) = config.filter(|config| !config.kafka_properties.is_empty())
        && let Err(reason) = check_producer(
            &client_config(
                &config.kafka_broker,
                &config.kafka_properties,
                config.max_payload_bytes,
                config.delivery_timeout,
            ),
            &config.kafka_properties,
        )
    {
        check.add_error("KAFKA_PROPERTIES", reason);
    }
}

fn topic(s: &Settings, check: &mut ConfigReader) -> Option<TopicSpec> {
    let name = check.value("kafka_topic", s.kafka_topic.as_ref(), parse::topic);
    let partitions = check.value("kafka_partitions", s.kafka_partitions.as_ref(), partitions);
    let replicas = s.kafka_replication_factor.as_ref();
    let replicas = check.optional("kafka_replication_factor", replicas, replication_factor);
    Some(TopicSpec {
        name: name?,
        partitions: partitions?,
        replication_factor: replicas?.unwrap_or(BROKER_DEFAULT),
        dead_letters_of: Vec::new(),
    })
}

/// Parses a timeout from 1 ms to 15 minutes. librdkafka bounds its message timeout similarly.
fn milliseconds(text: &str) -> Result<Duration, String> {
    parse::number(1..=900_000_u64)(text).map(Duration::from_millis)
}

/// Checks `api_version`, which every event and document contains.
fn version(text: &str) -> Result<String, String> {
    if text.chars().count() <= 64 && !text.chars().any(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err("is longer than 64 characters or has control characters".into())
    }
}

fn sources(text: &str) -> Result<Vec<Source>, String> {
    let names: BTreeSet<&str> = text.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    if names.is_empty() {
        return Err("names no source".into());
    }
    let source = |name| Source::new(name).map_err(|reason| format!("names {name:?}: {reason}"));
    names.into_iter().map(source).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
        Config::from_environment(pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())))
    }

    #[test]
    fn only_the_broker_is_required() {
        let config = read(&[("KAFKA_BROKER", "k:9092")]).unwrap();
        assert_eq!((config.topic.name.as_str(), config.topic.partitions), ("events.raw", 6));
        assert_eq!(config.topic.replication_factor, -1, "the broker's default");
        assert_eq!((config.max_payload_bytes, config.max_poll_jobs), (65_536, 10));
        assert_eq!((config.api_version.as_str(), config.require_id), ("1.0.0", false));
        assert!(config.accept_sources.is_none());
        assert_eq!(config.delivery_timeout, Duration::from_secs(10));
    }

    #[test]
    fn the_error_names_every_wrong_variable() {
        let faults = read(&[
            ("KAFKA_BROKER", ""),
            ("MAX_PAYLOAD_BYTES", "abc"),
            ("ACCEPT_SOURCES", "adsbdb,system.x"),
            ("ADSBDB_BASE_URL", "adsbdb"),
            ("DELIVERY_TIMEOUT_MS", "0"),
            ("KAFKA_PROPERTIES", "acks=0"),
        ]);
        let text = faults.unwrap_err().to_string();
        for part in [
            "KAFKA_BROKER: not set",
            "MAX_PAYLOAD_BYTES: \"abc\"",
            "ACCEPT_SOURCES: ",
            "ADSBDB_BASE_URL: ",
            "DELIVERY_TIMEOUT_MS: ",
            "KAFKA_PROPERTIES: names acks",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn properties_that_contradict_those_of_the_client_are_an_error() {
        for (wrong, words) in [
            ("linger.ms=20000", "message.timeout.ms"),
            ("reconnect.backoff.ms=500", "reconnect.backoff.max.ms"),
        ] {
            let faults = read(&[("KAFKA_BROKER", "k:9092"), ("KAFKA_PROPERTIES", wrong)]).unwrap_err();
            let text = faults.to_string();
            assert!(text.contains("KAFKA_PROPERTIES: ") && text.contains(words), "{text}");
        }
        read(&[("KAFKA_BROKER", "k:9092"), ("KAFKA_PROPERTIES", "linger.ms=20")]).unwrap();
    }

    #[test]
    fn accepted_sources_are_a_sorted_list() {
        let config = read(&[("KAFKA_BROKER", "k:1"), ("ACCEPT_SOURCES", " manual, adsbdb,")]).unwrap();
        let names: Vec<String> = config.accept_sources.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["adsbdb", "manual"]);
        for wrong in ["system.a", "a.system.b", "manual,a.system.b", "a.", "a..b"] {
            let faults = read(&[("KAFKA_BROKER", "k:1"), ("ACCEPT_SOURCES", wrong)]).unwrap_err();
            assert!(faults.to_string().contains("ACCEPT_SOURCES: "), "{wrong}: {faults}");
        }
    }
}
