//! The settings that every Kafka client of Slipstream shares. Each librdkafka property is set in one place, with
//! its reason beside it; what is specific to a producer or a consumer stands in that crate's `kafka` module.

use std::sync::{Arc, Mutex};

use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::future_producer::OwnedDeliveryResult;
use rdkafka::producer::{DeliveryResult, ProducerContext};

use crate::Secret;
use crate::bootstrap::Bootstrap;
use crate::lock::lock;

/// Properties that a promise rests on: naming one in KAFKA_PROPERTIES is a wrong configuration.
const RESERVED: &[&str] = &[
    "acks",
    "request.required.acks",
    "enable.idempotence",
    "enable.auto.commit",
    "auto.commit.enable",
    "enable.auto.offset.store",
    "partition.assignment.strategy",
    "partitioner",
    "auto.offset.reset",
    "allow.auto.create.topics",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "transactional.id",
    "group.protocol",
    "bootstrap.servers",
    "metadata.broker.list",
    "group.id",
    // A record that was stored would never be known to be.
    "delivery.report.only.error",
    // A broker that is away is known by its connections that close.
    "log.connection.close",
    // A client that has forgotten every broker is known by what it tells of itself.
    "statistics.interval.ms",
];

/// KAFKA_PROPERTIES: `key=value` pairs separated by semicolons, passed on to librdkafka. Values are not shown.
#[derive(Debug, Clone, Default)]
pub struct KafkaProperties(Vec<(String, Secret)>);

impl KafkaProperties {
    /// The parser of the variable.
    ///
    /// # Errors
    /// A pair without `=`, a property that librdkafka does not know or whose value it refuses, or one that a
    /// promise rests on.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut pairs = Vec::new();
        for pair in text.split(';').filter(|pair| !pair.trim().is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err("has an entry that is not key=value (entries are separated by semicolons)".into());
            };
            // librdkafka's second names: set beside the first, either could win.
            let key = match key.trim() {
                "compression.codec" => "compression.type",
                "queue.buffering.max.ms" => "linger.ms",
                key => key,
            };
            if RESERVED.contains(&key) {
                return Err(format!("names {key}, which Slipstream sets itself: its promises rest on it"));
            }
            pairs.push((key.to_owned(), Secret::new(value.trim())));
        }
        let properties = Self(pairs);
        let mut config = ClientConfig::new();
        properties.apply(&mut config);
        config.set("enable.idempotence", "true");
        check_producer(&config).map(|()| properties)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn apply(&self, config: &mut ClientConfig) {
        for (key, value) in &self.0 {
            config.set(key, value.expose());
        }
    }
}

/// What every client starts from; `defaults` are the properties of the particular client, which
/// KAFKA_PROPERTIES may override unless a promise rests on them.
pub fn client_config(
    bootstrap: &str,
    client_id: &str,
    defaults: &[(&str, &str)],
    properties: &KafkaProperties,
) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("client.id", client_id)
        // A half-open connection is given up after this long, not after the default minute; the client library looks
        // once a second, and work must resume within 10 s.
        .set("socket.timeout.ms", "8000")
        .set("socket.connection.setup.timeout.ms", "2000")
        .set("socket.keepalive.enable", "true")
        // Small requests must not wait for more to send: answers wait for the acknowledgement.
        .set("socket.nagle.disable", "true")
        // The default grows to 10 s, and work must resume within 5 s of a server's return.
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "200")
        // A client whose known brokers do not answer looks among its bootstrap servers again after this long, not after the
        // default of 5 minutes. One that knows none does not (see `bootstrap`).
        .set("metadata.recovery.rebootstrap.trigger.ms", "2000")
        // A topic is made by this program, with the partitions it was told, never by chance.
        .set("allow.auto.create.topics", "false");
    for (key, value) in defaults {
        config.set(*key, *value);
    }
    properties.apply(&mut config);
    config.set_log_level(RDKafkaLogLevel::Info);
    config
}

/// Whether librdkafka makes a producer of `config`: properties that do not fit together, and files that are not there,
/// show only when a client is made. It connects to nothing.
///
/// # Errors
/// Why not, to go on after the name of the variable.
pub fn check_producer(config: &ClientConfig) -> Result<(), String> {
    let made = unconnected(config).create_with_context::<_, AdminClient<QuietContext>>(QuietContext);
    made.map(drop).map_err(refusal)
}

/// As [`check_producer`], for a consumer.
///
/// # Errors
/// Why not, to go on after the name of the variable.
pub fn check_consumer(config: &ClientConfig) -> Result<(), String> {
    let made = unconnected(config).create_with_context::<_, BaseConsumer<QuietContext>>(QuietContext);
    made.map(drop).map_err(refusal)
}

fn unconnected(config: &ClientConfig) -> ClientConfig {
    let mut config = config.clone();
    config.remove("bootstrap.servers");
    config
}

