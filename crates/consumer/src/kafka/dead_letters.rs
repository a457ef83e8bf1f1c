//! The dead-letter topic. A dead letter repeats its record byte for byte (key, value, headers, timestamp) and adds
//! the headers that Kafka Connect uses: where it came from, and why it can never be stored. It counts as finished
//! only after the broker acknowledged it. Where the topic refuses the record's timestamp, as Kafka 4 does with one that
//! is an hour ahead (KIP-1030), the dead letter has the present time, and the record's timestamp is in a header.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kafka::rebootstrap::Rebootstrap;
use kafka::{ConnectionContext, require_offset};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::future_producer::Delivery;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};

use crate::kafka::record::Record;
use service::lock::lock;

/// How long a header's text may be.
const TEXT_BYTES: usize = 1024;
/// How long one attempt waits for room in the client's queue; the client bounds the rest (`message.timeout.ms`).
const QUEUE_LIMIT: Duration = Duration::from_secs(5);

/// What all records of a request are refused with where the broker refuses one of them.
const REFUSALS: [Option<RDKafkaErrorCode>; 3] = [
    Some(RDKafkaErrorCode::InvalidTimestamp),
    Some(RDKafkaErrorCode::InvalidRecord),
    Some(RDKafkaErrorCode::InvalidDifferentRecord),
];

/// Why a record can never be stored.
#[derive(Debug, Clone)]
pub struct Cause {
    /// Where it failed: `decode`, `document` or `store`.
    pub stage: &'static str,
    /// The short name of the fault.
    pub class: String,
    /// The fault in words; names the field.
    pub reason: String,
}

/// The header with the record's timestamp in milliseconds, where the dead letter has another one. The tools read it.
const TIMESTAMP: &str = "__connect.errors.timestamp";

/// Where a dead letter is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
}

/// Where a record came from.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// Its topic.
    pub topic: &'a str,
    /// Its partition.
    pub partition: i32,
}

/// Makes dead letters.
pub struct DeadLetters {
    connector: String,
    named: Option<String>,
    /// Shares requests among the dead letters of a batch.
    together: Sender,
    /// Sends each in a request of its own: the broker refuses a request as a whole for the sake of one record in it.
    alone: Sender,
}

impl DeadLetters {
    /// Goes to `named`, or to the record's topic with `.dlq` added.
    pub fn new(config: ClientConfig, connector: String, named: Option<String>) -> Self {
        let mut alone = config.clone();
        alone.set("batch.num.messages", "1");
        Self { connector, named, together: Sender::new(config), alone: Sender::new(alone) }
    }

    /// One attempt to produce `record`'s dead letter; where it is.
    ///
    /// # Errors
    /// It was not acknowledged; which record, why, and the remedy, in words.
    pub async fn produce(
        &self,
        origin: Origin<'_>,
        record: &Record,
        cause: &Cause,
    ) -> Result<Letter, String> {
        let topic = self.named.clone().unwrap_or_else(|| format!("{}.dlq", origin.topic));
        let letter = |timestamp: Option<i64>, headers: OwnedHeaders| {
            let (topic, headers) = (topic.as_str(), Some(headers));
            let (payload, key) = (record.value(), record.key());
            FutureRecord { topic, partition: None, payload, key, timestamp, headers }
        };
        let headers = self.headers(origin, record, cause);
        let mut sent = self.together.send(letter(record.timestamp, headers.clone())).await;
        if sent.as_ref().is_err_and(|error| REFUSALS.contains(&error.rdkafka_error_code())) {
            sent = self.alone.send(letter(record.timestamp, headers.clone())).await;
        }
        if let (Err(error), Some(timestamp)) = (&sent, record.timestamp)
            && error.rdkafka_error_code() == Some(RDKafkaErrorCode::InvalidTimestamp)
        {
            let timestamp = timestamp.to_string();
            let headers = headers.insert(Header { key: TIMESTAMP, value: Some(&timestamp) });
            // Without a timestamp, the client takes the present time.
            sent = self.alone.send(letter(None, headers)).await;
        }
        match sent {
            Ok(Delivery { partition, offset, .. }) => Ok(Letter { topic, partition, offset }),
            Err(error) => Err(format!(
                "the dead letter of {}/{} offset {} cannot be written to topic {topic}: {error}; {}",
                origin.topic,
                origin.partition,
                record.offset,
                remedy(&error, &topic)
            )),
        }
    }

