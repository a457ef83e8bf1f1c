//! Metrics of the poller, and the result of the last request to the producer.
//!
//! Every call is counted once: as sent, failed or abandoned.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use service::tasks::lock;

/// Counts of calls and ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallCounts {
    /// Calls whose event the producer accepted.
    pub sent: u64,
    /// Calls that the producer rejected or did not respond to.
    pub failed: u64,
    /// Calls cancelled at shutdown.
    pub abandoned: u64,
    /// Ticks without a call.
    pub skipped: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// The labels of a source of POLL_SOURCES.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySource {
    source: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySourceAndOutcome {
    source: String,
    outcome: &'static str,
}

const SENT: Outcome = Outcome { outcome: "sent" };
const FAILED: Outcome = Outcome { outcome: "failed" };
const ABANDONED: Outcome = Outcome { outcome: "abandoned" };

/// A handle of the metrics. Clones share the same values.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    calls: Family<Outcome, Counter>,
    source_calls: Family<BySourceAndOutcome, Counter>,
    last_success: Family<BySource, Gauge<f64, AtomicU64>>,
    skipped: Counter,
    seconds: Histogram,
    producer_up: Gauge,
    started: Instant,
    producer: Mutex<ProducerState>,
}

#[derive(Debug)]
struct ProducerState {
    sources: Vec<SourceState>,
    /// The reason of the last failure, kept after a success.
    last_error: Option<String>,
}

/// The calls of one source.
#[derive(Debug)]
struct SourceState {
    name: String,
    counts: CallCounts,
    /// The reason of the last failure, until a request succeeds.
    failure: Option<String>,
}

impl SourceState {
    fn new(name: String) -> Self {
        Self { name, counts: CallCounts::default(), failure: Some("no response yet".to_owned()) }
    }
}

impl Default for Metrics {
    /// The metrics of a poller of `adsbdb`.
    fn default() -> Self {
        Self::new(["adsbdb".to_owned()])
    }
}

impl Metrics {
    /// The metrics of a poller of `sources`.
    pub fn new(sources: impl IntoIterator<Item = String>) -> Self {
        let calls = Family::<Outcome, Counter>::default();
        for outcome in [SENT, FAILED, ABANDONED] {
            drop(calls.get_or_create(&outcome));
        }
        let (skipped, producer_up) = (Counter::default(), Gauge::default());
        let seconds = Histogram::new([0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]);
        let mut registry = Registry::with_prefix("slipstream");
        registry.register("poll_calls", "Calls of the producer by outcome", calls.clone());
        registry.register("poll_ticks_skipped", "Ticks without a call", skipped.clone());
        registry.register("poll_call_seconds", "Time from call to response", seconds.clone());
        registry.register(
            "producer_up",
            "1 if the last request to the producer succeeded",
            producer_up.clone(),
        );
        let sources: Vec<SourceState> = sources.into_iter().map(SourceState::new).collect();
        let source_calls = Family::<BySourceAndOutcome, Counter>::default();
        let last_success = Family::<BySource, Gauge<f64, AtomicU64>>::default();
        registry.register(
            "source_poll_calls",
            "Calls of the producer by source and outcome",
            source_calls.clone(),
        );
        registry.register(
            "source_last_poll_success_timestamp_seconds",
            "Time of the last call of a source that succeeded, 0 before the first",
            last_success.clone(),
        );
        for SourceState { name: source, .. } in &sources {
            for Outcome { outcome } in [SENT, FAILED, ABANDONED] {
                drop(source_calls.get_or_create(&BySourceAndOutcome { source: source.clone(), outcome }));
            }
            drop(last_success.get_or_create(&BySource { source: source.clone() }));
        }
        let producer = Mutex::new(ProducerState { sources, last_error: None });
        Self(Arc::new(Inner {
            registry,
            calls,
            source_calls,
            last_success,
            skipped,
            seconds,
            producer_up,
            started: Instant::now(),
            producer,
        }))
    }
}

/// OpenMetrics text with one sample of each metric of a poller: names, types, help texts and
/// labels. The documentation is compared with it.
pub fn metrics_reference() -> String {
    let mut text = String::new();
    let encoded = encode_registry(&mut text, &Metrics::default().0.registry);
    debug_assert!(encoded.is_ok(), "{encoded:?}");
    text
}

impl ProducerState {
    fn of(&mut self, source: &str) -> Option<&mut SourceState> {
        self.sources.iter_mut().find(|state| state.name == source)
    }

