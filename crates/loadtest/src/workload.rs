//! The events of a run, their order and their timestamps. The same seed gives the same events, and
//! each event can be generated again from its number. Guarantee: no two events of a key have the
//! same timestamp, and a superseded event is older than the newest earlier event of its key.

use serde::{Deserialize, Serialize};

use crate::payload::{self, Payload, Random};

/// Timestamp of event 0; constant, because only the seed determines the events.
const FIRST_TIMESTAMP_MS: i64 = 1_700_000_000_000;
/// Milliseconds from one event to the next; superseded events use the timestamps in between.
const INTERVAL_MS: u64 = 8;

/// The parameters from which the events of a run are generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Seed of the random numbers.
    pub seed: u64,
    /// Number of ids; they take turns.
    pub keys: u32,
    /// Share of the events that are older than the newest of their key, in millionths.
    #[serde(alias = "stale_ppm")]
    pub superseded_ppm: u32,
    /// Share of the events with a hostile payload, in millionths.
    pub hostile_ppm: u32,
    /// Share of the events that delete the document of their key, in millionths.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub deletes_ppm: u32,
}

fn is_zero(share: &u32) -> bool {
    *share == 0
}

/// Changes the seed of the decision about deletes, so that it does not change the other numbers.
const DELETES: u64 = 0xD1E7_E5ED;

/// The random decisions about an event.
struct Draw {
    is_hostile: bool,
    is_superseded: bool,
    /// How many rounds older than necessary a superseded event is.
    extra_rounds: u32,
    random: Random,
}

impl Workload {
    /// The key of event `n`.
    pub fn key(&self, n: u64) -> u64 {
        n % u64::from(self.keys)
    }

    /// The payload of event `n`.
    pub fn payload(&self, n: u64) -> Payload {
        let mut draw = self.draw(n);
        let generate = if draw.is_hostile { payload::hostile } else { payload::ordinary };
        generate(n, self.key(n), &mut draw.random)
    }

    /// The text of the payload of event `n`, which is empty if the event deletes.
    pub fn text(&self, n: u64) -> String {
        if self.deletes(n) { String::new() } else { self.payload(n).text }
    }

    /// Whether event `n` deletes the document of its key.
    pub fn deletes(&self, n: u64) -> bool {
        Random::of(self.seed ^ DELETES, n).chance(self.deletes_ppm)
    }

    fn draw(&self, n: u64) -> Draw {
        let mut random = Random::of(self.seed, n);
        let is_hostile = random.chance(self.hostile_ppm);
        let is_superseded = random.chance(self.superseded_ppm);
        Draw { is_hostile, is_superseded, extra_rounds: random.below(3), random }
    }
}

/// An event, without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Its number.
    pub n: u64,
    /// Its key.
    pub key: u64,
    /// Its timestamp, in epoch milliseconds.
    pub timestamp: i64,
    /// Whether an earlier event of its key is newer.
    pub is_superseded: bool,
    /// Whether its payload is hostile.
    pub is_hostile: bool,
    /// Whether it deletes the document of its key.
    pub deletes: bool,
}

/// Generates the events of a run, one after another.
#[derive(Debug)]
pub struct Events {
    workload: Workload,
    next: u64,
    /// The round of each key's newest event; in a round each key has one event.
    newest: Vec<u64>,
}

impl Events {
    /// Starts with the first event.
    pub fn new(workload: Workload) -> Self {
        Self { workload, next: 0, newest: Vec::new() }
    }

    fn next_event(&mut self) -> Event {
        let n = self.next;
        self.next += 1;
        let keys = u64::from(self.workload.keys);
        let (key, round) = (n % keys, n / keys);
        let Draw { is_hostile, is_superseded, extra_rounds, .. } = self.workload.draw(n);
        let deletes = self.workload.deletes(n);
        let is_hostile = is_hostile && !deletes;
        let event =
            |timestamp, is_superseded| Event { n, key, timestamp, is_superseded, is_hostile, deletes };
        let index = usize::try_from(key).unwrap_or(usize::MAX);
        let Some(newest) = self.newest.get_mut(index) else {
            // The keys take turns, so that the first event of a key follows that of the key before.
            self.newest.push(round);
            return event(timestamp(n), false);
        };
        let rounds = round - *newest + u64::from(extra_rounds);
        match superseded_timestamp(n, keys, rounds).filter(|_| is_superseded) {
            Some(timestamp) => event(timestamp, true),
            None => {
                *newest = round;
                event(timestamp(n), false)
            }
        }
    }
}

