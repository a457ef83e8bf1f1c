//! Detection of a suspended process: stopped by a signal, its container paused, or its machine
//! asleep.
//!
//! After a suspension, requests have timed out and connections are dead. Such errors do not mean
//! that the server at the other end is unavailable.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::lock::lock;

const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// Largest time between two checks of a process that runs.
///
/// It is half of the shortest response timeout. A shorter suspension alone therefore makes no
/// response late.
const MAX_GAP: Duration = Duration::from_secs(1);
/// Time after a suspension in which a client library may still report errors because of it.
const RECOVERY_TIME: Duration = Duration::from_secs(3);

/// Detects suspensions of this process by the time between periodic checks.
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
