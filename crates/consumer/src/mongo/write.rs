//! Writes one batch: new keys are inserted, existing documents are updated if the guard passes. The
//! write strategy of the collection decides which command is sent first; a second command writes
//! the rest. Several events of a key are merged into one statement if the result is the same.
//!
//! Guarantee: an event is counted or rejected only by a reply that confirms it. If a whole command
//! fails with a transient error, all of its events stay unfinished. [`super::accounting`] reads the
//! replies.

use bson::{Document, RawDocumentBuf};
use events::StorableEvent;

use super::accounting::{Batch, Updated};
use super::collection::CallContext;
use super::command::{self, Statement, Target};
use super::error::{CallError, CommandError, TransientError};
use super::error_codes;
use super::extended_json;
use super::key::UpsertKeys;
use super::merged_write::{DocumentState, MergedWrite};
use super::outcome::BatchOutcome;
use super::plan::{EventStatus, Round};
use super::reply::Reply;

const BSON_OBJECT_TOO_LARGE: i32 = 10334;

/// Writes one batch.
pub(super) struct BatchWriter<'a> {
    batch: Batch<'a>,
    /// Whether a probe was sent, after the server rejected an event with an unlisted code.
    probed: bool,
}

/// The result of sending one command.
enum Sent {
    Reply(Reply),
    /// The command was rejected, and one of its documents is or may be the cause.
    Rejected(CommandError),
}

impl<'a> CallContext<'a> {
    fn target(self) -> Target<'a> {
        Target { collection: &self.collection.name, keys: self.keys, write_concern: self.write_concern }
    }

    /// Whether the server accepts a write to the collection, tried without an event.
    pub(super) async fn accepts_writes(self) -> bool {
        let reply = self.connection.run(command::probe(self.target()), self.deadline).await;
        let reply = reply.ok().and_then(|reply| Reply::read(&reply, 1).ok());
        reply.is_some_and(|reply| reply.errors.is_empty() && reply.write_concern_error.is_none())
    }
}

