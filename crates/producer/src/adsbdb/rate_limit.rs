//! While ADSBDB's rate limit is known to hold, nobody asks: the gate answers at once how long it stays shut.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use service::lock::lock;

/// Shut until a point in time, or open.
#[derive(Debug, Default)]
pub struct Gate(Mutex<Option<Instant>>);

impl Gate {
    /// How long it stays shut, if it is.
    pub fn shut_for(&self, now: Instant) -> Option<Duration> {
        let mut until = lock(&self.0);
        let left = until.and_then(|until| until.checked_duration_since(now)).filter(|left| !left.is_zero());
        if left.is_none() {
            *until = None;
        }
        left
    }

    /// Shuts it; a longer time that it is shut for already stays.
    pub fn shut(&self, now: Instant, time: Duration) {
        let mut until = lock(&self.0);
        *until = Some(now + time).max(*until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_is_shut_until_the_limit_is_over_and_not_longer() {
        let (gate, now) = (Gate::default(), Instant::now());
        assert_eq!(gate.shut_for(now), None);
        gate.shut(now, Duration::from_secs(60));
        gate.shut(now, Duration::from_secs(5));
        assert_eq!(gate.shut_for(now + Duration::from_secs(20)), Some(Duration::from_secs(40)));
        assert_eq!(gate.shut_for(now + Duration::from_secs(60)), None);
        assert_eq!(gate.shut_for(now), None, "once open, it stays open");
    }
}
