//! Writes a batch of a source whose events may delete. The collection `<collection>.deletes` has a
//! tombstone for each deleted id: the version of its newest delete.
//!
//! Guarantee: once a batch is finished, no document has a version at or below its tombstone,
//! whatever other writers did meanwhile. A tombstone is written before the documents that it covers
//! are removed, and the tombstones are read after the documents of events were written. Of a delete
//! and a write at the same time, at least one therefore sees the other
//! (`docs/adr/0024-deletes-that-obey-newest-wins.md`).

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use bson::{Document, RawDocumentBuf};
use events::{Operation, StorableEvent};

use super::collection::{CallContext, TombstoneStore};
use super::command::{self, Command};
use super::connection::first_batch;
use super::error::{self, CallError, ErrorClass, TransientError};
use super::key::Version;
use super::reply::{BatchOutcome, Rejected, Reply, StatementError};
use super::write::write_batch;

/// Maximum number of statements or ids of one command.
const MAX_STATEMENTS: usize = 1000;

type Result<T, E = TransientError> = std::result::Result<T, E>;

/// The versions of tombstones by id.
type Tombstones = HashMap<String, Version>;

/// What was found in the collection for ids with tombstones.
#[derive(Debug, Default)]
struct Cleaned {
    /// The ids whose documents are newer than their tombstones.
    newer: HashSet<String>,
    /// The number of documents that are removed, or were changed by another writer meanwhile.
    removed: usize,
    /// The ids whose documents the server does not remove.
    failed: HashMap<String, StatementError>,
}

/// The result of a [`recheck`].
#[derive(Debug, Default)]
pub(super) struct Rechecked {
    /// The number of documents that tombstones cover.
    pub(super) removed: usize,
    /// The number of documents that the server does not remove.
    pub(super) kept: usize,
}

/// Applies `events` until all are finished or a transient error occurs.
pub(super) async fn write_with_deletes(
    context: CallContext<'_>,
    store: &TombstoneStore,
    events: &[&StorableEvent],
) -> BatchOutcome {
    let batch = DeletingBatch { context, store, events };
    // Every step can be repeated, so after an error all events are.
    batch.apply().await.unwrap_or_else(|error| BatchOutcome::unfinished(events.len(), error))
}

struct DeletingBatch<'a> {
    context: CallContext<'a>,
    store: &'a TombstoneStore,
    events: &'a [&'a StorableEvent],
}

impl<'a> DeletingBatch<'a> {
    async fn apply(&self) -> Result<BatchOutcome> {
        let (deletes, writes): (Vec<usize>, Vec<usize>) =
            (0..self.events.len()).partition(|index| self.events[*index].operation == Operation::Delete);
        let mut outcome = BatchOutcome::default();
        let deletes = self.write_tombstones(&deletes, &mut outcome).await?;
        let tombstones = self.tombstones([&deletes[..], &writes].concat()).await?;
        let is_covered = |index: &usize| self.is_covered(*index, &tombstones);
        if !deletes.iter().all(is_covered) {
            return Err(TransientError::new("tombstones are gone since they were written"));
        }
        let (covered, writes): (Vec<usize>, Vec<usize>) = writes.into_iter().partition(is_covered);
        // An event that a tombstone covers may be in the collection: from an attempt that failed.
        let cleaned = self.remove_covered([&deletes[..], &covered].concat(), &tombstones).await?;
        for index in [&deletes[..], &covered].concat() {
            let id = self.id(index);
            if let Some(error) = cleaned.failed.get(id) {
                fail(index, error, "a delete", &mut outcome);
                continue;
            }
            let is_older = tombstones.get(id).is_some_and(|newest| *newest > self.version(index));
            let is_delete = self.events[index].operation == Operation::Delete;
            let count = match is_delete && !is_older && !cleaned.newer.contains(id) {
                true => &mut outcome.counts.deleted,
                false => &mut outcome.counts.superseded,
            };
            *count += 1;
        }
        self.write(&writes, &mut outcome).await?;
        outcome.rejected.sort_by_key(|rejected| rejected.index);
        outcome.unfinished.sort_unstable();
        Ok(outcome)
    }

