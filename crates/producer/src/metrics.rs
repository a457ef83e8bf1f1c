//! What the producer counts: for `/metrics`, and the few numbers that `/health` shows. One application has one
//! [`Metrics`], so that several can run in one process.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use events::Source;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::http::connection_metrics as serving;
use service::lock::lock;

/// Clients choose sources, so only so many get a label of their own.
const MOST_SOURCES: usize = 50;
/// The label of the others.
const OTHER: &str = "other";

/// Labels of one value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySource {
    source: String,
}
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    outcome: &'static str,
}
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRoute {
    route: &'static str,
}
/// Of a key: the operator chooses the names, not the client.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKeyAndStatus {
    key: Arc<str>,
    status: u16,
}
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRouteAndStatus {
    route: &'static str,
    status: u16,
}

type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

/// Totals since the start, for whoever runs the producer in its own process.
#[derive(Debug, Clone, Default)]
pub struct Counters(Arc<Totals>);

#[derive(Debug, Default)]
struct Totals {
    accepted: AtomicU64,
    rejected: AtomicU64,
    unconfirmed: AtomicU64,
    last_minute: Mutex<LastMinute>,
}

impl Counters {
    /// Events that were answered with 202.
    pub fn accepted(&self) -> u64 {
        self.0.accepted.load(Ordering::Relaxed)
    }

    /// Events that were not, unconfirmed ones excepted.
    pub fn rejected(&self) -> u64 {
        self.0.rejected.load(Ordering::Relaxed)
    }

    /// Events that were answered with 504: they may or may not be in the topic.
    pub fn unconfirmed(&self) -> u64 {
        self.0.unconfirmed.load(Ordering::Relaxed)
    }
}

/// The metrics of one application.
#[derive(Debug)]
pub struct Metrics {
    /// All of them, for the exposition.
    pub registry: Registry,
    /// Totals.
    pub counters: Counters,
    /// Set when asked for.
    pub kafka_up: Gauge,
    /// Set when asked for.
    pub kafka_queue_records: Gauge,
    /// Set when asked for.
    pub poll_jobs: Gauge,
    /// Connections, and requests in flight.
    pub serving: serving::Counts,
    api_key_requests: Family<ByKeyAndStatus, Counter>,
    started: Instant,
    /// Those that have a label of their own.
    sources: Mutex<HashMap<Source, Counter>>,
    events_accepted: Family<BySource, Counter>,
    events_rejected: Family<ByReason, Counter>,
    upstream_requests: Family<ByOutcome, Counter>,
    kafka_delivery: Histogram,
    http_requests: Family<ByRouteAndStatus, Counter>,
    http_duration: Durations<ByRoute>,
}

