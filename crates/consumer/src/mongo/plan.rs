//! The order in which the events of a batch are sent, so that several events of one key end as if they had been applied
//! one after another: an event is sent only after every earlier one of its key is finished, or together with them in
//! one ordered command, or not at all where one statement stands for them all. After an event that is unfinished, all
//! later ones of its key are unfinished too.

use std::collections::HashMap;

use super::merged_write::{Events, Known, Run};

/// What to send next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wave {
    /// One statement a key, in any order.
    Heads(Vec<Run>),
    /// Events whose documents exist: guarded updates, in this order.
    Tail(Vec<usize>),
}

/// How an event ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Finished, and its document exists.
    Present,
    /// Finished, and there may be no document of its key.
    Absent,
    /// To be tried again later.
    Unfinished,
}

#[derive(Debug, Default)]
struct KeyState {
    known: Known,
    fate: Option<Fate>,
    /// What was known of it proved wrong: its next event stands for itself.
    doubted: bool,
}

/// The state of one batch.
#[derive(Debug)]
pub(super) struct Waves {
    key_of: Vec<usize>,
    /// The events by key, each key's in the order of the partition.
    by_key: Vec<usize>,
    keys: Vec<KeyState>,
    fates: Vec<Option<Fate>>,
    /// Whether one statement may stand for several events of a key.
    collapses: bool,
}

impl Waves {
    /// A batch of events with these keys, in the order of the partition.
    pub(super) fn new(identities: impl Iterator<Item = Vec<u8>>, collapses: bool) -> Self {
        let mut numbers: HashMap<Vec<u8>, usize> = HashMap::new();
        let key_of: Vec<usize> = identities
            .map(|identity| {
                let next = numbers.len();
                *numbers.entry(identity).or_insert(next)
            })
            .collect();
        let mut by_key: Vec<usize> = (0..key_of.len()).collect();
        by_key.sort_by_key(|index| key_of[*index]);
        let mut keys = Vec::new();
        keys.resize_with(numbers.len(), KeyState::default);
        Self { fates: vec![None; key_of.len()], key_of, by_key, keys, collapses }
    }

    /// What can be sent now; `None` once nothing is left. The answer stays the same until something is told.
    pub(super) fn next(&self, events: &impl Events) -> Option<Wave> {
        let mut heads = Vec::new();
        let mut tail = Vec::new();
        for (key, waiting) in self.waiting() {
            match (&self.keys[key], self.collapses) {
                (state, true) if !state.doubted => heads.push(Run::of(state.known, &waiting, events)),
                (KeyState { fate: Some(Fate::Present), .. }, false) => tail.extend(waiting),
                _ => heads.push(Run::alone(waiting[0])),
            }
        }
        if !heads.is_empty() {
            return Some(Wave::Heads(heads));
        }
        tail.sort_unstable();
        (!tail.is_empty()).then_some(Wave::Tail(tail))
    }

    /// One event of each key of which several wait and nothing is known, if knowing more would save statements.
    pub(super) fn worth_a_look(&self) -> Vec<usize> {
        let no_key_repeats = self.keys.len() == self.key_of.len();
        if !self.collapses || no_key_repeats {
            return Vec::new();
        }
        let repeats = self.waiting().filter(|(key, waiting)| {
            let state = &self.keys[*key];
            waiting.len() > 1 && state.known == Known::Nothing && !state.doubted
        });
        repeats.map(|(_, waiting)| waiting[0]).collect()
    }

    /// The number of an event's key: events that belong to one document have one number.
    pub(super) fn key(&self, index: usize) -> usize {
        self.key_of[index]
    }

    /// What is known of the document of an event's key.
    pub(super) fn known(&self, index: usize) -> Known {
        self.keys[self.key_of[index]].known
    }

    /// Tells what is known of the document of an event's key.
    pub(super) fn learn(&mut self, index: usize, known: Known) {
        let state = &mut self.keys[self.key_of[index]];
        *state = KeyState { known, fate: state.fate, doubted: false };
    }

    /// What was known of the document of an event's key is wrong.
    pub(super) fn doubt(&mut self, index: usize) {
        let state = &mut self.keys[self.key_of[index]];
        *state = KeyState { known: Known::Nothing, fate: state.fate, doubted: true };
    }

    /// Tells what became of an event.
    pub(super) fn tell(&mut self, index: usize, fate: Fate) {
        self.fates[index] = Some(fate);
        self.keys[self.key_of[index]].fate = Some(fate);
    }

    /// Every event that is not finished.
    pub(super) fn unfinished(&self) -> Vec<usize> {
        let open = |fate: &Option<Fate>| matches!(fate, None | Some(Fate::Unfinished));
        (0..self.fates.len()).filter(|index| open(&self.fates[*index])).collect()
    }

