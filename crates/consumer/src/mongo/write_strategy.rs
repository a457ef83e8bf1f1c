//! The write strategy of a collection: whether updates or inserts are sent first. It follows the
//! share of events that found an existing document. It changes only the cost of a batch, never its
//! outcome.

use std::sync::Mutex;

use service::lock::lock;

/// Updates are sent first while the share of existing documents is above this value.
const UPDATES_FIRST_ABOVE: f64 = 0.75;
/// Inserts are sent first again below this value. Between the two values, inserts first and updates
/// first cost about the same (figures: `docs/adr/0001-choose-the-first-command-by-recent-replies.md`).
const INSERTS_FIRST_BELOW: f64 = 0.5;
/// So many events have the same weight as all events before them.
const MEMORY_EVENTS: f64 = 500.0;

/// Chooses the command that is sent first.
#[derive(Debug, Default)]
pub(super) struct WriteStrategy(Mutex<Observed>);

#[derive(Debug, Default)]
struct Observed {
    existing_share: f64,
    updates_first: bool,
}

impl WriteStrategy {
    /// Whether the document of an event is more likely to exist.
    pub(super) fn updates_first(&self) -> bool {
        lock(&self.0).updates_first
    }

    /// Adds the observation that `existing` of `events` found a document. Nothing was known of
    /// these documents.
    pub(super) fn observe(&self, existing: usize, events: usize) {
        if events == 0 {
            return;
        }
        let mut observed = lock(&self.0);
        let share = existing as f64 / events as f64;
        let weight = events as f64 / (events as f64 + MEMORY_EVENTS);
        observed.existing_share += (share - observed.existing_share) * weight;
        let threshold = if observed.updates_first { INSERTS_FIRST_BELOW } else { UPDATES_FIRST_ABOVE };
        observed.updates_first = observed.existing_share > threshold;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strategy_follows_the_majority_and_few_events_do_not_change_it() {
        let strategy = WriteStrategy::default();
        assert!(!strategy.updates_first(), "inserts first by default");
        strategy.observe(0, 0);
        for _ in 0..3 {
            strategy.observe(1000, 1000);
        }
        assert!(strategy.updates_first());
        strategy.observe(0, 100);
        assert!(strategy.updates_first());
        for _ in 0..3 {
            strategy.observe(0, 1000);
        }
        assert!(!strategy.updates_first());
        (0..5000).for_each(|_| strategy.observe(1, 1));
        assert!(strategy.updates_first(), "single events count as well");
    }
}
