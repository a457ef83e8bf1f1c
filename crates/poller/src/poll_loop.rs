//! The poll loops: they wait for the producer, then each makes the calls of its source's schedule one
//! by one.
//!
//! A stop ends every wait at once. A call in flight has [`SHUTDOWN_TIMEOUT`] to complete.

use std::time::Duration;

use service::time::Backoff;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::client::{Accepted, CallError, Ingested, ProducerClient, RecordCounts};
use crate::metrics::Metrics;

/// Time that a call in flight has after a stop.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(8);
/// Backoff between readiness checks, first and largest. It is short, so that a start is quick.
const READY_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Backoff after failed calls, first and largest. Calls must resume within 5 s of the producer's
/// return.
const FAILURE_BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(4));

/// The poll loops and their handles.
#[derive(Debug, Clone)]
pub struct PollLoop {
    /// Client of the producer.
    pub producer: ProducerClient,
    /// Counters of calls and ticks.
    pub metrics: Metrics,
    /// Ends the loops.
    pub stop: CancellationToken,
}

impl PollLoop {
    /// Waits for the producer, then runs one loop for each source until its schedule ends or `stop`
    /// is cancelled. The loops do not wait for each other.
    pub async fn run(self, schedules: Vec<(String, Schedule)>) {
        if !self.wait_for_producer().await {
            return;
        }
        let mut loops = JoinSet::new();
        for (source, schedule) in schedules {
            let poll_loop = self.clone();
            loops.spawn(async move { poll_loop.poll(&source, schedule).await });
        }
        while let Some(ended) = loops.join_next().await {
            // The panic of a loop is that of this task, which is supervised.
            if let Err(error) = ended
                && let Ok(panic) = error.try_into_panic()
            {
                std::panic::resume_unwind(panic);
            }
        }
    }

    /// Makes the calls of one schedule.
    async fn poll(&self, source: &str, mut schedule: Schedule) {
        let start = Instant::now();
        let mut backoff = Backoff::new(FAILURE_BACKOFF.0, FAILURE_BACKOFF.1);
        let mut earliest = Duration::ZERO;
        loop {
            let at = match schedule.next(start.elapsed(), earliest) {
                Next::Call { at, skipped } => {
                    self.metrics.skipped(source, skipped);
                    at
                }
                Next::Over { skipped } => return self.metrics.skipped(source, skipped),
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = sleep_until(start + at) => {}
            }
            let call_start = Instant::now();
            let Some(result) = self.call(source).await else { return self.metrics.abandoned(source) };
            let delay = self.record(source, result, call_start.elapsed(), &mut backoff);
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
                self.metrics.producer_is_ready();
                tracing::info!("producer is ready");
                return true;
            };
            if self.metrics.producer_is_not_ready(&error.reason) {
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
    async fn call(&self, source: &str) -> Option<Result<Ingested, CallError>> {
        tokio::select! {
            result = self.producer.ingest(source) => Some(result),
            () = async { self.stop.cancelled().await; sleep(SHUTDOWN_TIMEOUT).await } => None,
        }
    }

    /// Counts and logs a result. Returns the delay before the next call.
    fn record(
        &self,
        source: &str,
        result: Result<Ingested, CallError>,
        duration: Duration,
        backoff: &mut Backoff,
    ) -> Duration {
        match result {
            Ok(ingested) => {
                if self.metrics.sent(source, duration) {
                    tracing::info!(source, failures = backoff.attempts(), "calls succeed again");
                }
                log(source, &ingested, duration.as_secs_f64() * 1e3);
                backoff.reset();
                Duration::ZERO
            }
            Err(CallError { reason, retry_after }) => {
                let delay = backoff.next_delay().max(retry_after.unwrap_or_default());
                if self.metrics.failed(source, duration, &reason) {
                    let pause_ms = delay.as_secs_f64() * 1e3;
                    tracing::warn!(source, reason, pause_ms, "call failed");
                }
                delay
            }
        }
    }
}

/// Logs what a call did.
fn log(source: &str, ingested: &Ingested, took_ms: f64) {
    match ingested {
        Ingested::Event(Accepted { id, partition, offset }) => {
            tracing::info!(source, id, partition, offset, took_ms, "event accepted");
        }
        Ingested::Records(RecordCounts { accepted, rejected, unchanged, not_modified }) => {
            tracing::info!(source, accepted, rejected, unchanged, not_modified, took_ms, "records ingested");
        }
    }
}

/// The next step of the poll loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Make a call.
    Call {
        /// Time of the call, from the start.
        at: Duration,
        /// Ticks skipped since the last call.
        skipped: u64,
    },
    /// The schedule has ended.
    Over {
        /// Ticks skipped since the last call.
        skipped: u64,
    },
}

/// The schedule of the calls of one run, a pure function of time. All times count from its start.
///
/// Tick *n* is due *n* intervals after the start. Each tick is either called or counted as skipped,
/// once and in order. A tick that becomes due during a call is skipped, so calls neither overlap
/// nor accumulate.
#[derive(Debug, Clone)]
pub struct Schedule {
    interval_ns: u64,
    /// `None` means no end.
    duration_ns: Option<u64>,
    /// The lowest tick that is neither called nor skipped.
    next: u64,
}

impl Schedule {
    /// A tick every `interval` (above zero), from the start until before `duration`.
    pub fn new(interval: Duration, duration: Option<Duration>) -> Self {
        Self { interval_ns: nanoseconds(interval).max(1), duration_ns: duration.map(nanoseconds), next: 0 }
    }

