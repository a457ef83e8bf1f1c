//! ADSBDB's rate limit. While it is active, the client sends no request.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use service::lock::lock;

/// The end of the active rate limit, if there is one.
#[derive(Debug, Default)]
pub struct RateLimit(Mutex<Option<Instant>>);

impl RateLimit {
    /// How long the rate limit is still active. `None` if it is not.
    pub fn remaining(&self, now: Instant) -> Option<Duration> {
        let mut until = lock(&self.0);
        let remaining =
            until.and_then(|until| until.checked_duration_since(now)).filter(|left| !left.is_zero());
        if remaining.is_none() {
            *until = None;
        }
        remaining
    }

    /// Activates the rate limit for `time`. An active one that ends later stays.
    pub fn activate(&self, now: Instant, time: Duration) {
        let mut until = lock(&self.0);
        *until = Some(now + time).max(*until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_limit_is_active_until_its_latest_end() {
        let (limit, now) = (RateLimit::default(), Instant::now());
        assert_eq!(limit.remaining(now), None);
        limit.activate(now, Duration::from_secs(60));
        limit.activate(now, Duration::from_secs(5));
        assert_eq!(limit.remaining(now + Duration::from_secs(20)), Some(Duration::from_secs(40)));
        assert_eq!(limit.remaining(now + Duration::from_secs(60)), None);
        assert_eq!(limit.remaining(now), None, "it does not become active again");
    }
}
