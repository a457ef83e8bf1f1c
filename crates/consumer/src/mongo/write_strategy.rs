//! Whether the events of a collection mostly bring new documents or mostly change those that are there, learnt from
//! the replies. It decides which command is sent first, and so only what a batch costs, never what it ends as.

use std::sync::Mutex;

use service::lock::lock;

/// The share of existing documents above which updates go first, and below which inserts do again. Between the two
/// both cost about the same (`docs/architecture.md` has the figures).
const UPDATES_FIRST_ABOVE: f64 = 0.75;
const INSERTS_FIRST_BELOW: f64 = 0.5;
/// So many events weigh as much as everything seen before them.
const MEMORY: f64 = 500.0;

/// What was seen lately.
#[derive(Debug, Default)]
pub(super) struct Habit(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    share_existing: f64,
    updates_first: bool,
}

impl Habit {
    /// Whether an event of which nothing is known is more likely to find its document.
    pub(super) fn updates_first(&self) -> bool {
        lock(&self.0).updates_first
    }

    /// Of `events` of which nothing was known, `existing` found their documents.
    pub(super) fn saw(&self, existing: usize, events: usize) {
        if events == 0 {
            return;
        }
        let mut seen = lock(&self.0);
        let share = existing as f64 / events as f64;
        let weight = events as f64 / (events as f64 + MEMORY);
        seen.share_existing += (share - seen.share_existing) * weight;
        let limit = if seen.updates_first { INSERTS_FIRST_BELOW } else { UPDATES_FIRST_ABOVE };
        seen.updates_first = seen.share_existing > limit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_most_events_find_goes_first_and_a_few_others_do_not_turn_it() {
        let habit = Habit::default();
        assert!(!habit.updates_first(), "events are new until they are seen not to be");
        habit.saw(0, 0);
        for _ in 0..3 {
            habit.saw(1000, 1000);
        }
        assert!(habit.updates_first());
        habit.saw(0, 100);
        assert!(habit.updates_first());
        for _ in 0..3 {
            habit.saw(0, 1000);
        }
        assert!(!habit.updates_first());
        (0..5000).for_each(|_| habit.saw(1, 1));
        assert!(habit.updates_first(), "single events teach as well");
    }
}
