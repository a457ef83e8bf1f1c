//! One partition's work: take what has arrived, write it, go on. A batch is finished when each of its records is
//! written, dead-lettered or skipped; until then the next is not begun, and a failure is tried again for ever. What
//! was begun is finished even after the lane was told to end, unless the servers stay away.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use events::{Poison, Source, StorableEvent};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use service::backoff::Backoff;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::kafka::dead_letters::{Cause, DeadLetters, Letter, Origin};
use crate::metrics::{Metrics, Outcome};
use crate::mongo::{BatchOutcome, Rejected, Store, StoreState, TransientError};
use crate::partition::batch::{Batch, Batcher, Limits};
use crate::partition::batch_size::{Pace, Went};
use crate::partition::decision::Expected;
use crate::partition::progress::{Progress, Waits};
use crate::partition::queue::Inbox;
use crate::partition::set_aside::{Reply, SetAside};
use crate::unlisted_code::{self, RetryDecision, UnlistedCodeRetry};

const FIRST_DELAY: Duration = Duration::from_millis(50);
const MOST_DELAY: Duration = Duration::from_secs(1);
/// Sources of one batch that are written at the same time.
const SOURCES_AT_ONCE: usize = 4;
/// Fruitless attempts in a row after which a lane that was told to end gives up, and after which it says in the log
/// that it waits.
const FRUITLESS_ATTEMPTS: u32 = 3;

/// What every lane works with.
pub struct Work {
    /// The database.
    pub store: Store,
    /// The dead-letter topic.
    pub dead_letters: DeadLetters,
    /// What is counted.
    pub metrics: Metrics,
    /// Sources that are stored.
    pub expected: Expected,
    /// Bounds of one write.
    pub limits: Limits,
    /// How long a record is refused with an unlisted code before it is dead-lettered.
    pub unlisted_grace: Duration,
}

/// The lane was told to end and the servers are away: what is not finished stays uncommitted.
#[derive(Debug)]
struct GaveUp;

/// A batch in hand, the sequence number of its first record, and what has become of each record.
#[derive(Clone, Copy)]
struct Hand<'a> {
    batch: &'a Batch,
    first: u64,
    fates: &'a Fates,
}

/// What has become of a record in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is to be written.
    Open,
    /// Its dead letter is under way: it is not written any more.
    DeadLetter,
    /// Its outcome is durable and counted.
    Finished,
}

/// What has become of each record in hand.
struct Fates(watch::Sender<Vec<Fate>>);

impl Fates {
    fn of(batch: &Batch) -> Self {
        Self(watch::Sender::new(vec![Fate::Open; batch.entries.len()]))
    }

    /// Has the dead letter of an open record made, by whoever asks first; what the record was before.
    fn take(&self, index: usize) -> Fate {
        let mut before = Fate::Finished;
        self.0.send_if_modified(|fates| {
            before = fates[index];
            let is_open = before == Fate::Open;
            if is_open {
                fates[index] = Fate::DeadLetter;
            }
            is_open
        });
        before
    }

    fn finish(&self, indices: &[usize]) {
        self.0.send_if_modified(|fates| {
            indices.iter().for_each(|index| fates[*index] = Fate::Finished);
            false
        });
    }

    fn is_open(&self, index: usize) -> bool {
        self.0.borrow()[index] == Fate::Open
    }

    /// Waits until the dead letter of one of `indices`, which are open, is under way.
    async fn any_taken(&self, indices: &[usize]) {
        let taken = |fates: &Vec<Fate>| indices.iter().any(|index| fates[*index] == Fate::DeadLetter);
        // The sender lives as long as this future.
        _ = self.0.subscribe().wait_for(taken).await;
    }
}

/// One partition's lane.
pub struct Lane {
    work: Arc<Work>,
    progress: Arc<Progress>,
    inbox: Arc<Inbox>,
    end: CancellationToken,
    pace: Pace,
}

