//! The properties that every Kafka client of Slipstream has, each with its reason.
//!
//! The properties of one particular client are in the crate that uses it.

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::future_producer::{Delivery, OwnedDeliveryResult};

use crate::properties::KafkaProperties;

/// The configuration of a client.
///
/// `defaults` are the properties of the particular client. `properties` (KAFKA_PROPERTIES) override
/// them, except those that a guarantee needs.
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
        // A half-open connection must close in time to resume work within 10 s. The default is 60 s.
        // librdkafka checks the timeout once a second.
        .set("socket.timeout.ms", "8000")
        .set("socket.connection.setup.timeout.ms", "2000")
        .set("socket.keepalive.enable", "true")
        // A small request must not wait for further data, because a response waits for its
        // acknowledgement.
        .set("socket.nagle.disable", "true")
        // Work must resume within 5 s of a server's return. The default grows to 10 s.
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "200")
        // If no known broker responds, the client uses its bootstrap servers again. The default is
        // 5 minutes. A client without any broker does not do this: see `rebootstrap`.
        .set("metadata.recovery.rebootstrap.trigger.ms", "2000")
        // Slipstream creates topics with the configured partitions. A broker would use its default.
        .set("allow.auto.create.topics", "false");
    for (key, value) in defaults {
        config.set(*key, *value);
    }
    properties.apply(&mut config);
    config.set_log_level(RDKafkaLogLevel::Info);
    config
}

/// Returns the delivery of a `FutureProducer` only if it has an offset, which proves that the record
/// is stored.
///
/// # Errors
/// The delivery failed, or it has no offset. librdkafka reports the latter if the broker has a later
/// record of this client. On a recreated topic, that does not prove that this record is stored.
pub fn require_offset(delivery: OwnedDeliveryResult) -> Result<Delivery, KafkaError> {
    match delivery {
        Ok(delivery) if delivery.offset >= 0 => Ok(delivery),
        Ok(_) => Err(KafkaError::MessageProduction(RDKafkaErrorCode::DuplicateSequenceNumber)),
        Err((error, _)) => Err(error),
    }
}
