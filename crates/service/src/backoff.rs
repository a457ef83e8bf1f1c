//! Waiting between attempts: exponential, capped, with full jitter, so that many clients of a server that comes
//! back do not come all at once.

use std::time::Duration;

/// The delays of one series of attempts.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    attempts: u32,
}

impl Backoff {
    /// Delays between half of and all of `first`, then `2 * first`, … up to `most`.
    pub fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, attempts: 0 }
    }

    /// The delay before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        let factor = 1_u32.checked_shl(self.attempts).unwrap_or(u32::MAX);
        let ceiling = self.first.saturating_mul(factor).min(self.most);
        self.attempts = (self.attempts + 1).min(31);
        ceiling.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// How many delays were asked for since the last success.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// To be called after a success: the next delay is a first one again.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_cap_and_start_again_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for most_ms in [100, 200, 400, 800, 1000, 1000] {
            let delay = backoff.next_delay();
            assert!(delay <= Duration::from_millis(most_ms) && delay >= Duration::from_millis(most_ms / 2));
        }
        for _ in 0..100 {
            assert!(backoff.next_delay() <= Duration::from_secs(1));
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(100));
    }
}
