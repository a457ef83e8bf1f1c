//! Outcome accounting: reads what the replies to a batch's commands mean for its events. Each event
//! is counted, rejected or postponed, and only by a reply that confirms it. An update that changes
//! nothing is *superseded* if the stored document is newer, else *unchanged*.

use events::StorableEvent;

use super::collection::CallContext;
use super::error::{CommandError, TransientError};
use super::error_codes::{self, ErrorClass};
use super::key::Key;
use super::merged_write::{BatchEvents, DocumentState, EventOutcome, MergedWrite};
use super::outcome::{BatchOutcome, Rejected};
use super::plan::{EventStatus, WritePlan};
use super::reply::{Reply, StatementError};
use super::version::Version;

/// A batch, the plan of its writes, and its outcome so far.
pub(super) struct Batch<'a> {
    pub(super) context: CallContext<'a>,
    pub(super) events: &'a [&'a StorableEvent],
    pub(super) keys: Vec<Key<'a>>,
    pub(super) plan: WritePlan,
    pub(super) outcome: BatchOutcome,
}

/// The reply to an update.
pub(super) struct Updated {
    /// The writes that were not rejected.
    pub(super) done: Vec<MergedWrite>,
    /// The number of their documents that exist.
    pub(super) matched: usize,
    /// The number of these documents that changed.
    pub(super) modified: usize,
}

impl Updated {
    /// Fails if a document that was known to exist is gone: its event is not finished.
    pub(super) fn must_all_match(&self) -> Result<(), TransientError> {
        if self.matched == self.done.len() {
            return Ok(());
        }
        Err(TransientError::new("documents that existed were deleted before their update"))
    }
}

impl BatchEvents for &[&StorableEvent] {
    fn version(&self, index: usize) -> Version {
        Version::of(self[index])
    }

    fn same_document(&self, one: usize, other: usize) -> bool {
        self[one].document == self[other].document
    }
}

