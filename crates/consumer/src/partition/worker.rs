//! The worker of one partition: it takes the queued records as a batch, writes it, and repeats.
//!
//! A batch is finished when each of its records is written, dead-lettered or skipped. Only then
//! does the next batch begin. Failures are retried without limit. At a stop the worker still
//! finishes its current batch, unless the servers stay unavailable.

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ::kafka::topic_reader::RecordPosition;
use events::{Poison, Source, StorableEvent};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use service::time::Backoff;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::configured_sources::{ExpectedSources, UNKNOWN_SOURCE};
use crate::kafka::dead_letters::{Cause, DeadLetters};
use crate::metrics::{Metrics, Outcome};
use crate::mongo::{BatchOutcome, Rejected, Store, StoreState, TransientError};
use crate::partition::batch::{BatchLimits, Batcher, Decision, Entry};
use crate::partition::progress::{Progress, WaitReason};
use crate::partition::queue::{RecordQueue, SetAsideReply, SetAsideRequest};
use crate::partition::retry::{BatchSize, RetryDecision, UnlistedCodeRetry, take_rejected};

const MIN_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// Maximum number of sources of one batch that are written concurrently.
const MAX_CONCURRENT_SOURCES: usize = 4;
/// Consecutive failed attempts after which a worker logs that it waits, and after which a stopping
/// worker abandons its batch.
const MAX_FAILED_ATTEMPTS: u32 = 3;

/// Handles and limits that all workers share.
pub struct WorkerContext {
    pub store: Store,
    pub dead_letters: DeadLetters,
    pub metrics: Metrics,
    /// Sources whose events are stored.
    pub expected: ExpectedSources,
    /// Limits of one write.
    pub limits: BatchLimits,
    /// How long a record is rejected with an unlisted code before it is dead-lettered.
    pub unlisted_grace: Duration,
}

/// The worker abandoned its batch: it was stopping and the servers were unavailable. Unfinished
/// records stay uncommitted.
#[derive(Debug)]
struct Abandoned;

/// The state of a record in the current batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecordState {
    /// The record has to be written or dead-lettered.
    Pending,
    /// The dead letter is being produced. The record is not written any more.
    DeadLettering,
    /// The outcome is durable and counted.
    Finished,
}

/// The batch that the worker processes.
struct CurrentBatch {
    entries: Vec<Entry>,
    /// The sequence number of the first record.
    first_sequence: u64,
    /// The state of each record.
    states: watch::Sender<Vec<RecordState>>,
}

impl CurrentBatch {
    /// The event at `index`, unless the record is skipped or poison.
    fn event(&self, index: usize) -> Option<&StorableEvent> {
        match &self.entries.get(index)?.decision {
            Decision::Store(event) => Some(event),
            _ => None,
        }
    }

    /// Claims a pending record for its dead letter. Returns the state before the call: only if it
    /// was pending may the caller produce the dead letter.
    fn claim(&self, index: usize) -> RecordState {
        let mut before = RecordState::Finished;
        self.states.send_if_modified(|states| {
            before = states[index];
            let is_pending = before == RecordState::Pending;
            if is_pending {
                states[index] = RecordState::DeadLettering;
            }
            is_pending
        });
        before
    }

    fn finish(&self, indexes: &[usize]) {
        self.states.send_if_modified(|states| {
            indexes.iter().for_each(|index| states[*index] = RecordState::Finished);
            false
        });
    }

    fn is_pending(&self, index: usize) -> bool {
        self.states.borrow()[index] == RecordState::Pending
    }

    /// Waits until one of the pending records `indexes` is claimed for its dead letter.
    async fn any_claimed(&self, indexes: &[usize]) {
        let claimed =
            |states: &Vec<RecordState>| indexes.iter().any(|i| states[*i] == RecordState::DeadLettering);
        // This cannot fail: the sender outlives this future.
        _ = self.states.subscribe().wait_for(claimed).await;
    }
}

/// The worker of one partition.
pub struct Worker {
    context: Arc<WorkerContext>,
    progress: Arc<Progress>,
    queue: Arc<RecordQueue>,
    stop: CancellationToken,
    batch_size: BatchSize,
}

impl Worker {
    /// Creates a worker that ends after its current batch once `stop` is cancelled.
    pub fn new(
        context: Arc<WorkerContext>,
        progress: Arc<Progress>,
        queue: Arc<RecordQueue>,
        stop: CancellationToken,
    ) -> Self {
        let batch_size = BatchSize::new(context.limits.records);
        Self { context, progress, queue, stop, batch_size }
    }

