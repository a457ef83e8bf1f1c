//! What the poller has done so far and how the producer last answered: for the health listener, the metrics and
//! the summary. Every call is counted once, as sent, failed or abandoned.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use serde_json::json;
use service::health::HealthSource;
use service::lock::lock;

/// Counts of calls and ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Calls whose event the producer took.
    pub sent: u64,
    /// Calls that the producer refused or did not answer.
    pub failed: u64,
    /// Calls given up because the poller was stopped.
    pub abandoned: u64,
    /// Ticks at which no call was made.
    pub skipped: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

const SENT: Outcome = Outcome { outcome: "sent" };
const FAILED: Outcome = Outcome { outcome: "failed" };
const ABANDONED: Outcome = Outcome { outcome: "abandoned" };

/// Shared by the loop that polls and the listener.
#[derive(Debug, Clone)]
pub struct Progress(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    calls: Family<Outcome, Counter>,
    skipped: Counter,
    seconds: Histogram,
    producer_up: Gauge,
    started: Instant,
    producer: Mutex<Standing>,
}

#[derive(Debug)]
struct Standing {
    /// Why the producer's last answer was no success, if so.
    trouble: Option<String>,
    /// The last trouble, kept after it is over.
    last_error: Option<String>,
}

impl Default for Progress {
    fn default() -> Self {
        let calls = Family::<Outcome, Counter>::default();
        for outcome in [SENT, FAILED, ABANDONED] {
            drop(calls.get_or_create(&outcome));
        }
        let (skipped, producer_up) = (Counter::default(), Gauge::default());
        let seconds = Histogram::new([0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]);
        let mut registry = Registry::with_prefix("slipstream");
        registry.register("poll_calls", "Calls of the producer by outcome", calls.clone());
        registry.register("poll_ticks_skipped", "Ticks without a call", skipped.clone());
        registry.register("poll_call_seconds", "Time from call to answer", seconds.clone());
        registry.register(
            "producer_up",
            "1 if the producer's last answer was a success",
            producer_up.clone(),
        );
        let trouble = Some("the producer has not been asked yet".to_owned());
        let producer = Mutex::new(Standing { trouble, last_error: None });
        Self(Arc::new(Inner {
            registry,
            calls,
            skipped,
            seconds,
            producer_up,
            started: Instant::now(),
            producer,
        }))
    }
}

impl Progress {
    /// The producer's answer to a question or a call was a success. Tells what was wrong until now.
    pub fn producer_is_well(&self) -> Option<String> {
        self.0.producer_up.set(1);
        self.standing(|standing| standing.trouble.take())
    }

    /// The producer's answer was no success. Tells whether that is news.
    pub fn producer_is_in_trouble(&self, reason: &str) -> bool {
        self.0.producer_up.set(0);
        self.standing(|standing| {
            let news = standing.trouble.as_deref() != Some(reason);
            standing.trouble = Some(reason.to_owned());
            standing.last_error = Some(reason.to_owned());
            news
        })
    }

    /// A call's event was taken.
    pub fn sent(&self, took: Duration) {
        self.0.calls.get_or_create(&SENT).inc();
        self.0.seconds.observe(took.as_secs_f64());
    }

    /// A call failed.
    pub fn failed(&self, took: Duration) {
        self.0.calls.get_or_create(&FAILED).inc();
        self.0.seconds.observe(took.as_secs_f64());
    }

    /// A call was given up.
    pub fn abandoned(&self) {
        self.0.calls.get_or_create(&ABANDONED).inc();
    }

    /// Ticks passed without a call.
    pub fn skipped(&self, ticks: u64) {
        self.0.skipped.inc_by(ticks);
    }

    /// The counts so far.
    pub fn tally(&self) -> Tally {
        let calls = |outcome: &Outcome| self.0.calls.get_or_create(outcome).get();
        Tally {
            sent: calls(&SENT),
            failed: calls(&FAILED),
            abandoned: calls(&ABANDONED),
            skipped: self.0.skipped.get(),
        }
    }

    fn standing<T>(&self, look: impl FnOnce(&mut Standing) -> T) -> T {
        look(&mut lock(&self.0.producer))
    }
}

impl HealthSource for Progress {
    fn ready(&self) -> Result<(), String> {
        self.standing(|standing| match &standing.trouble {
            None => Ok(()),
            Some(trouble) => Err(format!("producer: {trouble}")),
        })
    }

    fn health(&self) -> serde_json::Value {
        let Tally { sent, failed, abandoned, skipped } = self.tally();
        let (trouble, last_error) =
            self.standing(|standing| (standing.trouble.clone(), standing.last_error.clone()));
        json!({
            "status": if trouble.is_none() { "ok" } else { "degraded" },
            "cause": trouble,
            "uptime_seconds": self.0.started.elapsed().as_secs(),
            "counters": {"sent": sent, "failed": failed, "abandoned": abandoned, "skipped": skipped},
            "last_error": last_error,
        })
    }

    fn registry(&self) -> &Registry {
        &self.0.registry
    }
}
