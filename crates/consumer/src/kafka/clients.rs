//! The librdkafka properties of the consumer's two clients, each with its reason; what every client of Slipstream
//! shares is in `kafka::client`.

use kafka::client_config;
use kafka::group::ASSIGNOR;
use rdkafka::ClientConfig;

use crate::config::Config;

/// The group member that reads the topics.
pub fn reader(config: &Config) -> ClientConfig {
    let properties = [
        ("group.id", config.group_id.as_str()),
        // Only what is finished is committed, by hand: G2 rests on these two.
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        // A new group begins with the first record that Kafka still has.
        ("auto.offset.reset", "earliest"),
        // A partition that stays with its member is not interrupted by a rebalance.
        ("partition.assignment.strategy", ASSIGNOR),
        // A member that died is noticed after 10 s; three heartbeats fit in.
        ("session.timeout.ms", "10000"),
        ("heartbeat.interval.ms", "3000"),
        // A partition that was just given or resumed waits for the fetch under way at its broker; the default is
        // half a second. A record that is there is sent at once whatever this says.
        ("fetch.wait.max.ms", "100"),
        // The default pauses a partition's fetches for a second whenever the local queue is full.
        ("fetch.queue.backoff.ms", "20"),
        ("fetch.error.backoff.ms", "100"),
        // Memory: one partition's and one answer's share, and what waits to be polled, all partitions together.
        ("fetch.message.max.bytes", "1048576"),
        ("fetch.max.bytes", "8388608"),
        ("queued.max.messages.kbytes", "8192"),
        ("queued.min.messages", "20000"),
        // A topic, or a partition of it, that is made later is found this soon.
        ("topic.metadata.refresh.interval.ms", "3000"),
    ];
    client_config(&config.kafka_broker, "slipstream-consumer", &properties, &config.properties)
}

/// The `client.id` of our members, by which they know each other.
pub fn client_id(config: &Config) -> String {
    reader(config).get("client.id").unwrap_or_default().to_owned()
}

/// The producer of dead letters.
pub fn dead_letters(config: &Config) -> ClientConfig {
    let properties = [
        // A dead letter stands for its record: it must be on every replica, once.
        ("acks", "all"),
        ("enable.idempotence", "true"),
        // The dead letters of one batch share requests.
        ("linger.ms", "2"),
        // One attempt; the lane makes another for as long as it takes, and says meanwhile what it waits for.
        ("message.timeout.ms", "5000"),
        // The topic decides what is too large, not this client.
        ("message.max.bytes", "104857600"),
        // A record that fitted its topic only because it was compressed must fit here too.
        ("compression.type", "zstd"),
        // The partition of the key, as the original's client would choose it.
        ("partitioner", "murmur2_random"),
    ];
    client_config(&config.kafka_broker, "slipstream-dead-letters", &properties, &config.properties)
}

/// The client that makes topics and asks whether Kafka answers.
pub fn upkeep(config: &Config) -> ClientConfig {
    client_config(&config.kafka_broker, "slipstream-consumer-upkeep", &[], &config.properties)
}