    /// Processes batches and requests of an operator until `stop`.
    pub async fn run(self, mut requests: UnboundedReceiver<SetAsideRequest>) {
        let mut batcher = Batcher::default();
        while let Some(entries) = self.next_batch(&mut batcher, &mut requests).await {
            if let Err(Abandoned) = self.process(entries, &mut requests).await {
                tracing::info!(
                    topic = &*self.progress.topic,
                    partition = self.progress.partition,
                    "batch abandoned at shutdown"
                );
                return;
            }
        }
    }

    async fn next_batch(
        &self,
        batcher: &mut Batcher,
        requests: &mut UnboundedReceiver<SetAsideRequest>,
    ) -> Option<Vec<Entry>> {
        loop {
            if self.stop.is_cancelled() {
                return None;
            }
            let limits = BatchLimits { records: self.batch_size.records(), bytes: self.context.limits.bytes };
            let records = limits.records.saturating_sub(batcher.waiting());
            let bytes = limits.bytes.saturating_sub(batcher.waiting_bytes());
            // The queue returns at least one record, however large. So take only if there is room.
            if bytes > 0 {
                batcher.add(self.queue.take(records, bytes));
            }
            let entries = batcher.next(limits, &self.context.expected);
            if !entries.is_empty() {
                return Some(entries);
            }
            tokio::select! {
                () = self.queue.wait_for_push() => {}
                () = self.stop.cancelled() => {}
                Some(request) = requests.recv() => request.reply(SetAsideReply::NotInBatch),
            }
        }
    }

    /// Finishes every record of a batch.
    async fn process(
        &self,
        entries: Vec<Entry>,
        requests: &mut UnboundedReceiver<SetAsideRequest>,
    ) -> Result<(), Abandoned> {
        let first_sequence = self.progress.begin(entries.iter().map(|entry| entry.record.offset));
        self.context.metrics.read(entries.len());
        let states = watch::Sender::new(vec![RecordState::Pending; entries.len()]);
        let batch = &CurrentBatch { entries, first_sequence, states };
        let (mut skipped, mut poison) = (Vec::new(), Vec::new());
        let mut by_source: BTreeMap<&Source, Vec<usize>> = BTreeMap::new();
        for (index, entry) in batch.entries.iter().enumerate() {
            match &entry.decision {
                Decision::Skip => skipped.push(index),
                Decision::DeadLetter(reason) => poison.push((index, Cause::from(reason))),
                Decision::Store(event) => by_source.entry(&event.source).or_default().push(index),
            }
        }
        self.context.metrics.finished(Outcome::Skipped, skipped.len() as u64);
        self.mark_finished(batch, &skipped);
        let writes = by_source.into_iter();
        let writes = writes.map(|(source, indexes)| self.write_until_finished(batch, source, indexes));
        let writes = futures::stream::iter(writes.collect::<Vec<_>>());
        let writes = writes.buffer_unordered(MAX_CONCURRENT_SOURCES).collect::<Vec<_>>();
        let work = async {
            let (dead_lettered, written) = tokio::join!(self.dead_letter_all(batch, poison), writes);
            written.into_iter().fold(dead_lettered, Result::and)
        };
        self.handle_set_aside_during(batch, work, requests).await
    }

    /// Runs `work`, which finishes the current batch, and meanwhile handles requests to set records
    /// aside. Both run in one task. So a completed write is counted before a request can claim its
    /// records, or it is not counted at all.
    async fn handle_set_aside_during(
        &self,
        batch: &CurrentBatch,
        work: impl Future<Output = Result<(), Abandoned>>,
        requests: &mut UnboundedReceiver<SetAsideRequest>,
    ) -> Result<(), Abandoned> {
        let mut work = pin!(work);
        let mut set_aside = FuturesUnordered::new();
        let (mut working, mut outcome) = (true, Ok(()));
        while working || !set_aside.is_empty() {
            tokio::select! {
                worked = &mut work, if working => {
                    working = false;
                    outcome = outcome.and(worked);
                }
                Some(one) = set_aside.next() => outcome = outcome.and(one),
                Some(request) = requests.recv(), if working => {
                    set_aside.extend(self.set_aside(batch, request));
                }
            }
        }
        outcome
    }

