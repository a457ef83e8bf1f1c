//! The order in which the events of a batch are sent. Events of one key end as if applied one after
//! another: an event is sent after all earlier events of its key are finished, or with them in one
//! ordered command, or merged with them. After an unfinished event all later events of its key are
//! unfinished too.

use std::collections::HashMap;

use super::merged_write::{BatchEvents, DocumentState, MergedWrite};

/// Writes that can be sent together.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Round {
    /// One statement per key, in any order.
    Unordered(Vec<MergedWrite>),
    /// Events whose documents exist: guarded updates in this order.
    Ordered(Vec<usize>),
}

/// The status of an event that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EventStatus {
    /// Finished. Its document exists.
    Present,
    /// Finished. A document of its key may not exist.
    Absent,
    /// To be retried later.
    Unfinished,
}

#[derive(Debug, Default)]
struct KeyState {
    document: DocumentState,
    last_status: Option<EventStatus>,
    /// The assumed state of the document proved wrong: the next event is not merged.
    distrusted: bool,
}

/// The plan of one batch.
#[derive(Debug)]
pub(super) struct WritePlan {
    /// The number of each event's key.
    key_of: Vec<usize>,
    /// The events by key, those of a key in the order of the partition.
    by_key: Vec<usize>,
    keys: Vec<KeyState>,
    statuses: Vec<Option<EventStatus>>,
    merges_events: bool,
}

impl WritePlan {
    /// Plans a batch of events with these keys, in the order of the partition.
    pub(super) fn new(identities: impl Iterator<Item = Vec<u8>>, merges_events: bool) -> Self {
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
        Self { statuses: vec![None; key_of.len()], key_of, by_key, keys, merges_events }
    }

    /// The writes to send next, `None` if no event is left. The result changes only with a status
    /// or a document state.
    pub(super) fn next_round(&self, events: &impl BatchEvents) -> Option<Round> {
        let mut unordered = Vec::new();
        let mut ordered = Vec::new();
        for (key, pending) in self.pending_by_key() {
            match (&self.keys[key], self.merges_events) {
                (state, true) if !state.distrusted => {
                    unordered.push(MergedWrite::of(state.document, &pending, events));
                }
                (KeyState { last_status: Some(EventStatus::Present), .. }, false) => ordered.extend(pending),
                _ => unordered.push(MergedWrite::single(pending[0])),
            }
        }
        if !unordered.is_empty() {
            return Some(Round::Unordered(unordered));
        }
        ordered.sort_unstable();
        (!ordered.is_empty()).then_some(Round::Ordered(ordered))
    }

    /// One event of each key whose document should be looked up first: several events wait and
    /// could be merged.
    pub(super) fn worth_looking_up(&self) -> Vec<usize> {
        let no_key_repeats = self.keys.len() == self.key_of.len();
        if !self.merges_events || no_key_repeats {
            return Vec::new();
        }
        let repeats = self.pending_by_key().filter(|(key, pending)| {
            let state = &self.keys[*key];
            pending.len() > 1 && state.document == DocumentState::Unknown && !state.distrusted
        });
        repeats.map(|(_, pending)| pending[0]).collect()
    }

    /// The number of an event's key. Events of one document have the same number.
    pub(super) fn key_number(&self, index: usize) -> usize {
        self.key_of[index]
    }

    /// The state of the document of an event's key.
    pub(super) fn document(&self, index: usize) -> DocumentState {
        self.keys[self.key_of[index]].document
    }

    pub(super) fn set_document(&mut self, index: usize, document: DocumentState) {
        let state = &mut self.keys[self.key_of[index]];
        *state = KeyState { document, last_status: state.last_status, distrusted: false };
    }

    /// Records that the assumed state of the document of an event's key proved wrong.
    pub(super) fn distrust_document(&mut self, index: usize) {
        let state = &mut self.keys[self.key_of[index]];
        *state =
            KeyState { document: DocumentState::Unknown, last_status: state.last_status, distrusted: true };
    }

    pub(super) fn set_status(&mut self, index: usize, status: EventStatus) {
        self.statuses[index] = Some(status);
        self.keys[self.key_of[index]].last_status = Some(status);
    }

    /// All events that are not finished.
    pub(super) fn unfinished(&self) -> Vec<usize> {
        let is_unfinished =
            |status: &Option<EventStatus>| matches!(status, None | Some(EventStatus::Unfinished));
        (0..self.statuses.len()).filter(|index| is_unfinished(&self.statuses[*index])).collect()
    }