impl<'a> Batch<'a> {
    pub(super) fn new(context: CallContext<'a>, events: &'a [&'a StorableEvent]) -> Self {
        let keys: Vec<Key<'a>> = events.iter().map(|event| context.keys.key_of(event)).collect();
        let plan = WritePlan::new(keys.iter().map(Key::identity), context.collection.merges_events());
        Self { context, events, keys, plan, outcome: BatchOutcome::default() }
    }

    /// Counts the inserted events and returns the writes whose documents exist already.
    pub(super) async fn read_insert(
        &mut self,
        chunk: Vec<MergedWrite>,
        reply: Reply,
    ) -> Result<Vec<MergedWrite>, TransientError> {
        if let Some(error) = reply.write_concern_error {
            return Err(error);
        }
        if reply.n + reply.errors.len() != chunk.len() {
            return Err(TransientError::new("the reply to an insert does not cover all documents"));
        }
        let mut existing = Vec::new();
        let mut doubtful = Vec::new();
        for (write, error) in with_errors(chunk, reply.errors) {
            match error {
                None => self.count_inserted(&write),
                Some(error) => match error_codes::class(error.code) {
                    ErrorClass::Duplicate if self.is_own_key(write.sent, &error) => existing.push(write),
                    ErrorClass::Duplicate | ErrorClass::Permanent => doubtful.push((write, error)),
                    ErrorClass::Transient => self.postpone(write.sent, error.into()),
                },
            }
        }
        existing.extend(self.resolve_doubtful(doubtful).await?);
        // The outcomes of merged events assumed that there was no document.
        existing.retain(|write| {
            let is_single = write.events.len() == 1;
            if !is_single {
                self.plan.distrust_document(write.sent);
            }
            is_single
        });
        existing.iter_mut().for_each(|write| *write = MergedWrite::single(write.sent));
        Ok(existing)
    }

    /// A rejected insert is permanent only if there is no document. A document older than a
    /// validator may still accept an update. If a document collides in several indexes, the error
    /// names only one of them.
    async fn resolve_doubtful(
        &mut self,
        doubtful: Vec<(MergedWrite, StatementError)>,
    ) -> Result<Vec<MergedWrite>, TransientError> {
        let keys: Vec<&Key<'_>> = doubtful.iter().map(|(write, _)| &self.keys[write.sent]).collect();
        let versions = self.context.find_versions(&keys).await?;
        let mut existing = Vec::new();
        for ((write, error), version) in doubtful.into_iter().zip(versions) {
            match error_codes::class(error.code) {
                _ if version.is_some() => existing.push(write),
                ErrorClass::Permanent => {
                    self.reject(write.sent, error.code, error.message, EventStatus::Absent);
                }
                _ => self.resolve_other_duplicate(write.sent, error),
            }
        }
        Ok(existing)
    }

    fn count_inserted(&mut self, write: &MergedWrite) {
        for (index, outcome) in write.events.iter().zip(&write.outcomes) {
            self.count(outcome.unwrap_or(EventOutcome::Inserted), 1);
            self.plan.set_status(*index, EventStatus::Present);
        }
        let version = Version::of(self.events[write.sent]);
        self.plan.set_document(write.sent, DocumentState::Present(version, Some(write.sent)));
    }

    /// Rejects or postpones the writes that an update rejected, and returns the other writes.
    pub(super) fn read_update(
        &mut self,
        chunk: Vec<MergedWrite>,
        reply: Reply,
    ) -> Result<Updated, TransientError> {
        if let Some(error) = reply.write_concern_error {
            return Err(error);
        }
        let mut done = Vec::with_capacity(chunk.len());
        for (write, error) in with_errors(chunk, reply.errors) {
            match error {
                None => done.push(write),
                Some(error) => match error_codes::class(error.code) {
                    ErrorClass::Transient => self.postpone(write.sent, error.into()),
                    // An update can collide with another document only in a unique index of the
                    // user.
                    ErrorClass::Permanent | ErrorClass::Duplicate => {
                        self.reject(write.sent, error.code, error.message, EventStatus::Present);
                    }
                },
            }
        }
        Ok(Updated { done, matched: reply.n, modified: reply.n_modified })
    }

    /// Counts the events of updates that changed `changed` documents. If fewer changed than could
    /// have, the versions are looked up. Versions never decrease, so a document that is newer now
    /// superseded its event.
    pub(super) async fn count_updated(
        &mut self,
        done: Vec<MergedWrite>,
        changed: usize,
    ) -> Result<(), TransientError> {
        let undecided: Vec<usize> = done.iter().filter_map(MergedWrite::undecided).collect();
        let predicted: Vec<usize> =
            done.iter().filter(|write| write.changes).map(|write| write.sent).collect();
        for write in &done {
            self.set_document_of(write.sent);
        }
        if changed < predicted.len() + undecided.len() {
            self.look_up(&[undecided.as_slice(), predicted.as_slice()].concat()).await?;
        }
        let is_newer =
            |index: &&usize| self.stored_version(**index) > Some(Version::of(self.events[**index]));
        // The newer document of another writer also prevents a change that was predicted.
        let predicted = predicted.len() - predicted.iter().filter(is_newer).count();
        let changed = changed.saturating_sub(predicted).min(undecided.len());
        let superseded = undecided.iter().filter(is_newer).count();
        self.count_by_change(undecided.len(), changed, superseded);
        for write in done {
            write.outcomes.iter().flatten().for_each(|outcome| self.count(*outcome, 1));
            write.events.iter().for_each(|index| self.plan.set_status(*index, EventStatus::Present));
        }
        Ok(())
    }

    /// Counts the events of an ordered update up to its first error. Each event was compared with
    /// the document that the previous events left.
    pub(super) fn read_ordered_update(
        &mut self,
        mut chunk: Vec<MergedWrite>,
        reply: Reply,
    ) -> Result<(), TransientError> {
        chunk.truncate(reply.errors.first().map_or(chunk.len(), |error| error.position + 1));
        let updated = self.read_update(chunk, reply)?;
        updated.must_all_match()?;
        let Updated { done, modified: changed, .. } = updated;
        let mut superseded = 0;
        for write in &done {
            if self.stored_version(write.sent) > Some(Version::of(self.events[write.sent])) {
                superseded += 1;
            } else {
                self.set_document_of(write.sent);
            }
            self.plan.set_status(write.sent, EventStatus::Present);
        }
        self.count_by_change(done.len(), changed, superseded);
        Ok(())
    }

    /// Counts `events` of which `changed` changed their document. At most `superseded` of the
    /// others were superseded.
    fn count_by_change(&mut self, events: usize, changed: usize, superseded: usize) {
        let same = events - changed;
        let superseded = superseded.min(same);
        self.count(EventOutcome::Updated, changed);
        self.count(EventOutcome::Superseded, superseded);
        self.count(EventOutcome::Unchanged, same - superseded);
    }

    /// Records that an applied event made the document, unless the document was newer.
    fn set_document_of(&mut self, index: usize) {
        let version = Version::of(self.events[index]);
        if self.stored_version(index).is_none_or(|stored| stored <= version) {
            self.plan.set_document(index, DocumentState::Present(version, Some(index)));
        }
    }

    fn stored_version(&self, index: usize) -> Option<Version> {
        match self.plan.document(index) {
            DocumentState::Present(version, _) => Some(version),
            DocumentState::Unknown | DocumentState::Absent => None,
        }
    }

    fn count(&mut self, outcome: EventOutcome, events: usize) {
        let counts = &mut self.outcome.counts;
        let count = match outcome {
            EventOutcome::Inserted => &mut counts.inserted,
            EventOutcome::Updated => &mut counts.updated,
            EventOutcome::Unchanged => &mut counts.unchanged,
            EventOutcome::Superseded => &mut counts.superseded,
        };
        *count += events as u64;
    }

    /// Looks the versions of these events' documents up.
    pub(super) async fn look_up(&mut self, indexes: &[usize]) -> Result<(), TransientError> {
        let indexes = self.one_per_key(indexes);
        let keys: Vec<&Key<'_>> = indexes.iter().map(|index| &self.keys[*index]).collect();
        let versions = self.context.find_versions(&keys).await?;
        self.set_documents(&indexes, versions);
        Ok(())
    }

    /// As [`Batch::look_up`], with one query if possible. A missed document counts as absent; an
    /// insert then fails with a duplicate key.
    pub(super) async fn look_up_quickly(&mut self, indexes: &[usize]) -> Result<(), TransientError> {
        let keys: Vec<&Key<'_>> = indexes.iter().map(|index| &self.keys[*index]).collect();
        let versions = self.context.find_versions_quickly(&keys).await?;
        self.set_documents(indexes, versions);
        Ok(())
    }

    fn set_documents(&mut self, indexes: &[usize], versions: Vec<Option<Version>>) {
        for (index, version) in indexes.iter().zip(versions) {
            let document = match (version, self.plan.document(*index)) {
                (None, _) => DocumentState::Absent,
                (Some(version), DocumentState::Present(same, content)) if version == same => {
                    DocumentState::Present(version, content)
                }
                (Some(version), _) => DocumentState::Present(version, None),
            };
            self.plan.set_document(*index, document);
        }
    }

    fn one_per_key(&self, indexes: &[usize]) -> Vec<usize> {
        let mut by_key: Vec<(usize, usize)> =
            indexes.iter().map(|index| (self.plan.key_number(*index), *index)).collect();
        by_key.sort_unstable();
        by_key.dedup_by_key(|(key, _)| *key);
        by_key.into_iter().map(|(_, index)| index).collect()
    }

    fn is_own_key(&self, index: usize, error: &StatementError) -> bool {
        match self.keys[index] {
            Key::Derived(_) => error.is_duplicate_of(std::iter::once("_id")),
            Key::Fields(_) => error.is_duplicate_of(self.context.keys.fields()),
        }
    }

    /// Handles a duplicate in another index than the key's. No document has the key.
    fn resolve_other_duplicate(&mut self, index: usize, error: StatementError) {
        // If the error names no index, the duplicate may be the key, in a document that was deleted
        // since. With a new _id the next insert may succeed.
        let names_no_index = error.duplicate_of.is_none() && !error.message.contains("index: ");
        if names_no_index || error.is_duplicate_of(std::iter::once("_id")) {
            self.postpone(index, error.into());
        } else {
            self.reject(index, error.code, error.message, EventStatus::Absent);
        }
    }

    pub(super) fn reject(&mut self, index: usize, code: i32, reason: String, status: EventStatus) {
        let code_name = error_codes::name(code);
        self.outcome.rejected.push(Rejected { index, code, code_name, reason });
        self.plan.set_status(index, status);
    }

    /// Leaves an event unfinished, to be retried.
    pub(super) fn postpone(&mut self, index: usize, error: CommandError) {
        let CommandError { code, code_name, message } = error;
        self.context.collection.note_rejection(code, &message);
        let reason = format!("the server rejected a record for now: {code_name} ({code})");
        let error = self.outcome.error.get_or_insert(TransientError::new(reason));
        error.timed_out |= error_codes::is_time_limit(code);
        if !error_codes::is_listed(code) {
            self.outcome.unlisted.push(Rejected { index, code, code_name, reason: message });
        }
        self.plan.set_status(index, EventStatus::Unfinished);
    }
}

impl From<StatementError> for CommandError {
    fn from(error: StatementError) -> Self {
        Self { code: error.code, code_name: error_codes::name(error.code), message: error.message }
    }
}

/// The statements of a command, each with its error if it failed.
fn with_errors(
    chunk: Vec<MergedWrite>,
    errors: Vec<StatementError>,
) -> impl Iterator<Item = (MergedWrite, Option<StatementError>)> {
    let mut errors = errors.into_iter().peekable();
    chunk.into_iter().enumerate().map(move |(position, write)| {
        let error = errors.next_if(|error| error.position == position);
        (write, error)
    })
}