    /// Returns the next call. It starts neither before `now` nor before `earliest`.
    ///
    /// The call belongs to the next tick after `now`. If `earliest` is later than that tick, the
    /// call starts at `earliest` and belongs to the last tick due by then. The delay after a
    /// failure therefore keeps its jitter: it is not rounded up to a tick.
    pub fn next(&mut self, now: Duration, earliest: Duration) -> Next {
        let first_upcoming = nanoseconds(now).div_ceil(self.interval_ns);
        let upcoming = if self.next == 0 { 0 } else { self.next.max(first_upcoming) };
        let due = self.due(upcoming);
        let (tick, at) = if earliest > due {
            (nanoseconds(earliest) / self.interval_ns, earliest)
        } else {
            (upcoming, due)
        };
        if let Some(duration_ns) = self.duration_ns.filter(|duration_ns| nanoseconds(at) >= *duration_ns) {
            let ticks = duration_ns.div_ceil(self.interval_ns);
            let skipped = ticks.saturating_sub(self.next);
            self.next += skipped;
            return Next::Over { skipped };
        }
        let skipped = tick - self.next;
        self.next = tick + 1;
        Next::Call { at, skipped }
    }

    fn due(&self, tick: u64) -> Duration {
        Duration::from_nanos(tick.saturating_mul(self.interval_ns))
    }
}

/// Saturates at 584 years.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn every(interval_s: u32, duration_s: u32) -> Schedule {
        Schedule::new(SECOND * interval_s, (duration_s > 0).then_some(SECOND * duration_s))
    }

    fn call(at_s: f64, skipped: u64) -> Next {
        Next::Call { at: Duration::from_secs_f64(at_s), skipped }
    }

    fn step(schedule: &mut Schedule, now_s: f64) -> Next {
        schedule.next(Duration::from_secs_f64(now_s), Duration::ZERO)
    }

    #[test]
    fn fast_responses_keep_every_tick_on_schedule() {
        let mut schedule = every(3, 10);
        assert_eq!(step(&mut schedule, 0.001), call(0.0, 0));
        assert_eq!(step(&mut schedule, 0.2), call(3.0, 0));
        assert_eq!(step(&mut schedule, 3.9), call(6.0, 0));
        assert_eq!(step(&mut schedule, 6.1), call(9.0, 0));
        assert_eq!(step(&mut schedule, 9.1), Next::Over { skipped: 0 });
    }

    #[test]
    fn a_slow_response_skips_the_ticks_within_it() {
        let mut schedule = every(3, 0);
        assert_eq!(step(&mut schedule, 0.0), call(0.0, 0));
        assert_eq!(step(&mut schedule, 7.0), call(9.0, 2));
        assert_eq!(step(&mut schedule, 12.0), call(12.0, 0), "a response exactly at a tick keeps the tick");
    }

    #[test]
    fn a_delay_shorter_than_the_interval_keeps_the_next_tick() {
        let mut schedule = every(3, 0);
        step(&mut schedule, 0.0);
        let (now, earliest) = (SECOND / 10, SECOND * 2);
        assert_eq!(schedule.next(now, earliest), call(3.0, 0));
    }

    #[test]
    fn a_delay_longer_than_ticks_calls_the_last_tick_late() {
        let mut schedule = every(3, 0);
        step(&mut schedule, 0.0);
        assert_eq!(schedule.next(SECOND / 10, SECOND * 10), call(10.0, 2), "ticks 3 and 6 skipped, 9 at 10");
        assert_eq!(step(&mut schedule, 10.1), call(12.0, 0), "the later ticks keep their times");
    }

    #[test]
    fn no_call_starts_at_or_after_the_end() {
        let mut schedule = every(3, 9);
        step(&mut schedule, 0.0);
        assert_eq!(step(&mut schedule, 5.9), call(6.0, 1));
        assert_eq!(step(&mut schedule, 6.1), Next::Over { skipped: 0 }, "9 is not before 9");
        let mut schedule = every(3, 10);
        step(&mut schedule, 0.0);
        assert_eq!(schedule.next(SECOND, SECOND * 10), Next::Over { skipped: 3 });
        assert_eq!(step(&mut schedule, 11.0), Next::Over { skipped: 0 }, "the schedule stays ended");
    }

    #[test]
    fn a_duration_shorter_than_the_interval_makes_one_call() {
        let mut schedule = every(3, 1);
        assert_eq!(step(&mut schedule, 0.0), call(0.0, 0));
        assert_eq!(step(&mut schedule, 0.1), Next::Over { skipped: 0 });
    }

    #[test]
    fn every_tick_is_called_or_skipped_for_random_response_times() {
        for seed in 0..50_u64 {
            let mut random = seed;
            let mut up_to = |limit: u64| {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (random >> 33) % limit
            };
            let (mut schedule, mut now, mut earliest) = (every(3, 1000), Duration::ZERO, Duration::ZERO);
            let (mut calls, mut passed, mut last) = (0, 0, None);
            loop {
                match schedule.next(now, earliest) {
                    Next::Call { at, skipped } => {
                        assert!(at >= earliest && at >= now.min(at) && last.is_none_or(|last| at > last));
                        (calls, passed, last) = (calls + 1, passed + skipped, Some(at));
                        now = at + Duration::from_millis(up_to(8000));
                        earliest = now + Duration::from_millis(up_to(2) * up_to(20_000));
                    }
                    Next::Over { skipped } => {
                        passed += skipped;
                        break;
                    }
                }
            }
            assert_eq!(calls + passed, 334, "seed {seed}");
        }
    }
}
