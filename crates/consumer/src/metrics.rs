//! What the consumer counts. The metrics belong to one application, not to the process.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::mongo::Counts;
use crate::partition::workers::Lanes;

/// How a record ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A new document.
    Inserted,
    /// A changed document.
    Updated,
    /// The document was already so.
    Unchanged,
    /// The document is newer than the event.
    Stale,
    /// A null value, or a source that is not ours.
    Skipped,
    /// It can never be stored.
    DeadLettered,
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Inserted => "inserted",
            Self::Updated => "updated",
            Self::Unchanged => "unchanged",
            Self::Stale => "stale",
            Self::Skipped => "skipped",
            Self::DeadLettered => "dead_lettered",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartitionLabel {
    topic: String,
    partition: i32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TopicLabel {
    topic: String,
}

/// Handles of the metrics; clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    read: Counter,
    finished: Family<OutcomeLabel, Counter>,
    repeated: Counter,
    write_seconds: Histogram,
    write_batch_records: Histogram,
    freshness_seconds: Histogram,
    lag: Family<PartitionLabel, Gauge>,
    committed_lag: Family<PartitionLabel, Gauge>,
    lost: Family<TopicLabel, Counter>,
    lost_total: Counter,
    seconds_since_progress: Gauge,
    store_up: Gauge,
    kafka_up: Gauge,
}

impl Metrics {
    /// New metrics of a consumer of `topics`, known to `registry`. Losses begin at 0 for each topic, so that the first
    /// one is an increase.
    pub fn new(registry: &mut Registry, topics: &[String]) -> Self {
        let metrics = Self {
            read: Counter::default(),
            finished: Family::default(),
            repeated: Counter::default(),
            write_seconds: Histogram::new(exponential_buckets(0.0005, 2.0, 16)),
            write_batch_records: Histogram::new(exponential_buckets(1.0, 2.0, 12)),
            freshness_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 20)),
            lag: Family::default(),
            committed_lag: Family::default(),
            lost: Family::default(),
            lost_total: Counter::default(),
            seconds_since_progress: Gauge::default(),
            store_up: Gauge::default(),
            kafka_up: Gauge::default(),
        };
        topics.iter().for_each(|topic| metrics.lost(topic, 0));
        let m = metrics.clone();
        registry.register("records_read", "Records taken in hand", m.read);
        registry.register("records_finished", "Records that are done with, by outcome", m.finished);
        let repeated =
            "Records that were done with before, read again because their partition was lost uncommitted";
        registry.register("records_repeated", repeated, m.repeated);
        registry.register_with_unit(
            "write",
            "Duration of one write to MongoDB",
            Unit::Seconds,
            m.write_seconds,
        );
        registry.register("write_batch_records", "Records in one write", m.write_batch_records);
        let freshness = "From ingested_at to stored";
        registry.register_with_unit("freshness", freshness, Unit::Seconds, m.freshness_seconds);
        registry.register("lag_records", "Records between the position and the end of the partition", m.lag);
        let committed = "Records between the last confirmed commit and the end of the partition";
        registry.register("committed_lag_records", committed, m.committed_lag);
        let lost = "Records that Kafka deleted by retention before they were read";
        registry.register("records_lost_to_retention", lost, m.lost);
        let progress = "Since a record was last finished, over the lanes that have records waiting";
        registry.register("seconds_since_progress", progress, m.seconds_since_progress);
        registry.register("store_up", "1 if MongoDB answers", m.store_up);
        registry.register("kafka_up", "1 if Kafka answers and the topics exist", m.kafka_up);
        metrics
    }

    /// Records were taken in hand.
    pub fn read(&self, records: usize) {
        self.read.inc_by(records as u64);
    }

    /// Records are finished.
    pub fn finished(&self, outcome: Outcome, records: u64) {
        if records > 0 {
            self.finished.get_or_create(&OutcomeLabel { outcome }).inc_by(records);
        }
    }

    /// Records of `topic` were deleted before they were read.
    pub fn lost(&self, topic: &str, records: u64) {
        self.lost.get_or_create(&TopicLabel { topic: topic.to_owned() }).inc_by(records);
        self.lost_total.inc_by(records);
    }

    /// Counts records that are finished once more.
    pub fn repeated(&self) -> Counter {
        self.repeated.clone()
    }

    /// One write was answered.
    pub fn wrote(&self, took: Duration, records: usize, counts: &Counts) {
        self.write_seconds.observe(took.as_secs_f64());
        self.write_batch_records.observe(records as f64);
        self.finished(Outcome::Inserted, counts.inserted);
        self.finished(Outcome::Updated, counts.updated);
        self.finished(Outcome::Unchanged, counts.unchanged);
        self.finished(Outcome::Stale, counts.superseded);
    }

    /// A record became visible this long after it was ingested.
    pub fn fresh(&self, age: Duration) {
        self.freshness_seconds.observe(age.as_secs_f64());
    }

    /// Sets what is only known at the moment of asking.
    pub fn look(&self, lanes: &Lanes, store_up: bool, kafka_up: bool) {
        self.lag.clear();
        self.committed_lag.clear();
        for lane in lanes.list() {
            let partition = lane.progress.partition;
            let label = PartitionLabel { topic: lane.progress.topic.to_string(), partition };
            let lags =
                [(&self.lag, lane.progress.lag()), (&self.committed_lag, lane.progress.committed_lag())];
            for (family, lag) in lags {
                if let Some(lag) = lag {
                    family.get_or_create(&label).set(i64::try_from(lag).unwrap_or(i64::MAX));
                }
            }
        }
        let now = Instant::now();
        let still = lanes.list().iter().filter_map(|lane| lane.still_for(now)).max().unwrap_or_default();
        self.seconds_since_progress.set(i64::try_from(still.as_secs()).unwrap_or(i64::MAX));
        self.store_up.set(i64::from(store_up));
        self.kafka_up.set(i64::from(kafka_up));
    }

    fn count(&self, outcome: Outcome) -> u64 {
        self.finished.get_or_create(&OutcomeLabel { outcome }).get()
    }
}

