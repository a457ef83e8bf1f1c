//! The producer's configuration: what the environment must say, checked whole before anything starts.

pub mod http;
pub mod traces;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use events::Source;
use kafka::topics::{BROKER_DEFAULT, TopicSpec, partitions, replication_factor};
use kafka::{KafkaProperties, check_producer, read_connection};
use service::{ConfigErrors, ConfigReader, Kind, parse};
use url::Url;

use crate::kafka::properties::client_config;
use http::Entrance;
use traces::Export;

service::settings! {
    /// What the producer reads from its environment.
    pub struct Settings {
        /// Kafka bootstrap servers, `host:port`, separated by commas. A scheme, as in
        /// `SASL_SSL://host:port`, sets `security.protocol`.
        kafka_broker: Kind::Required,
        /// Topic that events go to.
        kafka_topic: Kind::Default("events.raw"),
        /// `api_version` of every event.
        api_version: Kind::Default("1.0.0"),
        /// Largest body of an event, in bytes.
        max_payload_bytes: Kind::Default("65536"),
        /// Most events in one batch.
        max_batch_events: Kind::Default("10000"),
        /// Largest body of a batch, in bytes, decompressed.
        max_batch_bytes: Kind::Default("16777216"),
        /// Whether `/ingest` and `/ingest/batch` refuse an event that brings no id.
        require_id: Kind::Default("false"),
        /// Sources that `/ingest` and `/ingest/batch` accept, separated by commas; `/ingest/adsbdb` brings `adsbdb` all the same.
        accept_sources: Kind::Optional("all"),
        /// Base URL of ADSBDB.
        adsbdb_base_url: Kind::Default("https://api.adsbdb.com"),
        /// How long a question to ADSBDB may take, its retries included, in milliseconds.
        adsbdb_timeout_ms: Kind::Default("10000"),
        /// Most questions to ADSBDB at a time.
        adsbdb_max_concurrency: Kind::Default("4"),
        /// Most poll jobs at a time.
        max_poll_jobs: Kind::Default("10"),
        /// How long a request's head, and then its body, may take to arrive, in milliseconds.
        request_timeout_ms: Kind::Default("10000"),
        /// How long a connection may be idle between two requests, in milliseconds.
        idle_timeout_ms: Kind::Default("75000"),
        /// Most connections at a time; beyond it the answer is 503.
        max_connections: Kind::Default("12000"),
        /// Most requests at a time that bring events or start poll jobs; beyond it the answer is 503.
        max_in_flight: Kind::Default("2048"),
        /// Keys of those who may use `/ingest…`: `name:sha256` pairs, separated by commas or lines.
        api_keys: Kind::OptionalSecret("everybody may"),
        /// Origins whose web pages may send events and read answers, as in `https://app.example.com`, separated by commas; `*` is all.
        cors_allowed_origins: Kind::Optional("none"),
        /// Certificate chain of the HTTP interface, a PEM file; then TLS is all it speaks. A change is noticed.
        tls_cert_file: Kind::Optional("no TLS"),
        /// Private key of the certificate, a PEM file.
        tls_key_file: Kind::Optional("no TLS"),
        /// How long the broker may take to acknowledge an event, in milliseconds; then the answer is 504.
        delivery_timeout_ms: Kind::Default("10000"),
        /// Partitions of the topic, if it has to be made.
        kafka_partitions: Kind::Default("6"),
        /// Replication factor of the topic, if it has to be made.
        kafka_replication_factor: Kind::Optional("the broker's default"),
        /// Further librdkafka properties, `key=value` separated by semicolons, as for SASL_SSL;
        /// in a value, `\;` is a semicolon and `\\` a backslash. The file has one property a line.
        kafka_properties: Kind::OptionalSecret("none"),
        /// OpenTelemetry collector that traces go to, OTLP over HTTP, as in `http://collector:4318`.
        otel_exporter_otlp_endpoint: Kind::Optional("no traces are exported"),
        /// `service.name` of the traces.
        otel_service_name: Kind::Default("slipstream-producer"),
        /// Which traces are exported: `always_on`, `always_off`, `traceidratio`; with `parentbased_` before it the request's `traceparent` decides where there is one.
        otel_traces_sampler: Kind::Default("parentbased_always_on"),
        /// Share of the traces, 0 to 1, for the samplers of `traceidratio`.
        otel_traces_sampler_arg: Kind::Default("1"),
        /// Address of the HTTP interface.
        listen_addr: Kind::Default("0.0.0.0:8080"),
    }
}