    /// Writes events, and then removes documents that a tombstone covers by now.
    async fn write(&self, writes: &[usize], outcome: &mut BatchOutcome) -> Result<()> {
        let events: Vec<&StorableEvent> = writes.iter().map(|index| self.events[*index]).collect();
        let written = write_batch(self.context, &events).await;
        let in_batch = |rejected: Rejected| Rejected { index: writes[rejected.index], ..rejected };
        outcome.rejected.extend(written.rejected.into_iter().map(in_batch));
        outcome.unlisted.extend(written.unlisted.into_iter().map(in_batch));
        outcome.unfinished.extend(written.unfinished.iter().map(|index| writes[*index]));
        outcome.error = outcome.error.take().or(written.error);
        outcome.counts.add(written.counts);
        if written.counts.total() == 0 {
            return Ok(());
        }
        let tombstones = self.tombstones(writes.to_vec()).await?;
        let is_covered = |index: &usize| self.is_covered(*index, &tombstones);
        let covered = writes.iter().copied().filter(is_covered).collect();
        let cleaned = self.remove_covered(covered, &tombstones).await?;
        // The retry finds the tombstone before it writes, and then decides on each event.
        cleaned.failed.values().next().map_or(Ok(()), |error| Err(rejected_for_now(error, "a delete")))
    }

    /// Writes the tombstones of these deletes, and returns those without an error.
    async fn write_tombstones(&self, deletes: &[usize], outcome: &mut BatchOutcome) -> Result<Vec<usize>> {
        let mut newest: HashMap<&str, usize> = HashMap::new();
        for &index in deletes {
            let of_id = newest.entry(self.id(index)).or_insert(index);
            if self.version(index) > self.version(*of_id) {
                *of_id = index;
            }
        }
        let mut newest: Vec<usize> = newest.into_values().collect();
        newest.sort_unstable();
        let newest: Vec<&StorableEvent> = newest.into_iter().map(|index| self.events[index]).collect();
        let command = |deletes: &[&StorableEvent]| command::tombstones(&self.context, self.store, deletes);
        let errors = self.calls().on(&self.store.name).write("update", &newest, command).await?;
        let failed: HashMap<&str, &StatementError> =
            errors.iter().map(|error| (newest[error.position].id.as_str(), error)).collect();
        let mut written = Vec::with_capacity(deletes.len());
        for &index in deletes {
            match failed.get(self.id(index)) {
                Some(error) => fail(index, error, "a tombstone", outcome),
                None => written.push(index),
            }
        }
        Ok(written)
    }

    /// The tombstones of the ids of these events.
    async fn tombstones(&self, indexes: Vec<usize>) -> Result<Tombstones> {
        let ids: HashSet<&str> = indexes.into_iter().map(|index| self.id(index)).collect();
        let ids: Vec<&str> = ids.into_iter().collect();
        let mut tombstones = Tombstones::new();
        for chunk in ids.chunks(MAX_STATEMENTS) {
            let query = command::find_tombstones(&self.store.name, chunk);
            let found = self.calls().on(&self.store.name).find(query).await?;
            tombstones.extend(found.iter().filter_map(read_tombstone));
        }
        Ok(tombstones)
    }

    /// Removes the documents of these events' ids that are not newer than their tombstones.
    async fn remove_covered(&self, indexes: Vec<usize>, tombstones: &Tombstones) -> Result<Cleaned> {
        let ids: HashSet<&str> = indexes.into_iter().map(|index| self.id(index)).collect();
        remove_covered(self.context, &ids.into_iter().collect::<Vec<_>>(), tombstones).await
    }

    fn calls(&self) -> Calls<'a> {
        Calls::new(self.context)
    }

    fn is_covered(&self, index: usize, tombstones: &Tombstones) -> bool {
        tombstones.get(self.id(index)).is_some_and(|newest| self.version(index) <= *newest)
    }

    fn id(&self, index: usize) -> &'a str {
        self.events[index].id.as_str()
    }

    fn version(&self, index: usize) -> Version {
        Version::of(self.events[index])
    }
}

