//! The librdkafka properties of the producer's client and their reasons. Properties that all
//! clients of Slipstream share are in the crate `kafka`.

use std::time::Duration;

use kafka::KafkaProperties;
use rdkafka::ClientConfig;

/// `client.id` of every Kafka client of the producer.
pub const CLIENT_ID: &str = "slipstream-producer";

/// Headroom in `message.max.bytes` for the envelope around a payload.
const ENVELOPE_BYTES: usize = 64 * 1024;
/// librdkafka's default of `message.max.bytes`. The property is never set below it.
const MIN_MESSAGE_MAX_BYTES: usize = 1_000_000;

/// Properties that KAFKA_PROPERTIES may override.
fn defaults(max_payload_bytes: usize) -> Vec<(&'static str, String)> {
    let message_bytes = (max_payload_bytes + ENVELOPE_BYTES).max(MIN_MESSAGE_MAX_BYTES);
    vec![
        // A record never waits for others. Batches form anyway: five requests may be in flight,
        // and the records that arrive meanwhile share the next request.
        ("linger.ms", "0".into()),
        // Every consumer can read uncompressed records. The Python client needs an extra package
        // for each codec.
        ("compression.type", "none".into()),
        // The queue is bounded, so memory is. A full queue is a 503.
        ("queue.buffering.max.messages", "50000".into()),
        ("queue.buffering.max.kbytes", "65536".into()),
        ("message.max.bytes", message_bytes.to_string()),
    ]
}

/// Properties that a guarantee depends on. KAFKA_PROPERTIES cannot override them.
fn fixed(delivery_timeout: Duration) -> Vec<(&'static str, String)> {
    vec![
        // G1: an acknowledged record is on every in-sync replica, once and in order.
        ("acks", "all".into()),
        ("enable.idempotence", "true".into()),
        // The Python client's partitioner: old and new events of an id share a partition.
        ("partitioner", "murmur2_random".into()),
        // After a 504 the record does not stay in memory.
        ("message.timeout.ms", delivery_timeout.as_millis().to_string()),
    ]
}

/// Configuration of the client that sends records.
pub fn client_config(
    brokers: &str,
    properties: &KafkaProperties,
    max_payload_bytes: usize,
    delivery_timeout: Duration,
) -> ClientConfig {
    let defaults = defaults(max_payload_bytes);
    let defaults: Vec<(&str, &str)> = defaults.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let mut client = kafka::client_config(brokers, CLIENT_ID, &defaults, properties);
    for (key, value) in fixed(delivery_timeout) {
        client.set(key, value);
    }
    client
}
