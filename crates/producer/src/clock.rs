//! The clock that stamps events. Guarantee (part of G3): its value never runs backwards, it never gives one id the
//! same value twice, and it is never ahead of the wall clock unless that was set back.
//!
//! It keeps the ids that its present millisecond was given to. An id that comes again within it waits for the next
//! one: running ahead instead would let a busy id reach into the future, and after a restart its newer events would
//! look old. If the wall clock was set back by more than [`PATIENCE_MS`], or the millisecond is full and the wall clock
//! behind it, the value advances by itself instead, so that nobody waits for hours, and nobody for others.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use events::{EventId, Millis};

use service::lock::lock;

/// Most ids in one millisecond; with it the memory is bounded. No machine reaches it.
const MOST_IDS: usize = 4096;
/// How far the wall clock may be behind before nobody waits for it any more.
const PATIENCE_MS: i64 = 1000;

/// The clock of one process.
#[derive(Debug, Default)]
pub struct Clock {
    step: Mutex<Step>,
    hasher: RandomState,
}

impl Clock {
    /// The `ingested_at` of an event of `id`.
    pub async fn stamp(&self, id: &EventId) -> Millis {
        let hash = self.hasher.hash_one(id);
        loop {
            let value = lock(&self.step).stamp(wall_ms(), hash);
            match value.and_then(Millis::new) {
                Some(value) => return value,
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }
}

/// Milliseconds of the wall clock; 0 before 1970, the last value that an event can hold after 9999.
pub fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX).min(Millis::MAX.get())
}

/// The present value and the ids (as hashes: a collision costs a millisecond, no more) that it was given to.
#[derive(Debug, Default)]
struct Step {
    value: i64,
    given: HashSet<u64>,
}

impl Step {
    /// The value for an id, or `None`: ask again in a millisecond.
    fn stamp(&mut self, wall: i64, id: u64) -> Option<i64> {
        if wall > self.value {
            self.advance_to(wall);
        }
        let full = self.given.len() >= MOST_IDS;
        if full || self.given.contains(&id) {
            // With the wall clock behind it, the millisecond that is full would stay so for everybody.
            let waits = if full { wall == self.value } else { self.value - wall <= PATIENCE_MS };
            if waits {
                return None;
            }
            self.advance_to(self.value + 1);
        }
        self.given.insert(id);
        Some(self.value)
    }

    fn advance_to(&mut self, value: i64) {
        self.value = value;
        self.given.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn g3_the_clock_never_runs_backwards_and_never_repeats_a_value_for_an_id(
            readings in prop::collection::vec((0_i64..5_000, 0_u64..4), 1..400)
        ) {
            let (mut step, mut given, mut last, mut highest) = (Step::default(), HashSet::new(), 0, 0);
            for (wall, id) in readings {
                highest = highest.max(wall);
                if let Some(value) = step.stamp(wall, id) {
                    prop_assert!(value >= last && value >= wall);
                    prop_assert!(given.insert((id, value)), "{id} was given {value} twice");
                    last = value;
                }
                prop_assert!(step.given.len() <= MOST_IDS);
            }
        }

        #[test]
        fn g3_a_clock_whose_wall_never_goes_back_is_never_ahead_of_it(
            steps in prop::collection::vec((0_i64..3, 0_u64..3), 1..400)
        ) {
            let (mut step, mut wall) = (Step::default(), 1_000);
            for (elapsed, id) in steps {
                wall += elapsed;
                prop_assert!(step.stamp(wall, id).is_none_or(|value| value == wall));
            }
        }
    }

    #[test]
    fn a_wall_clock_set_back_by_an_hour_makes_nobody_wait() {
        let mut step = Step::default();
        assert_eq!(step.stamp(3_600_000, 1), Some(3_600_000));
        assert_eq!(step.stamp(0, 1), Some(3_600_001));
        assert_eq!(step.stamp(0, 2), Some(3_600_001));
    }

    #[test]
    fn a_full_millisecond_is_over() {
        let mut step = Step::default();
        let most = u64::try_from(MOST_IDS).unwrap();
        assert!((0..most).all(|id| step.stamp(7, id).is_some()));
        assert_eq!(step.stamp(7, most), None);
        assert_eq!(step.stamp(8, most), Some(8));
    }

    #[test]
    fn a_full_millisecond_is_over_at_once_while_the_wall_clock_is_behind() {
        let mut step = Step::default();
        let most = u64::try_from(MOST_IDS).unwrap();
        assert!((0..most).all(|id| step.stamp(1_000, id) == Some(1_000)));
        assert_eq!(step.stamp(500, 0), Some(1_001), "full");
        assert_eq!(step.stamp(500, 0), None, "and an id that comes again waits as ever");
        assert!((1..most).all(|id| step.stamp(501, id) == Some(1_001)));
        assert_eq!(step.stamp(502, most), Some(1_002));
    }

    #[tokio::test]
    async fn events_of_one_id_at_the_same_time_get_different_values() {
        let (clock, id) = (Clock::default(), EventId::new("hot").unwrap());
        let stamps: Vec<Millis> = futures::future::join_all((0..20).map(|_| clock.stamp(&id))).await;
        assert_eq!(stamps.iter().collect::<HashSet<_>>().len(), 20);
    }
}
