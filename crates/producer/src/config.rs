//! The configuration of the producer: the declaration of every variable, and the validated values.
//! All variables are read and checked before anything starts, so that one error names every wrong
//! variable.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use events::Source;
use kafka::topics::{BROKER_DEFAULT, TopicSpec, partitions, replication_factor};
use kafka::{KafkaProperties, check_producer, read_connection};
use service::{ConfigErrors, ConfigReader, Kind, parse};
use sources::{Secrets, Sources, Upstream};
use url::Url;

use crate::http::auth::ApiKeys;
use crate::http::cors::Origins;
use crate::http::tls::Tls;
use crate::kafka::client::client_config;

service::settings! {
    /// The values of the variables, unparsed.
    pub struct Settings {
        /// Kafka bootstrap servers, `host:port`, separated by commas. A scheme, as in
        /// `SASL_SSL://host:port`, sets `security.protocol`.
        kafka_broker: Kind::Required,
        /// Topic of the events.
        kafka_topic: Kind::Default("events.raw"),
        /// `api_version` of every event.
        api_version: Kind::Default("1.0.0"),
        /// Maximum size of an event's body, in bytes.
        max_payload_bytes: Kind::Default("65536"),
        /// Maximum number of events in a batch request, at most 100,000.
        max_batch_events: Kind::Default("10000"),
        /// Maximum size of a batch request's body after decompression, in bytes.
        max_batch_bytes: Kind::Default("16777216"),
        /// Whether `/ingest` and `/ingest/batch` reject events without an id.
        require_id: Kind::Default("false"),
        /// Sources that `/ingest` and `/ingest/batch` accept, separated by commas. `/ingest/adsbdb`
        /// is not affected.
        accept_sources: Kind::Optional("all"),
        /// Sources file: APIs to fetch and senders of records, each with its own documents.
        sources_file: Kind::Optional("every setting is as without a file"),
        /// Dead-letter topic, for records that were fetched and can never be stored.
        dead_letter_topic: Kind::Optional("the record's topic with `.dlq` added"),
        /// Base URL of ADSBDB.
        adsbdb_base_url: Kind::Default("https://api.adsbdb.com"),
        /// Timeout of a call to ADSBDB including its retries, in milliseconds.
        adsbdb_timeout_ms: Kind::Default("10000"),
        /// Maximum number of concurrent requests to ADSBDB.
        adsbdb_max_concurrency: Kind::Default("4"),
        /// Maximum number of running poll jobs, of all sources together.
        max_poll_jobs: Kind::Default("10"),
        /// Timeout to receive the head of a request, and the same again for its body, in
        /// milliseconds.
        request_timeout_ms: Kind::Default("10000"),
        /// Timeout of an idle connection between two requests, in milliseconds.
        idle_timeout_ms: Kind::Default("75000"),
        /// Maximum number of open connections. Requests on further connections get a 503.
        max_connections: Kind::Default("12000"),
        /// Maximum number of concurrent requests that send events or start poll jobs. Further
        /// requests get a 503.
        max_in_flight: Kind::Default("2048"),
        /// API keys for `/ingest…`: `name:sha256` pairs, separated by commas or lines. A third part,
        /// as in `name:sha256:orders`, names the only sources of the key, separated by vertical bars.
        api_keys: Kind::OptionalSecret("authentication is off"),
        /// Origins whose web pages may send events and read responses, as in
        /// `https://app.example.com`, separated by commas; `*` allows all.
        cors_allowed_origins: Kind::Optional("none"),
        /// Certificate chain of the HTTP server, a PEM file. It enables HTTPS and disables plain
        /// HTTP. A changed file is reloaded.
        tls_cert_file: Kind::Optional("TLS is off"),
        /// Private key of the certificate, a PEM file.
        tls_key_file: Kind::Optional("TLS is off"),
        /// Timeout for Kafka to acknowledge an event, in milliseconds. After it the response is a
        /// 504.
        delivery_timeout_ms: Kind::Default("10000"),
        /// Number of partitions of the topic, if the producer creates it.
        kafka_partitions: Kind::Default("6"),
        /// Replication factor of the topic, if the producer creates it.
        kafka_replication_factor: Kind::Optional("the broker's default"),
        /// Further librdkafka properties, `key=value` separated by semicolons, as for SASL_SSL. In
        /// a value, `\;` is a semicolon and `\\` a backslash. The file has one property per line.
        kafka_properties: Kind::OptionalSecret("none"),
        /// OpenTelemetry collector for traces, OTLP over HTTP, as in `http://collector:4318`.
        otel_exporter_otlp_endpoint: Kind::Optional("traces are off"),
        /// `service.name` of the traces.
        otel_service_name: Kind::Default("slipstream-producer"),
        /// Sampler of the traces: `always_on`, `always_off` or `traceidratio`. With the prefix
        /// `parentbased_` a request's `traceparent` decides, if there is one.
        otel_traces_sampler: Kind::Default("parentbased_always_on"),
        /// Share of the traces that `traceidratio` exports, from 0 to 1.
        otel_traces_sampler_arg: Kind::Default("1"),
        /// Address of the HTTP server.
        listen_addr: Kind::Default("0.0.0.0:8080"),
    }
}

