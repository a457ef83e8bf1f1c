//! Writes one batch: new keys are inserted, existing documents are updated if the guard passes. The
//! write strategy of the collection decides which command is sent first; a second command writes
//! the rest. Several events of a key are merged into one statement if the result is the same.
//!
//! Guarantee: an event is counted or rejected only by a reply that confirms it. If a whole command
//! fails with a transient error, all of its events stay unfinished. An update that changes nothing
//! is *superseded* if the stored document is newer, else *unchanged*.

use std::collections::HashMap;

use bson::{Document, RawDocumentBuf};
use events::StorableEvent;
use futures::{StreamExt, TryStreamExt, stream};

use super::collection::CallContext;
use super::command::{self, Statement};
use super::connection::{contains_extended_json, first_batch};
use super::error::{self, CallError, CommandError, ErrorClass, TransientError};
use super::key::{Key, UpsertKeys, Version};
use super::plan::{DocumentState, EventOutcome, EventStatus, MergedWrite, Round, WritePlan};
use super::reply::{BatchOutcome, Rejected, Reply, StatementError};

const BSON_OBJECT_TOO_LARGE: i32 = 10334;

/// Concurrent queries of one lookup.
const MAX_CONCURRENT_QUERIES: usize = 8;

/// A batch, the plan of its writes, and its outcome so far.
struct BatchWriter<'a> {
    context: CallContext<'a>,
    events: &'a [&'a StorableEvent],
    keys: Vec<Key<'a>>,
    plan: WritePlan,
    outcome: BatchOutcome,
    /// Whether a probe was sent, after the server rejected an event with an unlisted code.
    probed: bool,
}

type Result<T, E = TransientError> = std::result::Result<T, E>;
type Writes = Vec<MergedWrite>;

/// A command that is sent until each event has a reply of its own.
#[derive(Clone, Copy)]
enum Operation {
    Insert,
    Update,
}

/// The result of sending one command.
enum Sent {
    Reply(Reply),
    /// The command was rejected, and one of its documents is or may be the cause.
    Rejected(CommandError),
}

/// How the versions of documents are looked up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lookup {
    /// Each document is found.
    Exact,
    /// One query, if an index can answer it for all keys. It can miss a document whose key only the
    /// server holds for equal, as under a collation.
    OneQuery,
}

/// Writes `events` until all are finished or a transient error occurs.
pub(super) async fn write_batch<'a>(
    context: CallContext<'a>,
    events: &'a [&'a StorableEvent],
) -> BatchOutcome {
    let keys: Vec<Key<'a>> = events.iter().map(|event| context.keys.key_of(event)).collect();
    let plan = WritePlan::new(keys.iter().map(Key::identity), context.collection.state().merges_events);
    let mut writer =
        BatchWriter { context, events, keys, plan, outcome: BatchOutcome::default(), probed: false };
    let written = writer.write().await;
    let BatchWriter { plan, mut outcome, .. } = writer;
    if let Err(error) = written {
        outcome.error = Some(error);
    }
    outcome.unfinished = plan.unfinished();
    outcome.rejected.sort_by_key(|rejected| rejected.index);
    outcome
}

impl CallContext<'_> {
    /// Whether the server accepts a write to the collection, tried without an event.
    pub(super) async fn accepts_writes(self) -> bool {
        self.accepts_writes_to(&self.collection.name).await
    }

    /// As [`CallContext::accepts_writes`], for another collection.
    pub(super) async fn accepts_writes_to(self, collection: &str) -> bool {
        let reply = self.connection.run(command::probe(&self, collection), self.deadline).await;
        reply.is_ok_and(|reply| Reply::read(&reply, 1).is_ok_and(|reply| reply.errors.is_empty()))
    }
}

