//! A latency histogram in bounded memory, with buckets that are 2 % wide.

use std::time::Duration;

/// Buckets for each doubling.
const STEPS: f64 = 36.0;
/// Up to 2^40 µs, which is 12 days.
const BUCKETS: usize = 40 * STEPS as usize;

/// Counts of latencies.
#[derive(Debug, Clone)]
pub struct Latencies {
    counts: Vec<u64>,
    max: Duration,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], max: Duration::ZERO }
    }
}

impl Latencies {
    /// Counts a latency.
    pub fn add(&mut self, latency: Duration) {
        let micros = latency.as_micros().max(1) as f64;
        let bucket = ((micros.log2() * STEPS) as usize).min(BUCKETS - 1);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.max = self.max.max(latency);
    }

    /// The latency that this share of all latencies did not exceed, at most 2 % too high; `None` if
    /// nothing was counted.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let all: u64 = self.counts.iter().sum();
        let rank = ((all as f64 * share).ceil() as u64).max(1);
        let mut counted = 0;
        let reached = |count: &u64| {
            counted += count;
            counted >= rank
        };
        let bucket = self.counts.iter().position(reached)?;
        let upper = 2_f64.powf((bucket + 1) as f64 / STEPS);
        Some(Duration::from_secs_f64(upper / 1e6).min(self.max))
    }

    /// The highest latency.
    pub fn max(&self) -> Duration {
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_right_within_2_percent() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantile(0.5), None);
        for ms in 1..=1_000 {
            latencies.add(Duration::from_millis(ms));
        }
        for (share, right) in [(0.5, 0.5), (0.9, 0.9), (0.99, 0.99), (1.0, 1.0)] {
            let found = latencies.quantile(share).unwrap().as_secs_f64();
            assert!(found >= right * 0.999 && found <= right * 1.02, "{share}: {found}");
        }
        assert_eq!(latencies.max(), Duration::from_secs(1));
    }

    #[test]
    fn the_shortest_and_the_longest_latency_have_a_bucket() {
        let mut latencies = Latencies::default();
        latencies.add(Duration::ZERO);
        latencies.add(Duration::from_secs(100_000_000));
        assert!(latencies.quantile(0.5).unwrap() <= Duration::from_micros(2));
        assert!(latencies.quantile(1.0).unwrap() >= Duration::from_secs(1_000_000));
    }
}