impl Lane {
    /// A lane that ends after its batch in hand once `end` is cancelled.
    pub fn new(work: Arc<Work>, progress: Arc<Progress>, inbox: Arc<Inbox>, end: CancellationToken) -> Self {
        let pace = Pace::new(work.limits.records);
        Self { work, progress, inbox, end, pace }
    }

    /// Works until told to end.
    pub async fn run(self) {
        let mut batcher = Batcher::default();
        while let Some(batch) = self.next_batch(&mut batcher).await {
            if let Err(GaveUp) = self.finish(&batch).await {
                tracing::info!(
                    topic = &*self.progress.topic,
                    partition = self.progress.partition,
                    "lane gave up its batch"
                );
                return;
            }
        }
    }

    async fn next_batch(&self, batcher: &mut Batcher) -> Option<Batch> {
        loop {
            if self.end.is_cancelled() {
                return None;
            }
            let limits = Limits { records: self.pace.records(), bytes: self.work.limits.bytes };
            let room = limits.records.saturating_sub(batcher.waiting());
            let room_bytes = limits.bytes.saturating_sub(batcher.waiting_bytes());
            // An inbox gives one record however large it is: only to a batcher that has room.
            if room_bytes > 0 {
                batcher.add(self.inbox.take(room, room_bytes));
            }
            let batch = batcher.next(limits, &self.work.expected);
            if !batch.entries.is_empty() {
                return Some(batch);
            }
            tokio::select! {
                () = self.inbox.arrival() => {}
                () = self.end.cancelled() => {}
                request = self.inbox.requests.next() => request.answer(Reply::NotInHand),
            }
        }
    }

    async fn finish(&self, batch: &Batch) -> Result<(), GaveUp> {
        let first = self.progress.begin(batch.entries.iter().map(|entry| entry.record.offset));
        self.work.metrics.read(batch.entries.len());
        let fates = Fates::of(batch);
        let hand = Hand { batch, first, fates: &fates };
        let skipped = batch.skipped();
        self.work.metrics.finished(Outcome::Skipped, skipped.len() as u64);
        self.settle(hand, &skipped);
        let poison: Vec<_> = batch.poison().map(|(index, poison)| (index, Cause::from(poison))).collect();
        let writes = batch.by_source().into_iter().map(|(source, members)| self.store(hand, source, members));
        let writes = futures::stream::iter(writes.collect::<Vec<_>>());
        let store = writes.buffer_unordered(SOURCES_AT_ONCE).collect::<Vec<_>>();
        let work = async {
            let (buried, stored) = tokio::join!(self.bury(hand, poison), store);
            stored.into_iter().fold(buried, Result::and)
        };
        self.set_aside_during(hand, work).await
    }

    /// Does `work`, which finishes the records in hand, and meanwhile sets those aside that are asked for. Both are parts
    /// of one task: what a write has brought is counted before anybody can take its records away, or not at all.
    async fn set_aside_during(
        &self,
        hand: Hand<'_>,
        work: impl Future<Output = Result<(), GaveUp>>,
    ) -> Result<(), GaveUp> {
        let mut work = pin!(work);
        let mut set_aside = FuturesUnordered::new();
        let (mut works, mut outcome) = (true, Ok(()));
        while works || !set_aside.is_empty() {
            tokio::select! {
                worked = &mut work, if works => {
                    works = false;
                    outcome = outcome.and(worked);
                }
                Some(one) = set_aside.next() => outcome = outcome.and(one),
                request = self.inbox.requests.next(), if works => {
                    set_aside.extend(self.set_aside(hand, request));
                }
            }
        }
        outcome
    }

