//! Writes one batch: new keys are inserted, existing ones updated if the guard allows. Most events are new, so the
//! insert comes first, and only what it finds to exist costs a second command.
//!
//! Guarantee: an event is counted or rejected only by a reply that says so, and a whole command's trouble leaves all of
//! its events unfinished. An update that changes nothing is *stale* if the stored document is newer, else *unchanged*.

use std::time::Duration;

use bson::{RawDocument, RawDocumentBuf};
use events::StorableEvent;

use super::codes::{self, Verdict};
use super::commands::{self, Statement, Target};
use super::connection::Connection;
use super::fault::{Fault, Refusal};
use super::keys::{Key, UpsertKeys};
use super::lookup::Lookup;
use super::outcome::{Applied, Rejected, Trouble};
use super::reply::{Reply, StatementError};
use super::version::Version;
use super::waves::{Fate, Wave, Waves};

const BSON_OBJECT_TOO_LARGE: i32 = 10334;

/// Where and how a batch is written.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) connection: &'a Connection,
    pub(super) keys: &'a UpsertKeys,
    pub(super) write_concern: &'a RawDocument,
    pub(super) collection: &'a str,
    pub(super) command_bytes: usize,
    pub(super) deadline: Duration,
}

/// One batch under way.
pub(super) struct Batch<'a> {
    way: Way<'a>,
    events: &'a [&'a StorableEvent],
    keys: Vec<Key<'a>>,
    waves: Waves,
    /// How new the document of each key is, once that is known.
    stored: Vec<Option<Version>>,
    applied: Applied,
}

/// What came of sending one command.
enum Sent {
    Reply(Reply),
    /// One of its documents is not acceptable at all.
    Refused(Refusal),
}

