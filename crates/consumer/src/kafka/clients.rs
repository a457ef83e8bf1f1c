//! The librdkafka properties of the consumer's clients, each with its reason. Properties that all
//! Slipstream clients share are in `::kafka::client`.

use ::kafka::group::ASSIGNOR;
use ::kafka::{KafkaProperties, client_config};
use rdkafka::ClientConfig;

/// The client of the group member that reads the topics.
pub fn group_member(broker: &str, group_id: &str, properties: &KafkaProperties) -> ClientConfig {
    let defaults = [
        ("group.id", group_id),
        // Only offsets of finished records are committed, explicitly: G2 depends on these two.
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        // A new group starts at the first record that Kafka still has.
        ("auto.offset.reset", "earliest"),
        // A rebalance does not interrupt partitions that stay with their member.
        ("partition.assignment.strategy", ASSIGNOR),
        // A dead member is detected after 10 s; three heartbeats fit into that time.
        ("session.timeout.ms", "10000"),
        ("heartbeat.interval.ms", "3000"),
        // A partition that was just assigned or resumed waits for the fetch that is in progress at
        // its broker. The default is 500 ms. Available records are sent at once in any case.
        ("fetch.wait.max.ms", "100"),
        // The default pauses a partition's fetches for a second whenever the local queue is full.
        ("fetch.queue.backoff.ms", "20"),
        ("fetch.error.backoff.ms", "100"),
        // Memory limits: bytes per partition, bytes per response, and bytes and records that wait
        // for a poll, over all partitions.
        ("fetch.message.max.bytes", "1048576"),
        ("fetch.max.bytes", "8388608"),
        ("queued.max.messages.kbytes", "8192"),
        ("queued.min.messages", "20000"),
        // A topic or partition that is created later is found within this time.
        ("topic.metadata.refresh.interval.ms", "3000"),
    ];
    client_config(broker, "slipstream-consumer", &defaults, properties)
}

/// The producer of dead letters.
pub fn dead_letter_producer(broker: &str, properties: &KafkaProperties) -> ClientConfig {
    let defaults = [
        // A dead letter replaces its record: it must be on every replica, once.
        ("acks", "all"),
        ("enable.idempotence", "true"),
        // The dead letters of one batch share requests.
        ("linger.ms", "2"),
        // Bounds one attempt. The worker retries without limit and reports the cause meanwhile.
        ("message.timeout.ms", "5000"),
        // The topic decides which records are too large, not this client.
        ("message.max.bytes", "104857600"),
        // A record that fitted its topic only because it was compressed must fit here too.
        ("compression.type", "zstd"),
        // The same key goes to the same partition as with the original system's client.
        ("partitioner", "murmur2_random"),
    ];
    client_config(broker, "slipstream-dead-letters", &defaults, properties)
}

/// The client that creates topics and checks whether Kafka is available.
pub fn topic_admin(broker: &str, properties: &KafkaProperties) -> ClientConfig {
    client_config(broker, "slipstream-consumer-upkeep", &[], properties)
}