/// The source of the built-in client of ADSBDB, which has endpoints without a file too.
pub const ADSBDB: &str = "adsbdb";

/// Maximum size of the answer of an API, and so of a record in it.
pub const MAX_FETCHED_BYTES: usize = 16 * 1024 * 1024;

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
    /// SOURCES_FILE. `None` if there is no file.
    pub sources: Option<Arc<Sources>>,
    /// DEAD_LETTER_TOPIC. `None` if each topic has its own.
    pub dead_letter_topic: Option<String>,
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

/// Whether the source is an API of the file. ADSBDB has no dead letters here: its faults are errors.
fn is_fetched(source: &sources::Source) -> bool {
    source.pull.as_ref().is_some_and(|pull| matches!(pull.upstream, Upstream::Http(_)))
}

impl Config {
    /// The topic of a source: its own, or else KAFKA_TOPIC.
    pub fn topic_of<'c>(&'c self, source: &'c sources::Source) -> &'c str {
        source.topic.as_deref().unwrap_or(&self.topic.name)
    }

    /// Maximum size of a record of a client or an API, in bytes.
    pub fn max_record_bytes(&self) -> usize {
        let fetches = self.sources.iter().flat_map(|sources| sources.iter()).any(is_fetched);
        if fetches { self.max_payload_bytes.max(MAX_FETCHED_BYTES) } else { self.max_payload_bytes }
    }

    /// The dead-letter topic of a topic.
    pub fn dead_letters_of(&self, topic: &str) -> String {
        self.dead_letter_topic.clone().unwrap_or_else(|| format!("{topic}.dlq"))
    }

    /// The topics that must exist: KAFKA_TOPIC, those of the sources, and the dead-letter topics of
    /// the sources that are fetched. The topic of DEAD_LETTER_TOPIC also gets the dead letters of
    /// the consumer, so it must fit the records of every topic.
    pub fn topics(&self) -> Vec<TopicSpec> {
        let mut specs = vec![self.topic.clone()];
        let sources = || self.sources.iter().flat_map(|sources| sources.iter());
        for name in sources().map(|source| self.topic_of(source)) {
            if specs.iter().all(|spec| spec.name != name) {
                specs.push(TopicSpec { name: name.to_owned(), ..self.topic.clone() });
            }
        }
        let all: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
        for topic in sources().filter(|source| is_fetched(source)).map(|source| self.topic_of(source)) {
            let name = self.dead_letters_of(topic);
            if specs.iter().all(|spec| spec.name != name) {
                let is_shared = self.dead_letter_topic.is_some();
                let dead_letters_of = if is_shared { all.clone() } else { vec![topic.to_owned()] };
                specs.push(TopicSpec { name, dead_letters_of, ..self.topic.clone() });
            }
        }
        specs
    }

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
        let environment: Vec<(String, String)> = environment.into_iter().collect();
        let (s, mut check) = ConfigReader::read::<Settings>(Settings::VARIABLES, environment.iter().cloned());
        let connection = read_connection(&mut check, s.kafka_broker.as_ref(), s.kafka_properties.as_ref());
        let topic = topic(&s, &mut check);
        let api_version = check.value("api_version", s.api_version.as_ref(), version);
        // The maximum size of a MongoDB document.
        let bytes = parse::number(1..=16 * 1024 * 1024_usize);
        let max_payload_bytes = check.value("max_payload_bytes", s.max_payload_bytes.as_ref(), bytes);
        let events = parse::number(1..=100_000_usize);
        let max_batch_events = check.value("max_batch_events", s.max_batch_events.as_ref(), events);
        let bytes = parse::number(1..=1024 * 1024 * 1024_usize);
        let max_batch_bytes = check.value("max_batch_bytes", s.max_batch_bytes.as_ref(), bytes);
        let require_id = check.value("require_id", s.require_id.as_ref(), parse::boolean);
        let accept_sources = check.optional("accept_sources", s.accept_sources.as_ref(), sources);
        let sources = Sources::of_process(&mut check, s.sources_file.as_ref(), &environment, Secrets::Read);
        let dead_letter_topic =
            check.optional("dead_letter_topic", s.dead_letter_topic.as_ref(), parse::topic);
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
                sources: sources?.map(Arc::new),
                dead_letter_topic: dead_letter_topic?,
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
                config.max_record_bytes(),
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

/// The limits, authentication, CORS and TLS of the HTTP server.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    pub max_connections: usize,
    pub max_in_flight: usize,
    pub idle_timeout: Duration,
    /// `None` if authentication is off.
    pub api_keys: Option<ApiKeys>,
    /// `None` if no cross-origin request is allowed.
    pub cors_origins: Option<Origins>,
    /// `None` for plain HTTP.
    pub tls: Option<Tls>,
}

