//! Delays between attempts: exponential, capped, with equal jitter.
//!
//! The jitter spreads the requests of many clients after the return of a server.

use std::time::Duration;

/// The delays of one series of attempts. A delay is between half of its ceiling and its ceiling.
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
}