/// Rejects or postpones an event for which the server rejected `what`.
fn fail(index: usize, error: &StatementError, what: &str, outcome: &mut BatchOutcome) {
    // A tombstone can collide with another one only in a unique index of the user.
    let is_duplicate = error.cause.class() == ErrorClass::Duplicate;
    let of_user = error.duplicate_of.is_some() && !error.is_duplicate_of(std::iter::once("_id"));
    let rejected = Rejected::new(index, error.cause.clone());
    if error.cause.class() == ErrorClass::Permanent || is_duplicate && of_user {
        outcome.rejected.push(rejected);
        return;
    }
    let transient = rejected_for_now(error, what);
    let timed_out = transient.timed_out;
    outcome.error.get_or_insert(transient).timed_out |= timed_out;
    outcome.unfinished.push(index);
    if !error::is_listed(error.cause.code) {
        outcome.unlisted.push(rejected);
    }
}

fn rejected_for_now(StatementError { cause, .. }: &StatementError, what: &str) -> TransientError {
    let reason = format!("the server rejected {what} for now: {} ({})", cause.code_name, cause.code);
    TransientError { reason, timed_out: error::is_time_limit(cause.code) }
}

/// Removes the documents of `ids` that are not newer than their tombstones. A document that changed
/// since it was read is left to the writer of the change, which reads the tombstones after its
/// write.
async fn remove_covered(context: CallContext<'_>, ids: &[&str], tombstones: &Tombstones) -> Result<Cleaned> {
    let (calls, mut cleaned) = (Calls::new(context), Cleaned::default());
    let id = |document: &Document| document.get_str("event_id").ok().map(str::to_owned);
    for chunk in ids.chunks(MAX_STATEMENTS) {
        let documents = calls.find(command::find_by_ids(&context.collection.name, chunk)).await?;
        let (covered, newer): (Vec<&Document>, Vec<&Document>) = documents.iter().partition(|document| {
            let tombstone = document.get_str("event_id").ok().and_then(|id| tombstones.get(id));
            tombstone.is_some_and(|newest| Version::read(document) <= *newest)
        });
        cleaned.newer.extend(newer.into_iter().filter_map(id));
        let command = |documents: &[&Document]| command::remove(&context, documents);
        let errors = calls.write("delete", &covered, command).await?;
        cleaned.removed += covered.len() - errors.len();
        let failed = errors.into_iter().filter_map(|error| Some((id(covered[error.position])?, error)));
        cleaned.failed.extend(failed);
    }
    Ok(cleaned)
}

/// Examines the tombstones that were written in this window of the server's clock, in milliseconds.
pub(super) async fn recheck(
    context: CallContext<'_>,
    store: &TombstoneStore,
    written: Range<i64>,
) -> Result<Rechecked> {
    let calls = Calls::new(context).on(&store.name);
    let kept_ms = store.kept_ms();
    let mut expires = written.start.saturating_add(kept_ms)..written.end.saturating_add(kept_ms);
    let mut rechecked = Rechecked::default();
    while !expires.is_empty() {
        let query = command::find_tombstones_by_expiry(&store.name, &expires, MAX_STATEMENTS);
        let page = calls.find(query).await?;
        recheck_page(context, &page, &mut rechecked).await?;
        let last = page.last().filter(|_| page.len() >= MAX_STATEMENTS);
        match last.and_then(|last| last.get_datetime("expires_at").ok()).map(|at| at.timestamp_millis()) {
            Some(last) if last > expires.start => expires.start = last,
            // There may be more tombstones of this millisecond than a page has.
            Some(last) => {
                recheck_millisecond(context, store, last, &mut rechecked).await?;
                expires.start = last.saturating_add(1);
            }
            None => break,
        }
    }
    Ok(rechecked)
}

/// Examines the tombstones that expire in this millisecond.
async fn recheck_millisecond(
    context: CallContext<'_>,
    store: &TombstoneStore,
    expires: i64,
    rechecked: &mut Rechecked,
) -> Result<()> {
    let calls = Calls::new(context).on(&store.name);
    let mut after = String::new();
    loop {
        let query = command::find_tombstones_after(&store.name, expires, &after, MAX_STATEMENTS);
        let page = calls.find(query).await?;
        recheck_page(context, &page, rechecked).await?;
        match page.last().and_then(read_tombstone).filter(|_| page.len() >= MAX_STATEMENTS) {
            Some((last, _)) => after = last,
            None => return Ok(()),
        }
    }
}

