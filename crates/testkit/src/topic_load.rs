//! Events for a topic, with repeated keys and timestamps out of order, and the documents that they
//! must produce.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use bson::{Bson, DateTime, Document, doc};
use rdkafka::ClientConfig;
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord};
use serde_json::json;

use crate::{Names, mongo};

/// The source of the events.
pub const SOURCE: &str = "manual";
/// The earliest timestamp.
const MIN_TIMESTAMP_MS: i64 = 1_700_000_000_000;

#[derive(Debug, Clone, Copy)]
struct Event {
    key: usize,
    timestamp: i64,
    ingested_at: i64,
}

/// The events; the same seed generates the same events.
#[derive(Debug)]
pub struct TopicLoad {
    events: Vec<Event>,
}

impl TopicLoad {
    /// Generates `records` events with `keys` keys. If both numbers are equal, each event has its
    /// own key. Some events of a key have equal versions: the later record then wins.
    pub fn new(seed: u64, records: usize, keys: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut last: HashMap<usize, Event> = HashMap::new();
        // No timestamp ends in a zero, so its text has three decimals.
        let time =
            |random: &mut fastrand::Rng, spread: i64| MIN_TIMESTAMP_MS + random.i64(0..spread) * 10 + 1;
        let mut next = |n: usize| {
            let key = if keys == records { n } else { random.usize(0..keys) };
            let (timestamp, ingested_at) = (time(&mut random, 1_000_000), time(&mut random, 1_000));
            let same_version = last.get(&key).copied().filter(|_| random.u8(0..20) == 0);
            let event = same_version.unwrap_or(Event { key, timestamp, ingested_at });
            last.insert(key, event);
            event
        };
        Self { events: (0..records).map(&mut next).collect() }
    }

    /// The number of records.
    pub fn records(&self) -> usize {
        self.events.len()
    }

    /// The value of record `n`.
    pub fn value(&self, n: usize) -> String {
        let Event { key, timestamp, ingested_at } = self.events[n];
        json!({
            "id": id(key), "timestamp": timestamp, "source": SOURCE, "payload": payload(n, key),
            "ingested_at": ingested_at, "api_version": "1.0.0",
        })
        .to_string()
    }

    /// The key of record `n`.
    pub fn key(&self, n: usize) -> String {
        id(self.events[n].key)
    }

    /// Produces the records `range`, each to the partition of its key, at `per_second` or as fast
    /// as possible.
    pub async fn produce(&self, names: &Names, range: Range<usize>, per_second: Option<u32>) {
        let producer = producer(names);
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        let records_per_tick = per_second.map_or(1_000, |rate| (rate as usize / 50).max(1));
        let mut deliveries: Vec<DeliveryFuture> = Vec::with_capacity(range.len());
        for n in range.clone() {
            if (n - range.start).is_multiple_of(records_per_tick) {
                match per_second {
                    Some(_) => drop(tick.tick().await),
                    None => tokio::task::yield_now().await,
                }
            }
            deliveries.push(self.send(&producer, names, n).await);
        }
        for delivery in deliveries {
            delivery.await.expect("the producer exists").expect("acknowledged");
        }
    }

    async fn send(&self, producer: &FutureProducer, names: &Names, n: usize) -> DeliveryFuture {
        let (key, value) = (self.key(n), self.value(n));
        let mut record = FutureRecord::to(&names.topic).key(&key).payload(&value);
        loop {
            match producer.send_result(record) {
                Ok(delivery) => return delivery,
                // The send queue is full.
                Err((_, returned)) => record = returned,
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Panics unless the collection is exactly what the first `records` records produce. Only
    /// records for which `is_stored` returns true are expected.
    pub async fn assert_stored(&self, names: &Names, records: usize, is_stored: impl Fn(usize) -> bool) {
        let mut newest: HashMap<usize, usize> = HashMap::new();
        for n in (0..records).filter(|n| is_stored(*n)) {
            let version = |n: usize| (self.events[n].timestamp, self.events[n].ingested_at);
            let kept = newest.entry(self.events[n].key).or_insert(n);
            if version(n) >= version(*kept) {
                *kept = n;
            }
        }
        let collection = mongo::collection(names, SOURCE).await;
        let stored = mongo::all(&collection, doc! {}).await;
        let mut expected: HashMap<String, Document> =
            newest.into_values().map(|n| (self.key(n), self.document(n))).collect();
        let count = (stored.len(), expected.len());
        for mut document in stored {
            document.remove("_id").expect("an _id");
            let id = document.get_str("event_id").expect("an event_id").to_owned();
            let wanted = expected.remove(&id);
            assert_eq!(Some(&document), wanted.as_ref(), "the document of {id}");
        }
        assert!(expected.is_empty(), "(stored, expected) = {count:?}; missing: {:?}", expected.keys().next());
    }

    fn document(&self, n: usize) -> Document {
        let Event { key, timestamp, ingested_at } = self.events[n];
        let mut document = payload(n, key);
        document.extend(doc! {
            "event_id": id(key), "event_timestamp": timestamp, "ingested_at": ingested_at, "api_version": "1.0.0",
            "event_timestamp_iso": iso(timestamp), "ingested_at_iso": iso(ingested_at),
        });
        document
    }
}

fn id(key: usize) -> String {
    format!("{key:06X}")
}

/// A payload of about the size of an aircraft.
fn payload(n: usize, key: usize) -> Document {
    let n = i32::try_from(n).expect("a small number");
    doc! {
        "n": n, "third": n % 3, "mode_s": id(key), "registration": format!("N{key}"), "type": "G Hot Air Balloon",
        "icao_type": "BALL", "manufacturer": "Schroeder Fire Balloons", "registered_owner": "Private",
        "registered_owner_country_iso_name": "DE", "registered_owner_country_name": "Germany",
        "registered_owner_operator_flag_code": Bson::Null, "url_photo": Bson::Null, "url_photo_thumbnail": Bson::Null,
    }
}

fn iso(ms: i64) -> String {
    DateTime::from_millis(ms).try_to_rfc3339_string().expect("a time")
}

fn producer(names: &Names) -> FutureProducer {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &names.kafka)
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "5");
    config.create().expect("a producer")
}
