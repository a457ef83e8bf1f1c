//! Each librdkafka property of the producer's client, beside those that every client of Slipstream shares, and why.

use std::time::Duration;

use kafka::KafkaProperties;
use rdkafka::ClientConfig;

/// The client id of every librdkafka client of the producer.
pub const CLIENT_ID: &str = "slipstream-producer";

/// What KAFKA_PROPERTIES may override.
fn defaults(max_payload_bytes: usize) -> Vec<(&'static str, String)> {
    // Room for what surrounds the payload; librdkafka's own default is the least.
    let record_bytes = (max_payload_bytes + 64 * 1024).max(1_000_000);
    vec![
        // A record never waits for company. Batches form by themselves: five requests may be in flight, and what
        // arrives meanwhile goes together into the next.
        ("linger.ms", "0".into()),
        // Any reader can read it: the original's needs a further package for each codec.
        ("compression.type", "none".into()),
        // Memory is bounded; when it is full the answer is 503.
        ("queue.buffering.max.messages", "50000".into()),
        ("queue.buffering.max.kbytes", "65536".into()),
        ("message.max.bytes", record_bytes.to_string()),
    ]
}

/// What a promise rests on.
fn fixed(delivery_timeout: Duration) -> Vec<(&'static str, String)> {
    vec![
        // G1: acknowledged means on every in-sync replica, once, and in order.
        ("acks", "all".into()),
        ("enable.idempotence", "true".into()),
        // The original's client uses it: old and new events of an id share a partition.
        ("partitioner", "murmur2_random".into()),
        // What was answered with 504 does not stay in memory.
        ("message.timeout.ms", delivery_timeout.as_millis().to_string()),
    ]
}

/// The client that sends.
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
