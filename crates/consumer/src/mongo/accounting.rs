//! What the replies to a batch's commands mean for its events: each is counted, rejected or put off, by a reply that
//! says so. An update that changes nothing is *stale* if the stored document is newer, else *unchanged*.

use super::error::Refusal;
use super::error_codes::{self, Verdict};
use super::key::Key;
use super::merged_write::{Ending, Known, Run};
use super::outcome::{Rejected, Trouble};
use super::plan::Fate;
use super::reply::{Reply, StatementError};
use super::version::Version;
use super::write::Batch;

/// What an update came to.
pub(super) struct Updated {
    /// The runs that were not refused.
    pub(super) done: Vec<Run>,
    /// How many of their documents were there.
    pub(super) matched: usize,
    /// How many of these it changed.
    pub(super) modified: usize,
}

impl Updated {
    /// For documents that are known to exist: one that is gone is not updated, and so not finished.
    pub(super) fn must_all_match(&self) -> Result<(), Trouble> {
        if self.matched == self.done.len() {
            return Ok(());
        }
        Err(Trouble::new("documents that existed were not there to be updated"))
    }
}

impl Batch<'_> {
    /// Counts what was inserted and gives back the runs whose documents exist already.
    pub(super) async fn read_insert(&mut self, chunk: Vec<Run>, reply: Reply) -> Result<Vec<Run>, Trouble> {
        if let Some(trouble) = reply.write_concern_error {
            return Err(trouble);
        }
        if reply.n + reply.errors.len() != chunk.len() {
            return Err(Trouble::new("the reply to an insert leaves documents out"));
        }
        let mut existing = Vec::new();
        let mut doubtful = Vec::new();
        for (run, error) in with_errors(chunk, reply.errors) {
            match error {
                None => self.inserted(&run),
                Some(error) => match error_codes::verdict(error.code) {
                    Verdict::Duplicate if self.is_own_key(run.head, &error) => existing.push(run),
                    Verdict::Duplicate | Verdict::Permanent => doubtful.push((run, error)),
                    Verdict::Transient => self.postpone(run.head, error.into()),
                },
            }
        }
        existing.extend(self.judge_doubtful(doubtful).await?);
        // That there was no document is what the others' endings rest on.
        existing.retain(|run| {
            let alone = run.events.len() == 1;
            if !alone {
                self.waves.doubt(run.head);
            }
            alone
        });
        existing.iter_mut().for_each(|run| *run = Run::alone(run.head));
        Ok(existing)
    }

    /// What an insert refused is gone for good only where there is no document: a server may hold one that was there
    /// before its rule, and take an update of it; and a document in the way of several indexes is named for one.
    async fn judge_doubtful(&mut self, doubtful: Vec<(Run, StatementError)>) -> Result<Vec<Run>, Trouble> {
        let keys: Vec<&Key<'_>> = doubtful.iter().map(|(run, _)| &self.keys[run.head]).collect();
        let versions = self.lookup().versions(&keys).await?;
        let mut existing = Vec::new();
        for ((run, error), version) in doubtful.into_iter().zip(versions) {
            match error_codes::verdict(error.code) {
                _ if version.is_some() => existing.push(run),
                Verdict::Permanent => self.reject(run.head, error.code, error.message, Fate::Absent),
                _ => self.judge_foreign_duplicate(run.head, error),
            }
        }
        Ok(existing)
    }

    fn inserted(&mut self, run: &Run) {
        for (index, ending) in run.events.iter().zip(&run.endings) {
            self.count(ending.unwrap_or(Ending::Inserted), 1);
            self.waves.tell(*index, Fate::Present);
        }
        self.waves.learn(run.head, Known::Present(Version::of(self.events[run.head]), Some(run.head)));
    }

    /// Rejects or puts off what an update refused, and gives back the rest.
    pub(super) fn read_update(&mut self, chunk: Vec<Run>, reply: Reply) -> Result<Updated, Trouble> {
        if let Some(trouble) = reply.write_concern_error {
            return Err(trouble);
        }
        let mut done = Vec::with_capacity(chunk.len());
        for (run, error) in with_errors(chunk, reply.errors) {
            match error {
                None => done.push(run),
                Some(error) => match error_codes::verdict(error.code) {
                    Verdict::Transient => self.postpone(run.head, error.into()),
                    // An update of one document collides with another only in an index of the user's own.
                    Verdict::Permanent | Verdict::Duplicate => {
                        self.reject(run.head, error.code, error.message, Fate::Present);
                    }
                },
            }
        }
        Ok(Updated { done, matched: reply.n, modified: reply.n_modified })
    }

    /// Counts what updates of existing documents came to, which changed `changed` of them. Only if that is less than
    /// it could be, the documents are asked how new they are: a document never turns back, so one that is newer now
    /// made its event stale.
    pub(super) async fn settle(&mut self, done: Vec<Run>, changed: usize) -> Result<(), Trouble> {
        let open: Vec<usize> = done.iter().filter_map(Run::open).collect();
        let foretold: Vec<usize> = done.iter().filter(|run| run.changes).map(|run| run.head).collect();
        for run in &done {
            self.leave_behind(run.head);
        }
        if changed < foretold.len() + open.len() {
            self.look_up(&[open.as_slice(), foretold.as_slice()].concat()).await?;
        }
        let newer = |index: &&usize| self.version_of_key(**index) > Some(Version::of(self.events[**index]));
        // Another writer's newer document keeps even what was foretold from changing it.
        let foretold = foretold.len() - foretold.iter().filter(newer).count();
        let changed = changed.saturating_sub(foretold).min(open.len());
        let same = open.len() - changed;
        let stale = open.iter().filter(newer).count().min(same);
        self.count(Ending::Updated, changed);
        self.count(Ending::Stale, stale);
        self.count(Ending::Unchanged, same - stale);
        for run in done {
            run.endings.iter().flatten().for_each(|ending| self.count(*ending, 1));
            run.events.iter().for_each(|index| self.waves.tell(*index, Fate::Present));
        }
        Ok(())
    }

    /// Counts what an ordered update came to, up to its first error; each event met the document that the ones before
    /// it left.
    pub(super) fn read_tail(&mut self, mut chunk: Vec<Run>, reply: Reply) -> Result<(), Trouble> {
        chunk.truncate(reply.errors.first().map_or(chunk.len(), |error| error.position + 1));
        let updated = self.read_update(chunk, reply)?;
        updated.must_all_match()?;
        let Updated { done, modified: changed, .. } = updated;
        let mut stale = 0;
        for run in &done {
            if self.version_of_key(run.head) > Some(Version::of(self.events[run.head])) {
                stale += 1;
            } else {
                self.leave_behind(run.head);
            }
            self.waves.tell(run.head, Fate::Present);
        }
        let same = done.len() - changed;
        let stale = stale.min(same);
        self.count(Ending::Updated, changed);
        self.count(Ending::Stale, stale);
        self.count(Ending::Unchanged, same - stale);
        Ok(())
    }

    /// The document of an event that was applied is the event's, unless it was newer before.
    fn leave_behind(&mut self, index: usize) {
        let version = Version::of(self.events[index]);
        if self.version_of_key(index).is_none_or(|stored| stored <= version) {
            self.waves.learn(index, Known::Present(version, Some(index)));
        }
    }

    fn version_of_key(&self, index: usize) -> Option<Version> {
        match self.waves.known(index) {
            Known::Present(version, _) => Some(version),
            Known::Nothing | Known::Absent => None,
        }
    }

    fn count(&mut self, ending: Ending, events: usize) {
        let counts = &mut self.applied.counts;
        let count = match ending {
            Ending::Inserted => &mut counts.inserted,
            Ending::Updated => &mut counts.updated,
            Ending::Unchanged => &mut counts.unchanged,
            Ending::Stale => &mut counts.stale,
        };
        *count += events as u64;
    }

    /// Asks how new the documents of these events are.
    pub(super) async fn look_up(&mut self, indexes: &[usize]) -> Result<(), Trouble> {
        let indexes = self.one_a_key(indexes);
        let keys: Vec<&Key<'_>> = indexes.iter().map(|index| &self.keys[*index]).collect();
        let versions = self.lookup().versions(&keys).await?;
        self.learn_all(&indexes, versions);
        Ok(())
    }

    /// The same in one question where that is possible. A document that it misses counts as absent, which an insert
    /// will prove wrong.
    pub(super) async fn look(&mut self, indexes: &[usize]) -> Result<(), Trouble> {
        let keys: Vec<&Key<'_>> = indexes.iter().map(|index| &self.keys[*index]).collect();
        let versions = self.lookup().seen(&keys).await?;
        self.learn_all(indexes, versions);
        Ok(())
    }

    fn learn_all(&mut self, indexes: &[usize], versions: Vec<Option<Version>>) {
        for (index, version) in indexes.iter().zip(versions) {
            let known = match (version, self.waves.known(*index)) {
                (None, _) => Known::Absent,
                (Some(version), Known::Present(same, content)) if version == same => {
                    Known::Present(version, content)
                }
                (Some(version), _) => Known::Present(version, None),
            };
            self.waves.learn(*index, known);
        }
    }

    fn one_a_key(&self, indexes: &[usize]) -> Vec<usize> {
        let mut asked: Vec<(usize, usize)> =
            indexes.iter().map(|index| (self.waves.key(*index), *index)).collect();
        asked.sort_unstable();
        asked.dedup_by_key(|(key, _)| *key);
        asked.into_iter().map(|(_, index)| index).collect()
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
            self.postpone(index, error.into());
        } else {
            self.reject(index, error.code, error.message, Fate::Absent);
        }
    }

    pub(super) fn reject(&mut self, index: usize, code: i32, reason: String, fate: Fate) {
        self.applied.rejected.push(Rejected { index, code, class: error_codes::name(code), reason });
        self.waves.tell(index, fate);
    }

    pub(super) fn postpone(&mut self, index: usize, refusal: Refusal) {
        let Refusal { code, class, message } = refusal;
        self.way.known.heed(code, &message);
        let reason = format!("a record was refused for now: {class} ({code})");
        let trouble = self.applied.trouble.get_or_insert(Trouble::new(reason));
        trouble.timed_out |= error_codes::is_time_limit(code);
        if !error_codes::is_listed(code) {
            self.applied.strange.push(Rejected { index, code, class, reason: message });
        }
        self.waves.tell(index, Fate::Unfinished);
    }
}

impl From<StatementError> for Refusal {
    fn from(error: StatementError) -> Self {
        Self { code: error.code, class: error_codes::name(error.code), message: error.message }
    }
}

/// Each statement of a command and its error, if it failed.
fn with_errors(
    chunk: Vec<Run>,
    errors: Vec<StatementError>,
) -> impl Iterator<Item = (Run, Option<StatementError>)> {
    let mut errors = errors.into_iter().peekable();
    chunk.into_iter().enumerate().map(move |(position, run)| {
        let error = errors.next_if(|error| error.position == position);
        (run, error)
    })
}
