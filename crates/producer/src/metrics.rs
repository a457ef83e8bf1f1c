//! The metrics of the producer, and the totals that `/health` contains. Each application has its
//! own [`Metrics`], because several can run in one process.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use events::Source;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};
use service::tasks::lock;

/// Maximum number of `source` labels, because clients choose the sources.
const MAX_SOURCES: usize = 50;
/// The label of all further sources.
const OTHER_SOURCE: &str = "other";

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
/// The operator chooses the sources of the file, not the client.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySourceAndOutcome {
    source: String,
    outcome: &'static str,
}
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRoute {
    route: &'static str,
}
/// The operator chooses the names of keys, not the client.
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

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByStep {
    step: &'static str,
}

type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

/// Totals since the start, for a process that runs a producer within itself.
#[derive(Debug, Clone, Default)]
pub struct Counters(Arc<Totals>);

#[derive(Debug, Default)]
struct Totals {
    accepted: AtomicU64,
    rejected: AtomicU64,
    unconfirmed: AtomicU64,
    pulled_dead_letters: AtomicU64,
    last_minute: Mutex<LastMinute>,
}

impl Counters {
    /// Events with a 202.
    pub fn accepted(&self) -> u64 {
        self.0.accepted.load(Ordering::Relaxed)
    }

    /// Events with an error response other than 504.
    pub fn rejected(&self) -> u64 {
        self.0.rejected.load(Ordering::Relaxed)
    }

    /// Fetched records that are dead letters. They are neither accepted events nor records of a
    /// source topic.
    pub fn pulled_dead_letters(&self) -> u64 {
        self.0.pulled_dead_letters.load(Ordering::Relaxed)
    }

    /// Events with a 504, whose outcome is unknown.
    pub fn unconfirmed(&self) -> u64 {
        self.0.unconfirmed.load(Ordering::Relaxed)
    }
}

/// The metrics of connections and of concurrent requests.
#[derive(Debug)]
pub struct ConnectionMetrics {
    pub connections: Gauge,
    /// Requests that hold a permit of MAX_IN_FLIGHT.
    pub in_flight: Gauge,
    rejected: Counter,
    timeouts: Family<ByStep, Counter>,
}

/// Registers `metric` and returns it.
fn register<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// Registers a new metric and returns it.
fn new<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    register(registry, name, help, M::default())
}

impl ConnectionMetrics {
    fn new(r: &mut Registry) -> Self {
        Self {
            connections: new(r, "connections", "Open connections"),
            in_flight: new(r, "requests_in_flight", "Requests that send events and are in flight"),
            rejected: new(r, "connections_refused", "Connections rejected because of MAX_CONNECTIONS"),
            timeouts: new(
                r,
                "connections_cut",
                "Connections closed because the client was too slow, by step",
            ),
        }
    }

    /// Counts a connection beyond MAX_CONNECTIONS.
    pub fn rejected(&self) {
        self.rejected.inc();
    }

    /// Counts a connection that was closed on a timeout, or because its TLS handshake failed.
    /// `None` is an idle connection, which is not counted.
    pub fn closed_on_timeout(&self, step: Option<&'static str>) {
        if let Some(step) = step {
            self.timeouts.get_or_create(&ByStep { step }).inc();
        }
    }
}

/// The metrics of one application.
#[derive(Debug)]
pub struct Metrics {
    pub registry: Registry,
    pub counters: Counters,
    /// Set for each exposition, as the next two.
    pub kafka_up: Gauge,
    pub kafka_queue_records: Gauge,
    pub poll_jobs: Gauge,
    pub connections: ConnectionMetrics,
    api_key_requests: Family<ByKeyAndStatus, Counter>,
    started: Instant,
    /// Maximum number of sources with their own label: those of the file, and [`MAX_SOURCES`].
    max_sources: AtomicUsize,
    /// The sources that have their own label.
    sources: Mutex<HashMap<Source, Counter>>,
    events_accepted: Family<BySource, Counter>,
    events_rejected: Family<ByReason, Counter>,
    upstream_requests: Family<ByOutcome, Counter>,
    pull_requests: Family<BySourceAndOutcome, Counter>,
    pull_records: Family<BySourceAndOutcome, Counter>,
    kafka_delivery: Histogram,
    http_requests: Family<ByRouteAndStatus, Counter>,
    http_duration: Durations<ByRoute>,
}