impl Iterator for Events {
    type Item = Event;

    /// The next event; there is no last one.
    fn next(&mut self) -> Option<Event> {
        Some(self.next_event())
    }
}

fn timestamp(n: u64) -> i64 {
    FIRST_TIMESTAMP_MS.saturating_add_unsigned(n * INTERVAL_MS)
}

/// A timestamp just before the key's timestamp of that many rounds ago. The distance to it depends
/// on the number of rounds, so that superseded events have different timestamps. `None` if the
/// interval has no room for the distance.
fn superseded_timestamp(n: u64, keys: u64, rounds: u64) -> Option<i64> {
    let has_room = (1..INTERVAL_MS * keys).contains(&rounds);
    has_room.then(|| timestamp(n).saturating_sub_unsigned(rounds * keys * INTERVAL_MS + rounds))
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use bson::Document;
    use events::{Decoded, RecordView, Rules, decode};

    use super::*;

    fn workload(seed: u64, keys: u32, superseded_ppm: u32, hostile_ppm: u32) -> Workload {
        Workload { seed, keys, superseded_ppm, hostile_ppm, deletes_ppm: 0 }
    }

    fn first(workload: Workload, count: usize) -> Vec<Event> {
        Events::new(workload).take(count).collect()
    }

    #[test]
    fn only_the_same_seed_gives_the_same_events() {
        let (one, other) = (workload(7, 50, 200_000, 100_000), workload(8, 50, 200_000, 100_000));
        assert_eq!(first(one, 2_000), first(one, 2_000));
        assert_ne!(first(one, 2_000), first(other, 2_000));
        assert_eq!(one.payload(12), one.payload(12));
        assert_ne!(one.payload(12), other.payload(12));
        assert_ne!(one.payload(12).text, one.payload(62).text);
    }

    #[test]
    fn timestamps_of_a_key_differ_and_a_superseded_event_is_older() {
        for (keys, superseded_ppm) in [(1, 100_000), (1, 1_000_000), (3, 900_000), (100, 500_000), (100, 0)] {
            let (mut seen, mut newest) = (HashSet::new(), HashMap::new());
            let events = first(workload(3, keys, superseded_ppm, 0), 5_000);
            for event in &events {
                assert!(seen.insert((event.key, event.timestamp)), "{event:?}");
                let before = newest.entry(event.key).or_insert(i64::MIN);
                assert_eq!(event.is_superseded, event.timestamp < *before, "{event:?}");
                *before = event.timestamp.max(*before);
            }
            assert_eq!(newest.len(), keys as usize);
            assert_eq!(events.iter().any(|event| event.is_superseded), superseded_ppm > 0);
        }
    }

    #[test]
    fn deletes_have_their_share_and_change_no_other_event() {
        let without = workload(5, 500, 100_000, 10_000);
        let events = first(Workload { deletes_ppm: 50_000, ..without }, 20_000);
        let deletes = events.iter().filter(|event| event.deletes).count();
        assert!((800..1_200).contains(&deletes), "{deletes}");
        assert!(events.iter().any(|event| event.deletes && event.is_superseded));
        for (one, other) in events.into_iter().zip(first(without, 20_000)) {
            let is_hostile = one.is_hostile || one.deletes && other.is_hostile;
            assert_eq!(Event { deletes: false, is_hostile, ..one }, other);
        }
        let text = serde_json::to_string(&without).unwrap();
        assert!(!text.contains("deletes"), "{text}");
    }

    #[test]
    fn superseded_and_hostile_events_have_their_shares() {
        let events = first(workload(5, 500, 100_000, 10_000), 50_000);
        let count = |wanted: fn(&Event) -> bool| events.iter().filter(|event| wanted(event)).count();
        let (superseded, hostile) = (count(|event| event.is_superseded), count(|event| event.is_hostile));
        assert!((4_500..5_500).contains(&superseded), "{superseded}");
        assert!((400..600).contains(&hostile), "{hostile}");
    }

    #[test]
    fn every_payload_is_valid_and_its_document_has_the_fields() {
        let workload = workload(11, 40, 0, 500_000);
        for n in 0..400 {
            let Payload { fields, text } = workload.payload(n);
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
