//! Delays between attempts, and the detection of a suspended process.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::tasks::lock;

/// The delays of one series of attempts: exponential, capped, with equal jitter. A delay is between
/// half of its ceiling and its ceiling. The jitter spreads the requests of many clients after the
/// return of a server.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    attempts: u32,
}

impl Backoff {
    /// Delays with the ceilings `first`, `2 * first`, `4 * first`, … up to `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, attempts: 0 }
    }

    /// Returns the delay before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        let factor = 1_u32.checked_shl(self.attempts).unwrap_or(u32::MAX);
        let ceiling = self.first.saturating_mul(factor).min(self.max);
        self.attempts = (self.attempts + 1).min(31);
        ceiling.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Delays returned since the last success.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Starts again with the first delay. Call it after a success.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// Largest time between two checks of a process that runs.
///
/// It is half of the shortest response timeout. A shorter suspension alone therefore makes no
/// response late.
const MAX_GAP: Duration = Duration::from_secs(1);
/// Time after a suspension in which a client library may still report errors because of it.
const RECOVERY_TIME: Duration = Duration::from_secs(3);

/// Detects suspensions of this process by the time between periodic checks: it was stopped by a
/// signal, its container paused, or its machine asleep.
///
/// After a suspension, requests have timed out and connections are dead. Such errors do not mean
/// that the server at the other end is unavailable.
#[derive(Debug)]
pub struct SuspensionDetector(Mutex<Checks>);

#[derive(Debug, Default)]
struct Checks {
    last: Option<Instant>,
    resumed: Option<Instant>,
}

impl SuspensionDetector {
    /// Starts the checks on the tokio runtime. They end when the last handle is dropped.
    ///
    /// # Panics
    /// The caller is not inside a tokio runtime.
    pub fn start() -> Arc<Self> {
        let checks = Checks { last: Some(Instant::now()), resumed: None };
        let detector = Arc::new(Self(Mutex::new(checks)));
        let handle = Arc::downgrade(&detector);
        tokio::spawn(async move {
            while let Some(detector) = handle.upgrade() {
                lock(&detector.0).check(Instant::now());
                drop(detector);
                tokio::time::sleep(CHECK_INTERVAL).await;
            }
        });
        detector
    }

    /// Whether the process resumed from a suspension within the last 3 s.
    pub fn recently_resumed(&self) -> bool {
        lock(&self.0).recently_resumed(Instant::now())
    }
}

impl Checks {
    fn check(&mut self, now: Instant) {
        if self.is_overdue(now) {
            self.resumed = Some(now);
        }
        self.last = Some(now);
    }

    fn recently_resumed(&self, now: Instant) -> bool {
        // The caller may run before the first check after the suspension.
        self.is_overdue(now) || self.resumed.is_some_and(|resumed| now < resumed + RECOVERY_TIME)
    }

    fn is_overdue(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now.saturating_duration_since(last) > MAX_GAP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_cap_until_a_success_resets_them() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for ceiling_ms in [100, 200, 400, 800, 1000, 1000] {
            let delay = backoff.next_delay();
            assert!(
                delay <= Duration::from_millis(ceiling_ms) && delay >= Duration::from_millis(ceiling_ms / 2)
            );
        }
        for _ in 0..100 {
            assert!(backoff.next_delay() <= Duration::from_secs(1));
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(100));
    }

    #[test]
    fn a_gap_between_checks_is_a_suspension_until_the_recovery_time_ends() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut checks = Checks::default();
        assert!(!checks.recently_resumed(at(100)), "no check yet");
        for second in [0, 1, 2] {
            checks.check(at(second));
            assert!(!checks.recently_resumed(at(second)), "a check every second");
        }
        assert!(checks.recently_resumed(at(42)), "40 s after the last check");
        checks.check(at(42));
        (43..45).for_each(|second| checks.check(at(second)));
        assert!(checks.recently_resumed(at(44)));
        checks.check(at(45));
        assert!(!checks.recently_resumed(at(45)), "the recovery time is over");
    }
}
