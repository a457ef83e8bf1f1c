//! How many connections and requests there may be at a time. Memory is bounded by these two; what is beyond is told to
//! come back, and whoever asks for health or metrics is answered all the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use prometheus_client::metrics::gauge::Gauge;

/// Connections beyond the limit that are still taken, for one request each: the health check must get through, and a
/// client must be able to read that it is one too many.
pub const RESERVE: usize = 64;

/// Whether there is a place for a connection.
#[derive(Debug)]
pub enum Seat {
    /// Yes.
    Regular(Place),
    /// Not beyond one short request.
    Reserve(Place),
    /// No.
    None,
}

/// Counts what is there at a time.
#[derive(Debug, Clone)]
pub struct Places {
    taken: Arc<AtomicUsize>,
    most: usize,
    shown: Gauge<i64, AtomicI64>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Place(Places);

impl Places {
    /// All free; `shown` follows the count.
    pub fn new(most: usize, shown: Gauge) -> Self {
        Self { taken: Arc::default(), most, shown }
    }

    fn take_below(&self, most: usize) -> Option<(Place, usize)> {
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        self.shown.inc();
        // Dropped again if it is one too many.
        let place = Place(self.clone());
        (before < most).then_some((place, before))
    }

    /// A place for a request.
    pub fn take(&self) -> Option<Place> {
        self.take_below(self.most).map(|(place, _)| place)
    }

    /// A place for a connection.
    pub fn seat(&self) -> Seat {
        match self.take_below(self.most + RESERVE) {
            Some((place, before)) if before < self.most => Seat::Regular(place),
            Some((place, _)) => Seat::Reserve(place),
            None => Seat::None,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
        self.0.shown.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_it_is_dropped_and_a_refusal_takes_none() {
        let places = Places::new(2, Gauge::default());
        let (first, second) = (places.take(), places.take());
        assert!(first.is_some() && second.is_some());
        assert!(places.take().is_none() && places.take().is_none());
        assert_eq!(places.shown.get(), 2);
        drop(first);
        assert!(places.take().is_some());
        assert_eq!(places.shown.get(), 1);
    }

    #[test]
    fn connections_beyond_the_limit_get_the_reserve_and_then_nothing() {
        let places = Places::new(1, Gauge::default());
        let regular = places.seat();
        assert!(matches!(regular, Seat::Regular(_)));
        let reserve: Vec<Seat> = (0..RESERVE).map(|_| places.seat()).collect();
        assert!(reserve.iter().all(|seat| matches!(seat, Seat::Reserve(_))));
        assert!(matches!(places.seat(), Seat::None));
        drop(regular);
        assert!(matches!(places.seat(), Seat::Reserve(_)), "the reserve counts too until it is free");
        drop(reserve);
        assert!(matches!(places.seat(), Seat::Regular(_)));
    }
}
