//! Topics with events in them, exactly as the producer writes them, or as the documents that they become.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bson::Document;
use events::{Decoded, Event, RecordView, StorableEvent};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};

use crate::Failure;
use crate::workload::Totals;

/// As the services make their topics.
pub const PARTITIONS: i32 = 6;
const DELIVERED_WITHIN: Duration = Duration::from_secs(60);

/// What the value of a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The event, with its payload inside.
    Envelope,
    /// The document that the event becomes, without `_id`: for a side that cannot make it of the event.
    Document,
}

/// A topic that is filled and stays as it is.
#[derive(Debug)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// How many records it has.
    pub records: u32,
    /// The last record of each partition.
    pub last: Vec<Last>,
    /// What a collection comes to that has stored them all.
    pub totals: Totals,
}

/// The last event of a partition. It is the newest of its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Last {
    /// Its id.
    pub id: String,
    /// Its timestamp.
    pub timestamp: i64,
}

/// What every client of the benchmark's own starts from.
pub fn client(kafka: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka);
    config
}

/// What a producer of the benchmark's own starts from; what is said here is what our producer says.
pub fn producer(kafka: &str) -> ClientConfig {
    let mut config = client(kafka);
    config.set("acks", "all").set("enable.idempotence", "true").set("partitioner", "murmur2_random");
    config
}

/// Makes an empty topic.
pub async fn create(kafka: &str, name: &str) -> Result<(), Failure> {
    let admin: AdminClient<DefaultClientContext> = client(kafka).create()?;
    // The events are of the past: the broker must not take them for outdated.
    let topic = NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1)).set("retention.ms", "-1");
    let made = admin.create_topics([&topic], &AdminOptions::new().operation_timeout(Some(DELIVERED_WITHIN)));
    for outcome in made.await? {
        outcome.map_err(|(topic, code)| format!("the topic {topic} was not made: {code}"))?;
    }
    Ok(())
}

impl Topic {
    /// Makes a topic and fills it; into one partition, if that is named.
    pub async fn filled(
        kafka: &str,
        name: &str,
        events: &[Event],
        form: Form,
        partition: Option<i32>,
    ) -> Result<Topic, Failure> {
        create(kafka, name).await?;
        let delivered = tokio::task::block_in_place(|| fill(kafka, name, events, form, partition))?;
        if delivered.records as usize != events.len() {
            return Err(format!("only {} of {} records were taken", delivered.records, events.len()).into());
        }
        let last = delivered.last.into_values().collect();
        Ok(Topic { name: name.to_owned(), records: delivered.records, last, totals: Totals::of(events) })
    }
}

fn fill(
    kafka: &str,
    topic: &str,
    events: &[Event],
    form: Form,
    partition: Option<i32>,
) -> Result<Delivered, Failure> {
    let mut config = producer(kafka);
    config.set("linger.ms", "20").set("queue.buffering.max.messages", "100000");
    let producer: BaseProducer<Ledger> = config.create_with_context(Ledger::default())?;
    for event in events {
        let value = value(event, form)?;
        let headers =
            OwnedHeaders::new().insert(Header { key: "content-type", value: Some("application/json") });
        let mut record = BaseRecord::to(topic).key(event.id.as_str()).payload(&value).headers(headers);
        record.timestamp = Some(event.ingested_at.get());
        record.partition = partition;
        while let Err((error, back)) = producer.send(record) {
            if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                return Err(error.into());
            }
            producer.poll(Duration::from_millis(10));
            record = back;
        }
    }
    producer.flush(DELIVERED_WITHIN)?;
    let delivered = std::mem::take(&mut *producer.client().context().lock());
    match delivered.error {
        Some(error) => Err(error.into()),
        None => Ok(delivered),
    }
}

/// The value of an event's record.
pub fn value(event: &Event, form: Form) -> Result<Vec<u8>, Failure> {
    let envelope = event.to_json();
    if form == Form::Envelope {
        return Ok(envelope);
    }
    let record = RecordView { key: None, value: &envelope, timestamp: None };
    let document = Document::try_from(stored(&record)?.document.as_ref())?;
    Ok(serde_json::to_vec(&document)?)
}

/// What a record becomes.
pub fn stored(record: &RecordView<'_>) -> Result<StorableEvent, Failure> {
    match events::decode(record, |_| true)? {
        Decoded::Event(event) => Ok(event),
        Decoded::OtherSource(source) => Err(format!("an event of another source, {source}").into()),
    }
}

/// Takes the broker's acknowledgements.
#[derive(Default)]
struct Ledger(Mutex<Delivered>);

#[derive(Default)]
struct Delivered {
    records: u32,
    last: BTreeMap<i32, Last>,
    error: Option<KafkaError>,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Delivered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Ledger {}

impl ProducerContext for Ledger {
    type DeliveryOpaque = ();

    /// Called in the order of each partition's offsets.
    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let mut delivered = self.lock();
        match result {
            Ok(record) => {
                delivered.records += 1;
                let id = String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned();
                let timestamp = record.timestamp().to_millis().unwrap_or_default();
                delivered.last.insert(record.partition(), Last { id, timestamp });
            }
            Err((error, _)) => delivered.error = Some(error.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Workload;
    use serde_json::Value;

    #[test]
    fn a_document_has_the_fields_that_the_event_becomes() {
        let aircraft = crate::sample::aircraft().unwrap();
        let event = &Workload::New.events(&aircraft, 1).unwrap()[0];
        let envelope: Value = serde_json::from_slice(&value(event, Form::Envelope).unwrap()).unwrap();
        let document: Value = serde_json::from_slice(&value(event, Form::Document).unwrap()).unwrap();
        assert_eq!(document["event_id"], envelope["id"]);
        assert_eq!(document["event_timestamp"], envelope["timestamp"]);
        assert_eq!(document["mode_s"], envelope["payload"]["mode_s"]);
        assert_eq!(document["url_photo"], Value::Null);
        assert_eq!(document["event_timestamp_iso"], "2024-10-27T03:33:20.000Z");
        assert_eq!(document.as_object().unwrap().len(), 17);
    }
}
