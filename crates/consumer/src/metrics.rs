//! The consumer's metrics. They belong to one application and not to the process.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use events::Source;

use prometheus_client::encoding::text::encode_registry;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::mongo::Counts;
use crate::partition::progress::PartitionView;

/// The outcome of a finished record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A document was inserted.
    Inserted,
    /// A document was changed.
    Updated,
    /// The document was identical, as after a replay.
    Unchanged,
    /// The stored document is newer than the event.
    Superseded,
    /// The document was deleted, or there was none.
    Deleted,
    /// The value is null, or the source is not expected.
    Skipped,
    /// The record can never be stored.
    DeadLettered,
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Inserted => "inserted",
            Self::Updated => "updated",
            Self::Unchanged => "unchanged",
            Self::Superseded => "superseded",
            Self::Deleted => "deleted",
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

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceOutcomeLabel {
    source: String,
    outcome: Outcome,
}

/// The metrics of one source of the sources file.
#[derive(Debug, Clone)]
pub struct SourceMetrics {
    inserted: Counter,
    updated: Counter,
    unchanged: Counter,
    superseded: Counter,
    deleted: Counter,
    dead_lettered: Counter,
    freshness_seconds: Histogram,
    last_stored: Gauge,
}

impl SourceMetrics {
    /// Counts a completed write at `now`, which is a time since the epoch.
    pub fn wrote(&self, counts: &Counts, now: Duration) {
        self.inserted.inc_by(counts.inserted);
        self.updated.inc_by(counts.updated);
        self.unchanged.inc_by(counts.unchanged);
        self.superseded.inc_by(counts.superseded);
        self.deleted.inc_by(counts.deleted);
        if counts.total() > 0 {
            self.last_stored.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        }
    }

    /// Counts a dead letter.
    pub fn dead_lettered(&self) {
        self.dead_lettered.inc();
    }

    /// Records the time from `ingested_at` until the event was stored.
    pub fn observe_freshness(&self, age: Duration) {
        self.freshness_seconds.observe(age.as_secs_f64());
    }
}

/// The metrics. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    read: Counter,
    finished: Family<OutcomeLabel, Counter>,
    /// Records that are finished again.
    pub repeated: Counter,
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
    /// Dead letters of sources that the sources file does not have.
    pub unknown_source: Counter,
    sources: Arc<HashMap<Source, SourceMetrics>>,
}

fn freshness_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 20))
}

impl Metrics {
    /// Creates the metrics and registers them. Lost records start at 0 for each of `topics`, so
    /// that the first loss is an increase.
    pub fn new(registry: &mut Registry, topics: &[String]) -> Self {
        let metrics = Self {
            read: Counter::default(),
            finished: Family::default(),
            repeated: Counter::default(),
            write_seconds: Histogram::new(exponential_buckets(0.0005, 2.0, 16)),
            write_batch_records: Histogram::new(exponential_buckets(1.0, 2.0, 12)),
            freshness_seconds: freshness_buckets(),
            lag: Family::default(),
            committed_lag: Family::default(),
            lost: Family::default(),
            lost_total: Counter::default(),
            seconds_since_progress: Gauge::default(),
            store_up: Gauge::default(),
            kafka_up: Gauge::default(),
            unknown_source: Counter::default(),
            sources: Arc::default(),
        };
        topics.iter().for_each(|topic| metrics.lost(topic, 0));
        let m = metrics.clone();
        registry.register("records_read", "Records that a partition worker began", m.read);
        registry.register("records_finished", "Finished records by outcome", m.finished);
        let repeated = "Finished records that this process had finished before: their partition was lost before the commit";
        registry.register("records_repeated", repeated, m.repeated);
        registry.register_with_unit(
            "write",
            "Duration of a write to MongoDB",
            Unit::Seconds,
            m.write_seconds,
        );
        registry.register("write_batch_records", "Records per write to MongoDB", m.write_batch_records);
        let freshness = "Time from ingested_at until the event is stored";
        registry.register_with_unit("freshness", freshness, Unit::Seconds, m.freshness_seconds);
        registry.register("lag_records", "Records between the position and the end of the partition", m.lag);
        let committed = "Records between the last confirmed commit and the end of the partition";
        registry.register("committed_lag_records", committed, m.committed_lag);
        let lost = "Records that Kafka deleted by retention before they were read";
        registry.register("records_lost_to_retention", lost, m.lost);
        let progress = "Longest time without a finished record, over the partitions with waiting records";
        registry.register("seconds_since_progress", progress, m.seconds_since_progress);
        registry.register("store_up", "1 if MongoDB is available, else 0", m.store_up);
        registry.register("kafka_up", "1 if Kafka is available and the topics exist, else 0", m.kafka_up);
        metrics
    }

