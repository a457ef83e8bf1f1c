//! What was sent for one id, and which event its document may hold. Pure. An accepted event must be stored unless a newer
//! one is; one whose outcome is unknown, or that was dead-lettered, may be there or not.

/// An event, as far as it can be the one that a document holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// The event's number in the run.
    pub n: u64,
    /// When it happened; no other event of the id has the same.
    pub timestamp: i64,
    /// What the producer said that it stamped the event with, if it said so.
    pub ingested_at: Option<i64>,
    /// It may be on the topic several times, stamped differently each time: an attempt's outcome was unknown.
    pub repeated: bool,
}

/// By which the consumer's guard orders the events of one id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Times {
    /// When it happened.
    pub timestamp: i64,
    /// When the producer took it.
    pub ingested_at: i64,
}

impl Times {
    /// Of an id that has no document: any event exceeds them.
    pub const NOTHING: Self = Self { timestamp: i64::MIN, ingested_at: i64::MIN };
}

/// The events of one id that can still matter.
#[derive(Debug, Clone, Default)]
pub struct Sent {
    newest: Option<Version>,
    maybe: Vec<Version>,
    /// How many documents of the id were found.
    pub documents: u32,
}

/// What a document holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// This event, as it must be or may be.
    Event(u64),
    /// An event, or a repetition of one, that a newer one should have replaced.
    Older,
    /// No event that was sent.
    Nothing,
}

impl Sent {
    /// Of an event that was answered with 202.
    pub fn accepted(&mut self, version: Version) {
        if self.newest.is_none_or(|newest| version.timestamp > newest.timestamp) {
            self.newest = Some(version);
            self.maybe.retain(|maybe| maybe.timestamp > version.timestamp);
        }
    }

    /// Of an event that may be stored or not.
    pub fn maybe(&mut self, version: Version) {
        if self.newest.is_none_or(|newest| version.timestamp > newest.timestamp) {
            self.maybe.push(version);
        }
    }

    /// Whether there must be a document.
    pub fn is_owed(&self) -> bool {
        self.newest.is_some()
    }

    /// What a document of these times holds.
    pub fn holds(&self, timestamp: i64, ingested_at: i64) -> Held {
        let same = |version: &&Version| version.timestamp == timestamp;
        if let Some(version) = self.newest.as_ref().filter(same) {
            return version.stamped(ingested_at);
        }
        if let Some(maybe) = self.maybe.iter().find(same) {
            return Held::Event(maybe.n);
        }
        match &self.newest {
            Some(newest) if timestamp < newest.timestamp => Held::Older,
            _ => Held::Nothing,
        }
    }
}

impl Version {
    /// A repetition that was stamped later replaces what was accepted, one that was stamped earlier is replaced by it.
    fn stamped(&self, ingested_at: i64) -> Held {
        match self.ingested_at {
            Some(said) if ingested_at < said => Held::Older,
            Some(said) if ingested_at > said && !self.repeated => Held::Nothing,
            _ => Held::Event(self.n),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// How an event of the model fared.
    #[derive(Debug, Clone, Copy)]
    struct Fate {
        accepted: bool,
        /// Whether an attempt of unknown outcome is on the topic too, and how much later or earlier it was stamped.
        ghost: Option<i64>,
        told: bool,
    }

    fn fates() -> impl Strategy<Value = Vec<Fate>> {
        let fate = (any::<bool>(), prop::option::of(-3_i64..=3), any::<bool>());
        let fate = fate.prop_map(|(accepted, ghost, told)| Fate { accepted, ghost, told });
        prop::collection::vec(fate, 0..8)
    }

    /// What is written down of the events, whose times are `timestamps`, and the newest record of the topic.
    fn run(fates: &[Fate], timestamps: &[i64]) -> (Sent, Option<(i64, i64)>) {
        let (mut sent, mut records) = (Sent::default(), Vec::new());
        for (n, (fate, &timestamp)) in fates.iter().zip(timestamps).enumerate() {
            let stamp = 100 + 10 * n as i64;
            let version = Version {
                n: n as u64,
                timestamp,
                ingested_at: (fate.accepted && fate.told).then_some(stamp),
                repeated: fate.ghost.is_some(),
            };
            if fate.accepted {
                records.push((timestamp, stamp));
                sent.accepted(version);
            } else {
                sent.maybe(version);
            }
            records.extend(fate.ghost.map(|apart| (timestamp, stamp + apart)));
        }
        (sent, records.into_iter().max())
    }

    proptest! {
        #[test]
        fn what_a_right_pipeline_leaves_is_right(fates in fates(), order in Just((0..8_i64).collect::<Vec<_>>()).prop_shuffle()) {
            let (sent, stored) = run(&fates, &order);
            match stored {
                Some((timestamp, ingested_at)) => {
                    let event = order.iter().position(|at| *at == timestamp).unwrap() as u64;
                    prop_assert_eq!(sent.holds(timestamp, ingested_at), Held::Event(event));
                }
                None => prop_assert!(!sent.is_owed()),
            }
        }

        #[test]
        fn an_accepted_event_that_was_replaced_by_an_older_one_is_noticed(
            fates in fates(), order in Just((0..8_i64).collect::<Vec<_>>()).prop_shuffle()
        ) {
            let (sent, _) = run(&fates, &order);
            let accepted = fates.iter().zip(&order).filter(|(fate, _)| fate.accepted).map(|(_, at)| *at);
            let newest = accepted.max();
            prop_assert_eq!(sent.is_owed(), newest.is_some());
            for &at in order.iter().filter(|at| newest.is_some_and(|newest| **at < newest)) {
                prop_assert_eq!(sent.holds(at, 1_000), Held::Older);
            }
            prop_assert_eq!(sent.holds(99, 1_000), Held::Nothing);
        }
    }

    fn version(timestamp: i64, ingested_at: Option<i64>, repeated: bool) -> Version {
        Version { n: 1, timestamp, ingested_at, repeated }
    }

    #[test]
    fn an_event_that_was_sent_once_has_one_stamp() {
        let mut sent = Sent::default();
        sent.accepted(version(5, Some(10), false));
        assert_eq!(sent.holds(5, 10), Held::Event(1));
        assert_eq!(sent.holds(5, 9), Held::Older);
        assert_eq!(sent.holds(5, 11), Held::Nothing);
    }

    #[test]
    fn an_event_that_was_repeated_may_have_a_later_stamp_and_no_earlier_one() {
        let mut sent = Sent::default();
        sent.accepted(version(5, Some(10), true));
        assert_eq!(sent.holds(5, 11), Held::Event(1));
        assert_eq!(sent.holds(5, 9), Held::Older);
        let mut batch = Sent::default();
        batch.accepted(version(5, None, false));
        assert_eq!(batch.holds(5, 9), Held::Event(1));
    }

    #[test]
    fn memory_keeps_no_event_that_cannot_matter() {
        let mut sent = Sent::default();
        for timestamp in 0..100 {
            sent.maybe(version(timestamp, None, true));
        }
        sent.accepted(version(98, None, false));
        assert_eq!(sent.maybe.len(), 1);
        sent.maybe(version(97, None, true));
        assert_eq!(sent.maybe.len(), 1);
    }
}