/// From half a millisecond to 16 s.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 16))
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("slipstream"),
            counters: Counters::default(),
            kafka_up: Gauge::default(),
            kafka_queue_records: Gauge::default(),
            poll_jobs: Gauge::default(),
            serving: serving::Counts::default(),
            api_key_requests: Family::default(),
            started: Instant::now(),
            sources: Mutex::default(),
            events_accepted: Family::default(),
            events_rejected: Family::default(),
            upstream_requests: Family::default(),
            kafka_delivery: durations(),
            http_requests: Family::default(),
            http_duration: Family::new_with_constructor(durations),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        self.serving.register(r);
        r.register("api_key_requests", "Requests let in, by key", self.api_key_requests.clone());
        r.register(
            "events_accepted",
            "Events acknowledged by Kafka, by source",
            self.events_accepted.clone(),
        );
        r.register("events_rejected", "Events that were not accepted", self.events_rejected.clone());
        r.register("upstream_requests", "Questions to ADSBDB", self.upstream_requests.clone());
        r.register("kafka_delivery_seconds", "Sent to acknowledged", self.kafka_delivery.clone());
        r.register("kafka_queue_records", "Sent, not acknowledged", self.kafka_queue_records.clone());
        r.register("kafka_up", "Whether Kafka answers and the topic exists", self.kafka_up.clone());
        r.register("poll_jobs", "Poll jobs that run", self.poll_jobs.clone());
        r.register("http_requests", "Requests answered", self.http_requests.clone());
        r.register("http_request_duration_seconds", "Request to answer", self.http_duration.clone());
    }

    /// Since the start.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// To be given to [`Metrics::accepted`].
    pub fn delivery_timer(&self) -> Instant {
        Instant::now()
    }

    /// An event was acknowledged.
    pub fn accepted(&self, source: &Source, sent_at: Instant) {
        self.kafka_delivery.observe(sent_at.elapsed().as_secs_f64());
        self.count_accepted(&self.of(source), 1);
    }

    /// So many events of one label were acknowledged, whose deliveries were measured already.
    pub fn accepted_many(&self, label: &str, count: u64) {
        self.count_accepted(&self.labelled(label), count);
    }

    fn count_accepted(&self, counter: &Counter, count: u64) {
        self.counters.0.accepted.fetch_add(count, Ordering::Relaxed);
        lock(&self.counters.0.last_minute).count(self.uptime().as_secs(), count);
        counter.inc_by(count);
    }

    fn labelled(&self, label: &str) -> Counter {
        self.events_accepted.get_or_create(&BySource { source: label.to_owned() }).clone()
    }

    /// Sent to acknowledged.
    pub fn delivery_seconds(&self) -> Histogram {
        self.kafka_delivery.clone()
    }

    /// What a source is counted by.
    pub fn label(&self, source: &Source) -> String {
        let mut known = lock(&self.sources);
        if known.contains_key(source) {
            return source.to_string();
        }
        if known.len() >= MOST_SOURCES {
            return OTHER.into();
        }
        known.insert(source.clone(), self.labelled(source.as_str()));
        source.to_string()
    }

    fn of(&self, source: &Source) -> Counter {
        if let Some(counter) = lock(&self.sources).get(source) {
            return counter.clone();
        }
        self.labelled(&self.label(source))
    }

    /// So many events were not accepted.
    pub fn rejected(&self, reason: &'static str, count: u64) {
        self.events_rejected.get_or_create(&ByReason { reason }).inc_by(count);
        let totals = &self.counters.0;
        let total = if reason == "unconfirmed" { &totals.unconfirmed } else { &totals.rejected };
        total.fetch_add(count, Ordering::Relaxed);
    }

    /// ADSBDB was asked.
    pub fn upstream(&self, outcome: &'static str) {
        self.upstream_requests.get_or_create(&ByOutcome { outcome }).inc();
    }

    /// A request that was let in with a key was answered.
    pub fn answered_to(&self, key: &Arc<str>, status: u16) {
        self.api_key_requests.get_or_create(&ByKeyAndStatus { key: Arc::clone(key), status }).inc();
    }

    /// A request was answered.
    pub fn answered(&self, route: &'static str, status: u16, took: Duration) {
        self.http_requests.get_or_create(&ByRouteAndStatus { route, status }).inc();
        self.http_duration.get_or_create(&ByRoute { route }).observe(took.as_secs_f64());
    }

    /// Events accepted within the last minute.
    pub fn accepted_last_minute(&self) -> u64 {
        lock(&self.counters.0.last_minute).total(self.uptime().as_secs())
    }
}

/// A count for each of the last 60 seconds.
#[derive(Debug)]
struct LastMinute([(u64, u64); 60]);

impl Default for LastMinute {
    fn default() -> Self {
        Self([(0, 0); 60])
    }
}

impl LastMinute {
    fn count(&mut self, second: u64, events: u64) {
        let slot = usize::try_from(second % 60).unwrap_or_default();
        if let Some((of, count)) = self.0.get_mut(slot) {
            *count = if *of == second { *count + events } else { events };
            *of = second;
        }
    }

    fn total(&self, now: u64) -> u64 {
        self.0.iter().filter(|(second, _)| second + 60 > now).map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_minute_forgets() {
        let mut minute = LastMinute::default();
        minute.count(0, 1);
        minute.count(0, 1);
        minute.count(59, 1);
        assert_eq!(minute.total(59), 3);
        assert_eq!(minute.total(60), 1);
        minute.count(60, 1);
        assert_eq!(minute.total(60), 2);
        assert_eq!(minute.total(500), 0);
    }

    #[test]
    fn sources_beyond_the_fiftieth_share_a_label() {
        let metrics = Metrics::new();
        for number in 0..60 {
            let source = Source::new(format!("s{number}")).unwrap();
            assert_eq!(metrics.label(&source), if number < 50 { source.to_string() } else { "other".into() });
        }
        assert_eq!(metrics.label(&Source::new("s7").unwrap()), "s7");
    }
}
