//! Several events of one key in a batch need only one statement: that of the event which the guard
//! would keep. The outcomes of the other events, as if applied one after another, follow from the
//! state of the document.
//!
//! This holds only if the server cannot reject one event of a key and accept another. Events are
//! therefore not merged in a collection with a validator or with a unique index of the user.

use super::version::Version;

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
    /// All events of this write, the sent one included.
    pub(super) events: Vec<usize>,
    /// Their outcomes if the statement succeeds. At most one is `None`: the reply decides it.
    pub(super) outcomes: Vec<Option<EventOutcome>>,
    /// Whether the statement changes the document. Meaningful only if no outcome is `None`.
    pub(super) changes: bool,
}

/// The properties of a batch's events that decide how they are merged.
pub(super) trait BatchEvents {
    /// The version that the guard compares.
    fn version(&self, index: usize) -> Version;
    /// Whether two events make the same document.
    fn same_document(&self, one: usize, other: usize) -> bool;
}

impl MergedWrite {
    /// A write of one event. The reply decides its outcome.
    pub(super) fn single(event: usize) -> Self {
        Self { sent: event, events: vec![event], outcomes: vec![None], changes: false }
    }

    /// Merges as many of `events` as one statement can write, at least the first. All have the key
    /// of `document`.
    pub(super) fn of(document: DocumentState, events: &[usize], batch: &impl BatchEvents) -> Self {
        let (stored, content) = match document {
            DocumentState::Unknown => return Self::single(events[0]),
            DocumentState::Absent => (None, None),
            DocumentState::Present(version, content) => (Some(version), content),
        };
        let mut write = Self { sent: events[0], events: Vec::new(), outcomes: Vec::new(), changes: false };
        let mut current = (stored, content);
        for (position, &event) in events.iter().enumerate() {
            let version = batch.version(event);
            write.events.push(event);
            let outcome = match current {
                (None, _) => Some(EventOutcome::Inserted),
                (Some(newest), _) if version < newest => Some(EventOutcome::Superseded),
                (Some(newest), None) if version == newest => None,
                (Some(newest), Some(same)) if version == newest && batch.same_document(event, same) => {
                    Some(EventOutcome::Unchanged)
                }
                _ => Some(EventOutcome::Updated),
            };
            write.outcomes.push(outcome);
            if outcome != Some(EventOutcome::Superseded) {
                current = (Some(version), Some(event));
                write.sent = event;
            }
            // Only a reply can decide this outcome, and only if this event is sent itself.
            let later = &events[position + 1..];
            if outcome.is_none() && later.iter().any(|later| batch.version(*later) >= version) {
                break;
            }
        }
        write.changes = match (stored, content) {
            _ if write.outcomes.contains(&None) => false,
            (Some(stored), _) if batch.version(write.sent) < stored => false,
            (Some(stored), Some(same)) if batch.version(write.sent) == stored => {
                !batch.same_document(write.sent, same)
            }
            _ => true,
        };
        write
    }

    /// The event whose outcome the reply decides.
    pub(super) fn undecided(&self) -> Option<usize> {
        let position = self.outcomes.iter().position(Option::is_none)?;
        self.events.get(position).copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `(version, content)` of each event.
    struct Batch(Vec<(i64, u8)>);

    impl BatchEvents for Batch {
        fn version(&self, index: usize) -> Version {
            Version::at(self.0[index].0, 0)
        }

        fn same_document(&self, one: usize, other: usize) -> bool {
            self.0[one] == self.0[other]
        }
    }

    /// The specification: apply one event after another.
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
            let batch = Batch(batch);
            let mut document = match stored {
                None => DocumentState::Absent,
                Some((version, _)) => DocumentState::Present(Version::at(version, 0), None),
            };
            let (mut server, mut outcomes, mut writes) = (stored, Vec::new(), 0);
            let mut left: Vec<usize> = (0..batch.0.len()).collect();
            while !left.is_empty() {
                let write = MergedWrite::of(document, &left, &batch);
                writes += 1;
                prop_assert_eq!(&write.events[..], &left[..write.events.len()]);
                prop_assert!(write.events.contains(&write.sent));
                let sent = batch.0[write.sent];
                let accepted = server.is_none_or(|stored| sent.0 >= stored.0);
                let changed = accepted && server != Some(sent);
                if accepted {
                    server = Some(sent);
                }
                let decided = if changed { EventOutcome::Updated } else { EventOutcome::Unchanged };
                prop_assert!(write.undecided().is_some() || write.changes == changed);
                outcomes.extend(write.outcomes.iter().map(|outcome| outcome.unwrap_or(decided)));
                if accepted {
                    document = DocumentState::Present(batch.version(write.sent), Some(write.sent));
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
        assert_eq!(
            MergedWrite::of(DocumentState::Unknown, &[0, 1], &Batch(vec![(1, 0), (2, 0)])),
            MergedWrite::single(0)
        );
    }
}
