//! Several events of one key in a batch come down to one statement: that of the event that the guard would leave. How
//! each of the others would have ended, one after another, follows from what is known of the document.
//!
//! That holds only where the server cannot refuse one event of a key and take another, so not in a collection with a
//! validator or a unique index of the user's own.

use super::version::Version;

/// What is known of a key's document.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) enum Known {
    /// Nothing yet.
    #[default]
    Nothing,
    /// There was none.
    Absent,
    /// How new it is, and the event of this batch that it is the document of, if it is one's.
    Present(Version, Option<usize>),
}

/// How an event ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Inserted,
    Updated,
    Unchanged,
    Stale,
}

/// Events of one key that one statement stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    /// The event that is sent.
    pub(super) head: usize,
    /// The events that it stands for, itself among them.
    pub(super) events: Vec<usize>,
    /// How they end once the statement is done; `None` is what the reply has to tell, of one event at most.
    pub(super) endings: Vec<Option<Ending>>,
    /// Whether the statement changes the document, where no ending is left to the reply.
    pub(super) changes: bool,
}

/// One event and what it would make of the document.
pub(super) trait Events {
    /// What the guard compares.
    fn version(&self, index: usize) -> Version;
    /// Whether two events make the same document.
    fn same(&self, one: usize, other: usize) -> bool;
}

impl Run {
    /// One event whose reply tells how it ended.
    pub(super) fn alone(event: usize) -> Self {
        Self { head: event, events: vec![event], endings: vec![None], changes: false }
    }

    /// As many of `events`, at least the first, as one statement can stand for; all have the key whose document is
    /// `known`.
    pub(super) fn of(known: Known, events: &[usize], all: &impl Events) -> Self {
        let (stored, content) = match known {
            Known::Nothing => return Self::alone(events[0]),
            Known::Absent => (None, None),
            Known::Present(version, content) => (Some(version), content),
        };
        let mut run = Self { head: events[0], events: Vec::new(), endings: Vec::new(), changes: false };
        let mut current = (stored, content);
        for (position, &event) in events.iter().enumerate() {
            let version = all.version(event);
            run.events.push(event);
            let ending = match current {
                (None, _) => Some(Ending::Inserted),
                (Some(newest), _) if version < newest => Some(Ending::Stale),
                (Some(newest), None) if version == newest => None,
                (Some(newest), Some(same)) if version == newest && all.same(event, same) => {
                    Some(Ending::Unchanged)
                }
                _ => Some(Ending::Updated),
            };
            run.endings.push(ending);
            if ending != Some(Ending::Stale) {
                current = (Some(version), Some(event));
                run.head = event;
            }
            // Only a reply tells whether this one changes anything, and only if it is sent itself.
            if ending.is_none() && events[position + 1..].iter().any(|later| all.version(*later) >= version) {
                break;
            }
        }
        run.changes = match (stored, content) {
            _ if run.endings.contains(&None) => false,
            (Some(stored), _) if all.version(run.head) < stored => false,
            (Some(stored), Some(same)) if all.version(run.head) == stored => !all.same(run.head, same),
            _ => true,
        };
        run
    }

    /// The event whose ending the reply has to tell.
    pub(super) fn open(&self) -> Option<usize> {
        let position = self.endings.iter().position(Option::is_none)?;
        self.events.get(position).copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `(version, content)` of each event.
    struct Batch(Vec<(i64, u8)>);

    impl Events for Batch {
        fn version(&self, index: usize) -> Version {
            Version::at(self.0[index].0, 0)
        }

        fn same(&self, one: usize, other: usize) -> bool {
            self.0[one] == self.0[other]
        }
    }

    /// The words of the promise: one event after another.
    fn one_after_another(
        mut stored: Option<(i64, u8)>,
        events: &[(i64, u8)],
    ) -> (Vec<Ending>, Option<(i64, u8)>) {
        let mut endings = Vec::new();
        for event in events {
            endings.push(match stored {
                None => Ending::Inserted,
                Some(document) if event.0 < document.0 => Ending::Stale,
                Some(document) if *event == document => Ending::Unchanged,
                Some(_) => Ending::Updated,
            });
            if endings.last() != Some(&Ending::Stale) {
                stored = Some(*event);
            }
        }
        (endings, stored)
    }

    proptest! {
        #[test]
        fn runs_end_as_if_each_event_had_been_applied_after_the_other(
            stored in proptest::option::of((1_i64..5, 0_u8..3)),
            batch in proptest::collection::vec((1_i64..5, 0_u8..3), 1..12),
        ) {
            let (wanted, document) = one_after_another(stored, &batch);
            let batch = Batch(batch);
            let mut known = match stored {
                None => Known::Absent,
                Some((version, _)) => Known::Present(Version::at(version, 0), None),
            };
            let (mut server, mut endings, mut runs) = (stored, Vec::new(), 0);
            let mut left: Vec<usize> = (0..batch.0.len()).collect();
            while !left.is_empty() {
                let run = Run::of(known, &left, &batch);
                runs += 1;
                prop_assert_eq!(&run.events[..], &left[..run.events.len()]);
                prop_assert!(run.events.contains(&run.head));
                let sent = batch.0[run.head];
                let taken = server.is_none_or(|document| sent.0 >= document.0);
                let changed = taken && server != Some(sent);
                if taken {
                    server = Some(sent);
                }
                let told = if changed { Ending::Updated } else { Ending::Unchanged };
                prop_assert!(run.open().is_some() || run.changes == changed);
                endings.extend(run.endings.iter().map(|ending| ending.unwrap_or(told)));
                if taken {
                    known = Known::Present(batch.version(run.head), Some(run.head));
                }
                left.drain(..run.events.len());
            }
            prop_assert_eq!(endings, wanted);
            prop_assert_eq!(server, document);
            prop_assert!(runs <= 2, "{} statements", runs);
        }
    }

    #[test]
    fn an_event_of_an_unknown_key_stands_for_itself() {
        assert_eq!(Run::of(Known::Nothing, &[0, 1], &Batch(vec![(1, 0), (2, 0)])), Run::alone(0));
    }
}