// Sending commands.
impl BatchWriter<'_> {
    async fn write(&mut self) -> Result<()> {
        loop {
            let unknown = self.plan.worth_looking_up();
            if !unknown.is_empty() {
                self.look_up(unknown, Lookup::OneQuery).await?;
            }
            match self.plan.next_round(self.events) {
                None => return Ok(()),
                Some(Round::Unordered(writes)) => self.write_unordered(writes).await?,
                Some(Round::Ordered(events)) => self.write_ordered(&events).await?,
            }
        }
    }

    async fn write_unordered(&mut self, writes: Writes) -> Result<()> {
        let mut absent = Vec::new();
        let mut present = Vec::new();
        let mut unknown = Vec::new();
        for write in writes {
            match self.plan.document(write.sent) {
                DocumentState::Unknown => unknown.push(write),
                DocumentState::Absent => absent.push(write),
                DocumentState::Present(..) => present.push(write),
            }
        }
        let collection = self.context.collection;
        let events = unknown.len();
        let updates_first = collection.state().write_strategy.updates_first;
        let found = if updates_first {
            let found = self.update_or_insert(unknown).await?;
            present.extend(self.insert(absent).await?);
            found
        } else {
            absent.extend(unknown);
            let existing = self.insert(absent).await?;
            let found = existing.len();
            present.extend(existing);
            found
        };
        collection.state().write_strategy.observe(found.min(events), events);
        self.update(present, 0).await
    }

    /// Inserts, and returns the writes whose documents exist already.
    async fn insert(&mut self, writes: Writes) -> Result<Writes> {
        let mut existing = Vec::new();
        let mut chunks = self.chunks(writes, command::insert_bytes);
        while let Some((chunk, reply)) =
            self.next_reply(&mut chunks, Operation::Insert, EventStatus::Absent).await?
        {
            existing.extend(self.read_insert(chunk, reply).await?);
        }
        Ok(existing)
    }

    /// Updates documents that exist. This batch has already changed `changed` of them.
    async fn update(&mut self, writes: Writes, mut changed: usize) -> Result<()> {
        let mut chunks = self.chunks(writes, command::update_bytes);
        while let Some((chunk, reply)) =
            self.next_reply(&mut chunks, Operation::Update, EventStatus::Present).await?
        {
            let (matched, modified) = (reply.n, reply.n_modified);
            let done = self.read_update(chunk, reply.errors);
            fail_if_deleted(&done, matched)?;
            self.count_updated(done, modified + std::mem::take(&mut changed)).await?;
        }
        Ok(())
    }

    /// Updates documents that may exist and inserts the others. Returns the number of documents
    /// that existed.
    async fn update_or_insert(&mut self, writes: Writes) -> Result<usize> {
        let mut found = 0;
        let mut chunks = self.chunks(writes, command::update_bytes);
        while let Some((chunk, reply)) =
            self.next_reply(&mut chunks, Operation::Update, EventStatus::Absent).await?
        {
            let (matched, modified) = (reply.n, reply.n_modified);
            let mut done = self.read_update(chunk, reply.errors);
            if matched != done.len() {
                done = self.insert(done).await?;
            }
            found += done.len();
            // If another writer inserted between the two commands, it is unknown which documents
            // the update matched. Repeating an update changes nothing more, so the changes of both
            // commands add up.
            if matched == done.len() {
                self.count_updated(done, modified).await?;
            } else {
                self.update(done, modified).await?;
            }
        }
        Ok(found)
    }

    /// Sends chunks until one gets a reply, and returns both; `None` if no chunk is left. A command
    /// that was rejected for one of its documents is sent again in halves. An event that was alone
    /// in its command is the rejected one, and its status is then `if_rejected`.
    async fn next_reply(
        &mut self,
        chunks: &mut Vec<Writes>,
        operation: Operation,
        if_rejected: EventStatus,
    ) -> Result<Option<(Writes, Reply)>> {
        while let Some(mut chunk) = chunks.pop() {
            let sent = match operation {
                Operation::Insert => self.send_insert(&chunk).await?,
                Operation::Update => self.send_update(&chunk, false).await?,
            };
            match sent {
                Sent::Reply(reply) => return Ok(Some((chunk, reply))),
                Sent::Rejected(error) if chunk.len() == 1 => {
                    self.reject_single(chunk[0].sent, error, if_rejected).await?;
                }
                Sent::Rejected(_) => {
                    let half = chunk.split_off(chunk.len() / 2);
                    chunks.extend([half, chunk]);
                }
            }
        }
        Ok(None)
    }

    /// Sends the first of these events that fit into one ordered command. The next round sends the
    /// events after an error.
    async fn write_ordered(&mut self, events: &[usize]) -> Result<()> {
        let writes = events.iter().map(|index| MergedWrite::single(*index)).collect();
        let mut chunk = self.chunks(writes, command::update_bytes).pop().unwrap_or_default();
        let is_unknown = |index: &usize| !matches!(self.plan.document(*index), DocumentState::Present(..));
        let unknown = chunk.iter().map(|write| write.sent).filter(is_unknown).collect();
        self.look_up(unknown, Lookup::Exact).await?;
        loop {
            match self.send_update(&chunk, true).await? {
                Sent::Reply(reply) => return self.read_ordered_update(chunk, reply),
                Sent::Rejected(_) if chunk.len() > 1 => chunk.truncate(chunk.len() / 2),
                Sent::Rejected(error) => {
                    return self.reject_single(chunk[0].sent, error, EventStatus::Present).await;
                }
            }
        }
    }

    async fn send_insert(&self, chunk: &[MergedWrite]) -> Result<Sent> {
        let CallContext { connection, collection, write_concern, deadline, .. } = self.context;
        let statements = self.statements(chunk);
        if !connection.reads_extended_json(deadline).await?
            || !statements.iter().any(|statement| contains_extended_json(&statement.event.document))
        {
            return self.send(command::insert(&self.context, &statements), chunk.len()).await;
        }
        let documents = command::documents(&statements).map_err(CallError::from)?;
        let reply =
            connection.insert_document_sequence(&collection.name, documents, write_concern, deadline).await;
        self.read(reply, chunk.len())
    }

    async fn send_update(&self, chunk: &[MergedWrite], ordered: bool) -> Result<Sent> {
        let command = command::update(&self.context, ordered, &self.statements(chunk));
        self.send(command, chunk.len()).await
    }

    async fn send(&self, command: command::Command, sent: usize) -> Result<Sent> {
        let command = command.map_err(CallError::from)?;
        let bytes = command.as_bytes().len();
        if bytes > command::MAX_SINGLE_COMMAND_BYTES {
            return Ok(Sent::Rejected(CommandError {
                code: BSON_OBJECT_TOO_LARGE,
                code_name: error::code_name(BSON_OBJECT_TOO_LARGE),
                message: format!("the command would have {bytes} bytes"),
            }));
        }
        self.read(self.context.connection.write(command, self.context.deadline).await, sent)
    }

    fn read(&self, reply: Result<Document, CallError>, sent: usize) -> Result<Sent> {
        match reply {
            Ok(reply) => Ok(Sent::Reply(Reply::read(&reply, sent)?)),
            Err(CallError::Rejected(error)) if error.may_concern_one_document() => Ok(Sent::Rejected(error)),
            Err(error) => {
                self.context.collection.note_error(&error);
                Err(error.into())
            }
        }
    }

    /// Rejects or postpones an event that was alone in its command. An unlisted code may also mean
    /// an outage. Every other event of the batch would then be rejected too, so a probe is sent
    /// first.
    async fn reject_single(&mut self, index: usize, error: CommandError, status: EventStatus) -> Result<()> {
        if error.class() == ErrorClass::Permanent {
            self.reject(index, error, status);
            return Ok(());
        }
        let reason = format!("the server rejected a write: {} ({})", error.code_name, error.code);
        self.postpone(index, error);
        let nothing_finished = self.outcome.counts.total() == 0;
        let probes = nothing_finished && self.events.len() > 1 && !self.probed;
        self.probed |= probes;
        if probes && !self.context.accepts_writes().await {
            return Err(TransientError::new(reason));
        }
        Ok(())
    }

    /// Cuts writes into chunks that each fit into a command. The first chunk is the last element.
    fn chunks(&self, writes: Writes, bytes: fn(&Statement<'_>, &UpsertKeys) -> usize) -> Vec<Writes> {
        let CallContext { keys, command_bytes, .. } = self.context;
        let mut chunks: Vec<Writes> = Vec::new();
        let mut room = 0;
        for write in writes {
            let needed = bytes(&self.statement(&write), keys);
            match chunks.last_mut().filter(|_| needed <= room) {
                Some(chunk) => chunk.push(write),
                None => {
                    room = command_bytes.max(needed);
                    chunks.push(vec![write]);
                }
            }
            room -= needed;
        }
        chunks.reverse();
        chunks
    }

    fn statement(&self, write: &MergedWrite) -> Statement<'_> {
        Statement { key: &self.keys[write.sent], event: self.events[write.sent] }
    }

    fn statements(&self, writes: &[MergedWrite]) -> Vec<Statement<'_>> {
        writes.iter().map(|write| self.statement(write)).collect()
    }
}

