//! The order in which the events of a batch are sent, so that several events of one key end as if they had been applied
//! one after another: an event is sent only after every earlier one of its key is finished, or together with them in
//! one ordered command. After an event that is unfinished, all later ones of its key are unfinished too.

use std::collections::HashMap;

/// What to send next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wave {
    /// Events of different keys, none known to have a document: insert, and update those that exist. In any order.
    Heads(Vec<usize>),
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

/// The state of one batch.
#[derive(Debug)]
pub(super) struct Waves {
    key_of: Vec<usize>,
    keys: Vec<Option<Fate>>,
    fates: Vec<Option<Fate>>,
}

impl Waves {
    /// A batch of events with these keys, in the order of the partition.
    pub(super) fn new(identities: impl Iterator<Item = Vec<u8>>) -> Self {
        let mut numbers: HashMap<Vec<u8>, usize> = HashMap::new();
        let key_of: Vec<usize> = identities
            .map(|identity| {
                let next = numbers.len();
                *numbers.entry(identity).or_insert(next)
            })
            .collect();
        Self { keys: vec![None; numbers.len()], fates: vec![None; key_of.len()], key_of }
    }

    /// What can be sent now; `None` once nothing is left. The answer stays the same until fates are told.
    pub(super) fn next(&self) -> Option<Wave> {
        let mut seen = vec![false; self.keys.len()];
        let mut heads = Vec::new();
        let mut tail = Vec::new();
        for (index, key) in self.waiting() {
            match self.keys[key] {
                Some(Fate::Present) => tail.push(index),
                None | Some(Fate::Absent) if !seen[key] => {
                    seen[key] = true;
                    heads.push(index);
                }
                _ => {}
            }
        }
        match (heads.is_empty(), tail.is_empty()) {
            (false, _) => Some(Wave::Heads(heads)),
            (true, false) => Some(Wave::Tail(tail)),
            (true, true) => None,
        }
    }

    /// The number of an event's key: events that belong to one document have one number.
    pub(super) fn key(&self, index: usize) -> usize {
        self.key_of[index]
    }

    /// Tells what became of an event.
    pub(super) fn tell(&mut self, index: usize, fate: Fate) {
        self.fates[index] = Some(fate);
        self.keys[self.key_of[index]] = Some(fate);
    }

    /// Every event that is not finished.
    pub(super) fn unfinished(&self) -> Vec<usize> {
        let open = |fate: &Option<Fate>| matches!(fate, None | Some(Fate::Unfinished));
        (0..self.fates.len()).filter(|index| open(&self.fates[*index])).collect()
    }

    fn waiting(&self) -> impl Iterator<Item = (usize, usize)> {
        let untold = self.key_of.iter().zip(&self.fates).enumerate().filter(|(_, (_, fate))| fate.is_none());
        untold.map(|(index, (key, _))| (index, *key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the pretended server does with an attempt.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Answer {
        Store,
        Refuse,
        Fail,
    }

    /// Sends a batch of `(key, answer)`; the log has the events in the order in which the server took them.
    fn send(batch: &[(u8, Answer)], cut: usize) -> (Vec<usize>, Waves) {
        let mut waves = Waves::new(batch.iter().map(|(key, _)| vec![*key]));
        let mut taken = Vec::new();
        let mut documents = std::collections::HashSet::new();
        while let Some(wave) = waves.next() {
            let (sent, ordered) = match wave {
                Wave::Heads(mut heads) => {
                    heads.reverse();
                    (heads, false)
                }
                Wave::Tail(tail) => (tail.into_iter().take(cut).collect(), true),
            };
            for index in sent {
                let (key, answer) = batch[index];
                assert!(!ordered || documents.contains(&key), "an update of a document that may not exist");
                let fate = match answer {
                    Answer::Store => Fate::Present,
                    Answer::Refuse if documents.contains(&key) => Fate::Present,
                    Answer::Refuse => Fate::Absent,
                    Answer::Fail => Fate::Unfinished,
                };
                if answer == Answer::Store {
                    documents.insert(key);
                }
                taken.push(index);
                waves.tell(index, fate);
                if ordered && answer != Answer::Store {
                    break;
                }
            }
        }
        (taken, waves)
    }

    proptest! {
        #[test]
        fn each_key_sees_its_events_in_order_up_to_the_first_that_fails(
            batch in proptest::collection::vec((0_u8..6, prop_oneof![
                6 => Just(Answer::Store), 2 => Just(Answer::Refuse), 1 => Just(Answer::Fail),
            ]), 0..60),
            cut in 1_usize..8,
        ) {
            let (taken, waves) = send(&batch, cut);
            let mut unfinished = Vec::new();
            for key in 0..6 {
                let of_key: Vec<usize> = (0..batch.len()).filter(|index| batch[*index].0 == key).collect();
                let failed = of_key.iter().position(|index| batch[*index].1 == Answer::Fail);
                let tried = &of_key[..failed.map_or(of_key.len(), |at| at + 1)];
                let seen: Vec<usize> = taken.iter().copied().filter(|index| batch[*index].0 == key).collect();
                prop_assert_eq!(&seen[..], tried);
                unfinished.extend_from_slice(&of_key[failed.unwrap_or(of_key.len())..]);
            }
            unfinished.sort_unstable();
            prop_assert_eq!(waves.unfinished(), unfinished);
        }
    }

    #[test]
    fn events_of_different_keys_go_together() {
        let waves = Waves::new([1, 2, 1, 3].into_iter().map(|key| vec![key]));
        assert_eq!(waves.next(), Some(Wave::Heads(vec![0, 1, 3])));
        assert_eq!(waves.unfinished(), [0, 1, 2, 3]);
        assert_eq!(Waves::new(std::iter::empty()).next(), None);
    }
}