    /// The events of each key that can be sent, in order.
    fn waiting(&self) -> impl Iterator<Item = (usize, Vec<usize>)> {
        let groups = self.by_key.chunk_by(|one, other| self.key_of[*one] == self.key_of[*other]);
        groups.filter_map(|group| {
            let key = self.key_of[group[0]];
            let untold = group.iter().copied().filter(|index| self.fates[*index].is_none());
            let untold: Vec<usize> = untold.collect();
            let held_up = self.keys[key].fate == Some(Fate::Unfinished);
            (!held_up && !untold.is_empty()).then_some((key, untold))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mongo::version::Version;
    use proptest::prelude::*;

    /// What the pretended server does with an attempt.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Answer {
        Store,
        Refuse,
        Fail,
    }

    /// Events of `(key, answer)`, each newer than the one before.
    struct Batch(Vec<(u8, Answer)>);

    impl Events for Batch {
        fn version(&self, index: usize) -> Version {
            Version::at(index as i64, 0)
        }

        fn same(&self, _: usize, _: usize) -> bool {
            false
        }
    }

    /// Sends a batch; the log has the events in the order in which the server took them.
    fn send(batch: &Batch, collapses: bool, cut: usize) -> (Vec<usize>, Waves) {
        let mut waves = Waves::new(batch.0.iter().map(|(key, _)| vec![*key]), collapses);
        let mut taken = Vec::new();
        let mut documents = std::collections::HashSet::new();
        loop {
            for index in waves.worth_a_look() {
                waves.learn(index, Known::Absent);
            }
            let (runs, ordered) = match waves.next(batch) {
                None => return (taken, waves),
                Some(Wave::Heads(mut heads)) => {
                    heads.reverse();
                    (heads, false)
                }
                Some(Wave::Tail(tail)) => (tail.into_iter().take(cut).map(Run::alone).collect(), true),
            };
            for run in runs {
                let (key, answer) = batch.0[run.head];
                assert!(!ordered || documents.contains(&key), "an update of a document that may not exist");
                let fate = match answer {
                    Answer::Store => Fate::Present,
                    Answer::Refuse if documents.contains(&key) => Fate::Present,
                    Answer::Refuse => Fate::Absent,
                    Answer::Fail => Fate::Unfinished,
                };
                if answer == Answer::Store {
                    documents.insert(key);
                    waves.learn(run.head, Known::Present(batch.version(run.head), Some(run.head)));
                    taken.extend(&run.events);
                    run.events.iter().for_each(|index| waves.tell(*index, fate));
                } else {
                    taken.push(run.head);
                    waves.tell(run.head, fate);
                    if ordered {
                        break;
                    }
                }
            }
        }
    }

    fn answers() -> impl Strategy<Value = Answer> {
        prop_oneof![6 => Just(Answer::Store), 2 => Just(Answer::Refuse), 1 => Just(Answer::Fail)]
    }

    proptest! {
        #[test]
        fn each_key_sees_its_events_in_order_up_to_the_first_that_fails(
            batch in proptest::collection::vec((0_u8..6, answers()), 0..60),
            cut in 1_usize..8,
        ) {
            let batch = Batch(batch);
            let (taken, waves) = send(&batch, false, cut);
            let mut unfinished = Vec::new();
            for key in 0..6 {
                let of_key: Vec<usize> = (0..batch.0.len()).filter(|index| batch.0[*index].0 == key).collect();
                let failed = of_key.iter().position(|index| batch.0[*index].1 == Answer::Fail);
                let tried = &of_key[..failed.map_or(of_key.len(), |at| at + 1)];
                let seen: Vec<usize> = taken.iter().copied().filter(|index| batch.0[*index].0 == key).collect();
                prop_assert_eq!(&seen[..], tried);
                unfinished.extend_from_slice(&of_key[failed.unwrap_or(of_key.len())..]);
            }
            unfinished.sort_unstable();
            prop_assert_eq!(waves.unfinished(), unfinished);
        }

        #[test]
        fn with_one_statement_for_many_every_event_is_told_once_or_unfinished(
            batch in proptest::collection::vec((0_u8..6, answers()), 0..60),
        ) {
            let batch = Batch(batch);
            let (mut taken, waves) = send(&batch, true, 1);
            for key in 0..6 {
                let newest = (0..batch.0.len()).rfind(|index| batch.0[*index].0 == key && batch.0[*index].1 != Answer::Refuse);
                let open: Vec<usize> =
                    waves.unfinished().into_iter().filter(|index| batch.0[*index].0 == key).collect();
                let fails = newest.is_some_and(|index| batch.0[index].1 == Answer::Fail);
                prop_assert_eq!(!open.is_empty(), fails, "key {} with {:?} left", key, open);
            }
            taken.extend(waves.unfinished());
            taken.sort_unstable();
            taken.dedup();
            prop_assert_eq!(taken, (0..batch.0.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn events_of_different_keys_go_together() {
        let batch =
            Batch(vec![(1, Answer::Store), (2, Answer::Store), (1, Answer::Store), (3, Answer::Store)]);
        let waves = Waves::new(batch.0.iter().map(|(key, _)| vec![*key]), false);
        assert_eq!(waves.next(&batch), Some(Wave::Heads([0, 1, 3].map(Run::alone).into())));
        assert_eq!(waves.unfinished(), [0, 1, 2, 3]);
        assert_eq!(Waves::new(std::iter::empty(), true).next(&batch), None);
    }
}
