//! Sends records once more. One counts as replayed only after every in-sync replica has it.

use kafka::{QuietContext, client_config, require_offset};
use rdkafka::ClientConfig;
use rdkafka::Message;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::producer::future_producer::DeliveryFuture;
use rdkafka::producer::{FutureProducer, FutureRecord};

use super::judge::Target;
use crate::dead_letter::rfc3339;
use crate::dead_letters::now_ms;
use kafka::BoxError;
use kafka::dead_letter_headers::{record_timestamp_ms, replay_headers};

/// How a record fared.
#[derive(Debug)]
pub enum Fate {
    /// Kafka has it.
    Acknowledged,
    /// Kafka takes others, but not this one; why, and what to do.
    Refused(String),
    /// Kafka does not answer, or takes nothing.
    Unknown(KafkaError),
}

/// The producer of replays.
pub struct Sender {
    producer: FutureProducer<QuietContext>,
}

impl Sender {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// The client library refuses the configuration.
    pub fn new(config: &consumer::Config) -> Result<Self, BoxError> {
        Ok(Self { producer: client(config).create_with_context(QuietContext)? })
    }

    /// Sends the record that the dead letter `message` was; the future is done when it is known how that went.
    pub fn send(
        &self,
        message: &BorrowedMessage<'_>,
        target: Target,
    ) -> impl Future<Output = Fate> + Send + use<> {
        // Never another one: the event may have no other time than this.
        let timestamp_ms = record_timestamp_ms(message);
        let record: FutureRecord<'_, [u8], [u8]> = FutureRecord {
            topic: &target.topic,
            partition: target.partition,
            payload: message.payload(),
            key: message.key(),
            timestamp: timestamp_ms,
            headers: Some(replay_headers(message)),
        };
        let sent = self.producer.send_result(record).map_err(|(error, _)| error);
        async move {
            match outcome(sent).await {
                Ok(()) => Fate::Acknowledged,
                Err(error) => fate(error, &target.topic, timestamp_ms),
            }
        }
    }
}

/// Waits for what Kafka says.
async fn outcome(sent: Result<DeliveryFuture, KafkaError>) -> Result<(), KafkaError> {
    require_offset(sent?.await.map_err(|_| KafkaError::Canceled)?).map(drop)
}

fn client(config: &consumer::Config) -> ClientConfig {
    let properties = [
        // What is committed as replayed must be on every replica, once.
        ("acks", "all"),
        ("enable.idempotence", "true"),
        // A broker refuses a batch as a whole: alone, a record is refused for its own sake only.
        ("batch.num.messages", "1"),
        ("linger.ms", "0"),
        // A run that is to end waits for what is under way, and no longer than this.
        ("message.timeout.ms", "8000"),
        // The topic decides what is too large, not this client.
        ("message.max.bytes", "104857600"),
        // A record that fitted its topic only because it was compressed must fit it again.
        ("compression.type", "zstd"),
        // The partition of the key, as the original's client would choose it.
        ("partitioner", "murmur2_random"),
    ];
    client_config(&config.kafka_broker, "slipstream-replay", &properties, &config.properties)
}

fn fate(error: KafkaError, topic: &str, timestamp_ms: Option<i64>) -> Fate {
    match error.rdkafka_error_code().and_then(|code| remedy(code, topic, timestamp_ms)) {
        Some(remedy) => Fate::Refused(format!("{error}: {remedy}")),
        None => Fate::Unknown(error),
    }
}

/// What to do about a refusal of one record; nothing where the error says nothing of the record.
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
            let is_ahead = timestamp_ms.is_some_and(|ms| now_ms().is_ok_and(|now| ms > now));
            let setting = if is_ahead { "after" } else { "before" };
            let at = timestamp_ms.map_or_else(|| "none".to_owned(), rfc3339);
            Some(format!(
                "INVALID_TIMESTAMP: the record keeps its timestamp, {at}; raise message.timestamp.{setting}.max.ms of topic \
                 {topic} for the time of the replay"
            ))
        }
        Code::InvalidMessage | Code::InvalidRecord | Code::PolicyViolation | Code::InvalidTopic => {
            Some(format!("see the settings of topic {topic}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER;
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::RDKafkaApiKey;

    use super::*;

    #[tokio::test]
    async fn what_kafka_takes_for_a_repetition_without_saying_where_it_is_is_not_acknowledged() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("a", 1, 1).unwrap();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers()).set("enable.idempotence", "true");
        let producer: FutureProducer = config.create().unwrap();
        let send = || {
            let record = FutureRecord::<(), _>::to("a").payload("{");
            outcome(producer.send_result(record).map_err(|(error, _)| error))
        };
        cluster.request_errors(RDKafkaApiKey::Produce, &[RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER]);
        let error = send().await.unwrap_err();
        assert!(matches!(fate(error, "a", None), Fate::Unknown(_)));
        assert_eq!(send().await, Ok(()));
    }

    #[test]
    fn a_refused_timestamp_names_the_setting_that_refuses_it() {
        let remedy = |ms| remedy(RDKafkaErrorCode::InvalidTimestamp, "a", Some(ms)).unwrap();
        let (past, ahead) = (remedy(5), remedy(i64::from(u32::MAX) * 1_000));
        assert!(past.contains("1970-01-01T00:00:00.005Z; raise message.timestamp.before.max.ms"), "{past}");
        assert!(ahead.contains("2106-02-07T06:28:15.000Z; raise message.timestamp.after.max.ms"), "{ahead}");
    }

    #[test]
    fn a_refusal_of_one_record_is_told_apart_from_an_outage() {
        let fate = |code| fate(KafkaError::MessageProduction(code), "a", Some(5));
        for (code, part) in [
            (RDKafkaErrorCode::MessageSizeTooLarge, "raise max.message.bytes of topic a"),
            (RDKafkaErrorCode::UnknownTopicOrPartition, "create topic a"),
            (RDKafkaErrorCode::InvalidTimestamp, "message.timestamp.before.max.ms"),
            (RDKafkaErrorCode::TopicAuthorizationFailed, "allow this client"),
            (RDKafkaErrorCode::InvalidRecord, "settings of topic a"),
        ] {
            let Fate::Refused(why) = fate(code) else { panic!("{code}") };
            assert!(why.contains(part), "{why}");
        }
        for code in
            [RDKafkaErrorCode::MessageTimedOut, RDKafkaErrorCode::NotEnoughReplicas, RDKafkaErrorCode::Fatal]
        {
            assert!(matches!(fate(code), Fate::Unknown(_)), "{code}");
        }
    }
}