    /// Claims a pending record for its dead letter. The returned future produces the dead letter.
    fn set_aside<'a>(
        &'a self,
        batch: &'a CurrentBatch,
        request: SetAsideRequest,
    ) -> Option<impl Future<Output = Result<(), Abandoned>> + 'a> {
        let index = batch.entries.iter().position(|entry| entry.record.offset == request.offset);
        let index = match index.map(|index| (index, batch.claim(index))) {
            Some((index, RecordState::Pending)) => index,
            Some((_, RecordState::DeadLettering)) => {
                request.reply(SetAsideReply::InProgress);
                return None;
            }
            Some((_, RecordState::Finished)) | None => {
                request.reply(SetAsideReply::NotInBatch);
                return None;
            }
        };
        let (topic, partition) = (&*self.progress.topic, self.progress.partition);
        let (offset, reason) = (request.offset, &request.reason);
        tracing::warn!(topic, partition, offset, reason, "record set aside by an operator");
        let cause = Cause { stage: "store", class: "SetAside".into(), reason: request.reason.clone() };
        Some(async move {
            let position = self.dead_letter(batch, index, &cause).await?;
            request.reply(SetAsideReply::DeadLettered(position));
            Ok(())
        })
    }

    /// Writes the events of one source, and retries until all are finished.
    async fn write_until_finished(
        &self,
        batch: &CurrentBatch,
        source: &Source,
        indexes: Vec<usize>,
    ) -> Result<(), Abandoned> {
        let mut todo = VecDeque::from(indexes);
        let mut unlisted = UnlistedCodeRetry::new(self.context.unlisted_grace);
        let mut backoff = Backoff::new(MIN_BACKOFF, MAX_BACKOFF);
        loop {
            // Records that an operator set aside are not written any more.
            todo.retain(|index| batch.is_pending(*index));
            if todo.is_empty() {
                break;
            }
            let count = unlisted.chunk_size(&todo, self.batch_size.records());
            let chunk: Vec<usize> = todo.drain(..count).collect();
            let Some(mut applied) = self.write(batch, source, &chunk).await else {
                chunk.into_iter().rev().for_each(|index| todo.push_front(index));
                continue;
            };
            let mut causes = Vec::new();
            if let RetryDecision::DeadLetter { others_stored } =
                unlisted.after_write(&chunk, &applied, Instant::now())
                && (others_stored || self.context.store.takes_writes(source).await)
            {
                causes.extend(take_rejected(&mut applied).map(|cause| (chunk[0], cause)));
            }
            causes.extend(applied.rejected.into_iter().map(|r| (chunk[r.index], Cause::from(r))));
            self.dead_letter_all(batch, causes).await?;
            applied.unfinished.iter().rev().for_each(|&index| todo.push_front(chunk[index]));
            let server_answers = self.context.store.server_answers();
            self.batch_size.update(count, applied.error.as_ref(), server_answers);
            if applied.unfinished.len() < count {
                backoff.reset();
            }
            if applied.unfinished.is_empty() {
                self.progress.set_wait_reason(None);
            } else {
                self.wait_before_retry(&mut backoff, applied.error).await?;
            }
        }
        if backoff.attempts() > 0 {
            self.progress.set_wait_reason(None);
        }
        Ok(())
    }

    /// Writes `chunk` once. Returns `None` if one of its records was set aside meanwhile. The
    /// result of that write is then not counted, and the guard makes it harmless to write the
    /// others again.
    async fn write(&self, batch: &CurrentBatch, source: &Source, chunk: &[usize]) -> Option<BatchOutcome> {
        let events: Vec<&StorableEvent> = chunk.iter().filter_map(|&index| batch.event(index)).collect();
        let started = Instant::now();
        let doublings = self.batch_size.doublings(chunk.len());
        let applied = tokio::select! {
            biased;
            () = batch.any_claimed(chunk) => return None,
            applied = self.context.store.apply(source, &events, doublings) => applied,
        };
        self.context.metrics.wrote(started.elapsed(), events.len(), &applied.counts);
        let mut stored = vec![true; chunk.len()];
        let not_stored =
            applied.rejected.iter().map(|rejected| rejected.index).chain(applied.unfinished.iter().copied());
        not_stored.for_each(|index| stored[index] = false);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let of_source = self.context.metrics.source(source);
        if let Some(metrics) = of_source {
            metrics.wrote(&applied.counts, now);
        }
        let stored: Vec<usize> =
            chunk.iter().zip(&stored).filter(|(_, stored)| **stored).map(|(i, _)| *i).collect();
        for event in stored.iter().filter_map(|&index| batch.event(index)) {
            let ingested = Duration::from_millis(event.ingested_at.get().unsigned_abs());
            let age = now.saturating_sub(ingested);
            self.context.metrics.observe_freshness(age);
            if let Some(metrics) = of_source {
                metrics.observe_freshness(age);
            }
        }
        self.mark_finished(batch, &stored);
        Some(applied)
    }

    /// Dead-letters records concurrently.
    async fn dead_letter_all(
        &self,
        batch: &CurrentBatch,
        causes: Vec<(usize, Cause)>,
    ) -> Result<(), Abandoned> {
        // Skips records that an operator set aside meanwhile: their dead letters are in progress.
        let causes: Vec<_> =
            causes.into_iter().filter(|(index, _)| batch.claim(*index) == RecordState::Pending).collect();
        let Some((index, cause)) = causes.first() else { return Ok(()) };
        tracing::warn!(
            topic = &*self.progress.topic,
            partition = self.progress.partition,
            records = causes.len(),
            first_offset = batch.entries[*index].record.offset,
            stage = cause.stage,
            class = cause.class,
            "sending records to the dead-letter topic"
        );
        let dead_letters = causes.iter().map(|(index, cause)| self.dead_letter(batch, *index, cause));
        join_all(dead_letters).await.into_iter().try_for_each(|one| one.map(drop))
    }

    /// Produces the dead letter of one record, and retries until it is delivered.
    async fn dead_letter(
        &self,
        batch: &CurrentBatch,
        index: usize,
        cause: &Cause,
    ) -> Result<RecordPosition, Abandoned> {
        let origin = self.progress.topic_partition();
        let record = &batch.entries[index].record;
        let mut backoff = Backoff::new(MIN_BACKOFF, MAX_BACKOFF);
        let position = loop {
            let reason = match self.context.dead_letters.produce(&origin, record, cause).await {
                Ok(position) => break position,
                Err(reason) => reason,
            };
            let delay = backoff.next_delay();
            let is_logged = matches!(self.progress.wait_reason(), Some(WaitReason::DeadLetter(_)));
            if backoff.attempts() == 1 && !is_logged {
                tracing::warn!(reason, "dead letter could not be produced");
            }
            self.progress.set_wait_reason(Some(WaitReason::DeadLetter(reason)));
            if self.stop.is_cancelled() {
                return Err(Abandoned);
            }
            tokio::time::sleep(delay).await;
        };
        if backoff.attempts() > 0 {
            self.progress.set_wait_reason(None);
        }
        self.context.metrics.finished(Outcome::DeadLettered, 1);
        if let Some(event) = batch.event(index)
            && let Some(metrics) = self.context.metrics.source(&event.source)
        {
            metrics.dead_lettered();
        }
        if cause.class == UNKNOWN_SOURCE {
            self.context.metrics.unknown_source.inc();
        }
        self.mark_finished(batch, &[index]);
        Ok(position)
    }

    fn mark_finished(&self, batch: &CurrentBatch, indexes: &[usize]) {
        batch.finish(indexes);
        self.progress.finish(indexes.iter().map(|&index| batch.first_sequence + index as u64));
    }

    async fn wait_before_retry(
        &self,
        backoff: &mut Backoff,
        error: Option<TransientError>,
    ) -> Result<(), Abandoned> {
        let delay = backoff.next_delay();
        let reason = error.map_or_else(|| "MongoDB did not finish the write".into(), |t| t.reason);
        // An unavailable MongoDB is logged once for all workers, where its state is watched.
        if backoff.attempts() == MAX_FAILED_ATTEMPTS
            && *self.context.store.state().borrow() == StoreState::Ready
        {
            let (topic, partition) = (&*self.progress.topic, self.progress.partition);
            tracing::warn!(topic, partition, reason, "partition worker waits for mongodb");
        }
        self.progress.set_wait_reason(Some(WaitReason::MongoDb(reason)));
        if self.stop.is_cancelled() && backoff.attempts() >= MAX_FAILED_ATTEMPTS {
            return Err(Abandoned);
        }
        tokio::time::sleep(delay).await;
        Ok(())
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
