//! The loop: waits for the producer, then makes one call after the other until the schedule is over or a stop is
//! asked for. A stop ends each wait at once and leaves the call in hand [`GRACE`] to be answered.

use std::time::Duration;

use service::backoff::Backoff;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::client::{Accepted, Producer, Refusal};
use crate::metrics::Progress;
use crate::schedule::{Next, Schedule};

/// How long a call in hand may still take once a stop is asked for.
pub const GRACE: Duration = Duration::from_secs(8);
/// Between two questions whether the producer is ready: short, so that a start is quick.
const READY_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// After failures: at most this, so that calls resume within 5 s of the producer's return.
const FAILURE_PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(4));

/// The loop's handles.
#[derive(Debug)]
pub struct Polling {
    /// Whom to call.
    pub producer: Producer,
    /// What to count.
    pub progress: Progress,
    /// Ends it all.
    pub stop: CancellationToken,
}

impl Polling {
    /// Waits and calls; returns when `schedule` is over or a stop was asked for.
    pub async fn run(&self, mut schedule: Schedule) {
        if !self.wait_for_producer().await {
            return;
        }
        let start = Instant::now();
        let mut backoff = Backoff::new(FAILURE_PAUSE.0, FAILURE_PAUSE.1);
        let mut earliest = Duration::ZERO;
        loop {
            let at = match schedule.next(start.elapsed(), earliest) {
                Next::Call { at, skipped } => {
                    self.progress.skipped(skipped);
                    at
                }
                Next::Over { skipped } => return self.progress.skipped(skipped),
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = sleep_until(start + at) => {}
            }
            let called = Instant::now();
            let Some(answer) = self.call().await else { return self.progress.abandoned() };
            let pause = self.take(answer, called.elapsed(), &mut backoff);
            earliest = start.elapsed() + pause;
        }
    }

    /// Asks until the producer is ready; `false` if a stop came first.
    async fn wait_for_producer(&self) -> bool {
        let mut backoff = Backoff::new(READY_PAUSE.0, READY_PAUSE.1);
        loop {
            let answer = tokio::select! {
                biased;
                () = self.stop.cancelled() => return false,
                answer = self.producer.ready() => answer,
            };
            let Err(refusal) = answer else {
                self.progress.producer_is_well();
                tracing::info!("producer is ready");
                return true;
            };
            if self.progress.producer_is_in_trouble(&refusal.reason) {
                tracing::warn!(reason = refusal.reason, "waiting for the producer");
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return false,
                () = sleep(backoff.next_delay()) => {}
            }
        }
    }

    /// One call; `None` if it was given up after a stop.
    async fn call(&self) -> Option<Result<Accepted, Refusal>> {
        tokio::select! {
            answer = self.producer.ingest_adsbdb() => Some(answer),
            () = async { self.stop.cancelled().await; sleep(GRACE).await } => None,
        }
    }

    /// Counts and tells an answer; returns how long to leave the producer alone.
    fn take(&self, answer: Result<Accepted, Refusal>, took: Duration, backoff: &mut Backoff) -> Duration {
        match answer {
            Ok(Accepted { id, partition, offset }) => {
                self.progress.sent(took);
                if self.progress.producer_is_well().is_some() {
                    tracing::info!(failures = backoff.attempts(), "calls succeed again");
                }
                tracing::info!(id, partition, offset, took_ms = took.as_secs_f64() * 1e3, "event accepted");
                backoff.reset();
                Duration::ZERO
            }
            Err(Refusal { reason, retry_after }) => {
                self.progress.failed(took);
                let pause = backoff.next_delay().max(retry_after.unwrap_or_default());
                if self.progress.producer_is_in_trouble(&reason) {
                    tracing::warn!(reason, pause_ms = pause.as_secs_f64() * 1e3, "call failed");
                }
                pause
            }
        }
    }
}
