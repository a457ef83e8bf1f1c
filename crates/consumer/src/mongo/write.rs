//! Writes one batch: new keys are inserted, existing ones updated if the guard allows. Which command goes first is a
//! habit of the collection; what it leaves open costs a second one. Several events of a key are one statement where
//! that ends the same.
//!
//! Guarantee: an event is counted or rejected only by a reply that says so, and a whole command's trouble leaves all of
//! its events unfinished. What the replies mean is in [`super::accounting`].

use std::time::Duration;

use bson::{Document, RawDocument, RawDocumentBuf};
use events::StorableEvent;

use super::accounting::Updated;
use super::collection::Collection;
use super::command::{self, Statement, Target};
use super::connection::Connection;
use super::error::{Fault, Refusal};
use super::error_codes;
use super::extended_json;
use super::key::{Key, UpsertKeys};
use super::lookup::Lookup;
use super::merged_write::{Events, Known, Run};
use super::outcome::{Applied, Trouble};
use super::plan::{Fate, Wave, Waves};
use super::reply::Reply;
use super::version::Version;

const BSON_OBJECT_TOO_LARGE: i32 = 10334;

/// Where and how a batch is written.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) connection: &'a Connection,
    pub(super) keys: &'a UpsertKeys,
    pub(super) write_concern: &'a RawDocument,
    pub(super) collection: &'a str,
    pub(super) known: &'a Collection,
    /// Whether one statement may stand for several events of a key.
    pub(super) collapses: bool,
    pub(super) command_bytes: usize,
    pub(super) deadline: Duration,
}

impl<'a> Way<'a> {
    fn target(self) -> Target<'a> {
        Target { collection: self.collection, keys: self.keys, write_concern: self.write_concern }
    }

    /// Whether the server takes a write to the collection that no event has a part in.
    pub(super) async fn takes_writes(self) -> bool {
        let reply = self.connection.ask(command::probe(self.target()), self.deadline).await;
        let reply = reply.ok().and_then(|reply| Reply::read(&reply, 1).ok());
        reply.is_some_and(|reply| reply.errors.is_empty() && reply.write_concern_error.is_none())
    }
}

/// One batch under way.
pub(super) struct Batch<'a> {
    pub(super) way: Way<'a>,
    pub(super) events: &'a [&'a StorableEvent],
    pub(super) keys: Vec<Key<'a>>,
    pub(super) waves: Waves,
    pub(super) applied: Applied,
    /// The server was asked whether it takes writes, after it refused an event for a reason that
    /// nobody knows.
    probed: bool,
}

/// What came of sending one command.
enum Sent {
    Reply(Reply),
    /// One of its documents is not acceptable, or may be what the server cannot cope with.
    Refused(Refusal),
}

impl Events for &[&StorableEvent] {
    fn version(&self, index: usize) -> Version {
        Version::of(self[index])
    }

    fn same(&self, one: usize, other: usize) -> bool {
        self[one].document == self[other].document
    }
}