    /// The events of each key that can be sent, in order.
    fn pending_by_key(&self) -> impl Iterator<Item = (usize, Vec<usize>)> {
        let groups = self.by_key.chunk_by(|one, other| self.key_of[*one] == self.key_of[*other]);
        groups.filter_map(|group| {
            let key = self.key_of[group[0]];
            let pending = group.iter().copied().filter(|index| self.statuses[*index].is_none());
            let pending: Vec<usize> = pending.collect();
            let is_blocked = self.keys[key].last_status == Some(EventStatus::Unfinished);
            (!is_blocked && !pending.is_empty()).then_some((key, pending))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mongo::version::Version;
    use proptest::prelude::*;

    /// The reply of the simulated server to an attempt.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum ServerReply {
        Store,
        Reject,
        Fail,
    }

    /// Events of `(key, reply)`, each newer than the previous one.
    struct Batch(Vec<(u8, ServerReply)>);

    impl BatchEvents for Batch {
        fn version(&self, index: usize) -> Version {
            Version::at(index as i64, 0)
        }

        fn same_document(&self, _: usize, _: usize) -> bool {
            false
        }
    }

    /// Sends a batch. Returns the events in the order in which the server got them.
    fn send(batch: &Batch, merges_events: bool, cut: usize) -> (Vec<usize>, WritePlan) {
        let mut plan = WritePlan::new(batch.0.iter().map(|(key, _)| vec![*key]), merges_events);
        let mut received = Vec::new();
        let mut documents = std::collections::HashSet::new();
        loop {
            for index in plan.worth_looking_up() {
                plan.set_document(index, DocumentState::Absent);
            }
            let (writes, ordered) = match plan.next_round(batch) {
                None => return (received, plan),
                Some(Round::Unordered(mut writes)) => {
                    writes.reverse();
                    (writes, false)
                }
                Some(Round::Ordered(events)) => {
                    (events.into_iter().take(cut).map(MergedWrite::single).collect(), true)
                }
            };
            for write in writes {
                let (key, reply) = batch.0[write.sent];
                assert!(!ordered || documents.contains(&key), "an update of a document that may not exist");
                let status = match reply {
                    ServerReply::Store => EventStatus::Present,
                    ServerReply::Reject if documents.contains(&key) => EventStatus::Present,
                    ServerReply::Reject => EventStatus::Absent,
                    ServerReply::Fail => EventStatus::Unfinished,
                };
                if reply == ServerReply::Store {
                    documents.insert(key);
                    plan.set_document(
                        write.sent,
                        DocumentState::Present(batch.version(write.sent), Some(write.sent)),
                    );
                    received.extend(&write.events);
                    write.events.iter().for_each(|index| plan.set_status(*index, status));
                } else {
                    received.push(write.sent);
                    plan.set_status(write.sent, status);
                    if ordered {
                        break;
                    }
                }
            }
        }
    }

    fn replies() -> impl Strategy<Value = ServerReply> {
        prop_oneof![6 => Just(ServerReply::Store), 2 => Just(ServerReply::Reject), 1 => Just(ServerReply::Fail)]
    }

    proptest! {
        #[test]
        fn each_key_gets_its_events_in_order_up_to_the_first_failure(
            batch in proptest::collection::vec((0_u8..6, replies()), 0..60),
            cut in 1_usize..8,
        ) {
            let batch = Batch(batch);
            let (received, plan) = send(&batch, false, cut);
            let mut unfinished = Vec::new();
            for key in 0..6 {
                let of_key: Vec<usize> = (0..batch.0.len()).filter(|index| batch.0[*index].0 == key).collect();
                let failed = of_key.iter().position(|index| batch.0[*index].1 == ServerReply::Fail);
                let tried = &of_key[..failed.map_or(of_key.len(), |at| at + 1)];
                let seen: Vec<usize> = received.iter().copied().filter(|index| batch.0[*index].0 == key).collect();
                prop_assert_eq!(&seen[..], tried);
                unfinished.extend_from_slice(&of_key[failed.unwrap_or(of_key.len())..]);
            }
            unfinished.sort_unstable();
            prop_assert_eq!(plan.unfinished(), unfinished);
        }

        #[test]
        fn merged_events_end_finished_once_or_unfinished(
            batch in proptest::collection::vec((0_u8..6, replies()), 0..60),
        ) {
            let batch = Batch(batch);
            let (mut received, plan) = send(&batch, true, 1);
            for key in 0..6 {
                let newest = (0..batch.0.len()).rfind(|index| batch.0[*index].0 == key && batch.0[*index].1 != ServerReply::Reject);
                let open: Vec<usize> =
                    plan.unfinished().into_iter().filter(|index| batch.0[*index].0 == key).collect();
                let fails = newest.is_some_and(|index| batch.0[index].1 == ServerReply::Fail);
                prop_assert_eq!(!open.is_empty(), fails, "key {} with {:?} left", key, open);
            }
            received.extend(plan.unfinished());
            received.sort_unstable();
            received.dedup();
            prop_assert_eq!(received, (0..batch.0.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn events_of_different_keys_are_sent_in_one_round() {
        let batch = Batch(vec![
            (1, ServerReply::Store),
            (2, ServerReply::Store),
            (1, ServerReply::Store),
            (3, ServerReply::Store),
        ]);
        let plan = WritePlan::new(batch.0.iter().map(|(key, _)| vec![*key]), false);
        assert_eq!(
            plan.next_round(&batch),
            Some(Round::Unordered([0, 1, 3].map(MergedWrite::single).into()))
        );
        assert_eq!(plan.unfinished(), [0, 1, 2, 3]);
        assert_eq!(WritePlan::new(std::iter::empty(), true).next_round(&batch), None);
    }
}
