//! The settings that every Kafka client of Slipstream shares. Each librdkafka property is set in one place, with
//! its reason beside it; what is specific to a producer or a consumer stands in that crate's `kafka` module.

use std::sync::{Arc, Mutex};

use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::future_producer::{Delivery, OwnedDeliveryResult};
use rdkafka::producer::{DeliveryResult, ProducerContext};

use crate::properties::{self, KafkaProperties};
use crate::rebootstrap::Rebootstrap;
use service::lock::lock;

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
/// Why not, to go on after the name of the variable, without the values of `properties`.
pub fn check_producer(config: &ClientConfig, properties: &KafkaProperties) -> Result<(), String> {
    let made = unconnected(config).create_with_context::<_, AdminClient<QuietContext>>(QuietContext);
    made.map(drop).map_err(|error| refusal(error, properties))
}

/// As [`check_producer`], for a consumer.
///
/// # Errors
/// Why not, to go on after the name of the variable, without the values of `properties`.
pub fn check_consumer(config: &ClientConfig, properties: &KafkaProperties) -> Result<(), String> {
    let made = unconnected(config).create_with_context::<_, BaseConsumer<QuietContext>>(QuietContext);
    made.map(drop).map_err(|error| refusal(error, properties))
}

fn unconnected(config: &ClientConfig) -> ClientConfig {
    let mut config = config.clone();
    config.remove("bootstrap.servers");
    config
}

/// How librdkafka begins its error text for a mechanism that is not built in.
const NO_SASL_PROVIDER: &str = "No provider for SASL mechanism";
const NEEDS_MECHANISM: &str = "needs sasl.mechanism=PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER for its \
                               security.protocol: librdkafka's default, GSSAPI, is not built in";

fn refusal(error: KafkaError, properties: &KafkaProperties) -> String {
    match error {
        KafkaError::ClientCreation(why) if why.starts_with(NO_SASL_PROVIDER) => NEEDS_MECHANISM.into(),
        KafkaError::ClientCreation(why) => format!("is refused by librdkafka: {}", properties.hide(&why)),
        KafkaError::ClientConfig(_, why, key, _) => properties::refused_value(&key, &why),
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
pub struct ConnectionContext {
    last_failure: Mutex<Option<String>>,
    bootstrap: Arc<Rebootstrap>,
}

impl ConnectionContext {
    /// Has heard nothing yet.
    pub fn new(bootstrap: Arc<Rebootstrap>) -> Self {
        Self { last_failure: Mutex::default(), bootstrap }
    }

    /// Why the last connection failed, if one has since [`ConnectionContext::clear_last_failure`].
    pub fn last_failure(&self) -> Option<String> {
        lock(&self.last_failure).clone()
    }

    /// To be called when a connection works.
    pub fn clear_last_failure(&self) {
        *lock(&self.last_failure) = None;
    }
}

impl ClientContext for ConnectionContext {
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
        self.bootstrap.on_statistics(statistics);
    }
}

impl ConsumerContext for ConnectionContext {}

impl ProducerContext for ConnectionContext {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// Where a record is, as a `FutureProducer` tells it; the record is taken for stored only then.
///
/// # Errors
/// It failed; or it was delivered without an offset, which librdkafka makes of a broker that knows a later record of
/// this client. On a topic that was made anew that proves nothing.
pub fn require_offset(delivery: OwnedDeliveryResult) -> Result<Delivery, KafkaError> {
    match delivery {
        Ok(delivery) if delivery.offset >= 0 => Ok(delivery),
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
    fn the_reason_of_a_failure_is_kept_until_a_connection_works() {
        let context = ConnectionContext::new(Rebootstrap::enable(&mut ClientConfig::new()));
        let why = "sasl_ssl://k:9092/bootstrap: SASL authentication error: Authentication failed";
        let error = |code| KafkaError::Global(code);
        context.error(
            error(RDKafkaErrorCode::Authentication),
            &format!("{why} (after 301ms in state AUTH_REQ)"),
        );
        context.error(error(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        assert_eq!(context.last_failure().as_deref(), Some(why));
        context.clear_last_failure();
        assert_eq!(context.last_failure(), None);
    }
}
