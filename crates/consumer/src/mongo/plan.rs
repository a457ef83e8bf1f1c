//! The order in which the events of a batch are sent. Events of one key end as if applied one after
//! another. An event is sent in one of three ways: after the earlier events of its key are finished,
//! in one ordered command with them, or merged with them. After an unfinished event all later events
//! of its key are unfinished too.
//!
//! Several events of one key need only one statement: that of the event which the guard would keep.
//! The outcomes of the other events, as if applied one after another, follow from the state of the
//! document. This holds only if the server cannot reject one event of a key and accept another.
//! Events are therefore not merged in a collection with a validator or with a unique index of the
//! user.

use std::collections::HashMap;

use events::StorableEvent;

use super::key::Version;

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
    pub(super) fn next_round(&self, events: &[&StorableEvent]) -> Option<Round> {
        let mut unordered = Vec::new();
        let mut ordered = Vec::new();
        for (key, pending) in self.pending_by_key() {
            match (&self.keys[key], self.merges_events) {
                (state, true) if !state.distrusted => {
                    unordered.push(MergedWrite::merge(state.document, &pending, events));
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

/// The document of a key, as far as it is known.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) enum DocumentState {
    /// Whether it exists is not known.
    #[default]
    Unknown,
    /// It does not exist.
    Absent,
    /// Its version, and the event of this batch that it was made from, if any.
    Present(Version, Option<usize>),
}

/// The outcome of a finished event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EventOutcome {
    Inserted,
    Updated,
    Unchanged,
    Superseded,
}

/// Events of one key that are written by one statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MergedWrite {
    /// The event that is sent.
    pub(super) sent: usize,
    /// All events of this write, the sent one included, each with its outcome if the statement
    /// succeeds. At most one outcome is `None`: the reply decides it.
    pub(super) events: Vec<(usize, Option<EventOutcome>)>,
    /// Whether the statement changes the document. Meaningful only if no outcome is `None`.
    pub(super) changes: bool,
}

impl MergedWrite {
    /// A write of one event. The reply decides its outcome.
    pub(super) fn single(event: usize) -> Self {
        Self { sent: event, events: vec![(event, None)], changes: false }
    }

    /// Merges as many of the `pending` events of a key as one statement can write, at least the
    /// first. `document` is the document of the key.
    fn merge(document: DocumentState, pending: &[usize], events: &[&StorableEvent]) -> Self {
        let (stored, content) = match document {
            DocumentState::Unknown => return Self::single(pending[0]),
            DocumentState::Absent => (None, None),
            DocumentState::Present(version, content) => (Some(version), content),
        };
        let version = |index: usize| Version::of(events[index]);
        let same_document = |one: usize, other: usize| events[one].document == events[other].document;
        let mut write = Self { sent: pending[0], events: Vec::with_capacity(pending.len()), changes: false };
        let mut current = (stored, content);
        for (position, &event) in pending.iter().enumerate() {
            let outcome = match current {
                (None, _) => Some(EventOutcome::Inserted),
                (Some(newest), _) if version(event) < newest => Some(EventOutcome::Superseded),
                (Some(newest), None) if version(event) == newest => None,
                (Some(newest), Some(same)) if version(event) == newest && same_document(event, same) => {
                    Some(EventOutcome::Unchanged)
                }
                _ => Some(EventOutcome::Updated),
            };
            write.events.push((event, outcome));
            if outcome != Some(EventOutcome::Superseded) {
                current = (Some(version(event)), Some(event));
                write.sent = event;
            }
            // Only a reply can decide this outcome, and only if this event is sent itself.
            let later = &pending[position + 1..];
            if outcome.is_none() && later.iter().any(|later| version(*later) >= version(event)) {
                break;
            }
        }
        write.changes = match (stored, content) {
            _ if write.undecided().is_some() => false,
            (Some(stored), _) if version(write.sent) < stored => false,
            (Some(stored), Some(same)) if version(write.sent) == stored => !same_document(write.sent, same),
            _ => true,
        };
        write
    }

    /// The event whose outcome the reply decides.
    pub(super) fn undecided(&self) -> Option<usize> {
        self.events.iter().find(|(_, outcome)| outcome.is_none()).map(|(index, _)| *index)
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;
    use events::{EventId, Millis, Operation, Source};
    use proptest::prelude::*;

    use super::*;

    fn event(version: i64, content: u8) -> StorableEvent {
        StorableEvent {
            id: EventId::new("a").expect("an id"),
            source: Source::new("test").expect("a source"),
            timestamp: Millis::new(version).expect("a time"),
            ingested_at: Millis::new(0).expect("a time"),
            operation: Operation::Replace,
            document: rawdoc! { "version": version, "content": i32::from(content) },
        }
    }

    /// The reply of the simulated server to an attempt.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum ServerReply {
        Store,
        Reject,
        Fail,
    }

    /// Events of `(key, reply)`, each newer than the previous one.
    type Batch = Vec<(u8, ServerReply)>;

    /// Sends a batch. Returns the events in the order in which the server got them.
    fn send(batch: &Batch, merges_events: bool, cut: usize) -> (Vec<usize>, WritePlan) {
        let events: Vec<StorableEvent> = (0..).map(|version| event(version, 0)).take(batch.len()).collect();
        let events: Vec<&StorableEvent> = events.iter().collect();
        let mut plan = WritePlan::new(batch.iter().map(|(key, _)| vec![*key]), merges_events);
        let mut received = Vec::new();
        let mut documents = std::collections::HashSet::new();
        loop {
            for index in plan.worth_looking_up() {
                plan.set_document(index, DocumentState::Absent);
            }
            let (writes, ordered) = match plan.next_round(&events) {
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
                let (key, reply) = batch[write.sent];
                assert!(!ordered || documents.contains(&key), "an update of a document that may not exist");
                let status = match reply {
                    ServerReply::Store => EventStatus::Present,
                    ServerReply::Reject if documents.contains(&key) => EventStatus::Present,
                    ServerReply::Reject => EventStatus::Absent,
                    ServerReply::Fail => EventStatus::Unfinished,
                };
                if reply == ServerReply::Store {
                    documents.insert(key);
                    let version = Version::of(events[write.sent]);
                    plan.set_document(write.sent, DocumentState::Present(version, Some(write.sent)));
                    for (index, _) in write.events {
                        received.push(index);
                        plan.set_status(index, status);
                    }
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
            let (received, plan) = send(&batch, false, cut);
            let mut unfinished = Vec::new();
            for key in 0..6 {
                let of_key: Vec<usize> = (0..batch.len()).filter(|index| batch[*index].0 == key).collect();
                let failed = of_key.iter().position(|index| batch[*index].1 == ServerReply::Fail);
                let tried = &of_key[..failed.map_or(of_key.len(), |at| at + 1)];
                let seen: Vec<usize> = received.iter().copied().filter(|index| batch[*index].0 == key).collect();
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
            let (mut received, plan) = send(&batch, true, 1);
            for key in 0..6 {
                let newest = (0..batch.len()).rfind(|index| batch[*index].0 == key && batch[*index].1 != ServerReply::Reject);
                let open: Vec<usize> =
                    plan.unfinished().into_iter().filter(|index| batch[*index].0 == key).collect();
                let fails = newest.is_some_and(|index| batch[index].1 == ServerReply::Fail);
                prop_assert_eq!(!open.is_empty(), fails, "key {} with {:?} left", key, open);
            }
            received.extend(plan.unfinished());
            received.sort_unstable();
            received.dedup();
            prop_assert_eq!(received, (0..batch.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn events_of_different_keys_are_sent_in_one_round() {
        let events = [0, 1, 2, 3].map(|version| event(version, 0));
        let events = events.each_ref();
        let plan = WritePlan::new([1, 2, 1, 3].into_iter().map(|key| vec![key]), false);
        let round = Round::Unordered([0, 1, 3].map(MergedWrite::single).into());
        assert_eq!(plan.next_round(&events), Some(round));
        assert_eq!(plan.unfinished(), [0, 1, 2, 3]);
        assert_eq!(WritePlan::new(std::iter::empty(), true).next_round(&events), None);
    }

    /// The specification: apply one event of `(version, content)` after another.
    fn one_after_another(
        mut stored: Option<(i64, u8)>,
        events: &[(i64, u8)],
    ) -> (Vec<EventOutcome>, Option<(i64, u8)>) {
        let mut outcomes = Vec::new();
        for event in events {
            outcomes.push(match stored {
                None => EventOutcome::Inserted,
                Some(document) if event.0 < document.0 => EventOutcome::Superseded,
                Some(document) if *event == document => EventOutcome::Unchanged,
                Some(_) => EventOutcome::Updated,
            });
            if outcomes.last() != Some(&EventOutcome::Superseded) {
                stored = Some(*event);
            }
        }
        (outcomes, stored)
    }

    proptest! {
        #[test]
        fn merged_writes_end_as_if_events_were_applied_one_by_one(
            stored in proptest::option::of((1_i64..5, 0_u8..3)),
            batch in proptest::collection::vec((1_i64..5, 0_u8..3), 1..12),
        ) {
            let (wanted, wanted_document) = one_after_another(stored, &batch);
            let events: Vec<StorableEvent> =
                batch.iter().map(|(version, content)| event(*version, *content)).collect();
            let events: Vec<&StorableEvent> = events.iter().collect();
            let mut document = match stored {
                None => DocumentState::Absent,
                Some((version, content)) => {
                    DocumentState::Present(Version::of(&event(version, content)), None)
                }
            };
            let (mut server, mut outcomes, mut writes) = (stored, Vec::new(), 0);
            let mut left: Vec<usize> = (0..batch.len()).collect();
            while !left.is_empty() {
                let write = MergedWrite::merge(document, &left, &events);
                writes += 1;
                let merged: Vec<usize> = write.events.iter().map(|(index, _)| *index).collect();
                prop_assert_eq!(&merged[..], &left[..merged.len()]);
                prop_assert!(merged.contains(&write.sent));
                let sent = batch[write.sent];
                let accepted = server.is_none_or(|stored| sent.0 >= stored.0);
                let changed = accepted && server != Some(sent);
                if accepted {
                    server = Some(sent);
                }
                let decided = if changed { EventOutcome::Updated } else { EventOutcome::Unchanged };
                prop_assert!(write.undecided().is_some() || write.changes == changed);
                outcomes.extend(write.events.iter().map(|(_, outcome)| outcome.unwrap_or(decided)));
                if accepted {
                    document = DocumentState::Present(Version::of(events[write.sent]), Some(write.sent));
                }
                left.drain(..write.events.len());
            }
            prop_assert_eq!(outcomes, wanted);
            prop_assert_eq!(server, wanted_document);
            prop_assert!(writes <= 2, "{} statements", writes);
        }
    }

    #[test]
    fn an_event_of_an_unknown_document_is_not_merged() {
        let events = [event(1, 0), event(2, 0)];
        let write = MergedWrite::merge(DocumentState::Unknown, &[0, 1], &events.each_ref());
        assert_eq!(write, MergedWrite::single(0));
    }
}
