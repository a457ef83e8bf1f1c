//! The events of a workload, the same ones each time, and what a collection must come to that has taken them all.

use std::collections::HashMap;

use clap::ValueEnum;
use events::{Event, EventId, Millis, Source};

use crate::Failure;
use crate::sample::Aircraft;

/// The source of every event; it names the collection.
pub const SOURCE: &str = "adsbdb";
/// The first event's timestamp; each later event is a millisecond younger.
const BASE: i64 = 1_730_000_000_000;

/// What is drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// No id comes twice.
    New,
    /// Few ids, drawn at random, each event newer than all before it.
    Repeats,
}

impl Workload {
    /// As the command line and the tables have it.
    pub fn text(self) -> &'static str {
        match self {
            Workload::New => "new",
            Workload::Repeats => "repeats",
        }
    }

    /// How many ids `records` events have at most: an id repeats as often in a short run as in a long one.
    fn ids(self, records: u32, aircraft: usize) -> usize {
        match self {
            Workload::New => records as usize,
            Workload::Repeats => (records as usize * aircraft).div_ceil(300_000).clamp(1, aircraft),
        }
    }

    /// The events, in the order in which they are produced.
    pub fn events(self, aircraft: &[Aircraft], records: u32) -> Result<Vec<Event>, Failure> {
        let ids = self.ids(records, aircraft.len());
        let mut random = fastrand::Rng::with_seed(11);
        let mut drawn = |index: usize| match self {
            Workload::New => (index % aircraft.len(), index / aircraft.len()),
            Workload::Repeats => (random.usize(..ids), 0),
        };
        let event = |index: usize| {
            let (position, round) = drawn(index);
            let one = aircraft.get(position).ok_or("there are no aircraft")?;
            let id = if round == 0 { one.id.clone() } else { EventId::new(format!("{}-{round}", one.id))? };
            event(id, one, BASE + i64::try_from(index)?)
        };
        (0..records as usize).map(event).collect()
    }
}

/// The event of an aircraft, ingested at the moment at which it happened.
pub fn event(id: EventId, aircraft: &Aircraft, timestamp: i64) -> Result<Event, Failure> {
    let timestamp = Millis::new(timestamp).ok_or("the timestamp is out of range")?;
    Ok(Event {
        id,
        timestamp,
        source: Source::new(SOURCE)?,
        payload: aircraft.payload.clone(),
        ingested_at: timestamp,
        api_version: "1.0.0".to_owned(),
    })
}

/// What tells one state of a collection from another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Documents.
    pub documents: i64,
    /// The sum of their `event_timestamp`s: only the newest event of each id brings exactly this one.
    pub timestamps: i64,
}

impl Totals {
    /// What the collection comes to that has stored all these events.
    pub fn of(events: &[Event]) -> Totals {
        let mut newest: HashMap<&EventId, i64> = HashMap::new();
        for event in events {
            let stored = newest.entry(&event.id).or_default();
            *stored = event.timestamp.get().max(*stored);
        }
        Totals { documents: newest.len() as i64, timestamps: newest.values().sum() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn ids(events: &[Event]) -> usize {
        events.iter().map(|event| event.id.as_str()).collect::<HashSet<_>>().len()
    }

    #[test]
    fn new_events_never_repeat_an_id_and_repeated_ones_grow_younger() {
        let aircraft = crate::sample::aircraft().unwrap();
        let new = Workload::New.events(&aircraft, 40_000).unwrap();
        assert_eq!(ids(&new), 40_000);
        let repeats = Workload::Repeats.events(&aircraft, 40_000).unwrap();
        assert!((2_000..2_230).contains(&ids(&repeats)), "{}", ids(&repeats));
        assert!(repeats.is_sorted_by(|one, next| one.timestamp < next.timestamp));
        assert_eq!(repeats, Workload::Repeats.events(&aircraft, 40_000).unwrap());
    }

    #[test]
    fn the_totals_are_those_of_the_newest_events() {
        let aircraft = crate::sample::aircraft().unwrap();
        let at = |id: &str, timestamp| event(EventId::new(id).unwrap(), &aircraft[0], timestamp).unwrap();
        let totals = Totals::of(&[at("a", 5), at("b", 6), at("a", 7)]);
        assert_eq!(totals, Totals { documents: 2, timestamps: 13 });
    }
}
