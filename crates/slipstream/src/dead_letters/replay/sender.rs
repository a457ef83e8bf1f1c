//! Sends records to their topics again. A record is replayed only after every in-sync replica has
//! it.

use kafka::{QuietContext, client_config, require_offset};
use rdkafka::Message;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::producer::future_producer::DeliveryFuture;
use rdkafka::producer::{FutureProducer, FutureRecord};

use super::rules::Target;
use crate::output::rfc3339;
use kafka::BoxError;
use kafka::headers::{record_timestamp_ms, replay_headers};

/// The outcome of a send.
#[derive(Debug)]
pub enum SendOutcome {
    /// Kafka stored the record.
    Acknowledged,
    /// Kafka rejected this record; cause and remedy.
    Rejected(String),
    /// Kafka did not confirm the record.
    Unknown(KafkaError),
}

/// Sends the record of the dead letter `message`; the future resolves to the outcome.
pub fn send(
    producer: &FutureProducer<QuietContext>,
    message: &BorrowedMessage<'_>,
    target: Target,
) -> impl Future<Output = SendOutcome> + Send + use<> {
    // Always the record's own timestamp: the event may have no other time.
    let timestamp_ms = record_timestamp_ms(message);
    let record: FutureRecord<'_, [u8], [u8]> = FutureRecord {
        topic: &target.topic,
        partition: target.partition,
        payload: message.payload(),
        key: message.key(),
        timestamp: timestamp_ms,
        headers: Some(replay_headers(message)),
    };
    let sent = producer.send_result(record).map_err(|(error, _)| error);
    async move {
        match confirmation(sent).await {
            Ok(()) => SendOutcome::Acknowledged,
            Err(error) => classify(error, &target.topic, timestamp_ms),
        }
    }
}

/// Waits for the delivery report.
async fn confirmation(sent: Result<DeliveryFuture, KafkaError>) -> Result<(), KafkaError> {
    require_offset(sent?.await.map_err(|_| KafkaError::Canceled)?).map(drop)
}

/// Creates the producer without connecting.
pub fn producer(config: &consumer::Config) -> Result<FutureProducer<QuietContext>, BoxError> {
    let properties = [
        // A record that is committed as replayed must be on every in-sync replica, once.
        ("acks", "all"),
        ("enable.idempotence", "true"),
        // A broker rejects a batch as a whole. A batch of one record is rejected only because of
        // that record.
        ("batch.num.messages", "1"),
        ("linger.ms", "0"),
        // A run that ends waits at most this long for records in flight.
        ("message.timeout.ms", "8000"),
        // Only the topic limits the size, not this client.
        ("message.max.bytes", "104857600"),
        // A record that fits its topic only when compressed must fit it again.
        ("compression.type", "zstd"),
        // The partition of the key, as in the Python client.
        ("partitioner", "murmur2_random"),
    ];
    let client = client_config(&config.kafka_broker, "slipstream-replay", &properties, &config.properties);
    Ok(client.create_with_context(QuietContext)?)
}

fn classify(error: KafkaError, topic: &str, timestamp_ms: Option<i64>) -> SendOutcome {
    match error.rdkafka_error_code().and_then(|code| remedy(code, topic, timestamp_ms)) {
        Some(remedy) => SendOutcome::Rejected(format!("{error}: {remedy}")),
        None => SendOutcome::Unknown(error),
    }
}

/// The remedy for a rejected record; `None` if the error is not about the record.
fn remedy(code: RDKafkaErrorCode, topic: &str, timestamp_ms: Option<i64>) -> Option<String> {
    use RDKafkaErrorCode as Code;
    match code {
        Code::MessageSizeTooLarge | Code::InvalidMessageSize => {
            Some(format!("raise max.message.bytes of topic {topic}"))
        }
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => {
            Some(format!("allow this client to write to topic {topic}"))
        }
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => {
            Some(format!("create topic {topic}"))
        }
        Code::InvalidTimestamp => {
            let is_ahead = timestamp_ms.is_some_and(|ms| ms > jiff::Timestamp::now().as_millisecond());
            let setting = if is_ahead { "after" } else { "before" };
            let at = timestamp_ms.map_or_else(|| "none".to_owned(), rfc3339);
            Some(format!(
                "INVALID_TIMESTAMP: a replay keeps the record's timestamp {at}; raise message.timestamp.{setting}.max.ms of topic \
                 {topic} for the time of the replay"
            ))
        }
        Code::InvalidMessage | Code::InvalidRecord | Code::PolicyViolation | Code::InvalidTopic => {
            Some(format!("check the configuration of topic {topic}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;
    use rdkafka::bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER;
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::RDKafkaApiKey;

    use super::*;

    #[tokio::test]
    async fn a_duplicate_sequence_without_an_offset_is_not_acknowledged() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("a", 1, 1).unwrap();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers()).set("enable.idempotence", "true");
        let producer: FutureProducer = config.create().unwrap();
        let send = || {
            let record = FutureRecord::<(), _>::to("a").payload("{");
            confirmation(producer.send_result(record).map_err(|(error, _)| error))
        };
        cluster.request_errors(RDKafkaApiKey::Produce, &[RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER]);
        let error = send().await.unwrap_err();
        assert!(matches!(classify(error, "a", None), SendOutcome::Unknown(_)));
        assert_eq!(send().await, Ok(()));
    }

    #[test]
    fn the_remedy_for_a_rejected_timestamp_names_the_topic_property() {
        let remedy = |ms| remedy(RDKafkaErrorCode::InvalidTimestamp, "a", Some(ms)).unwrap();
        let (past, ahead) = (remedy(5), remedy(i64::from(u32::MAX) * 1_000));
        assert!(past.contains("1970-01-01T00:00:00.005Z; raise message.timestamp.before.max.ms"), "{past}");
        assert!(ahead.contains("2106-02-07T06:28:15.000Z; raise message.timestamp.after.max.ms"), "{ahead}");
    }

    #[test]
    fn only_an_error_about_the_record_is_a_rejection() {
        let outcome = |code| classify(KafkaError::MessageProduction(code), "a", Some(5));
        for (code, part) in [
            (RDKafkaErrorCode::MessageSizeTooLarge, "raise max.message.bytes of topic a"),
            (RDKafkaErrorCode::UnknownTopicOrPartition, "create topic a"),
            (RDKafkaErrorCode::InvalidTimestamp, "message.timestamp.before.max.ms"),
            (RDKafkaErrorCode::TopicAuthorizationFailed, "allow this client"),
            (RDKafkaErrorCode::InvalidRecord, "configuration of topic a"),
        ] {
            let SendOutcome::Rejected(why) = outcome(code) else { panic!("{code}") };
            assert!(why.contains(part), "{why}");
        }
        for code in
            [RDKafkaErrorCode::MessageTimedOut, RDKafkaErrorCode::NotEnoughReplicas, RDKafkaErrorCode::Fatal]
        {
            assert!(matches!(outcome(code), SendOutcome::Unknown(_)), "{code}");
        }
    }
}