/// The counters, for whoever runs the consumer in process. Clones see the same counts.
#[derive(Clone)]
pub struct Counters {
    metrics: Metrics,
    lanes: Arc<Lanes>,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Snapshot {
    /// Records taken in hand.
    pub read: u64,
    /// New documents.
    pub inserted: u64,
    /// Changed documents.
    pub updated: u64,
    /// Documents that were already so.
    pub unchanged: u64,
    /// Events older than their document.
    pub stale: u64,
    /// Null values and other sources.
    pub skipped: u64,
    /// Dead letters.
    pub dead_lettered: u64,
    /// Those of the outcomes that are of records which had been finished before: their partition was lost before they
    /// were committed.
    pub repeated: u64,
    /// Records that Kafka deleted by retention before they were read.
    pub lost_to_retention: u64,
    /// Records that wait on the assigned partitions, once the broker told the ends of all of them.
    pub lag: Option<u64>,
}

impl Snapshot {
    /// Outcomes.
    pub fn finished(&self) -> u64 {
        self.inserted + self.updated + self.unchanged + self.stale + self.skipped + self.dead_lettered
    }
}

impl Counters {
    pub(crate) fn new(metrics: Metrics, lanes: Arc<Lanes>) -> Self {
        Self { metrics, lanes }
    }

    /// Whether this process has finished the record at `offset`, committed or not. Asked of offsets that it may have
    /// read since its start.
    pub fn has_finished(&self, topic: &str, partition: i32, offset: i64) -> bool {
        self.lanes.has_finished(topic, partition, offset)
    }

    /// What they show now.
    pub fn snapshot(&self) -> Snapshot {
        let lanes = self.lanes.list();
        let lag = if lanes.is_empty() { None } else { lanes.iter().map(|lane| lane.progress.lag()).sum() };
        Snapshot {
            read: self.metrics.read.get(),
            inserted: self.metrics.count(Outcome::Inserted),
            updated: self.metrics.count(Outcome::Updated),
            unchanged: self.metrics.count(Outcome::Unchanged),
            stale: self.metrics.count(Outcome::Stale),
            skipped: self.metrics.count(Outcome::Skipped),
            dead_lettered: self.metrics.count(Outcome::DeadLettered),
            repeated: self.metrics.repeated.get(),
            lost_to_retention: self.metrics.lost_total.get(),
            lag,
        }
    }
}
