//! The dead-letter topic.
//!
//! A dead letter repeats its record byte for byte (key, value, headers, timestamp). It adds the
//! headers of Kafka Connect: the record's origin and the reason why it can never be stored. Its
//! record is finished only after a delivery report with an offset.
//!
//! Kafka 4 rejects a timestamp that is more than an hour ahead (KIP-1030). If the topic rejects the
//! record's timestamp, the dead letter gets the current time and a header with that timestamp.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::kafka::context::Rebootstrap;
use ::kafka::topic_reader::RecordPosition;
use ::kafka::{ConnectionContext, require_offset};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::future_producer::Delivery;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};

use crate::kafka::record::{Record, TopicPartition};
use service::tasks::lock;

/// Maximum length of a header's text.
const MAX_TEXT_BYTES: usize = 1024;
/// How long one attempt waits for room in the client's queue. `message.timeout.ms` bounds the rest.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// Codes with which the broker can reject a whole request because of one of its records.
const REQUEST_REJECTIONS: [Option<RDKafkaErrorCode>; 3] = [
    Some(RDKafkaErrorCode::InvalidTimestamp),
    Some(RDKafkaErrorCode::InvalidRecord),
    Some(RDKafkaErrorCode::InvalidDifferentRecord),
];

/// Why a record can never be stored.
#[derive(Debug, Clone)]
pub struct Cause {
    /// The stage that failed: `decode`, `document` or `store`.
    pub stage: &'static str,
    /// Short name of the error.
    pub class: String,
    /// Description of the error, with the name of the field.
    pub reason: String,
}

/// Header with the record's timestamp in milliseconds, if the dead letter has another timestamp.
/// The operator's command reads it.
const TIMESTAMP: &str = "__connect.errors.timestamp";

/// Produces dead letters.
pub struct DeadLetters {
    connector: String,
    shared_topic: Option<String>,
    /// Sends the dead letters of a batch in shared requests.
    batched: Sender,
    /// Sends each dead letter in its own request. The broker rejects a whole request because of one
    /// of its records.
    single: Sender,
}

impl DeadLetters {
    /// Dead letters go to `shared_topic`, or else to the record's topic with `.dlq` added.
    pub fn new(config: ClientConfig, connector: String, shared_topic: Option<String>) -> Self {
        let mut single = config.clone();
        single.set("batch.num.messages", "1");
        Self { connector, shared_topic, batched: Sender::new(config), single: Sender::new(single) }
    }

    /// Tries once to produce the dead letter of `record` from partition `origin`, and returns the
    /// position of the dead letter.
    ///
    /// # Errors
    /// It has no delivery report with an offset. The text names the record, the cause and the
    /// remedy.
    pub async fn produce(
        &self,
        origin: &TopicPartition,
        record: &Record,
        cause: &Cause,
    ) -> Result<RecordPosition, String> {
        let topic = self.shared_topic.clone().unwrap_or_else(|| format!("{}.dlq", origin.0));
        let dead_letter = |timestamp: Option<i64>, headers: OwnedHeaders| {
            let (topic, headers) = (topic.as_str(), Some(headers));
            let (payload, key) = (record.value(), record.key());
            FutureRecord { topic, partition: None, payload, key, timestamp, headers }
        };
        let headers = self.headers(origin, record, cause);
        let mut sent = self.batched.send(dead_letter(record.timestamp, headers.clone())).await;
        if sent.as_ref().is_err_and(|error| REQUEST_REJECTIONS.contains(&error.rdkafka_error_code())) {
            sent = self.single.send(dead_letter(record.timestamp, headers.clone())).await;
        }
        if let (Err(error), Some(timestamp)) = (&sent, record.timestamp)
            && error.rdkafka_error_code() == Some(RDKafkaErrorCode::InvalidTimestamp)
        {
            let timestamp = timestamp.to_string();
            let headers = headers.insert(Header { key: TIMESTAMP, value: Some(&timestamp) });
            // Without a timestamp, librdkafka sets the current time.
            sent = self.single.send(dead_letter(None, headers)).await;
        }
        match sent {
            Ok(Delivery { partition, offset, .. }) => Ok(RecordPosition { topic, partition, offset }),
            Err(error) => Err(format!(
                "dead letter of {}/{} offset {} cannot be written to topic {topic}: {error}; {}",
                origin.0,
                origin.1,
                record.offset,
                remedy(&error, &topic)
            )),
        }
    }