impl<'a> Batch<'a> {
    pub(super) fn new(way: Way<'a>, events: &'a [&'a StorableEvent]) -> Self {
        let keys: Vec<Key<'a>> = events.iter().map(|event| way.keys.key_of(event)).collect();
        let waves = Waves::new(keys.iter().map(Key::identity));
        Self { way, events, stored: vec![None; keys.len()], keys, waves, applied: Applied::default() }
    }

    /// Writes until everything is finished or the server is in trouble.
    pub(super) async fn run(mut self) -> Applied {
        while let Some(wave) = self.waves.next() {
            let went = match wave {
                Wave::Heads(heads) => self.write_heads(heads).await,
                Wave::Tail(tail) => self.write_tail(&tail).await,
            };
            if let Err(trouble) = went {
                self.applied.trouble = Some(trouble);
                break;
            }
        }
        self.applied.unfinished = self.waves.unfinished();
        self.applied.rejected.sort_by_key(|rejected| rejected.index);
        self.applied
    }

    async fn write_heads(&mut self, heads: Vec<usize>) -> Result<(), Trouble> {
        let mut existing = Vec::new();
        let mut chunks = self.cut(&heads, commands::insert_bytes);
        while let Some(chunk) = chunks.pop() {
            let command = commands::insert(self.target(), &self.statements(&chunk));
            match self.send(command, chunk.len()).await? {
                Sent::Reply(reply) => existing.extend(self.read_insert(&chunk, reply).await?),
                Sent::Refused(refusal) => self.split(chunk, refusal, Fate::Absent, &mut chunks),
            }
        }
        let mut chunks = self.cut(&existing, commands::update_bytes);
        while let Some(chunk) = chunks.pop() {
            let command = commands::update(self.target(), false, &self.statements(&chunk));
            match self.send(command, chunk.len()).await? {
                Sent::Reply(reply) => self.read_heads(&chunk, reply).await?,
                Sent::Refused(refusal) => self.split(chunk, refusal, Fate::Present, &mut chunks),
            }
        }
        Ok(())
    }

    /// Sends as much of the tail as one command holds; what follows an error in it stays for the next wave.
    async fn write_tail(&mut self, tail: &[usize]) -> Result<(), Trouble> {
        let mut chunk = self.cut(tail, commands::update_bytes).pop().unwrap_or_default();
        let unknown = |index: &usize| self.stored[self.waves.key(*index)].is_none();
        let unknown: Vec<usize> = chunk.iter().copied().filter(unknown).collect();
        self.look_up(&unknown).await?;
        loop {
            let command = commands::update(self.target(), true, &self.statements(&chunk));
            match self.send(command, chunk.len()).await? {
                Sent::Reply(reply) => return self.read_tail(&chunk, reply),
                Sent::Refused(_) if chunk.len() > 1 => chunk.truncate(chunk.len() / 2),
                Sent::Refused(refusal) => {
                    self.reject(chunk[0], refusal.code, refusal.message, Fate::Present);
                    return Ok(());
                }
            }
        }
    }

    /// Counts what was inserted and tells which events exist already.
    async fn read_insert(&mut self, chunk: &[usize], reply: Reply) -> Result<Vec<usize>, Trouble> {
        if reply.n + reply.errors.len() != chunk.len() {
            return Err(Trouble::new("the reply to an insert leaves documents out"));
        }
        if reply.write_concern_error.is_none() {
            self.applied.counts.inserted += reply.n as u64;
            for index in without_errors(chunk, &reply.errors) {
                self.stored[self.waves.key(index)] = Some(Version::of(self.events[index]));
                self.waves.tell(index, Fate::Present);
            }
        }
        let mut existing = Vec::new();
        let mut doubtful = Vec::new();
        for error in reply.errors {
            let index = chunk[error.position];
            match codes::verdict(error.code) {
                Verdict::Duplicate if self.is_own_key(index, &error) => existing.push(index),
                Verdict::Duplicate => doubtful.push((index, error)),
                Verdict::Permanent => self.reject(index, error.code, error.message, Fate::Absent),
                Verdict::Transient => self.postpone(index, &error),
            }
        }
        if let Some(reason) = reply.write_concern_error {
            return Err(Trouble::new(reason));
        }
        for (index, error) in doubtful {
            // A document may be in the way of several indexes, and the server names only one of them.
            if self.lookup().version(&self.keys[index]).await?.is_some() {
                existing.push(index);
            } else {
                self.judge_foreign_duplicate(index, error);
            }
        }
        existing.sort_unstable();
        Ok(existing)
    }

    /// Counts what an update of different keys came to. Only if it changed less than it could, the documents are asked
    /// how new they are: a document never turns back, so one that is newer now made its event stale.
    async fn read_heads(&mut self, chunk: &[usize], reply: Reply) -> Result<(), Trouble> {
        let done = without_errors(chunk, &reply.errors);
        let changed = self.settle(chunk, &done, reply)?;
        for index in &done {
            self.stored[self.waves.key(*index)] = Some(Version::of(self.events[*index]));
        }
        if changed < done.len() {
            self.look_up(&done).await?;
        }
        let newer =
            |index: &&usize| self.stored[self.waves.key(**index)] > Some(Version::of(self.events[**index]));
        let stale = done.iter().filter(newer).count();
        self.count(&done, changed, stale);
        Ok(())
    }

    /// Counts what an ordered update came to, up to its first error; each event met the document that the ones before
    /// it left.
    fn read_tail(&mut self, chunk: &[usize], reply: Reply) -> Result<(), Trouble> {
        let tried = reply.errors.first().map_or(chunk.len(), |error| error.position + 1);
        let chunk = &chunk[..tried];
        let done = without_errors(chunk, &reply.errors);
        let changed = self.settle(chunk, &done, reply)?;
        let mut stale = 0;
        for index in &done {
            let (stored, version) =
                (&mut self.stored[self.waves.key(*index)], Version::of(self.events[*index]));
            if *stored > Some(version) {
                stale += 1;
            } else {
                *stored = Some(version);
            }
        }
        self.count(&done, changed, stale);
        Ok(())
    }

    /// Takes an update's errors, and tells how many documents it changed of those that were `done`.
    fn settle(&mut self, chunk: &[usize], done: &[usize], reply: Reply) -> Result<usize, Trouble> {
        for error in reply.errors {
            let index = chunk[error.position];
            match codes::verdict(error.code) {
                Verdict::Transient => self.postpone(index, &error),
                // An update of one document collides with another only in an index of the user's own.
                Verdict::Permanent | Verdict::Duplicate => {
                    self.reject(index, error.code, error.message, Fate::Present);
                }
            }
        }
        if let Some(reason) = reply.write_concern_error {
            return Err(Trouble::new(reason));
        }
        if reply.n != done.len() {
            return Err(Trouble::new("documents that existed were not there to be updated"));
        }
        Ok(reply.n_modified)
    }

    /// Finishes events of which `changed` changed their document, and no more than `stale` found a newer one.
    fn count(&mut self, done: &[usize], changed: usize, stale: usize) {
        let same = done.len() - changed;
        let stale = stale.min(same);
        self.applied.counts.updated += changed as u64;
        self.applied.counts.stale += stale as u64;
        self.applied.counts.unchanged += (same - stale) as u64;
        done.iter().for_each(|index| self.waves.tell(*index, Fate::Present));
    }

    /// Asks how new the documents of these events are.
    async fn look_up(&mut self, indexes: &[usize]) -> Result<(), Trouble> {
        let mut asked: Vec<(usize, usize)> =
            indexes.iter().map(|index| (self.waves.key(*index), *index)).collect();
        asked.sort_unstable();
        asked.dedup_by_key(|(key, _)| *key);
        let keys: Vec<&Key<'_>> = asked.iter().map(|(_, index)| &self.keys[*index]).collect();
        let versions = self.lookup().versions(&keys).await?;
        for ((key, _), version) in asked.into_iter().zip(versions) {
            self.stored[key] = version;
        }
        Ok(())
    }

    fn is_own_key(&self, index: usize, error: &StatementError) -> bool {
        match self.keys[index] {
            Key::Derived(_) => error.is_duplicate_of(std::iter::once("_id")),
            Key::Fields(_) => error.is_duplicate_of(self.way.keys.fields()),
        }
    }

    /// The key is free, but an index that is not the key's has one of the values.
    fn judge_foreign_duplicate(&mut self, index: usize, error: StatementError) {
        // Without a name it may have been the key after all, its document deleted since; a new _id may be free.
        let nameless = error.duplicate_of.is_none() && !error.message.contains("index: ");
        if nameless || error.is_duplicate_of(std::iter::once("_id")) {
            self.postpone(index, &error);
        } else {
            self.reject(index, error.code, error.message, Fate::Absent);
        }
    }

    async fn send(
        &self,
        command: Result<RawDocumentBuf, bson::error::Error>,
        sent: usize,
    ) -> Result<Sent, Trouble> {
        let command = command.map_err(Fault::from)?;
        if command.as_bytes().len() > commands::LONE_COMMAND_MAX_BYTES {
            let message = format!("the command would have {} bytes", command.as_bytes().len());
            return Ok(Sent::Refused(Refusal {
                code: BSON_OBJECT_TOO_LARGE,
                class: codes::name(BSON_OBJECT_TOO_LARGE),
                message,
            }));
        }
        match self.way.connection.write(command, self.way.deadline).await {
            Ok(reply) => Ok(Sent::Reply(Reply::read(&reply, sent).map_err(Trouble::new)?)),
            Err(Fault::Refused(refusal)) if refusal.is_a_documents() => Ok(Sent::Refused(refusal)),
            Err(fault) => Err(fault.into()),
        }
    }

    /// Has both halves sent again by themselves; an event that is alone is the one that was refused.
    fn split(&mut self, mut chunk: Vec<usize>, refusal: Refusal, fate: Fate, chunks: &mut Vec<Vec<usize>>) {
        if chunk.len() > 1 {
            let half = chunk.split_off(chunk.len() / 2);
            chunks.extend([half, chunk]);
        } else {
            self.reject(chunk[0], refusal.code, refusal.message, fate);
        }
    }

    fn reject(&mut self, index: usize, code: i32, reason: String, fate: Fate) {
        self.applied.rejected.push(Rejected { index, code, class: codes::name(code), reason });
        self.waves.tell(index, fate);
    }

    fn postpone(&mut self, index: usize, error: &StatementError) {
        let reason = format!("a record was refused for now: {} ({})", codes::name(error.code), error.code);
        self.applied.trouble.get_or_insert(Trouble::new(reason));
        self.waves.tell(index, Fate::Unfinished);
    }

    /// Cuts into pieces that fit into a command, the first piece last.
    fn cut(&self, indexes: &[usize], bytes: fn(&Statement<'_>, &UpsertKeys) -> usize) -> Vec<Vec<usize>> {
        let mut chunks: Vec<Vec<usize>> = Vec::new();
        let mut room = 0;
        for index in indexes {
            let needed = bytes(&self.statement(*index), self.way.keys);
            match chunks.last_mut().filter(|_| needed <= room) {
                Some(chunk) => chunk.push(*index),
                None => {
                    room = self.way.command_bytes.max(needed);
                    chunks.push(vec![*index]);
                }
            }
            room -= needed;
        }
        chunks.reverse();
        chunks
    }

    fn lookup(&self) -> Lookup<'a> {
        let Way { connection, keys, collection, deadline, .. } = self.way;
        Lookup { connection, keys, collection, deadline }
    }

    fn target(&self) -> Target<'a> {
        let Way { collection, keys, write_concern, .. } = self.way;
        Target { collection, keys, write_concern }
    }

    fn statement(&self, index: usize) -> Statement<'_> {
        Statement { key: &self.keys[index], event: self.events[index] }
    }

    fn statements(&self, chunk: &[usize]) -> Vec<Statement<'_>> {
        chunk.iter().map(|index| self.statement(*index)).collect()
    }
}

/// The events of a command that did not fail.
fn without_errors(chunk: &[usize], errors: &[StatementError]) -> Vec<usize> {
    let mut failed = errors.iter().map(|error| error.position).peekable();
    let succeeded = |(position, index): (usize, &usize)| match failed.next_if_eq(&position) {
        Some(_) => None,
        None => Some(*index),
    };
    chunk.iter().enumerate().filter_map(succeeded).collect()
}