    /// Registers the metrics of the sources of the sources file. Each starts at 0.
    pub fn with_sources<'s>(
        mut self,
        registry: &mut Registry,
        names: impl IntoIterator<Item = &'s Source>,
    ) -> Self {
        let finished = Family::<SourceOutcomeLabel, Counter>::default();
        let freshness =
            Family::<SourceLabel, Histogram>::new_with_constructor(freshness_buckets as fn() -> Histogram);
        let last_stored = Family::<SourceLabel, Gauge>::default();
        let source_metrics = |source: &Source| {
            let label = || SourceLabel { source: source.to_string() };
            let counter = |outcome| {
                let label = SourceOutcomeLabel { source: source.to_string(), outcome };
                finished.get_or_create(&label).clone()
            };
            SourceMetrics {
                inserted: counter(Outcome::Inserted),
                updated: counter(Outcome::Updated),
                unchanged: counter(Outcome::Unchanged),
                superseded: counter(Outcome::Superseded),
                deleted: counter(Outcome::Deleted),
                dead_lettered: counter(Outcome::DeadLettered),
                freshness_seconds: freshness.get_or_create(&label()).clone(),
                last_stored: last_stored.get_or_create(&label()).clone(),
            }
        };
        let sources = names.into_iter().map(|source| (source.clone(), source_metrics(source)));
        self.sources = Arc::new(sources.collect());
        let help = "Finished records by source of the sources file and outcome";
        registry.register("source_records_finished", help, finished);
        let help = "Time from ingested_at until the event is stored, by source of the sources file";
        registry.register_with_unit("source_freshness", help, Unit::Seconds, freshness);
        let help =
            "When an event of the source was last written, in seconds since the epoch; 0 before the first";
        registry.register_with_unit("source_last_stored_timestamp", help, Unit::Seconds, last_stored);
        let help = "Dead letters of sources that the sources file does not have";
        registry.register("unknown_source_records", help, self.unknown_source.clone());
        self
    }

    /// The metrics of a source of the sources file.
    pub fn source(&self, source: &Source) -> Option<&SourceMetrics> {
        self.sources.get(source)
    }

    /// Counts records that a worker began.
    pub fn read(&self, records: usize) {
        self.read.inc_by(records as u64);
    }

    /// Counts finished records.
    pub fn finished(&self, outcome: Outcome, records: u64) {
        if records > 0 {
            self.finished.get_or_create(&OutcomeLabel { outcome }).inc_by(records);
        }
    }

    /// Counts records of `topic` that were deleted before they were read.
    pub fn lost(&self, topic: &str, records: u64) {
        self.lost.get_or_create(&TopicLabel { topic: topic.to_owned() }).inc_by(records);
        self.lost_total.inc_by(records);
    }

    /// Counts a completed write.
    pub fn wrote(&self, took: Duration, records: usize, counts: &Counts) {
        self.write_seconds.observe(took.as_secs_f64());
        self.write_batch_records.observe(records as f64);
        self.finished(Outcome::Inserted, counts.inserted);
        self.finished(Outcome::Updated, counts.updated);
        self.finished(Outcome::Unchanged, counts.unchanged);
        self.finished(Outcome::Superseded, counts.superseded);
        self.finished(Outcome::Deleted, counts.deleted);
    }

    /// Records the time from `ingested_at` until the event was stored.
    pub fn observe_freshness(&self, age: Duration) {
        self.freshness_seconds.observe(age.as_secs_f64());
    }

    /// Updates the gauges, before they are exported.
    pub fn update_gauges(&self, partitions: &[PartitionView], store_up: bool, kafka_up: bool) {
        self.lag.clear();
        self.committed_lag.clear();
        for PartitionView { progress, .. } in partitions {
            let label = PartitionLabel { topic: progress.topic.to_string(), partition: progress.partition };
            for (family, lag) in
                [(&self.lag, progress.lag()), (&self.committed_lag, progress.committed_lag())]
            {
                if let Some(lag) = lag {
                    family.get_or_create(&label).set(i64::try_from(lag).unwrap_or(i64::MAX));
                }
            }
        }
        let now = Instant::now();
        let stalled = partitions.iter().filter_map(|partition| partition.stalled_for(now)).max();
        let seconds = stalled.unwrap_or_default().as_secs();
        self.seconds_since_progress.set(i64::try_from(seconds).unwrap_or(i64::MAX));
        self.store_up.set(i64::from(store_up));
        self.kafka_up.set(i64::from(kafka_up));
    }

    /// The counters at this moment, for partitions that have `lag` records waiting.
    pub fn snapshot(&self, lag: Option<u64>) -> Snapshot {
        Snapshot {
            read: self.read.get(),
            inserted: self.count(Outcome::Inserted),
            updated: self.count(Outcome::Updated),
            unchanged: self.count(Outcome::Unchanged),
            superseded: self.count(Outcome::Superseded),
            deleted: self.count(Outcome::Deleted),
            skipped: self.count(Outcome::Skipped),
            dead_lettered: self.count(Outcome::DeadLettered),
            repeated: self.repeated.get(),
            lost_to_retention: self.lost_total.get(),
            lag,
        }
    }

    fn count(&self, outcome: Outcome) -> u64 {
        self.finished.get_or_create(&OutcomeLabel { outcome }).get()
    }
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Snapshot {
    /// Records that a worker began.
    pub read: u64,
    /// Inserted documents.
    pub inserted: u64,
    /// Changed documents.
    pub updated: u64,
    /// Events whose document was identical already.
    pub unchanged: u64,
    /// Events whose stored document or delete is newer.
    pub superseded: u64,
    /// Deletes after which there is no document of their id.
    pub deleted: u64,
    /// Tombstones, and events of sources that are not expected.
    pub skipped: u64,
    /// Dead letters.
    pub dead_lettered: u64,
    /// Outcomes of records that this process had finished before. Their partition was lost before
    /// the commit, so they were read again.
    pub repeated: u64,
    /// Records that Kafka deleted by retention before they were read.
    pub lost_to_retention: u64,
    /// Records that wait in the assigned partitions, once the ends of all partitions are known.
    pub lag: Option<u64>,
}

impl Snapshot {
    /// The sum of all outcomes.
    pub fn finished(&self) -> u64 {
        let stored = self.inserted + self.updated + self.unchanged + self.superseded + self.deleted;
        stored + self.skipped + self.dead_lettered
    }
}

/// OpenMetrics text with one sample of each metric of a consumer: names, types, help texts and
/// labels. The documentation is compared with it.
pub fn metrics_reference() -> String {
    let mut registry = Registry::with_prefix("slipstream");
    let sources: Vec<Source> = Source::new("source").into_iter().collect();
    let metrics = Metrics::new(&mut registry, &["topic".to_owned()]).with_sources(&mut registry, &sources);
    metrics.finished(Outcome::Inserted, 1);
    let partition = PartitionLabel { topic: "topic".to_owned(), partition: 0 };
    for family in [&metrics.lag, &metrics.committed_lag] {
        family.get_or_create(&partition).set(0);
    }
    let mut text = String::new();
    let encoded = encode_registry(&mut text, &registry);
    debug_assert!(encoded.is_ok(), "{encoded:?}");
    text
}