/// The configuration, every value valid.
#[derive(Debug, Clone)]
pub struct Config {
    /// Rebootstrap servers.
    pub kafka_broker: String,
    /// The topic, and how it is made if it is missing.
    pub topic: TopicSpec,
    /// Further librdkafka properties.
    pub kafka_properties: KafkaProperties,
    /// `api_version` of every event.
    pub api_version: String,
    /// Largest body of an event.
    pub max_payload_bytes: usize,
    /// Most events in one batch.
    pub max_batch_events: usize,
    /// Largest body of a batch, decompressed.
    pub max_batch_bytes: usize,
    /// Whether an event must bring an id.
    pub require_id: bool,
    /// Sources that are accepted; `None` is all.
    pub accept_sources: Option<Vec<Source>>,
    /// Base URL of ADSBDB.
    pub adsbdb_base_url: Url,
    /// How long a question to ADSBDB may take, its retries included.
    pub adsbdb_timeout: Duration,
    /// Most questions to ADSBDB at a time.
    pub adsbdb_max_concurrency: usize,
    /// Most poll jobs at a time.
    pub max_poll_jobs: usize,
    /// How long a request's head, and then its body, may take to arrive.
    pub request_timeout: Duration,
    /// How long the broker may take to acknowledge an event.
    pub delivery_timeout: Duration,
    /// How traces are exported, if they are.
    pub traces: Option<Export>,
    /// Where HTTP is served; port 0 takes a free one.
    pub listen_addr: SocketAddr,
    /// Who is let in, and how many.
    pub entrance: Entrance,
}

impl Config {
    /// That of a producer whose Kafka is away, with more variables.
    #[cfg(test)]
    pub fn without_kafka(more: &[(&str, &str)]) -> Self {
        let own = [("KAFKA_BROKER", "127.0.0.1:9"), ("LISTEN_ADDR", "127.0.0.1:0")];
        let all = own.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Self::from_environment(all).unwrap()
    }

    /// Reads the environment.
    ///
    /// # Errors
    /// Every variable that is missing or wrong, by name.
    pub fn from_environment(
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let (s, mut check) = ConfigReader::read::<Settings>(Settings::VARIABLES, environment);
        let connection = read_connection(&mut check, s.kafka_broker.as_ref(), s.kafka_properties.as_ref());
        let topic = topic(&s, &mut check);
        let api_version = check.value("api_version", s.api_version.as_ref(), version);
        // A document holds 16 MiB.
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
        let at_a_time = check.value(
            "adsbdb_max_concurrency",
            s.adsbdb_max_concurrency.as_ref(),
            parse::number(1..=1000_usize),
        );
        let jobs = check.value("max_poll_jobs", s.max_poll_jobs.as_ref(), parse::number(0..=10_000_usize));
        let request_timeout = check.value("request_timeout_ms", s.request_timeout_ms.as_ref(), milliseconds);
        let delivery_timeout =
            check.value("delivery_timeout_ms", s.delivery_timeout_ms.as_ref(), milliseconds);
        let traces = Export::read(&s, &mut check);
        let listen_addr = check.value("listen_addr", s.listen_addr.as_ref(), parse::address);
        let entrance = Entrance::read(&s, &mut check);
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
                adsbdb_max_concurrency: at_a_time?,
                max_poll_jobs: jobs?,
                request_timeout: request_timeout?,
                delivery_timeout: delivery_timeout?,
                traces: traces?,
                listen_addr: listen_addr?,
                entrance: entrance?,
            })
        })();
        check_properties(config.as_ref(), &mut check);
        check.finish(config)
    }
}

/// Properties that are right by themselves may not fit those that the client has besides.
fn check_properties(config: Option<&Config>, check: &mut ConfigReader) {
    if let Some(config) = config.filter(|config| !config.kafka_properties.is_empty())
        && let Err(why) = check_producer(
            &client_config(
                &config.kafka_broker,
                &config.kafka_properties,
                config.max_payload_bytes,
                config.delivery_timeout,
            ),
            &config.kafka_properties,
        )
    {
        check.add_error("KAFKA_PROPERTIES", why);
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

/// From 1 ms to 15 minutes: librdkafka itself takes no longer message timeout than its other timeouts allow.
fn milliseconds(text: &str) -> Result<Duration, String> {
    parse::number(1..=900_000_u64)(text).map(Duration::from_millis)
}

/// It goes into every event and every document.
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
    let one = |name| Source::new(name).map_err(|why| format!("names {name:?}: {why}"));
    names.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
        Config::from_environment(pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())))
    }

    #[test]
    fn the_broker_is_all_that_must_be_set() {
        let config = read(&[("KAFKA_BROKER", "k:9092")]).unwrap();
        assert_eq!((config.topic.name.as_str(), config.topic.partitions), ("events.raw", 6));
        assert_eq!(config.topic.replication_factor, -1, "the broker's default");
        assert_eq!((config.max_payload_bytes, config.max_poll_jobs), (65_536, 10));
        assert_eq!((config.api_version.as_str(), config.require_id), ("1.0.0", false));
        assert!(config.accept_sources.is_none());
        assert_eq!(config.delivery_timeout, Duration::from_secs(10));
    }

    #[test]
    fn every_wrong_variable_is_named_at_once() {
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
    fn properties_that_do_not_fit_the_clients_own_are_a_fault() {
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
    fn accepted_sources_are_a_list() {
        let config = read(&[("KAFKA_BROKER", "k:1"), ("ACCEPT_SOURCES", " manual, adsbdb,")]).unwrap();
        let names: Vec<String> = config.accept_sources.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["adsbdb", "manual"]);
        for wrong in ["system.a", "a.system.b", "manual,a.system.b", "a.", "a..b"] {
            let faults = read(&[("KAFKA_BROKER", "k:1"), ("ACCEPT_SOURCES", wrong)]).unwrap_err();
            assert!(faults.to_string().contains("ACCEPT_SOURCES: "), "{wrong}: {faults}");
        }
    }
}