    fn headers(&self, origin: &TopicPartition, record: &Record, cause: &Cause) -> OwnedHeaders {
        let mut headers = record.headers();
        let (partition, offset) = (origin.1.to_string(), record.offset.to_string());
        for (name, text) in [
            ("topic", &*origin.0),
            ("partition", &partition),
            ("offset", &offset),
            ("connector.name", &self.connector),
            ("task.id", "0"),
            ("stage", cause.stage),
            ("class.name", "slipstream.consumer"),
            ("exception.class.name", &cause.class),
            ("exception.message", &cause.reason),
        ] {
            let (key, value) = (format!("__connect.errors.{name}"), truncate(text));
            headers = headers.insert(Header { key: &key, value: Some(value) });
        }
        headers
    }
}

/// A producer that is created with the first dead letter. Most consumers never need it.
struct Sender {
    config: ClientConfig,
    rebootstrap: Arc<Rebootstrap>,
    producer: Mutex<Option<FutureProducer<ConnectionContext>>>,
}

impl Sender {
    fn new(mut config: ClientConfig) -> Self {
        let rebootstrap = Rebootstrap::enable(&mut config);
        Self { config, rebootstrap, producer: Mutex::default() }
    }

    async fn send(&self, dead_letter: FutureRecord<'_, [u8], [u8]>) -> Result<Delivery, KafkaError> {
        let producer = self.client()?;
        self.rebootstrap.restore_brokers(producer.client());
        let sent = require_offset(producer.send(dead_letter, QUEUE_TIMEOUT).await);
        if sent.is_err() {
            self.replace_if_fatal(&producer);
        }
        sent
    }

    fn client(&self) -> Result<FutureProducer<ConnectionContext>, KafkaError> {
        let mut producer = lock(&self.producer);
        match &*producer {
            Some(producer) => Ok(producer.clone()),
            None => {
                let context = ConnectionContext::new(Arc::clone(&self.rebootstrap));
                Ok(producer.insert(self.config.create_with_context(context)?).clone())
            }
        }
    }

    /// Drops a producer with a fatal error, which never works again. The next attempt creates one.
    fn replace_if_fatal(&self, failed: &FutureProducer<ConnectionContext>) {
        if let Some((code, reason)) = failed.client().fatal_error() {
            let mut producer = lock(&self.producer);
            if producer
                .as_ref()
                .is_some_and(|current| current.client().native_ptr() == failed.client().native_ptr())
            {
                tracing::warn!(code = %code, reason, "dead-letter producer had a fatal error and will be recreated");
                *producer = None;
            }
        }
    }
}

fn truncate(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]
}

fn remedy(error: &KafkaError, topic: &str) -> String {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize) => {
            format!("raise max.message.bytes of topic {topic}")
        }
        Some(RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed) => {
            format!("allow this client to write to topic {topic}")
        }
        Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition) => {
            format!("create topic {topic}")
        }
        Some(RDKafkaErrorCode::InvalidTimestamp) => format!(
            "INVALID_TIMESTAMP for the current time too: correct the clocks of this machine and the brokers, or raise \
             message.timestamp.after.max.ms and message.timestamp.before.max.ms of topic {topic}"
        ),
        _ => format!("it is retried until topic {topic} accepts it"),
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER;
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::RDKafkaApiKey;

    use super::*;

    #[tokio::test]
    async fn g5_duplicate_dead_letter_without_offset_is_not_finished() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("a.dlq", 1, 1).unwrap();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers()).set("enable.idempotence", "true");
        let dead_letters = DeadLetters::new(config, "g".into(), None);
        let record = Record::new(7, None, None, Some(b"{"), std::iter::empty);
        let cause = Cause { stage: "decode", class: "InvalidJson".into(), reason: "no JSON".into() };
        let origin: TopicPartition = (Arc::from("a"), 0);
        let produce = || dead_letters.produce(&origin, &record, &cause);
        cluster.request_errors(RDKafkaApiKey::Produce, &[RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER]);
        let why = produce().await.unwrap_err();
        assert!(why.contains("a/0 offset 7") && why.contains("DuplicateSequenceNumber"), "{why}");
        assert!(produce().await.is_ok());
    }

    #[test]
    fn text_is_truncated_at_a_character_boundary() {
        let text = "é".repeat(600);
        assert_eq!(truncate(&text).len(), 1024);
        assert_eq!(truncate(&format!("a{text}")).len(), 1023);
        assert_eq!(truncate("short"), "short");
    }

    #[test]
    fn remedy_names_the_topic() {
        let error = KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge);
        assert_eq!(remedy(&error, "a.dlq"), "raise max.message.bytes of topic a.dlq");
        let error = KafkaError::MessageProduction(RDKafkaErrorCode::InvalidTimestamp);
        let remedy = remedy(&error, "a.dlq");
        for part in ["INVALID_TIMESTAMP", "clock", "message.timestamp.after.max.ms", "topic a.dlq"] {
            assert!(remedy.contains(part), "{part}: {remedy}");
        }
    }
}