impl<'a> Batch<'a> {
    pub(super) fn new(way: Way<'a>, events: &'a [&'a StorableEvent]) -> Self {
        let keys: Vec<Key<'a>> = events.iter().map(|event| way.keys.key_of(event)).collect();
        let waves = Waves::new(keys.iter().map(Key::identity), way.collapses);
        Self { way, events, keys, waves, applied: Applied::default(), probed: false }
    }

    /// Writes until everything is finished or the server is in trouble.
    pub(super) async fn run(mut self) -> Applied {
        if let Err(trouble) = self.write().await {
            self.applied.trouble = Some(trouble);
        }
        self.applied.unfinished = self.waves.unfinished();
        self.applied.rejected.sort_by_key(|rejected| rejected.index);
        self.applied
    }

    async fn write(&mut self) -> Result<(), Trouble> {
        loop {
            let unknown = self.waves.worth_a_look();
            if !unknown.is_empty() {
                self.look(&unknown).await?;
            }
            match self.waves.next(&self.events) {
                None => return Ok(()),
                Some(Wave::Heads(runs)) => self.write_heads(runs).await?,
                Some(Wave::Tail(tail)) => self.write_tail(&tail).await?,
            }
        }
    }

    async fn write_heads(&mut self, runs: Vec<Run>) -> Result<(), Trouble> {
        let mut absent = Vec::new();
        let mut present = Vec::new();
        let mut unknown = Vec::new();
        for run in runs {
            match self.waves.known(run.head) {
                Known::Nothing => unknown.push(run),
                Known::Absent => absent.push(run),
                Known::Present(..) => present.push(run),
            }
        }
        let events = unknown.len();
        let found = if self.way.known.habit.updates_first() {
            let found = self.update_unknown(unknown).await?;
            present.extend(self.insert(absent).await?);
            found
        } else {
            absent.extend(unknown);
            let existing = self.insert(absent).await?;
            let found = existing.len();
            present.extend(existing);
            found
        };
        self.way.known.habit.saw(found.min(events), events);
        self.update(present, 0).await
    }

    /// Inserts, and gives back the runs whose documents exist already.
    async fn insert(&mut self, runs: Vec<Run>) -> Result<Vec<Run>, Trouble> {
        let mut existing = Vec::new();
        let mut chunks = self.cut(runs, command::insert_bytes);
        while let Some(chunk) = chunks.pop() {
            match self.send_insert(&chunk).await? {
                Sent::Reply(reply) => existing.extend(self.read_insert(chunk, reply).await?),
                Sent::Refused(refusal) => self.split(chunk, refusal, Fate::Absent, &mut chunks).await?,
            }
        }
        Ok(existing)
    }

    async fn send_insert(&self, chunk: &[Run]) -> Result<Sent, Trouble> {
        let Way { connection, collection, write_concern, deadline, .. } = self.way;
        let statements = self.statements(chunk);
        let changes = |statement: &Statement<'_>| extended_json::is_in(&statement.event.document);
        if !connection.reads_extended_json(deadline).await? || !statements.iter().any(changes) {
            return self.send(command::insert(self.way.target(), &statements), chunk.len()).await;
        }
        let documents = command::documents(&statements).map_err(Fault::from)?;
        let reply = connection.insert_sequence(collection, documents, write_concern, deadline).await;
        self.read(reply, chunk.len())
    }

    /// Updates documents that exist. `changed` of them were changed by this batch already.
    async fn update(&mut self, runs: Vec<Run>, changed: usize) -> Result<(), Trouble> {
        let mut changed = changed;
        let mut chunks = self.cut(runs, command::update_bytes);
        while let Some(chunk) = chunks.pop() {
            if let Some(updated) = self.send_update(chunk, Fate::Present, &mut chunks).await? {
                updated.must_all_match()?;
                self.settle(updated.done, updated.modified + std::mem::take(&mut changed)).await?;
            }
        }
        Ok(())
    }

    /// Updates documents of which nobody knows whether they exist, and inserts those that do not. Tells how many did.
    async fn update_unknown(&mut self, runs: Vec<Run>) -> Result<usize, Trouble> {
        let mut found = 0;
        let mut chunks = self.cut(runs, command::update_bytes);
        while let Some(chunk) = chunks.pop() {
            let updated = self.send_update(chunk, Fate::Absent, &mut chunks).await?;
            let Some(Updated { mut done, matched, modified }) = updated else { continue };
            if matched != done.len() {
                done = self.insert(done).await?;
            }
            found += done.len();
            // Another writer may have come between the two commands: then nobody knows which ones matched. A repeated
            // update changes nothing more, so the changes of both add up.
            if matched == done.len() {
                self.settle(done, modified).await?;
            } else {
                self.update(done, modified).await?;
            }
        }
        Ok(found)
    }

    /// Sends an unordered update. `None`: it was refused for one of its documents; its halves are
    /// in `chunks` then, and where it was alone its fate is `refused`.
    async fn send_update(
        &mut self,
        chunk: Vec<Run>,
        refused: Fate,
        chunks: &mut Vec<Vec<Run>>,
    ) -> Result<Option<Updated>, Trouble> {
        let command = command::update(self.way.target(), false, &self.statements(&chunk));
        match self.send(command, chunk.len()).await? {
            Sent::Reply(reply) => Ok(Some(self.read_update(chunk, reply)?)),
            Sent::Refused(refusal) => {
                self.split(chunk, refusal, refused, chunks).await?;
                Ok(None)
            }
        }
    }

    /// Sends as much of the tail as one command holds; what follows an error in it stays for the next wave.
    async fn write_tail(&mut self, tail: &[usize]) -> Result<(), Trouble> {
        let runs = tail.iter().map(|index| Run::alone(*index)).collect();
        let mut chunk = self.cut(runs, command::update_bytes).pop().unwrap_or_default();
        let unknown = chunk.iter().map(|run| run.head);
        let unknown: Vec<usize> =
            unknown.filter(|index| !matches!(self.waves.known(*index), Known::Present(..))).collect();
        self.look_up(&unknown).await?;
        loop {
            let command = command::update(self.way.target(), true, &self.statements(&chunk));
            match self.send(command, chunk.len()).await? {
                Sent::Reply(reply) => return self.read_tail(chunk, reply),
                Sent::Refused(_) if chunk.len() > 1 => chunk.truncate(chunk.len() / 2),
                Sent::Refused(refusal) => {
                    return self.refuse(chunk[0].head, refusal, Fate::Present).await;
                }
            }
        }
    }

    async fn send(
        &self,
        command: Result<RawDocumentBuf, bson::error::Error>,
        sent: usize,
    ) -> Result<Sent, Trouble> {
        let command = command.map_err(Fault::from)?;
        if command.as_bytes().len() > command::LONE_COMMAND_MAX_BYTES {
            let message = format!("the command would have {} bytes", command.as_bytes().len());
            return Ok(Sent::Refused(Refusal {
                code: BSON_OBJECT_TOO_LARGE,
                class: error_codes::name(BSON_OBJECT_TOO_LARGE),
                message,
            }));
        }
        self.read(self.way.connection.write(command, self.way.deadline).await, sent)
    }

    fn read(&self, reply: Result<Document, Fault>, sent: usize) -> Result<Sent, Trouble> {
        match reply {
            Ok(reply) => Ok(Sent::Reply(Reply::read(&reply, sent).map_err(Trouble::new)?)),
            Err(Fault::Refused(refusal)) if refusal.may_be_a_documents() => Ok(Sent::Refused(refusal)),
            Err(fault) => {
                self.way.known.heed_fault(&fault);
                Err(fault.into())
            }
        }
    }

    /// Has both halves sent again by themselves; an event that is alone is the one that was refused.
    async fn split(
        &mut self,
        mut chunk: Vec<Run>,
        refusal: Refusal,
        fate: Fate,
        chunks: &mut Vec<Vec<Run>>,
    ) -> Result<(), Trouble> {
        if chunk.len() == 1 {
            return self.refuse(chunk[0].head, refusal, fate).await;
        }
        let half = chunk.split_off(chunk.len() / 2);
        chunks.extend([half, chunk]);
        Ok(())
    }

    /// The server refused the event alone. Nobody knows of an unlisted code whether the event is
    /// the cause: in an outage the server would refuse the others of the batch too, one by one, so
    /// it is asked before they are sent.
    async fn refuse(&mut self, index: usize, refusal: Refusal, fate: Fate) -> Result<(), Trouble> {
        if refusal.is_permanent() {
            self.reject(index, refusal.code, refusal.message, fate);
            return Ok(());
        }
        let reason = format!("the server refused a write: {} ({})", refusal.class, refusal.code);
        self.postpone(index, refusal);
        let in_doubt = self.applied.counts.total() == 0 && self.events.len() > 1 && !self.probed;
        self.probed |= in_doubt;
        if in_doubt && !self.way.takes_writes().await {
            return Err(Trouble::new(reason));
        }
        Ok(())
    }

    /// Cuts into pieces that fit into a command, the first piece last.
    fn cut(&self, runs: Vec<Run>, bytes: fn(&Statement<'_>, &UpsertKeys) -> usize) -> Vec<Vec<Run>> {
        let mut chunks: Vec<Vec<Run>> = Vec::new();
        let mut room = 0;
        for run in runs {
            let needed = bytes(&self.statement(run.head), self.way.keys);
            match chunks.last_mut().filter(|_| needed <= room) {
                Some(chunk) => chunk.push(run),
                None => {
                    room = self.way.command_bytes.max(needed);
                    chunks.push(vec![run]);
                }
            }
            room -= needed;
        }
        chunks.reverse();
        chunks
    }

    pub(super) fn lookup(&self) -> Lookup<'a> {
        let Way { connection, keys, collection, known, deadline, .. } = self.way;
        Lookup { connection, keys, collection, known, deadline }
    }

    fn statement(&self, index: usize) -> Statement<'_> {
        Statement { key: &self.keys[index], event: self.events[index] }
    }

    fn statements(&self, runs: &[Run]) -> Vec<Statement<'_>> {
        runs.iter().map(|run| self.statement(run.head)).collect()
    }
}