impl<'a> BatchWriter<'a> {
    pub(super) fn new(context: CallContext<'a>, events: &'a [&'a StorableEvent]) -> Self {
        Self { batch: Batch::new(context, events), probed: false }
    }

    /// Writes until all events are finished or a transient error occurs.
    pub(super) async fn run(mut self) -> BatchOutcome {
        if let Err(error) = self.write().await {
            self.batch.outcome.error = Some(error);
        }
        let mut outcome = self.batch.outcome;
        outcome.unfinished = self.batch.plan.unfinished();
        outcome.rejected.sort_by_key(|rejected| rejected.index);
        outcome
    }

    async fn write(&mut self) -> Result<(), TransientError> {
        loop {
            let unknown = self.batch.plan.worth_looking_up();
            if !unknown.is_empty() {
                self.batch.look_up_quickly(&unknown).await?;
            }
            match self.batch.plan.next_round(&self.batch.events) {
                None => return Ok(()),
                Some(Round::Unordered(writes)) => self.write_unordered(writes).await?,
                Some(Round::Ordered(events)) => self.write_ordered(&events).await?,
            }
        }
    }

    async fn write_unordered(&mut self, writes: Vec<MergedWrite>) -> Result<(), TransientError> {
        let mut absent = Vec::new();
        let mut present = Vec::new();
        let mut unknown = Vec::new();
        for write in writes {
            match self.batch.plan.document(write.sent) {
                DocumentState::Unknown => unknown.push(write),
                DocumentState::Absent => absent.push(write),
                DocumentState::Present(..) => present.push(write),
            }
        }
        let collection = self.batch.context.collection;
        let events = unknown.len();
        let found = if collection.write_strategy.updates_first() {
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
        collection.write_strategy.observe(found.min(events), events);
        self.update(present, 0).await
    }

    /// Inserts, and returns the writes whose documents exist already.
    async fn insert(&mut self, writes: Vec<MergedWrite>) -> Result<Vec<MergedWrite>, TransientError> {
        let mut existing = Vec::new();
        let mut chunks = self.chunks(writes, command::insert_bytes);
        while let Some(chunk) = chunks.pop() {
            match self.send_insert(&chunk).await? {
                Sent::Reply(reply) => existing.extend(self.batch.read_insert(chunk, reply).await?),
                Sent::Rejected(error) => self.split(chunk, error, EventStatus::Absent, &mut chunks).await?,
            }
        }
        Ok(existing)
    }

    async fn send_insert(&self, chunk: &[MergedWrite]) -> Result<Sent, TransientError> {
        let context @ CallContext { connection, collection, write_concern, deadline, .. } =
            self.batch.context;
        let statements = self.statements(chunk);
        let contains_extended_json =
            |statement: &Statement<'_>| extended_json::is_in(&statement.event.document);
        if !connection.reads_extended_json(deadline).await? || !statements.iter().any(contains_extended_json)
        {
            return self.send(command::insert(context.target(), &statements), chunk.len()).await;
        }
        let documents = command::documents(&statements).map_err(CallError::from)?;
        let reply =
            connection.insert_document_sequence(&collection.name, documents, write_concern, deadline).await;
        self.read(reply, chunk.len())
    }

    /// Updates documents that exist. This batch has already changed `changed` of them.
    async fn update(&mut self, writes: Vec<MergedWrite>, changed: usize) -> Result<(), TransientError> {
        let mut changed = changed;
        let mut chunks = self.chunks(writes, command::update_bytes);
        while let Some(chunk) = chunks.pop() {
            if let Some(updated) = self.send_update(chunk, EventStatus::Present, &mut chunks).await? {
                updated.must_all_match()?;
                let changed = updated.modified + std::mem::take(&mut changed);
                self.batch.count_updated(updated.done, changed).await?;
            }
        }
        Ok(())
    }

    /// Updates documents that may exist and inserts the others. Returns the number of documents
    /// that existed.
    async fn update_or_insert(&mut self, writes: Vec<MergedWrite>) -> Result<usize, TransientError> {
        let mut found = 0;
        let mut chunks = self.chunks(writes, command::update_bytes);
        while let Some(chunk) = chunks.pop() {
            let updated = self.send_update(chunk, EventStatus::Absent, &mut chunks).await?;
            let Some(Updated { mut done, matched, modified }) = updated else { continue };
            if matched != done.len() {
                done = self.insert(done).await?;
            }
            found += done.len();
            // If another writer inserted between the two commands, it is unknown which documents
            // the update matched. Repeating an update changes nothing more, so the changes of both
            // commands add up.
            if matched == done.len() {
                self.batch.count_updated(done, modified).await?;
            } else {
                self.update(done, modified).await?;
            }
        }
        Ok(found)
    }

    /// Sends an unordered update. Returns `None` if it was rejected for one of its documents: its
    /// halves are then in `chunks`, or its only event has the status `if_rejected`.
    async fn send_update(
        &mut self,
        chunk: Vec<MergedWrite>,
        if_rejected: EventStatus,
        chunks: &mut Vec<Vec<MergedWrite>>,
    ) -> Result<Option<Updated>, TransientError> {
        let command = command::update(self.batch.context.target(), false, &self.statements(&chunk));
        match self.send(command, chunk.len()).await? {
            Sent::Reply(reply) => Ok(Some(self.batch.read_update(chunk, reply)?)),
            Sent::Rejected(error) => {
                self.split(chunk, error, if_rejected, chunks).await?;
                Ok(None)
            }
        }
    }

    /// Sends the first of these events that fit into one ordered command. The next round sends the
    /// events after an error.
    async fn write_ordered(&mut self, events: &[usize]) -> Result<(), TransientError> {
        let writes = events.iter().map(|index| MergedWrite::single(*index)).collect();
        let mut chunk = self.chunks(writes, command::update_bytes).pop().unwrap_or_default();
        let is_unknown =
            |index: &usize| !matches!(self.batch.plan.document(*index), DocumentState::Present(..));
        let unknown: Vec<usize> = chunk.iter().map(|write| write.sent).filter(is_unknown).collect();
        self.batch.look_up(&unknown).await?;
        loop {
            let command = command::update(self.batch.context.target(), true, &self.statements(&chunk));
            match self.send(command, chunk.len()).await? {
                Sent::Reply(reply) => return self.batch.read_ordered_update(chunk, reply),
                Sent::Rejected(_) if chunk.len() > 1 => chunk.truncate(chunk.len() / 2),
                Sent::Rejected(error) => {
                    return self.reject_single(chunk[0].sent, error, EventStatus::Present).await;
                }
            }
        }
    }

    async fn send(
        &self,
        command: Result<RawDocumentBuf, bson::error::Error>,
        sent: usize,
    ) -> Result<Sent, TransientError> {
        let command = command.map_err(CallError::from)?;
        if command.as_bytes().len() > command::MAX_SINGLE_COMMAND_BYTES {
            let message = format!("the command would have {} bytes", command.as_bytes().len());
            return Ok(Sent::Rejected(CommandError {
                code: BSON_OBJECT_TOO_LARGE,
                code_name: error_codes::name(BSON_OBJECT_TOO_LARGE),
                message,
            }));
        }
        let CallContext { connection, deadline, .. } = self.batch.context;
        self.read(connection.write(command, deadline).await, sent)
    }

    fn read(&self, reply: Result<Document, CallError>, sent: usize) -> Result<Sent, TransientError> {
        match reply {
            Ok(reply) => Ok(Sent::Reply(Reply::read(&reply, sent).map_err(TransientError::new)?)),
            Err(CallError::Rejected(error)) if error.may_concern_one_document() => Ok(Sent::Rejected(error)),
            Err(error) => {
                self.batch.context.collection.note_error(&error);
                Err(error.into())
            }
        }
    }

    /// Has both halves of a rejected command sent again. An event that was alone in its command is
    /// the rejected one.
    async fn split(
        &mut self,
        mut chunk: Vec<MergedWrite>,
        error: CommandError,
        status: EventStatus,
        chunks: &mut Vec<Vec<MergedWrite>>,
    ) -> Result<(), TransientError> {
        if chunk.len() == 1 {
            return self.reject_single(chunk[0].sent, error, status).await;
        }
        let half = chunk.split_off(chunk.len() / 2);
        chunks.extend([half, chunk]);
        Ok(())
    }

    /// Rejects or postpones an event that was alone in its command. An unlisted code may also mean
    /// an outage. Every other event of the batch would then be rejected too, so a probe is sent
    /// first.
    async fn reject_single(
        &mut self,
        index: usize,
        error: CommandError,
        status: EventStatus,
    ) -> Result<(), TransientError> {
        if error.is_permanent() {
            self.batch.reject(index, error.code, error.message, status);
            return Ok(());
        }
        let reason = format!("the server rejected a write: {} ({})", error.code_name, error.code);
        self.batch.postpone(index, error);
        let nothing_finished = self.batch.outcome.counts.total() == 0;
        let probes = nothing_finished && self.batch.events.len() > 1 && !self.probed;
        self.probed |= probes;
        if probes && !self.batch.context.accepts_writes().await {
            return Err(TransientError::new(reason));
        }
        Ok(())
    }

    /// Cuts writes into chunks that each fit into a command. The first chunk is the last element.
    fn chunks(
        &self,
        writes: Vec<MergedWrite>,
        bytes: fn(&Statement<'_>, &UpsertKeys) -> usize,
    ) -> Vec<Vec<MergedWrite>> {
        let CallContext { keys, command_bytes, .. } = self.batch.context;
        let mut chunks: Vec<Vec<MergedWrite>> = Vec::new();
        let mut room = 0;
        for write in writes {
            let needed = bytes(&self.statement(write.sent), keys);
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

    fn statement(&self, index: usize) -> Statement<'_> {
        Statement { key: &self.batch.keys[index], event: self.batch.events[index] }
    }

    fn statements(&self, writes: &[MergedWrite]) -> Vec<Statement<'_>> {
        writes.iter().map(|write| self.statement(write.sent)).collect()
    }
}