// Deriving the outcome of each event from the replies.
impl BatchWriter<'_> {
    /// Counts the inserted events and returns the writes whose documents exist already.
    async fn read_insert(&mut self, chunk: Writes, reply: Reply) -> Result<Writes> {
        if reply.n + reply.errors.len() != chunk.len() {
            return Err(TransientError::new("the reply to an insert does not cover all documents"));
        }
        let mut existing = Vec::new();
        let mut doubtful = Vec::new();
        for (write, error) in with_errors(chunk, reply.errors) {
            let Some(error) = error else {
                self.count_inserted(&write);
                continue;
            };
            match error.cause.class() {
                ErrorClass::Duplicate if self.is_own_key(write.sent, &error) => existing.push(write),
                ErrorClass::Duplicate | ErrorClass::Permanent => doubtful.push((write, error)),
                ErrorClass::Transient => self.postpone(write.sent, error.cause),
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
        Ok(existing.into_iter().map(|write| MergedWrite::single(write.sent)).collect())
    }

    fn count_inserted(&mut self, write: &MergedWrite) {
        for (index, outcome) in &write.events {
            self.count(outcome.unwrap_or(EventOutcome::Inserted), 1);
            self.plan.set_status(*index, EventStatus::Present);
        }
        let version = Version::of(self.events[write.sent]);
        self.plan.set_document(write.sent, DocumentState::Present(version, Some(write.sent)));
    }

    fn is_own_key(&self, index: usize, error: &StatementError) -> bool {
        match self.keys[index] {
            Key::Derived(_) => error.is_duplicate_of(std::iter::once("_id")),
            Key::Fields(_) => error.is_duplicate_of(self.context.keys.fields()),
        }
    }

    /// A rejected insert is permanent only if there is no document. A document older than a
    /// validator may still accept an update. If a document collides in several indexes, the error
    /// names only one of them.
    async fn resolve_doubtful(&mut self, doubtful: Vec<(MergedWrite, StatementError)>) -> Result<Writes> {
        let indexes: Vec<usize> = doubtful.iter().map(|(write, _)| write.sent).collect();
        let versions = self.find_versions(&indexes, Lookup::Exact).await?;
        let mut existing = Vec::new();
        for ((write, error), version) in doubtful.into_iter().zip(versions) {
            // If the error names no index, the duplicate may be the key, in a document that was
            // deleted since. With a new _id the next insert may succeed.
            let names_no_index = error.duplicate_of.is_none() && !error.cause.message.contains("index: ");
            let may_succeed = names_no_index || error.is_duplicate_of(std::iter::once("_id"));
            if version.is_some() {
                existing.push(write);
            } else if error.cause.class() == ErrorClass::Duplicate && may_succeed {
                self.postpone(write.sent, error.cause);
            } else {
                self.reject(write.sent, error.cause, EventStatus::Absent);
            }
        }
        Ok(existing)
    }

    /// Rejects or postpones the writes that an update rejected, and returns the other writes.
    fn read_update(&mut self, chunk: Writes, errors: Vec<StatementError>) -> Writes {
        let mut done = Vec::with_capacity(chunk.len());
        for (write, error) in with_errors(chunk, errors) {
            match error.map(|error| error.cause) {
                None => done.push(write),
                Some(error) if error.class() == ErrorClass::Transient => self.postpone(write.sent, error),
                // An update can collide with another document only in a unique index of the user.
                Some(error) => self.reject(write.sent, error, EventStatus::Present),
            }
        }
        done
    }

    /// Counts the events of updates that changed `changed` documents. If fewer changed than could
    /// have, the versions are looked up. Versions never decrease, so a document that is newer now
    /// superseded its event.
    async fn count_updated(&mut self, done: Writes, changed: usize) -> Result<()> {
        let undecided: Vec<usize> = done.iter().filter_map(MergedWrite::undecided).collect();
        let predicted: Vec<usize> =
            done.iter().filter(|write| write.changes).map(|write| write.sent).collect();
        for write in &done {
            self.set_document_of(write.sent);
        }
        if changed < predicted.len() + undecided.len() {
            self.look_up([&undecided[..], &predicted].concat(), Lookup::Exact).await?;
        }
        // The newer document of another writer also prevents a change that was predicted.
        let predicted = predicted.iter().filter(|index| !self.is_superseded(**index)).count();
        let changed = changed.saturating_sub(predicted).min(undecided.len());
        let superseded = undecided.iter().filter(|index| self.is_superseded(**index)).count();
        self.count_by_change(undecided.len(), changed, superseded);
        for (index, outcome) in done.iter().flat_map(|write| &write.events) {
            if let Some(outcome) = outcome {
                self.count(*outcome, 1);
            }
            self.plan.set_status(*index, EventStatus::Present);
        }
        Ok(())
    }

    /// Counts the events of an ordered update up to its first error. Each event was compared with
    /// the document that the previous events left.
    fn read_ordered_update(&mut self, mut chunk: Writes, reply: Reply) -> Result<()> {
        chunk.truncate(reply.errors.first().map_or(chunk.len(), |error| error.position + 1));
        let done = self.read_update(chunk, reply.errors);
        fail_if_deleted(&done, reply.n)?;
        let mut superseded = 0;
        for write in &done {
            superseded += usize::from(self.is_superseded(write.sent));
            self.set_document_of(write.sent);
            self.plan.set_status(write.sent, EventStatus::Present);
        }
        self.count_by_change(done.len(), reply.n_modified, superseded);
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

    /// Whether the document of this event is newer, as far as it is known.
    fn is_superseded(&self, index: usize) -> bool {
        matches!(self.plan.document(index), DocumentState::Present(stored, _) if stored > Version::of(self.events[index]))
    }

    /// Records that an applied event made the document, unless the document was newer.
    fn set_document_of(&mut self, index: usize) {
        if !self.is_superseded(index) {
            let version = Version::of(self.events[index]);
            self.plan.set_document(index, DocumentState::Present(version, Some(index)));
        }
    }

    fn reject(&mut self, index: usize, error: CommandError, status: EventStatus) {
        self.outcome.rejected.push(Rejected::new(index, error));
        self.plan.set_status(index, status);
    }

    /// Leaves an event unfinished, to be retried.
    fn postpone(&mut self, index: usize, error: CommandError) {
        self.context.collection.note_rejection(error.code, &error.message);
        let reason = format!("the server rejected a record for now: {} ({})", error.code_name, error.code);
        let transient = self.outcome.error.get_or_insert(TransientError::new(reason));
        transient.timed_out |= error::is_time_limit(error.code);
        if !error::is_listed(error.code) {
            self.outcome.unlisted.push(Rejected::new(index, error));
        }
        self.plan.set_status(index, EventStatus::Unfinished);
    }
}

// Looking versions up.
impl BatchWriter<'_> {
    /// Looks the versions of these events' documents up. A document that [`Lookup::OneQuery`]
    /// missed counts as absent; an insert then fails with a duplicate key.
    async fn look_up(&mut self, mut indexes: Vec<usize>, lookup: Lookup) -> Result<()> {
        indexes.sort_unstable_by_key(|index| self.plan.key_number(*index));
        indexes.dedup_by_key(|index| self.plan.key_number(*index));
        let versions = self.find_versions(&indexes, lookup).await?;
        for (index, version) in indexes.into_iter().zip(versions) {
            let document = match (version, self.plan.document(index)) {
                (None, _) => DocumentState::Absent,
                (Some(version), DocumentState::Present(same, content)) if version == same => {
                    DocumentState::Present(version, content)
                }
                (Some(version), _) => DocumentState::Present(version, None),
            };
            self.plan.set_document(index, document);
        }
        Ok(())
    }

    /// The version of each event's document, `None` if there is no document.
    async fn find_versions(
        &self,
        indexes: &[usize],
        lookup: Lookup,
    ) -> Result<Vec<Option<Version>>, CallError> {
        let keys: Vec<&Key<'_>> = indexes.iter().map(|index| &self.keys[*index]).collect();
        let found = self.find_in_one_query(&keys).await?;
        let is_complete = found.is_some() && lookup == Lookup::OneQuery;
        let found = found.unwrap_or_default();
        let queries = keys.into_iter().map(|key| {
            let version = found.get(&key.identity()).copied();
            async move {
                if version.is_some() || is_complete {
                    return Ok(version);
                }
                let query = command::find(&self.context.collection.name, self.context.keys, key)?;
                Ok(self.find(query).await?.first().map(Version::read))
            }
        });
        stream::iter(queries.collect::<Vec<_>>()).buffered(MAX_CONCURRENT_QUERIES).try_collect().await
    }

    /// One query for the keys of each kind, or `None` if no index can answer it. Returns the
    /// versions by the identity of their keys.
    async fn find_in_one_query(
        &self,
        keys: &[&Key<'_>],
    ) -> Result<Option<HashMap<Vec<u8>, Version>>, CallError> {
        let CallContext { collection, keys: upsert_keys, .. } = self.context;
        let mut found = HashMap::new();
        let (derived, fields): (Vec<&Key<'_>>, Vec<&Key<'_>>) =
            keys.iter().copied().partition(|key| matches!(key, Key::Derived(_)));
        for group in [derived, fields].into_iter().filter(|group| !group.is_empty()) {
            let Some(query) = command::find_all(&collection.name, upsert_keys, &group) else {
                return Ok(None);
            };
            let documents = self.find(query?).await?;
            found.extend(
                documents.iter().filter_map(|document| {
                    Some((upsert_keys.identity_in(document)?, Version::read(document)))
                }),
            );
        }
        Ok(Some(found))
    }

    async fn find(&self, query: RawDocumentBuf) -> Result<Vec<Document>, CallError> {
        let CallContext { connection, collection, deadline, .. } = self.context;
        let reply = connection.call(query, deadline).await;
        first_batch("find", &reply.inspect_err(|error| collection.note_error(error))?)
    }
}

/// Fails if a document that was known to exist is gone: its event is not finished.
fn fail_if_deleted(done: &[MergedWrite], matched: usize) -> Result<()> {
    if matched == done.len() {
        return Ok(());
    }
    Err(TransientError::new("documents that existed were deleted before their update"))
}

/// The statements of a command, each with its error if it failed.
fn with_errors(
    chunk: Writes,
    errors: Vec<StatementError>,
) -> impl Iterator<Item = (MergedWrite, Option<StatementError>)> {
    let mut errors = errors.into_iter().peekable();
    chunk.into_iter().enumerate().map(move |(position, write)| {
        let error = errors.next_if(|error| error.position == position);
        (write, error)
    })
}
