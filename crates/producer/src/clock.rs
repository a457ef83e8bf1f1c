//! The clock that assigns `ingested_at`. It is a part of G3.
//!
//! - Its value never decreases.
//! - It never assigns the same value to one id twice.
//! - It is ahead of the wall clock only if the wall clock was set back.
//!
//! It remembers the ids of the current millisecond. A second event of an id waits for the next
//! millisecond. If the value advanced instead, a frequent id would get values in the future. After a
//! restart its newer events would then look old.
//!
//! Two cases do not wait; there the value advances by one millisecond. The wall clock is behind by
//! more than [`MAX_WAIT_MS`], or the current millisecond is full while the wall clock is behind.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use events::{EventId, Millis};
use service::tasks::lock;

/// Maximum number of ids in one millisecond. It bounds the memory; no machine reaches it.
const MAX_IDS_PER_MS: usize = 4096;
/// An event waits for the wall clock if the wall clock is at most this far behind.
const MAX_WAIT_MS: i64 = 1000;

/// The clock of one process.
#[derive(Debug, Default)]
pub struct Clock {
    current: Mutex<CurrentMs>,
    hasher: RandomState,
}

impl Clock {
    /// The current time, for an event whose record has none. The value never decreases.
    pub fn now(&self) -> Millis {
        Millis::new(lock(&self.current).value.max(wall_ms())).unwrap_or(Millis::MAX)
    }

    /// The `ingested_at` of an event with this id.
    pub async fn stamp(&self, id: &EventId) -> Millis {
        let hash = self.hasher.hash_one(id);
        loop {
            let value = lock(&self.current).stamp(wall_ms(), hash);
            match value.and_then(Millis::new) {
                Some(value) => return value,
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }
}

/// The wall clock in milliseconds. Before 1970 it is 0. After 9999 it is the last value that an
/// event can have.
pub fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX).min(Millis::MAX.get())
}

/// The current value and the ids that have it. The ids are hashes; a collision only costs a
/// millisecond.
#[derive(Debug, Default)]
struct CurrentMs {
    value: i64,
    ids: HashSet<u64>,
}

impl CurrentMs {
    /// The value for an id. `None` if the caller must retry in the next millisecond.
    fn stamp(&mut self, wall: i64, id: u64) -> Option<i64> {
        if wall > self.value {
            self.advance_to(wall);
        }
        let full = self.ids.len() >= MAX_IDS_PER_MS;
        if full || self.ids.contains(&id) {
            // A full millisecond blocks every id, so nothing waits for a wall clock that is behind.
            let waits = if full { wall == self.value } else { self.value - wall <= MAX_WAIT_MS };
            if waits {
                return None;
            }
            self.advance_to(self.value + 1);
        }
        self.ids.insert(id);
        Some(self.value)
    }

    fn advance_to(&mut self, value: i64) {
        self.value = value;
        self.ids.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn g3_the_clock_never_decreases_and_never_repeats_a_value_for_an_id(
            readings in prop::collection::vec((0_i64..5_000, 0_u64..4), 1..400)
        ) {
            let (mut current, mut given, mut last, mut highest) = (CurrentMs::default(), HashSet::new(), 0, 0);
            for (wall, id) in readings {
                highest = highest.max(wall);
                if let Some(value) = current.stamp(wall, id) {
                    prop_assert!(value >= last && value >= wall);
                    prop_assert!(given.insert((id, value)), "{id} was given {value} twice");
                    last = value;
                }
                prop_assert!(current.ids.len() <= MAX_IDS_PER_MS);
            }
        }

        #[test]
        fn g3_the_clock_is_not_ahead_of_a_wall_clock_that_never_goes_back(
            steps in prop::collection::vec((0_i64..3, 0_u64..3), 1..400)
        ) {
            let (mut current, mut wall) = (CurrentMs::default(), 1_000);
            for (elapsed, id) in steps {
                wall += elapsed;
                prop_assert!(current.stamp(wall, id).is_none_or(|value| value == wall));
            }
        }
    }

    #[test]
    fn a_wall_clock_set_back_by_an_hour_delays_no_event() {
        let mut current = CurrentMs::default();
        assert_eq!(current.stamp(3_600_000, 1), Some(3_600_000));
        assert_eq!(current.stamp(0, 1), Some(3_600_001));
        assert_eq!(current.stamp(0, 2), Some(3_600_001));
    }

    #[test]
    fn a_full_millisecond_ends_with_the_wall_clock() {
        let mut current = CurrentMs::default();
        let max = u64::try_from(MAX_IDS_PER_MS).unwrap();
        assert!((0..max).all(|id| current.stamp(7, id).is_some()));
        assert_eq!(current.stamp(7, max), None);
        assert_eq!(current.stamp(8, max), Some(8));
    }

    #[test]
    fn a_full_millisecond_ends_at_once_while_the_wall_clock_is_behind() {
        let mut current = CurrentMs::default();
        let max = u64::try_from(MAX_IDS_PER_MS).unwrap();
        assert!((0..max).all(|id| current.stamp(1_000, id) == Some(1_000)));
        assert_eq!(current.stamp(500, 0), Some(1_001), "full");
        assert_eq!(current.stamp(500, 0), None, "and an id that occurs again still waits");
        assert!((1..max).all(|id| current.stamp(501, id) == Some(1_001)));
        assert_eq!(current.stamp(502, max), Some(1_002));
    }

    #[tokio::test]
    async fn concurrent_events_of_one_id_get_different_values() {
        let (clock, id) = (Clock::default(), EventId::new("hot").unwrap());
        let stamps: Vec<Millis> = futures::future::join_all((0..20).map(|_| clock.stamp(&id))).await;
        assert_eq!(stamps.iter().collect::<HashSet<_>>().len(), 20);
    }
}
