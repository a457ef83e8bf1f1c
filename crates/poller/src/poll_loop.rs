//! The poll loop: waits for the producer, then makes the calls of the schedule one by one.
//!
//! A stop ends every wait at once. A call in flight has [`SHUTDOWN_TIMEOUT`] to complete.

use std::time::Duration;

use service::backoff::Backoff;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::client::{Accepted, CallError, ProducerClient};
use crate::metrics::Metrics;
use crate::schedule::{Next, Schedule};

/// Time that a call in flight has after a stop.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(8);
/// Backoff between readiness checks, first and largest. It is short, so that a start is quick.
const READY_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Backoff after failed calls, first and largest. Calls must resume within 5 s of the producer's
/// return.
const FAILURE_BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(4));

/// The poll loop and its handles.
#[derive(Debug)]
pub struct PollLoop {
    /// Client of the producer.
    pub producer: ProducerClient,
    /// Counters of calls and ticks.
    pub metrics: Metrics,
    /// Ends the loop.
    pub stop: CancellationToken,
}

impl PollLoop {
    /// Runs until `schedule` ends or `stop` is cancelled.
    pub async fn run(&self, mut schedule: Schedule) {
        if !self.wait_for_producer().await {
            return;
        }
        let start = Instant::now();
        let mut backoff = Backoff::new(FAILURE_BACKOFF.0, FAILURE_BACKOFF.1);
        let mut earliest = Duration::ZERO;
        loop {
            let at = match schedule.next(start.elapsed(), earliest) {
                Next::Call { at, skipped } => {
                    self.metrics.skipped(skipped);
                    at
                }
                Next::Over { skipped } => return self.metrics.skipped(skipped),
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = sleep_until(start + at) => {}
            }
            let call_start = Instant::now();
            let Some(result) = self.call().await else { return self.metrics.abandoned() };
            let delay = self.record(result, call_start.elapsed(), &mut backoff);
            earliest = start.elapsed() + delay;
        }
    }

    /// Checks the readiness of the producer until it is ready. Returns `false` after a stop.
    async fn wait_for_producer(&self) -> bool {
        let mut backoff = Backoff::new(READY_BACKOFF.0, READY_BACKOFF.1);
        loop {
            let readiness = tokio::select! {
                biased;
                () = self.stop.cancelled() => return false,
                readiness = self.producer.ready() => readiness,
            };
            let Err(error) = readiness else {
                self.metrics.producer_succeeded();
                tracing::info!("producer is ready");
                return true;
            };
            if self.metrics.producer_failed(&error.reason) {
                tracing::warn!(reason = error.reason, "producer is not ready");
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return false,
                () = sleep(backoff.next_delay()) => {}
            }
        }
    }

    /// Makes one call. Returns `None` if it was cancelled at shutdown.
    async fn call(&self) -> Option<Result<Accepted, CallError>> {
        tokio::select! {
            result = self.producer.ingest_adsbdb() => Some(result),
            () = async { self.stop.cancelled().await; sleep(SHUTDOWN_TIMEOUT).await } => None,
        }
    }

    /// Counts and logs a result. Returns the delay before the next call.
    fn record(
        &self,
        result: Result<Accepted, CallError>,
        duration: Duration,
        backoff: &mut Backoff,
    ) -> Duration {
        match result {
            Ok(Accepted { id, partition, offset }) => {
                self.metrics.sent(duration);
                if self.metrics.producer_succeeded().is_some() {
                    tracing::info!(failures = backoff.attempts(), "calls succeed again");
                }
                let took_ms = duration.as_secs_f64() * 1e3;
                tracing::info!(id, partition, offset, took_ms, "event accepted");
                backoff.reset();
                Duration::ZERO
            }
            Err(CallError { reason, retry_after }) => {
                self.metrics.failed(duration);
                let delay = backoff.next_delay().max(retry_after.unwrap_or_default());
                if self.metrics.producer_failed(&reason) {
                    tracing::warn!(reason, pause_ms = delay.as_secs_f64() * 1e3, "call failed");
                }
                delay
            }
        }
    }
}
