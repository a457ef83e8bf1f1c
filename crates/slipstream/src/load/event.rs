//! The events of a run: which there are, in which order, at which times. The same seed gives the same events, and any one
//! of them can be made again from its number. Guarantee: no two events of a key have the same time, and a stale one is
//! older than the newest of its key before it.

use serde::{Deserialize, Serialize};

use super::payload::{self, Payload};
use super::random::Random;

/// The time of event 0. Always the same, as the seed alone decides.
const FIRST_MS: i64 = 1_700_000_000_000;
/// Milliseconds from one event to the next; the times between them are for stale events.
const APART: u64 = 8;

/// What a run is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mix {
    /// Decides everything else.
    pub seed: u64,
    /// How many ids there are; they take turns.
    pub keys: u32,
    /// Millionths of the events that are older than the newest of their key.
    pub stale_ppm: u32,
    /// Millionths of the events whose payload is awkward.
    pub hostile_ppm: u32,
}

/// What chance says of an event.
struct Draw {
    hostile: bool,
    stale: bool,
    /// How many turns older than needed a stale event is.
    older_by: u32,
    rest: Random,
}

impl Mix {
    /// The number of event `n`'s key.
    pub fn key(&self, n: u64) -> u64 {
        n % u64::from(self.keys)
    }

    /// The payload of event `n`.
    pub fn payload(&self, n: u64) -> Payload {
        let mut draw = self.draw(n);
        let make = if draw.hostile { payload::hostile } else { payload::ordinary };
        make(n, self.key(n), &mut draw.rest)
    }

    fn draw(&self, n: u64) -> Draw {
        let mut rest = Random::of(self.seed, n);
        let (hostile, stale) = (rest.chance(self.hostile_ppm), rest.chance(self.stale_ppm));
        Draw { hostile, stale, older_by: rest.below(3), rest }
    }
}

/// An event, without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Its number.
    pub n: u64,
    /// Its key's number.
    pub key: u64,
    /// When it happened.
    pub timestamp: i64,
    /// Whether its key had a newer one before.
    pub stale: bool,
    /// Whether its payload is awkward.
    pub hostile: bool,
}

/// Makes the events of a run, one after another.
#[derive(Debug)]
pub struct Events {
    mix: Mix,
    next: u64,
    /// The turn of each key's newest event.
    newest: Vec<u64>,
}

impl Events {
    /// From the first on.
    pub fn new(mix: Mix) -> Self {
        Self { mix, next: 0, newest: Vec::new() }
    }

    /// The next event.
    pub fn next(&mut self) -> Event {
        let n = self.next;
        self.next += 1;
        let keys = u64::from(self.mix.keys);
        let (key, turn) = (n % keys, n / keys);
        let Draw { hostile, stale, older_by, .. } = self.mix.draw(n);
        let place = usize::try_from(key).unwrap_or(usize::MAX);
        let timestamp = match self.newest.get_mut(place) {
            Some(newest) => match stale_time(n, keys, turn - *newest + u64::from(older_by)).filter(|_| stale)
            {
                Some(older) => return Event { n, key, timestamp: older, stale: true, hostile },
                None => {
                    *newest = turn;
                    time(n)
                }
            },
            // The keys take turns, so that a key's first event comes right after the one of the key before it.
            None => {
                self.newest.push(turn);
                time(n)
            }
        };
        Event { n, key, timestamp, stale: false, hostile }
    }
}

fn time(n: u64) -> i64 {
    FIRST_MS.saturating_add_unsigned(n * APART)
}

/// Just before the key's time so many turns ago. How long before tells the times of several stale events apart; `None`
/// where there is no room for that.
fn stale_time(n: u64, keys: u64, turns: u64) -> Option<i64> {
    (1..APART * keys).contains(&turns).then(|| time(n).saturating_sub_unsigned(turns * keys * APART + turns))
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use bson::Document;
    use events::{Decoded, RecordView, Rules, decode};

    use super::*;

    fn mix(seed: u64, keys: u32, stale_ppm: u32, hostile_ppm: u32) -> Mix {
        Mix { seed, keys, stale_ppm, hostile_ppm }
    }

    fn first(mix: Mix, count: usize) -> Vec<Event> {
        let mut events = Events::new(mix);
        (0..count).map(|_| events.next()).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_events_and_another_seed_others() {
        let (one, other) = (mix(7, 50, 200_000, 100_000), mix(8, 50, 200_000, 100_000));
        assert_eq!(first(one, 2_000), first(one, 2_000));
        assert_ne!(first(one, 2_000), first(other, 2_000));
        assert_eq!(one.payload(12), one.payload(12));
        assert_ne!(one.payload(12), other.payload(12));
        assert_ne!(one.payload(12).text, one.payload(62).text);
    }

    #[test]
    fn times_of_a_key_are_all_different_and_a_stale_event_is_older_than_the_newest_before_it() {
        for (keys, stale_ppm) in [(1, 100_000), (1, 1_000_000), (3, 900_000), (100, 500_000), (100, 0)] {
            let (mut seen, mut newest) = (HashSet::new(), HashMap::new());
            let events = first(mix(3, keys, stale_ppm, 0), 5_000);
            for event in &events {
                assert!(seen.insert((event.key, event.timestamp)), "{event:?}");
                let before = newest.entry(event.key).or_insert(i64::MIN);
                assert_eq!(event.stale, event.timestamp < *before, "{event:?}");
                *before = event.timestamp.max(*before);
            }
            assert_eq!(newest.len(), keys as usize);
            assert_eq!(events.iter().any(|event| event.stale), stale_ppm > 0);
        }
    }

    #[test]
    fn shares_are_met() {
        let events = first(mix(5, 500, 100_000, 10_000), 50_000);
        let count = |wanted: fn(&Event) -> bool| events.iter().filter(|event| wanted(event)).count();
        let (stale, hostile) = (count(|event| event.stale), count(|event| event.hostile));
        assert!((4_500..5_500).contains(&stale) && (400..600).contains(&hostile), "{stale} {hostile}");
    }

    #[test]
    fn every_payload_is_accepted_and_stored_with_the_fields_that_it_is_known_by() {
        let mix = mix(11, 40, 0, 500_000);
        for n in 0..400 {
            let Payload { fields, text } = mix.payload(n);
            let body = format!(r#"{{"id":"x","timestamp":5,"source":"s","payload":{text}}}"#);
            assert!(body.len() < 65_536, "{}", body.len());
            events::parse_request(body.as_bytes(), &Rules::default()).unwrap();
            let view = RecordView { key: Some(b"x"), value: body.as_bytes(), timestamp: Some(5) };
            let Ok(Decoded::Event(event)) = decode(&view, |_| true) else { panic!("{text}") };
            let stored = Document::try_from(event.document).unwrap();
            let conflicts = stored.get_document("payload_conflicts");
            for (name, value) in &fields {
                let kept = conflicts.as_ref().ok().and_then(|conflicts| conflicts.get(name));
                assert_eq!(kept.or(stored.get(name)), Some(value), "{name} of {n}");
            }
        }
    }
}
