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

use bson::Document;
use events::{Operation, StorableEvent};

use super::collection::{CallContext, TombstoneStore};
use super::command;
use super::connection::first_batch;
use super::error::{self, CallError, CommandError, ErrorClass, TransientError};
use super::key::Version;
use super::reply::{BatchOutcome, Rejected, Reply, StatementError};
use super::write::write_batch;

/// Maximum number of statements or ids of one command.
const MAX_STATEMENTS: usize = 1000;

type Result<T> = std::result::Result<T, TransientError>;

/// The versions of tombstones by id.
type Tombstones = HashMap<String, Version>;

/// What was found in the collection for ids with tombstones.
#[derive(Debug, Default)]
struct Cleaned {
    /// The ids whose documents are newer than their tombstones.
    newer: HashSet<String>,
    /// The number of documents that were to be removed.
    covered: usize,
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
        let newer = self.remove_covered([&deletes[..], &covered].concat(), &tombstones).await?.newer;
        outcome.counts.superseded += covered.len() as u64;
        for index in deletes {
            let id = self.id(index);
            let is_older = tombstones.get(id).is_some_and(|newest| *newest > self.version(index));
            let count = match is_older || newer.contains(id) {
                true => &mut outcome.counts.superseded,
                false => &mut outcome.counts.deleted,
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
        self.remove_covered(covered, &tombstones).await.map(drop)
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
        let mut failed: HashMap<&str, CommandError> = HashMap::new();
        for chunk in newest.chunks(MAX_STATEMENTS) {
            let events: Vec<&StorableEvent> = chunk.iter().map(|index| self.events[*index]).collect();
            let command = command::tombstones(&self.context, self.store, &events);
            let errors = send(self.context, command, chunk.len()).await?;
            failed.extend(errors.into_iter().map(|error| (self.id(chunk[error.position]), error.cause)));
        }
        let (failing, written) = deletes.iter().partition(|index| failed.contains_key(self.id(**index)));
        for index in Vec::<usize>::into_iter(failing) {
            if let Some(cause) = failed.get(self.id(index)) {
                fail(index, cause.clone(), outcome);
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
            let found = find(self.context, command::find_tombstones(&self.store.name, chunk)).await?;
            tombstones.extend(found.iter().filter_map(read_tombstone));
        }
        Ok(tombstones)
    }

    /// Removes the documents of these events' ids that are not newer than their tombstones.
    async fn remove_covered(&self, indexes: Vec<usize>, tombstones: &Tombstones) -> Result<Cleaned> {
        let ids: HashSet<&str> = indexes.into_iter().map(|index| self.id(index)).collect();
        remove_covered(self.context, &ids.into_iter().collect::<Vec<_>>(), tombstones).await
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

/// Rejects or postpones a delete whose tombstone the server did not take.
fn fail(index: usize, cause: CommandError, outcome: &mut BatchOutcome) {
    if cause.class() == ErrorClass::Permanent {
        outcome.rejected.push(Rejected::new(index, cause));
        return;
    }
    let reason = format!("the server rejected a tombstone for now: {} ({})", cause.code_name, cause.code);
    outcome.error.get_or_insert(TransientError::new(reason));
    outcome.unfinished.push(index);
    if !error::is_listed(cause.code) {
        outcome.unlisted.push(Rejected::new(index, cause));
    }
}

/// Removes the documents of `ids` that are not newer than their tombstones. A document that changed
/// since it was read is left to the writer of the change, which reads the tombstones after its
/// write.
async fn remove_covered(context: CallContext<'_>, ids: &[&str], tombstones: &Tombstones) -> Result<Cleaned> {
    let mut cleaned = Cleaned::default();
    for chunk in ids.chunks(MAX_STATEMENTS) {
        let documents = find(context, command::find_by_ids(&context.collection.name, chunk)).await?;
        let (covered, newer): (Vec<&Document>, Vec<&Document>) = documents.iter().partition(|document| {
            let tombstone = document.get_str("event_id").ok().and_then(|id| tombstones.get(id));
            tombstone.is_some_and(|newest| Version::read(document) <= *newest)
        });
        cleaned.newer.extend(newer.iter().filter_map(|one| one.get_str("event_id").ok().map(str::to_owned)));
        if covered.is_empty() {
            continue;
        }
        cleaned.covered += covered.len();
        let errors = send(context, command::remove(&context, &covered), covered.len()).await?;
        if let Some(StatementError { cause, .. }) = errors.first() {
            context.collection.note_rejection(cause.code, &cause.message);
            let reason = format!("the server rejected a delete: {} ({})", cause.code_name, cause.code);
            return Err(TransientError { reason, timed_out: error::is_time_limit(cause.code) });
        }
    }
    Ok(cleaned)
}

/// Examines the tombstones that were written in this window of the server's clock, in milliseconds.
/// Returns the number of documents that they cover.
pub(super) async fn recheck(
    context: CallContext<'_>,
    store: &TombstoneStore,
    written: Range<i64>,
) -> Result<usize> {
    let kept_ms = store.kept_ms();
    let mut expires = written.start.saturating_add(kept_ms)..written.end.saturating_add(kept_ms);
    let (mut limit, mut covered) = (MAX_STATEMENTS, 0);
    loop {
        let page = find(context, command::find_tombstones_by_expiry(&store.name, &expires, limit)).await?;
        let tombstones: Tombstones = page.iter().filter_map(read_tombstone).collect();
        let ids: Vec<&str> = tombstones.keys().map(String::as_str).collect();
        covered += remove_covered(context, &ids, &tombstones).await?.covered;
        let last = page.last().and_then(|tombstone| tombstone.get_datetime("expires_at").ok());
        match last.map(|last| last.timestamp_millis()) {
            Some(last) if page.len() == limit && last > expires.start => {
                (expires.start, limit) = (last, MAX_STATEMENTS);
            }
            // More tombstones than a page were written in this millisecond.
            Some(_) if page.len() == limit => limit *= 2,
            _ => return Ok(covered),
        }
    }
}

fn read_tombstone(tombstone: &Document) -> Option<(String, Version)> {
    Some((tombstone.get_str("_id").ok()?.to_owned(), Version::read(tombstone)))
}

async fn find(context: CallContext<'_>, query: command::Command) -> Result<Vec<Document>> {
    let query = query.map_err(CallError::from)?;
    let reply = context.connection.call(query, context.deadline).await;
    let reply = reply.inspect_err(|error| context.collection.note_error(error))?;
    Ok(first_batch("find", &reply)?)
}

/// Sends a command of `sent` statements and returns the errors of its statements.
async fn send(
    context: CallContext<'_>,
    command: command::Command,
    sent: usize,
) -> Result<Vec<StatementError>> {
    let command = command.map_err(CallError::from)?;
    let reply = context.connection.write(command, context.deadline).await;
    let reply = reply.inspect_err(|error| context.collection.note_error(error))?;
    Ok(Reply::read(&reply, sent)?.errors)
}
