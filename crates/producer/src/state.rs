//! The state that handlers and middleware receive, the phases of a shutdown as requests see them,
//! and the permits of connections and requests. `app` builds it.
//!
//! A shutdown has two phases:
//!
//! 1. `begin`: requests that were admitted before are finished; later ones are rejected.
//! 2. `abandon`: requests that are still unfinished return at once with the outcome known so far.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use events::{Millis, Rules, Source};
use prometheus_client::metrics::gauge::Gauge;
use service::tasks::Supervisor;
use service::tasks::lock;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::adsbdb::AdsbdbClient;
use crate::clock::Clock;
use crate::config::Config;
use crate::kafka::publisher::Publisher;
use crate::metrics::Metrics;
use crate::poll_jobs::JobRegistry;
use crate::source_set::SourceSet;
use crate::traces::Traces;

/// The state of one producer.
pub type AppState = Arc<Parts>;

/// The parts of the producer.
#[derive(Debug)]
pub struct Parts {
    pub config: Config,
    /// The rules that events must follow beside the general ones.
    pub rules: Rules,
    pub kafka: Publisher,
    /// Assigns `ingested_at`.
    pub clock: Clock,
    pub adsbdb: AdsbdbClient,
    /// The source of ADSBDB events.
    pub adsbdb_source: Source,
    pub jobs: JobRegistry,
    /// Permits of MAX_IN_FLIGHT.
    pub in_flight: Permits,
    /// Bytes that the results of all batch requests may use.
    pub batch_memory: Arc<Semaphore>,
    /// Bytes that all zstd decoders may use.
    pub zstd_memory: Arc<Semaphore>,
    pub metrics: Arc<Metrics>,
    pub traces: Traces,
    pub shutdown: Shutdown,
    /// The sources of the file.
    pub sources: SourceSet,
    /// The long-lived tasks, for `/livez`.
    pub tasks: Supervisor,
    /// The last error that no client caused, for `/health`.
    pub last_error: Mutex<Option<String>>,
}

impl Parts {
    /// The current time, for an event whose record has none.
    pub fn now(&self) -> Millis {
        self.clock.now()
    }

    /// Sets the last error that no client caused.
    pub fn set_last_error(&self, detail: &str) {
        *lock(&self.last_error) = Some(detail.to_owned());
    }

    /// The last error that no client caused.
    pub fn last_error(&self) -> Option<String> {
        lock(&self.last_error).clone()
    }
}

/// The phase of the shutdown, and the number of unfinished requests.
#[derive(Debug, Default)]
pub struct Shutdown {
    /// Cancelled when the first phase begins.
    pub begun: CancellationToken,
    /// Cancelled when the second phase begins: unfinished requests return at once.
    pub abandoned: CancellationToken,
    requests: TaskTracker,
}

/// States whether a request arrived before the shutdown began. The request counts as unfinished
/// until its last admission is dropped.
#[derive(Debug, Clone)]
pub struct Admission(Option<TaskTrackerToken>);

impl Admission {
    /// Whether the request may produce records.
    pub fn granted(&self) -> bool {
        self.0.is_some()
    }
}

impl Shutdown {
    /// Admits a request, unless the shutdown has begun.
    pub fn admit(&self) -> Admission {
        // The token is taken before the check. So a request that is admitted is always waited for.
        let token = self.requests.token();
        Admission((!self.begun.is_cancelled()).then_some(token))
    }

    /// Starts the first phase: no request is admitted any more.
    pub fn begin(&self) {
        self.begun.cancel();
        self.requests.close();
    }

    /// Waits until every admitted request is finished.
    pub async fn requests_finished(&self) {
        self.requests.wait().await;
    }
}

/// Connections beyond MAX_CONNECTIONS that get one response each. So health checks still work, and
/// clients can read the reason of their rejection.
const EXTRA_CONNECTIONS: usize = 64;

/// A number of permits. Unlike a semaphore it never waits, and it maintains a metric.
#[derive(Debug, Clone)]
pub struct Permits {
    taken: Arc<AtomicUsize>,
    max: usize,
    gauge: Gauge<i64, AtomicI64>,
}

/// One permit, returned on drop.
#[derive(Debug)]
pub struct Permit(Permits);

impl Permits {
    /// Creates `max` permits. `gauge` shows how many are taken.
    pub fn new(max: usize, gauge: Gauge) -> Self {
        Self { taken: Arc::default(), max, gauge }
    }

    /// Takes a permit if fewer than `max` were taken before. Returns the number taken before, too.
    fn take_below(&self, max: usize) -> Option<(Permit, usize)> {
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        self.gauge.inc();
        // Beyond the limit the permit is dropped here, which returns it.
        let permit = Permit(self.clone());
        (before < max).then_some((permit, before))
    }

    /// Takes the permit of a request.
    pub fn take(&self) -> Option<Permit> {
        self.take_below(self.max).map(|(permit, _)| permit)
    }

    /// Takes the permit of a connection. Returns whether it is one of [`EXTRA_CONNECTIONS`].
    pub fn take_for_connection(&self) -> Option<(Permit, bool)> {
        let (permit, before) = self.take_below(self.max + EXTRA_CONNECTIONS)?;
        Some((permit, before >= self.max))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
        self.0.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_permit_is_free_and_a_denial_takes_none() {
        let permits = Permits::new(2, Gauge::default());
        let (first, second) = (permits.take(), permits.take());
        assert!(first.is_some() && second.is_some());
        assert!(permits.take().is_none() && permits.take().is_none());
        assert_eq!(permits.gauge.get(), 2);
        drop(first);
        assert!(permits.take().is_some());
        assert_eq!(permits.gauge.get(), 1);
    }

    #[test]
    fn connections_beyond_the_limit_get_extra_permits_then_none() {
        let permits = Permits::new(1, Gauge::default());
        let regular = permits.take_for_connection();
        assert!(matches!(regular, Some((_, false))));
        let extra: Vec<Option<(Permit, bool)>> =
            (0..EXTRA_CONNECTIONS).map(|_| permits.take_for_connection()).collect();
        assert!(extra.iter().all(|permit| matches!(permit, Some((_, true)))));
        assert!(permits.take_for_connection().is_none());
        drop(regular);
        assert!(
            matches!(permits.take_for_connection(), Some((_, true))),
            "extra connections count until they end"
        );
        drop(extra);
        assert!(matches!(permits.take_for_connection(), Some((_, false))));
    }
}
