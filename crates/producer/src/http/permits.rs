//! Limits of concurrent connections and requests. Together they bound the memory of the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use prometheus_client::metrics::gauge::Gauge;

/// Connections beyond MAX_CONNECTIONS that get one response each. So health checks still work, and
/// clients can read the reason of their rejection.
pub const EXTRA_CONNECTIONS: usize = 64;

/// The permit of a new connection.
#[derive(Debug)]
pub enum ConnectionPermit {
    /// The connection is within the limit.
    Regular(Permit),
    /// The connection is one of [`EXTRA_CONNECTIONS`].
    Extra(Permit),
    /// The connection is beyond both limits.
    Denied,
}

/// A number of permits. Unlike a semaphore it never waits, and it maintains a metric.
#[derive(Debug, Clone)]
pub struct Permits {
    taken: Arc<AtomicUsize>,
    max: usize,
    gauge: Gauge<i64, AtomicI64>,
}

/// One permit, returned on drop.
#[derive(Debug)]
pub struct Permit(Permits);

impl Permits {
    /// Creates `max` permits. `gauge` shows how many are taken.
    pub fn new(max: usize, gauge: Gauge) -> Self {
        Self { taken: Arc::default(), max, gauge }
    }

    /// Takes a permit if fewer than `max` were taken before. Returns the number taken before, too.
    fn take_below(&self, max: usize) -> Option<(Permit, usize)> {
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        self.gauge.inc();
        // Beyond the limit the permit is dropped here, which returns it.
        let permit = Permit(self.clone());
        (before < max).then_some((permit, before))
    }

    /// Takes the permit of a request.
    pub fn take(&self) -> Option<Permit> {
        self.take_below(self.max).map(|(permit, _)| permit)
    }

    /// Takes the permit of a connection.
    pub fn take_for_connection(&self) -> ConnectionPermit {
        match self.take_below(self.max + EXTRA_CONNECTIONS) {
            Some((permit, before)) if before < self.max => ConnectionPermit::Regular(permit),
            Some((permit, _)) => ConnectionPermit::Extra(permit),
            None => ConnectionPermit::Denied,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
        self.0.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_permit_is_free_and_a_denial_takes_none() {
        let permits = Permits::new(2, Gauge::default());
        let (first, second) = (permits.take(), permits.take());
        assert!(first.is_some() && second.is_some());
        assert!(permits.take().is_none() && permits.take().is_none());
        assert_eq!(permits.gauge.get(), 2);
        drop(first);
        assert!(permits.take().is_some());
        assert_eq!(permits.gauge.get(), 1);
    }

    #[test]
    fn connections_beyond_the_limit_get_extra_permits_then_none() {
        let permits = Permits::new(1, Gauge::default());
        let regular = permits.take_for_connection();
        assert!(matches!(regular, ConnectionPermit::Regular(_)));
        let extra: Vec<ConnectionPermit> =
            (0..EXTRA_CONNECTIONS).map(|_| permits.take_for_connection()).collect();
        assert!(extra.iter().all(|permit| matches!(permit, ConnectionPermit::Extra(_))));
        assert!(matches!(permits.take_for_connection(), ConnectionPermit::Denied));
        drop(regular);
        assert!(
            matches!(permits.take_for_connection(), ConnectionPermit::Extra(_)),
            "extra connections count until they end"
        );
        drop(extra);
        assert!(matches!(permits.take_for_connection(), ConnectionPermit::Regular(_)));
    }
}