    fn headers(&self, origin: Origin<'_>, record: &Record, cause: &Cause) -> OwnedHeaders {
        let mut headers = record.headers();
        let (partition, offset) = (origin.partition.to_string(), record.offset.to_string());
        for (name, text) in [
            ("topic", origin.topic),
            ("partition", &partition),
            ("offset", &offset),
            ("connector.name", &self.connector),
            ("task.id", "0"),
            ("stage", cause.stage),
            ("class.name", "slipstream.consumer"),
            ("exception.class.name", &cause.class),
            ("exception.message", &cause.reason),
        ] {
            let (key, value) = (format!("__connect.errors.{name}"), cut(text));
            headers = headers.insert(Header { key: &key, value: Some(value) });
        }
        headers
    }
}

/// A producer, made for the first dead letter: most consumers never need it.
struct Sender {
    config: ClientConfig,
    bootstrap: Arc<Rebootstrap>,
    producer: Mutex<Option<FutureProducer<ConnectionContext>>>,
}

impl Sender {
    fn new(mut config: ClientConfig) -> Self {
        let bootstrap = Rebootstrap::enable(&mut config);
        Self { config, bootstrap, producer: Mutex::default() }
    }

    async fn send(&self, letter: FutureRecord<'_, [u8], [u8]>) -> Result<Delivery, KafkaError> {
        let producer = self.client()?;
        self.bootstrap.restore_brokers(producer.client());
        let sent = require_offset(producer.send(letter, QUEUE_LIMIT).await);
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
                let context = ConnectionContext::new(Arc::clone(&self.bootstrap));
                Ok(producer.insert(self.config.create_with_context(context)?).clone())
            }
        }
    }

    /// An idempotent producer that met a fatal error never works again: the next attempt makes a new one.
    fn replace_if_fatal(&self, failed: &FutureProducer<ConnectionContext>) {
        if let Some((code, reason)) = failed.client().fatal_error() {
            let mut producer = lock(&self.producer);
            if producer.as_ref().is_some_and(|now| now.client().native_ptr() == failed.client().native_ptr())
            {
                tracing::warn!(code = %code, reason, "dead letter producer failed for good, making a new one");
                *producer = None;
            }
        }
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES)]
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
            "INVALID_TIMESTAMP for the present time as well: set the clock of this machine and those of the brokers \
             right, or raise message.timestamp.after.max.ms and message.timestamp.before.max.ms of topic {topic}"
        ),
        _ => format!("it is tried again until topic {topic} takes it"),
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER;
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::RDKafkaApiKey;

    use super::*;

    #[tokio::test]
    async fn g5_what_kafka_takes_for_a_repetition_without_saying_where_it_is_is_not_finished() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("a.dlq", 1, 1).unwrap();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers()).set("enable.idempotence", "true");
        let letters = DeadLetters::new(config, "g".into(), None);
        let record = Record::new(7, None, None, Some(b"{"), std::iter::empty);
        let cause = Cause { stage: "decode", class: "InvalidJson".into(), reason: "no JSON".into() };
        let produce = || letters.produce(Origin { topic: "a", partition: 0 }, &record, &cause);
        cluster.request_errors(RDKafkaApiKey::Produce, &[RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER]);
        let why = produce().await.unwrap_err();
        assert!(why.contains("a/0 offset 7") && why.contains("DuplicateSequenceNumber"), "{why}");
        assert!(produce().await.is_ok());
    }

    #[test]
    fn a_text_is_cut_at_a_whole_character() {
        let text = "é".repeat(600);
        assert_eq!(cut(&text).len(), 1024);
        assert_eq!(cut(&format!("a{text}")).len(), 1023);
        assert_eq!(cut("short"), "short");
    }

    #[test]
    fn the_remedy_names_the_topic() {
        let error = KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge);
        assert_eq!(remedy(&error, "a.dlq"), "raise max.message.bytes of topic a.dlq");
        let error = KafkaError::MessageProduction(RDKafkaErrorCode::InvalidTimestamp);
        let remedy = remedy(&error, "a.dlq");
        for part in ["INVALID_TIMESTAMP", "clock", "message.timestamp.after.max.ms", "topic a.dlq"] {
            assert!(remedy.contains(part), "{part}: {remedy}");
        }
    }
}