impl HttpConfig {
    /// Parses the variables.
    pub fn read(s: &Settings, check: &mut ConfigReader) -> Option<Self> {
        let number = parse::number(1..=1_000_000_usize);
        let max_connections = check.value("max_connections", s.max_connections.as_ref(), number);
        let number = parse::number(1..=1_000_000_usize);
        let max_in_flight = check.value("max_in_flight", s.max_in_flight.as_ref(), number);
        let number = parse::number(1..=3_600_000_u64);
        let idle_timeout_ms = check.value("idle_timeout_ms", s.idle_timeout_ms.as_ref(), number);
        let api_keys = check.optional("api_keys", s.api_keys.as_ref(), ApiKeys::parse);
        let origins = check.optional("cors_allowed_origins", s.cors_allowed_origins.as_ref(), Origins::parse);
        let tls = tls(s, check);
        Some(Self {
            max_connections: max_connections?,
            max_in_flight: max_in_flight?,
            idle_timeout: Duration::from_millis(idle_timeout_ms?),
            api_keys: api_keys?,
            cors_origins: origins?,
            tls: tls?,
        })
    }
}

/// Reads certificate and key. Both variables must be set, or neither.
fn tls(s: &Settings, check: &mut ConfigReader) -> Option<Option<Tls>> {
    match (s.tls_cert_file.as_deref().map(str::trim), s.tls_key_file.as_deref().map(str::trim)) {
        (None, None) => return Some(None),
        (Some(certificate), Some(key)) => match Tls::load(certificate, key) {
            Ok(tls) => return Some(Some(tls)),
            Err(reason) => check.add_error("TLS_CERT_FILE, TLS_KEY_FILE", reason),
        },
        (Some(_), None) => {
            check.add_error("TLS_KEY_FILE", "not set, but TLS_CERT_FILE is: set both or neither");
        }
        (None, Some(_)) => {
            check.add_error("TLS_CERT_FILE", "not set, but TLS_KEY_FILE is: set both or neither");
        }
    }
    None
}

/// The export of traces.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceExport {
    /// The URL of the collector, without `/v1/traces`.
    pub endpoint: Url,
    pub service_name: String,
    pub sampling: Sampling,
}

/// Which traces are exported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Whether the `traceparent` of a request decides, if it has one.
    pub parent_based: bool,
    /// The share of the other traces, from 0 to 1.
    pub ratio: f64,
}

impl TraceExport {
    /// Parses the variables. `Some(None)` means that no traces are exported.
    pub fn read(s: &Settings, check: &mut ConfigReader) -> Option<Option<Self>> {
        let endpoint = s.otel_exporter_otlp_endpoint.as_ref();
        let endpoint = check.optional("otel_exporter_otlp_endpoint", endpoint, parse::base_url);
        let service_name = check.value("otel_service_name", s.otel_service_name.as_ref(), parse::text);
        let sampler = check.value("otel_traces_sampler", s.otel_traces_sampler.as_ref(), sampler);
        let ratio = check.value("otel_traces_sampler_arg", s.otel_traces_sampler_arg.as_ref(), ratio);
        let (service_name, (parent_based, fixed), ratio) = (service_name?, sampler?, ratio?);
        let sampling = Sampling { parent_based, ratio: fixed.unwrap_or(ratio) };
        Some(endpoint?.map(|endpoint| Self { endpoint, service_name, sampling }))
    }
}