    /// The reason of a failure, if every source has one.
    fn failure(&self) -> Option<&str> {
        let failures = self.sources.iter().map(|source| source.failure.as_deref());
        failures.reduce(|one, other| one.and(other)).flatten()
    }
}

impl Metrics {
    /// Records that the producer is ready.
    pub fn producer_is_ready(&self) {
        self.0.producer_up.set(1);
        lock(&self.0.producer).sources.iter_mut().for_each(|source| source.failure = None);
    }

    /// Records that the producer is not ready. Returns whether `reason` is a new one.
    pub fn producer_is_not_ready(&self, reason: &str) -> bool {
        self.0.producer_up.set(0);
        let mut producer = lock(&self.0.producer);
        producer.last_error = Some(reason.to_owned());
        let mut is_new = false;
        for source in &mut producer.sources {
            is_new |= source.failure.as_deref() != Some(reason);
            source.failure = Some(reason.to_owned());
        }
        is_new
    }

    /// Why the last request of every source failed. `None` if that of one source succeeded.
    pub fn producer_failure(&self) -> Option<String> {
        lock(&self.0.producer).failure().map(str::to_owned)
    }

    /// Why a request to the producer last failed, kept after a success.
    pub fn last_error(&self) -> Option<String> {
        lock(&self.0.producer).last_error.clone()
    }

    /// Counts a call of a source that succeeded after `duration`. Returns whether the one before
    /// failed.
    pub fn sent(&self, source: &str, duration: Duration) -> bool {
        self.count(source, &SENT);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if let Some(gauge) = self.0.last_success.get(&BySource { source: source.to_owned() }) {
            gauge.set(now.as_secs_f64());
        }
        self.0.seconds.observe(duration.as_secs_f64());
        self.0.producer_up.set(1);
        let mut producer = lock(&self.0.producer);
        producer.of(source).is_some_and(|state| {
            state.counts.sent += 1;
            state.failure.take().is_some()
        })
    }

    /// Counts a call of a source that failed after `duration`. Returns whether `reason` is a new
    /// one.
    pub fn failed(&self, source: &str, duration: Duration, reason: &str) -> bool {
        self.count(source, &FAILED);
        self.0.seconds.observe(duration.as_secs_f64());
        let mut producer = lock(&self.0.producer);
        producer.last_error = Some(reason.to_owned());
        let is_new = producer.of(source).is_some_and(|state| {
            state.counts.failed += 1;
            let is_new = state.failure.as_deref() != Some(reason);
            state.failure = Some(reason.to_owned());
            is_new
        });
        self.0.producer_up.set(i64::from(producer.failure().is_none()));
        is_new
    }

    /// Counts a call of a source cancelled at shutdown.
    pub fn abandoned(&self, source: &str) {
        self.count(source, &ABANDONED);
        if let Some(state) = lock(&self.0.producer).of(source) {
            state.counts.abandoned += 1;
        }
    }

    /// Counts a call. Only sources of POLL_SOURCES have counters of their own.
    fn count(&self, source: &str, outcome: &Outcome) {
        self.0.calls.get_or_create(outcome).inc();
        let labels = BySourceAndOutcome { source: source.to_owned(), outcome: outcome.outcome };
        if let Some(counter) = self.0.source_calls.get(&labels) {
            counter.inc();
        }
    }

    /// Counts ticks of a source without a call.
    pub fn skipped(&self, source: &str, ticks: u64) {
        self.0.skipped.inc_by(ticks);
        if let Some(state) = lock(&self.0.producer).of(source) {
            state.counts.skipped += ticks;
        }
    }

    /// The counts of each source and the reason of its last failure, in the order of POLL_SOURCES.
    pub fn sources(&self) -> Vec<(String, CallCounts, Option<String>)> {
        let producer = lock(&self.0.producer);
        let state = |state: &SourceState| (state.name.clone(), state.counts, state.failure.clone());
        producer.sources.iter().map(state).collect()
    }

    /// The counts so far.
    pub fn counts(&self) -> CallCounts {
        let calls = |outcome: &Outcome| self.0.calls.get_or_create(outcome).get();
        CallCounts {
            sent: calls(&SENT),
            failed: calls(&FAILED),
            abandoned: calls(&ABANDONED),
            skipped: self.0.skipped.get(),
        }
    }

    /// Time since the creation of the metrics.
    pub fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// The Prometheus registry.
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }
}
