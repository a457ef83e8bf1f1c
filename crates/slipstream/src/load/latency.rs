//! Latencies in bounded memory: counted in classes that are a fiftieth wide.

use std::time::Duration;

/// Classes for each doubling.
const STEPS: f64 = 36.0;
/// Up to 2^40 µs, which is twelve days.
const CLASSES: usize = 40 * STEPS as usize;

/// How often which latency came.
#[derive(Debug, Clone)]
pub struct Latencies {
    counts: Vec<u64>,
    most: Duration,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: vec![0; CLASSES], most: Duration::ZERO }
    }
}

impl Latencies {
    /// Counts one.
    pub fn add(&mut self, latency: Duration) {
        let micros = latency.as_micros().max(1) as f64;
        let class = ((micros.log2() * STEPS) as usize).min(CLASSES - 1);
        if let Some(count) = self.counts.get_mut(class) {
            *count += 1;
        }
        self.most = self.most.max(latency);
    }

    /// The latency that this share of all did not exceed, at most a fiftieth too high; `None` if there were none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let all: u64 = self.counts.iter().sum();
        let wanted = ((all as f64 * share).ceil() as u64).max(1);
        let mut passed = 0;
        let reached = |count: &u64| {
            passed += count;
            passed >= wanted
        };
        let class = self.counts.iter().position(reached)?;
        let upper = 2_f64.powf((class + 1) as f64 / STEPS);
        Some(Duration::from_secs_f64(upper / 1e6).min(self.most))
    }

    /// The highest.
    pub fn most(&self) -> Duration {
        self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_within_a_fiftieth() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantile(0.5), None);
        for ms in 1..=1_000 {
            latencies.add(Duration::from_millis(ms));
        }
        for (share, right) in [(0.5, 0.5), (0.9, 0.9), (0.99, 0.99), (1.0, 1.0)] {
            let found = latencies.quantile(share).unwrap().as_secs_f64();
            assert!(found >= right * 0.999 && found <= right * 1.02, "{share}: {found}");
        }
        assert_eq!(latencies.most(), Duration::from_secs(1));
    }

    #[test]
    fn the_shortest_and_the_longest_have_a_class_too() {
        let mut latencies = Latencies::default();
        latencies.add(Duration::ZERO);
        latencies.add(Duration::from_secs(100_000_000));
        assert!(latencies.quantile(0.5).unwrap() <= Duration::from_micros(2));
        assert!(latencies.quantile(1.0).unwrap() >= Duration::from_secs(1_000_000));
    }
}