/// A histogram from 0.5 ms to 16 s.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 16))
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("slipstream");
        let r = &mut registry;
        // The fields are in the order of the exposition.
        Self {
            connections: ConnectionMetrics::new(r),
            api_key_requests: new(r, "api_key_requests", "Authenticated requests, by API key and status"),
            events_accepted: new(r, "events_accepted", "Events with a delivery report of Kafka, by source"),
            events_rejected: new(r, "events_rejected", "Events that were not accepted, by reason"),
            upstream_requests: new(r, "upstream_requests", "Requests to ADSBDB, by outcome"),
            pull_requests: new(
                r,
                "pull_requests",
                "Requests to the APIs of the sources file, by source and outcome",
            ),
            pull_records: new(r, "pull_records", "Records that APIs returned, by source and outcome"),
            kafka_delivery: register(
                r,
                "kafka_delivery_seconds",
                "Time from send to delivery report",
                durations(),
            ),
            kafka_queue_records: new(r, "kafka_queue_records", "Records without a delivery report yet"),
            kafka_up: new(r, "kafka_up", "Whether Kafka is available and the topic exists"),
            poll_jobs: new(r, "poll_jobs", "Running poll jobs"),
            http_requests: new(r, "http_requests", "Requests with a response, by route and status"),
            http_duration: register(
                r,
                "http_request_duration_seconds",
                "Time from request to response, by route",
                Family::new_with_constructor(durations),
            ),
            registry,
            counters: Counters::default(),
            started: Instant::now(),
            max_sources: AtomicUsize::new(MAX_SOURCES),
            sources: Mutex::default(),
        }
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Counts an accepted event and the duration of its delivery.
    pub fn event_accepted(&self, source: &Source, sent_at: Instant) {
        self.kafka_delivery.observe(sent_at.elapsed().as_secs_f64());
        self.count_accepted(&self.counter_of(source), 1);
    }

    /// Counts accepted events of one label. The durations of their deliveries were recorded before.
    pub fn events_accepted(&self, label: &str, count: u64) {
        self.count_accepted(&self.counter_of_label(label), count);
    }

    fn count_accepted(&self, counter: &Counter, count: u64) {
        self.counters.0.accepted.fetch_add(count, Ordering::Relaxed);
        lock(&self.counters.0.last_minute).count(self.uptime().as_secs(), count);
        counter.inc_by(count);
    }

    fn counter_of_label(&self, label: &str) -> Counter {
        self.events_accepted.get_or_create(&BySource { source: label.to_owned() }).clone()
    }

    /// The histogram of delivery durations.
    pub fn delivery_seconds(&self) -> Histogram {
        self.kafka_delivery.clone()
    }

    /// The `source` label of a source.
    pub fn label(&self, source: &Source) -> String {
        let mut known = lock(&self.sources);
        if known.contains_key(source) {
            return source.to_string();
        }
        if known.len() >= self.max_sources.load(Ordering::Relaxed) {
            return OTHER_SOURCE.into();
        }
        known.insert(source.clone(), self.counter_of_label(source.as_str()));
        source.to_string()
    }

    fn counter_of(&self, source: &Source) -> Counter {
        if let Some(counter) = lock(&self.sources).get(source) {
            return counter.clone();
        }
        self.counter_of_label(&self.label(source))
    }

    /// Counts events that were not accepted.
    pub fn events_rejected(&self, reason: &'static str, count: u64) {
        debug_assert!(
            crate::error::REJECTION_REASONS.contains(&reason),
            "{reason} is not in REJECTION_REASONS"
        );
        self.events_rejected.get_or_create(&ByReason { reason }).inc_by(count);
        let totals = &self.counters.0;
        let total = if reason == "unconfirmed" { &totals.unconfirmed } else { &totals.rejected };
        total.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts a request to ADSBDB.
    pub fn upstream(&self, outcome: &'static str) {
        self.upstream_requests.get_or_create(&ByOutcome { outcome }).inc();
    }

    /// Counts a request to the API of a source of the file.
    pub fn pull(&self, source: &str, outcome: &'static str) {
        let labels = BySourceAndOutcome { source: source.to_owned(), outcome };
        self.pull_requests.get_or_create(&labels).inc();
    }

    /// Counts records that an API returned.
    pub fn pulled_records(&self, source: &str, outcome: &'static str, count: u64) {
        if count > 0 {
            let labels = BySourceAndOutcome { source: source.to_owned(), outcome };
            self.pull_records.get_or_create(&labels).inc_by(count);
            if outcome == "dead_lettered" {
                self.counters.0.pulled_dead_letters.fetch_add(count, Ordering::Relaxed);
            }
        }
    }

    /// Gives the sources of the file their own labels, before clients use them up.
    pub fn add_sources<'s>(&self, names: impl Iterator<Item = &'s Source>) {
        let mut known = lock(&self.sources);
        for name in names {
            known.insert(name.clone(), self.counter_of_label(name.as_str()));
        }
        self.max_sources.store(MAX_SOURCES + known.len(), Ordering::Relaxed);
    }

    /// Counts the response to an authenticated request.
    pub fn authenticated(&self, key: &Arc<str>, status: u16) {
        self.api_key_requests.get_or_create(&ByKeyAndStatus { key: Arc::clone(key), status }).inc();
    }

    /// Counts the response to a request.
    pub fn request_finished(&self, route: &'static str, status: u16, duration: Duration) {
        self.http_requests.get_or_create(&ByRouteAndStatus { route, status }).inc();
        self.http_duration.get_or_create(&ByRoute { route }).observe(duration.as_secs_f64());
    }

    pub fn accepted_last_minute(&self) -> u64 {
        lock(&self.counters.0.last_minute).total(self.uptime().as_secs())
    }
}

/// The number of events in each of the last 60 seconds.
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

/// OpenMetrics text with one sample of each metric of a producer: names, types, help texts and
/// labels. The documentation is compared with it.
pub fn metrics_reference() -> String {
    let metrics = Metrics::new();
    if let Ok(source) = Source::new("source") {
        metrics.event_accepted(&source, Instant::now());
    }
    metrics.events_rejected("invalid", 1);
    metrics.upstream("ok");
    metrics.pull("source", "ok");
    metrics.pulled_records("source", "accepted", 1);
    metrics.authenticated(&Arc::from("key"), 202);
    metrics.request_finished("/ingest", 202, Duration::ZERO);
    metrics.connections.closed_on_timeout(Some("handshake"));
    let mut text = String::new();
    let encoded = encode_registry(&mut text, &metrics.registry);
    debug_assert!(encoded.is_ok(), "{encoded:?}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_minute_drops_older_events() {
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
    fn sources_beyond_the_limit_share_a_label() {
        let metrics = Metrics::new();
        for number in 0..60 {
            let source = Source::new(format!("s{number}")).unwrap();
            assert_eq!(metrics.label(&source), if number < 50 { source.to_string() } else { "other".into() });
        }
        assert_eq!(metrics.label(&Source::new("s7").unwrap()), "s7");
    }
}