/// Parses the sampler: whether the parent decides, and the share of the other traces. The share is
/// `None` if OTEL_TRACES_SAMPLER_ARG defines it.
fn sampler(text: &str) -> Result<(bool, Option<f64>), String> {
    let (parent_based, rest) = match text.strip_prefix("parentbased_") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    match rest {
        "always_on" => Ok((parent_based, Some(1.0))),
        "always_off" => Ok((parent_based, Some(0.0))),
        "traceidratio" => Ok((parent_based, None)),
        _ => {
            Err("is not always_on, always_off or traceidratio, with or without the prefix parentbased_"
                .into())
        }
    }
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err("is not a number from 0 to 1".into()),
    }
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
    fn each_fault_of_the_sources_file_has_its_line_and_column() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.yaml").display().to_string();
        let errors = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let pairs = [("KAFKA_BROKER", "k:1"), ("SOURCES_FILE", &*path), ("DELIVERY_TIMEOUT_MS", "0")];
            read(&pairs).unwrap_err().to_string()
        };
        let text = errors(
            "sources:\n  a: {push: {}, event: {id: /a}, colour: red}\n  b: {push: 1, event: {id: /a}}\n",
        );
        for part in [format!("\n{path}:2:"), format!("\n{path}:3:"), "DELIVERY_TIMEOUT_MS: ".into()] {
            assert!(text.contains(&part), "{part} in {text}");
        }
        let text = errors("sources:\n  adsbdb: {push: {}, event: {id: /a}}\n");
        assert!(text.contains(&format!("\n{path}:2:3: sources.adsbdb: the name is reserved")), "{text}");
    }

    #[test]
    fn topics_are_those_of_all_sources_and_of_dead_letters_of_apis() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.yaml").display().to_string();
        let file = "sources:\n  a: {push: {}, topic: a.raw, event: {id: /a}}\n  b: {pull: {url: 'http://${HOST}'}, \
                    topic: b.raw, event: {id: /a}}\n  c: {pull: {url: 'http://h'}, event: {id: /a}}\n  adsbdb: {pull: \
                    {kind: adsbdb}, topic: p.raw}\n";
        std::fs::write(&path, file).unwrap();
        let base = [("KAFKA_BROKER", "k:1"), ("SOURCES_FILE", &*path), ("HOST", "h")];
        let names = |more: &[(&str, &str)]| -> Vec<String> {
            let specs = read(&[&base[..], more].concat()).unwrap().topics();
            specs
                .into_iter()
                .map(|spec| format!("{} {}", spec.name, spec.dead_letters_of.join(",")))
                .collect()
        };
        let sources = ["events.raw ", "a.raw ", "b.raw ", "p.raw "];
        let own = names(&[]);
        assert_eq!(own[..4], sources);
        assert_eq!(own[4..], ["b.raw.dlq b.raw", "events.raw.dlq events.raw"]);
        let shared = names(&[("DEAD_LETTER_TOPIC", "dead")]);
        assert_eq!(shared[4..], ["dead events.raw,a.raw,b.raw,p.raw"]);
    }

    #[test]
    fn the_error_names_every_wrong_variable() {
        let faults = read(&[
            ("KAFKA_BROKER", ""),
            ("MAX_PAYLOAD_BYTES", "abc"),
            ("MAX_BATCH_EVENTS", "100001"),
            ("ACCEPT_SOURCES", "adsbdb,system.x"),
            ("ADSBDB_BASE_URL", "adsbdb"),
            ("DELIVERY_TIMEOUT_MS", "0"),
            ("KAFKA_PROPERTIES", "acks=0"),
        ]);
        let text = faults.unwrap_err().to_string();
        for part in [
            "KAFKA_BROKER: not set",
            "MAX_PAYLOAD_BYTES: \"abc\"",
            "MAX_BATCH_EVENTS: \"100001\"",
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

    fn read_traces(pairs: &[(&str, &str)]) -> Result<Option<TraceExport>, String> {
        let pairs = pairs.iter().chain(&[("KAFKA_BROKER", "k:9092")]);
        let pairs = pairs.map(|(name, value)| ((*name).into(), (*value).into()));
        Config::from_environment(pairs).map(|config| config.traces).map_err(|faults| faults.to_string())
    }

    #[test]
    fn no_trace_is_exported_without_an_endpoint() {
        assert_eq!(read_traces(&[("OTEL_TRACES_SAMPLER", "always_on")]), Ok(None));
    }

    #[test]
    fn the_standard_samplers_are_supported() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/");
        let export = read_traces(&[endpoint]).unwrap().unwrap();
        assert_eq!(export.endpoint.as_str(), "http://collector:4318/");
        assert_eq!(export.service_name, "slipstream-producer");
        assert_eq!(export.sampling, Sampling { parent_based: true, ratio: 1.0 });
        for (name, parent_based, ratio) in [
            ("always_on", false, 1.0),
            ("always_off", false, 0.0),
            ("traceidratio", false, 0.25),
            ("parentbased_always_off", true, 0.0),
            ("parentbased_traceidratio", true, 0.25),
        ] {
            let sampler = [endpoint, ("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", "0.25")];
            let sampling = read_traces(&sampler).unwrap().unwrap().sampling;
            assert_eq!(sampling, Sampling { parent_based, ratio }, "{name}");
        }
    }

    #[test]
    fn the_error_names_every_wrong_variable_of_traces() {
        let error = read_traces(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
            ("OTEL_TRACES_SAMPLER", "xray"),
            ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
        ]);
        let error = error.unwrap_err();
        for name in ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_SAMPLER:", "OTEL_TRACES_SAMPLER_ARG"] {
            assert!(error.contains(name), "{name} in {error}");
        }
    }
}