fn refusal(error: KafkaError) -> String {
    match error {
        KafkaError::ClientCreation(why) => format!("is refused by librdkafka: {why}"),
        KafkaError::ClientConfig(_, description, key, _) => {
            format!("names {key}, which librdkafka refuses: {}", description.replace('\n', " "))
        }
        _ => "is refused by librdkafka".into(),
    }
}

/// A context that keeps librdkafka's own lines at debug: a change of state is told once, by whoever sees it.
#[derive(Debug, Clone, Copy, Default)]
pub struct QuietContext;

impl ClientContext for QuietContext {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", error = %error, reason, "client error");
    }
}

impl ConsumerContext for QuietContext {}

/// As [`QuietContext`], of a client that lasts and is polled, or it hears nothing. Keeps why the last connection failed:
/// a question that fails says only that, and not that the broker refuses the password, say.
#[derive(Debug)]
pub struct Listening {
    last_failure: Mutex<Option<String>>,
    bootstrap: Arc<Bootstrap>,
}

impl Listening {
    /// Has heard nothing yet.
    pub fn new(bootstrap: Arc<Bootstrap>) -> Self {
        Self { last_failure: Mutex::default(), bootstrap }
    }

    /// Why the last connection failed, if one has since [`Listening::forget`].
    pub fn last_failure(&self) -> Option<String> {
        lock(&self.last_failure).clone()
    }

    /// To be called when a connection works.
    pub fn forget(&self) {
        *lock(&self.last_failure) = None;
    }
}

impl ClientContext for Listening {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        QuietContext.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // That all brokers are down follows from what was told of each.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            // How long the connection lasted is not a part of the reason.
            let why = reason.split_once(" (after ").map_or(reason, |(why, _)| why);
            *lock(&self.last_failure) = Some(why.to_owned());
        }
        QuietContext.error(error, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.bootstrap.told(statistics);
    }
}

impl ConsumerContext for Listening {}

impl ProducerContext for Listening {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// What a `FutureProducer` tells of a record, taken for stored only if it says where.
///
/// # Errors
/// It failed; or it was delivered without an offset, which librdkafka makes of a broker that knows a later record of
/// this client. On a topic that was made anew that proves nothing.
pub fn stored(delivery: OwnedDeliveryResult) -> Result<(), KafkaError> {
    match delivery {
        Ok(delivery) if delivery.offset >= 0 => Ok(()),
        Ok(_) => Err(KafkaError::MessageProduction(RDKafkaErrorCode::DuplicateSequenceNumber)),
        Err((error, _)) => Err(error),
    }
}

/// Passes on a line of librdkafka, at debug and under its own target.
pub fn log_line(facility: &str, message: &str) {
    tracing::debug!(target: "librdkafka", facility, detail = message, "client line");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_that_a_promise_rests_on_is_refused_by_name() {
        for key in [
            "acks",
            "enable.idempotence",
            "enable.auto.commit",
            "partition.assignment.strategy",
            "delivery.report.only.error",
            "log.connection.close",
            "statistics.interval.ms",
        ] {
            let error = KafkaProperties::parse(&format!("client.rack=a;{key}=1")).unwrap_err();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn an_unknown_property_is_refused_by_name_and_its_value_is_not_shown() {
        let error = KafkaProperties::parse("no.such.property=hunter2").unwrap_err();
        assert!(error.contains("no.such.property") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn properties_reach_the_client_and_stay_out_of_debug() {
        let properties = KafkaProperties::parse("sasl.username=u; sasl.password=a=b ;").unwrap();
        let config = client_config("h:1", "c", &[], &properties);
        assert_eq!(config.get("sasl.password"), Some("a=b"));
        assert!(!format!("{properties:?}").contains("a=b"));
    }

    #[test]
    fn properties_that_do_not_fit_together_are_refused() {
        for wrong in ["retries=0", "security.protocol=SSL;ssl.ca.location=/no/such/file"] {
            assert!(KafkaProperties::parse(wrong).unwrap_err().contains("refused by librdkafka"), "{wrong}");
        }
    }

    #[test]
    fn the_reason_of_a_failure_is_kept_until_a_connection_works() {
        let context = Listening::new(Bootstrap::of(&mut ClientConfig::new()));
        let why = "sasl_ssl://k:9092/bootstrap: SASL authentication error: Authentication failed";
        let error = |code| KafkaError::Global(code);
        context.error(
            error(RDKafkaErrorCode::Authentication),
            &format!("{why} (after 301ms in state AUTH_REQ)"),
        );
        context.error(error(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        assert_eq!(context.last_failure().as_deref(), Some(why));
        context.forget();
        assert_eq!(context.last_failure(), None);
    }

    #[test]
    fn a_pair_without_a_value_is_refused() {
        assert!(KafkaProperties::parse("sasl.username").unwrap_err().contains("key=value"));
    }
}