    /// Takes an open record in hand away from the database; the rest is its dead letter.
    fn set_aside<'a>(
        &'a self,
        hand: Hand<'a>,
        request: SetAside,
    ) -> Option<impl Future<Output = Result<(), GaveUp>> + 'a> {
        let index = hand.batch.entries.iter().position(|entry| entry.record.offset == request.offset);
        let Some((index, fate)) = index.map(|index| (index, hand.fates.take(index))) else {
            request.answer(Reply::NotInHand);
            return None;
        };
        match fate {
            Fate::Open => {}
            Fate::DeadLetter => {
                request.answer(Reply::UnderWay);
                return None;
            }
            Fate::Finished => {
                request.answer(Reply::NotInHand);
                return None;
            }
        }
        let (topic, partition) = (&*self.progress.topic, self.progress.partition);
        let (offset, reason) = (request.offset, &request.reason);
        tracing::warn!(topic, partition, offset, reason, "record is set aside by an operator");
        let cause = Cause { stage: "store", class: "SetAside".into(), reason: request.reason.clone() };
        Some(async move {
            let letter = self.bury_one(hand, index, &cause).await?;
            request.answer(Reply::Done(letter));
            Ok(())
        })
    }

    /// Writes the events of one source, what is unfinished again and again.
    async fn store(&self, hand: Hand<'_>, source: &Source, members: Vec<usize>) -> Result<(), GaveUp> {
        let mut todo = VecDeque::from(members);
        let mut unlisted = UnlistedCodeRetry::new(self.work.unlisted_grace);
        let mut backoff = Backoff::new(FIRST_DELAY, MOST_DELAY);
        loop {
            // Of some the dead letter is under way, as somebody asked for it.
            todo.retain(|index| hand.fates.is_open(*index));
            if todo.is_empty() {
                break;
            }
            let count = unlisted.chunk_size(&todo, self.pace.records());
            let chunk: Vec<usize> = todo.drain(..count).collect();
            let Some(mut applied) = self.write(hand, source, &chunk).await else {
                chunk.into_iter().rev().for_each(|index| todo.push_front(index));
                continue;
            };
            let mut causes = Vec::new();
            if let RetryDecision::DeadLetter { others_stored } =
                unlisted.after_write(&chunk, &applied, Instant::now())
                && (others_stored || self.work.store.takes_writes(source).await)
            {
                causes.extend(unlisted_code::take_rejected(&mut applied).map(|cause| (chunk[0], cause)));
            }
            causes.extend(applied.rejected.into_iter().map(|r| (chunk[r.index], Cause::from(r))));
            self.bury(hand, causes).await?;
            applied.unfinished.iter().rev().for_each(|&index| todo.push_front(chunk[index]));
            self.pace.after(count, self.went(applied.error.as_ref()));
            if applied.unfinished.len() < count {
                backoff.reset();
            }
            if applied.unfinished.is_empty() {
                self.progress.waits_for(None);
            } else {
                self.wait(&mut backoff, applied.error).await?;
            }
        }
        if backoff.attempts() > 0 {
            self.progress.waits_for(None);
        }
        Ok(())
    }

    /// Writes `chunk`. Nothing if one of its records was taken away meanwhile: whatever the server does with the write, it
    /// is not counted, and the guard makes it harmless to write the others again.
    async fn write(&self, hand: Hand<'_>, source: &Source, chunk: &[usize]) -> Option<BatchOutcome> {
        let events: Vec<&StorableEvent> = chunk.iter().filter_map(|&index| hand.batch.event(index)).collect();
        let started = Instant::now();
        let applied = tokio::select! {
            biased;
            () = hand.fates.any_taken(chunk) => return None,
            applied = self.work.store.apply(source, &events, self.pace.doublings(chunk.len())) => applied,
        };
        self.work.metrics.wrote(started.elapsed(), events.len(), &applied.counts);
        let mut stored = vec![true; chunk.len()];
        let not_stored =
            applied.rejected.iter().map(|rejected| rejected.index).chain(applied.unfinished.iter().copied());
        not_stored.for_each(|index| stored[index] = false);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let stored: Vec<usize> =
            chunk.iter().zip(&stored).filter(|(_, stored)| **stored).map(|(i, _)| *i).collect();
        for event in stored.iter().filter_map(|&index| hand.batch.event(index)) {
            let ingested = Duration::from_millis(event.ingested_at.get().unsigned_abs());
            self.work.metrics.fresh(now.saturating_sub(ingested));
        }
        self.settle(hand, &stored);
        Some(applied)
    }

    /// Makes dead letters, all at the same time.
    async fn bury(&self, hand: Hand<'_>, causes: Vec<(usize, Cause)>) -> Result<(), GaveUp> {
        // An operator may have asked for one of them meanwhile, and its dead letter is under way.
        let causes: Vec<_> =
            causes.into_iter().filter(|(index, _)| hand.fates.take(*index) == Fate::Open).collect();
        let Some((index, cause)) = causes.first() else { return Ok(()) };
        tracing::warn!(
            topic = &*self.progress.topic,
            partition = self.progress.partition,
            records = causes.len(),
            first_offset = hand.batch.entries[*index].record.offset,
            stage = cause.stage,
            class = cause.class,
            "records are dead letters"
        );
        let letters = causes.iter().map(|(index, cause)| self.bury_one(hand, *index, cause));
        join_all(letters).await.into_iter().try_for_each(|one| one.map(drop))
    }

    async fn bury_one(&self, hand: Hand<'_>, index: usize, cause: &Cause) -> Result<Letter, GaveUp> {
        let origin = Origin { topic: &self.progress.topic, partition: self.progress.partition };
        let record = &hand.batch.entries[index].record;
        let mut backoff = Backoff::new(FIRST_DELAY, MOST_DELAY);
        let letter = loop {
            let reason = match self.work.dead_letters.produce(origin, record, cause).await {
                Ok(letter) => break letter,
                Err(reason) => reason,
            };
            let delay = backoff.next_delay();
            let waits_already = matches!(self.progress.waits(), Some(Waits::ForDeadLetter(_)));
            if backoff.attempts() == 1 && !waits_already {
                tracing::warn!(reason, "dead letter is not taken");
            }
            self.progress.waits_for(Some(Waits::ForDeadLetter(reason)));
            if self.end.is_cancelled() {
                return Err(GaveUp);
            }
            tokio::time::sleep(delay).await;
        };
        if backoff.attempts() > 0 {
            self.progress.waits_for(None);
        }
        self.work.metrics.finished(Outcome::DeadLettered, 1);
        self.settle(hand, &[index]);
        Ok(letter)
    }

    fn settle(&self, hand: Hand<'_>, indices: &[usize]) {
        hand.fates.finish(indices);
        self.progress.finish(indices.iter().map(|&index| hand.first + index as u64));
    }

    fn went(&self, trouble: Option<&TransientError>) -> Went {
        match trouble {
            None => Went::Well,
            Some(trouble) if trouble.timed_out => {
                Went::TimedOut { server_answers: self.work.store.server_answers() }
            }
            Some(_) => Went::Wrong,
        }
    }

    async fn wait(&self, backoff: &mut Backoff, trouble: Option<TransientError>) -> Result<(), GaveUp> {
        let delay = backoff.next_delay();
        let reason = trouble.map_or_else(|| "the database did not finish the write".into(), |t| t.reason);
        // While the database is away its own watch has said so, once for all lanes.
        if backoff.attempts() == FRUITLESS_ATTEMPTS && *self.work.store.state().borrow() == StoreState::Ready
        {
            let (topic, partition) = (&*self.progress.topic, self.progress.partition);
            tracing::warn!(topic, partition, reason, "lane waits for the database");
        }
        self.progress.waits_for(Some(Waits::ForStore(reason)));
        if self.end.is_cancelled() && backoff.attempts() >= FRUITLESS_ATTEMPTS {
            return Err(GaveUp);
        }
        tokio::time::sleep(delay).await;
        Ok(())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.inbox.requests.end();
    }
}

impl From<&Poison> for Cause {
    fn from(poison: &Poison) -> Self {
        Self { stage: poison.stage, class: poison.class.to_owned(), reason: poison.reason.clone() }
    }
}

impl From<Rejected> for Cause {
    fn from(rejected: Rejected) -> Self {
        let reason = format!("code {}: {}", rejected.code, rejected.reason);
        Self { stage: "store", class: rejected.code_name, reason }
    }
}