async fn recheck_page(context: CallContext<'_>, page: &[Document], rechecked: &mut Rechecked) -> Result<()> {
    let tombstones: Tombstones = page.iter().filter_map(read_tombstone).collect();
    let ids: Vec<&str> = tombstones.keys().map(String::as_str).collect();
    let cleaned = remove_covered(context, &ids, &tombstones).await?;
    let is_transient = |error: &&StatementError| {
        error.cause.class() == ErrorClass::Transient && error::is_listed(error.cause.code)
    };
    if let Some(error) = cleaned.failed.values().find(is_transient) {
        return Err(rejected_for_now(error, "a delete"));
    }
    rechecked.removed += cleaned.removed;
    rechecked.kept += cleaned.failed.len();
    Ok(())
}

fn read_tombstone(tombstone: &Document) -> Option<(String, Version)> {
    Some((tombstone.get_str("_id").ok()?.to_owned(), Version::read(tombstone)))
}

/// Sends the commands of deletes on one collection. A missing right is an obstacle of this
/// collection and not of the server, so that other sources stay ready.
#[derive(Clone, Copy)]
struct Calls<'a> {
    context: CallContext<'a>,
    name: &'a str,
}

impl<'a> Calls<'a> {
    /// On the collection of the documents.
    fn new(context: CallContext<'a>) -> Self {
        Self { context, name: &context.collection.name }
    }

    fn on(self, name: &'a str) -> Self {
        Self { name, ..self }
    }

    async fn call(&self, kind: &'static str, command: RawDocumentBuf) -> Result<Document, CallError> {
        let CallContext { connection, collection, deadline, .. } = self.context;
        let reply = connection.run(command, deadline).await;
        match &reply {
            Ok(_) => collection.delete_accepted(self.name, kind),
            Err(error) => {
                if !matches!(error, CallError::Unauthorized(_)) {
                    connection.record_error(error);
                }
                collection.note_delete_error(self.name, kind, error, connection.database_name());
            }
        }
        reply
    }

    async fn find(&self, query: Command) -> Result<Vec<Document>> {
        let reply = self.call("find", query.map_err(CallError::from)?).await?;
        Ok(first_batch("find", &reply)?)
    }

    /// Sends a command with a statement for each of `items`, and returns the errors of the
    /// statements. A command that was rejected for one of its statements is sent again in halves.
    async fn write<T>(
        &self,
        kind: &'static str,
        items: &[T],
        command: impl Fn(&[T]) -> Command,
    ) -> Result<Vec<StatementError>> {
        let mut chunks: Vec<Range<usize>> = (0..items.len())
            .step_by(MAX_STATEMENTS)
            .map(|start| start..items.len().min(start + MAX_STATEMENTS))
            .rev()
            .collect();
        let (mut errors, mut probed) = (Vec::new(), false);
        while let Some(chunk) = chunks.pop() {
            let sent = command(&items[chunk.clone()]).map_err(CallError::from)?;
            let error = match self.call(kind, sent).await {
                Ok(reply) => {
                    self.context.connection.state.write_accepted();
                    let read = Reply::read(&reply, chunk.len())?.errors.into_iter();
                    let in_items = |error: StatementError| StatementError {
                        position: chunk.start + error.position,
                        ..error
                    };
                    errors.extend(read.map(in_items).inspect(|error| self.note(kind, error)));
                    continue;
                }
                Err(CallError::Rejected(error)) if error.may_concern_one_document() => error,
                Err(error) => return Err(error.into()),
            };
            if chunk.len() > 1 {
                let middle = chunk.start + chunk.len() / 2;
                chunks.extend([middle..chunk.end, chunk.start..middle]);
                continue;
            }
            let error = StatementError { position: chunk.start, cause: error, duplicate_of: None };
            // An unlisted code may mean that the server rejects every command.
            let is_unknown = error.cause.class() != ErrorClass::Permanent;
            if is_unknown && !std::mem::replace(&mut probed, true) && !self.accepts_writes().await {
                return Err(rejected_for_now(&error, "a command"));
            }
            errors.push(error);
        }
        Ok(errors)
    }

    fn note(&self, kind: &'static str, error: &StatementError) {
        let CallContext { connection, collection, .. } = self.context;
        let error = CallError::Rejected(error.cause.clone());
        collection.note_delete_error(self.name, kind, &error, connection.database_name());
    }

    async fn accepts_writes(&self) -> bool {
        self.context.accepts_writes_to(self.name).await
    }
}
