//! The workers of the assigned partitions.
//!
//! The reader pushes records to them, a rebalance starts and stops them, and the committer collects
//! the offsets to commit. Health and metrics read their state.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::lock::lock;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::kafka::record::{Record, TopicPartition};
use crate::partition::offsets::FinishedOffsets;
use crate::partition::progress::{PartitionView, Progress};
use crate::partition::queue::QueueLimit;
use crate::partition::worker::{Worker, WorkerContext};

/// Memory for queued records, over all workers.
const QUEUES_BYTES: usize = 16 << 20;
/// Maximum number of full batches in one queue. More than two, because each pause discards the
/// records of the partition that librdkafka has already fetched.
const MAX_QUEUED_BATCHES: usize = 8;

/// The result of pushing a record to its worker.
#[derive(Debug, PartialEq, Eq)]
pub enum PushResult {
    /// The record is queued, and there is room for more.
    Queued,
    /// The record is queued, and the partition has to be paused.
    QueueFull(TopicPartition),
    /// The partition is not assigned any more, or its worker is stopping. The record is dropped,
    /// and the next owner of the partition reads it.
    NotAssigned,
    /// The worker's task ended unexpectedly, which is a bug.
    WorkerEnded(TopicPartition),
}

struct RunningWorker {
    view: PartitionView,
    task: JoinHandle<()>,
    stop: CancellationToken,
    paused: bool,
    /// The offset that was last passed to a commit.
    passed_to_commit: Option<i64>,
}

impl RunningWorker {
    fn topic_partition(&self) -> TopicPartition {
        self.view.progress.topic_partition()
    }
}

#[derive(Default)]
struct Table {
    topics: HashMap<Arc<str>, HashMap<i32, RunningWorker>>,
    /// Offsets that former workers finished. They may be read again.
    finished_before: HashMap<TopicPartition, FinishedOffsets>,
    closed: bool,
}

impl Table {
    fn all(&mut self) -> impl Iterator<Item = &mut RunningWorker> {
        self.topics.values_mut().flat_map(HashMap::values_mut)
    }

    fn get(&mut self, topic: &str, partition: i32) -> Option<&mut RunningWorker> {
        self.topics.get_mut(topic)?.get_mut(&partition)
    }

    fn remove(&mut self, (topic, partition): &TopicPartition) -> Option<RunningWorker> {
        self.topics.get_mut(topic)?.remove(partition)
    }
}

/// All workers of this process.
pub struct Workers {
    context: Arc<WorkerContext>,
    runtime: Handle,
    table: Mutex<Table>,
    /// Memory for the queue of one worker.
    queue_bytes: AtomicUsize,
    /// Number of paused partitions.
    paused: AtomicUsize,
    client_error: Mutex<Option<(String, std::time::Instant)>>,
    /// Progress of closed workers whose partitions are still assigned.
    closed: Mutex<Vec<Arc<Progress>>>,
    /// When workers are aborted at shutdown. This caps the timeout of every caller of
    /// [`Workers::stop`].
    shutdown_deadline: OnceLock<Instant>,
    /// The name of a thread that panics at its next call.
    #[cfg(test)]
    pub(crate) panicking_thread: OnceLock<&'static str>,
}

impl Workers {
    /// Creates an empty set of workers, whose tasks will run on `runtime`.
    pub fn new(context: Arc<WorkerContext>, runtime: Handle) -> Self {
        Self {
            context,
            runtime,
            table: Mutex::default(),
            queue_bytes: AtomicUsize::new(QUEUES_BYTES),
            paused: AtomicUsize::new(0),
            client_error: Mutex::default(),
            closed: Mutex::default(),
            shutdown_deadline: OnceLock::new(),
            #[cfg(test)]
            panicking_thread: OnceLock::new(),
        }
    }

    /// Signals every worker to end after its current batch, within `timeout` from now.
    ///
    /// The reader may be waiting for a revoked partition at this moment. The other workers must not
    /// wait for that, and the reader must not wait longer than `timeout`.
    pub fn begin_shutdown(&self, timeout: Duration) {
        _ = self.shutdown_deadline.set(Instant::now() + timeout);
        lock(&self.table).all().for_each(|worker| worker.stop.cancel());
    }

    /// Updates the client's positions. Every record below them was pushed to its worker. A stopping
    /// worker receives no records any more, so its position is ignored.
    pub fn set_positions(&self, positions: &TopicPartitionList) {
        let mut table = lock(&self.table);
        for element in positions.elements() {
            if let Offset::Offset(position) = element.offset()
                && let Some(worker) = table.get(element.topic(), element.partition())
                && !worker.stop.is_cancelled()
            {
                worker.view.progress.set_position(position);
            }
        }
    }

    /// Kafka has no record at `position` of a partition; the client continues at the beginning.
    pub fn set_position_reset(&self, topic: &str, partition: i32, position: i64) {
        if let Some(worker) = lock(&self.table).get(topic, partition) {
            worker.view.progress.set_position_reset(position);
        }
    }

    /// Counts and logs records that were deleted before they were read, if the partition of
    /// `progress` begins at `first` now.
    pub fn count_lost(&self, progress: &Progress, first: i64) {
        let Some(lost) = progress.take_lost(first) else { return };
        let (topic, partition) = (&*progress.topic, progress.partition);
        let (records, first_offset, next_offset) = (lost.end - lost.start, lost.start, lost.end);
        tracing::error!(
            topic,
            partition,
            records,
            first_offset,
            next_offset,
            "records were deleted by retention before they were read"
        );
        // If the partition is empty now, the group continues after the deleted records.
        progress.set_position(next_offset);
        self.context.metrics.lost(topic, records.unsigned_abs());
    }

    /// Kafka confirmed a commit of these offsets.
    pub fn set_committed(&self, offsets: &TopicPartitionList) {
        let mut table = lock(&self.table);
        for element in offsets.elements() {
            if let (Offset::Offset(offset), Some(worker)) =
                (element.offset(), table.get(element.topic(), element.partition()))
            {
                worker.view.progress.set_committed(offset);
            }
        }
    }

    /// Records an error from which the client recovers by itself, for `/health`.
    pub fn record_poll_error(&self, error: &KafkaError) {
        tracing::debug!(error = %error, "poll failed");
        self.set_client_error(error.to_string());
    }

    /// Records the last error of the Kafka client, for `/health`.
    pub fn set_client_error(&self, reason: String) {
        *lock(&self.client_error) = Some((reason, std::time::Instant::now()));
    }

    /// The last error of the Kafka client, and its age.
    pub fn client_error(&self) -> Option<(String, Duration)> {
        lock(&self.client_error).as_ref().map(|(error, at)| (error.clone(), at.elapsed()))
    }

    /// A view of every assigned partition, in no order.
    pub fn views(&self) -> Vec<PartitionView> {
        #[cfg(test)]
        self.panic_on_purpose();
        lock(&self.table).all().map(|worker| worker.view.clone()).collect()
    }

    /// Starts a worker for each partition of `assigned` that does not have one.
    pub fn start(&self, assigned: Vec<TopicPartition>) {
        let mut table = lock(&self.table);
        if table.closed {
            return;
        }
        let Table { topics, finished_before, .. } = &mut *table;
        for topic_partition in assigned {
            let partitions = topics.entry(Arc::clone(&topic_partition.0)).or_default();
            partitions.entry(topic_partition.1).or_insert_with(|| {
                let earlier = finished_before.get(&topic_partition).cloned().unwrap_or_default();
                self.start_worker(topic_partition, earlier)
            });
        }
        self.share_queue_memory(&mut table);
    }

    fn start_worker(&self, (topic, partition): TopicPartition, earlier: FinishedOffsets) -> RunningWorker {
        let repeated = self.context.metrics.repeated();
        let progress = Arc::new(Progress::new(topic, partition, earlier, repeated));
        let view = PartitionView { progress, queue: Arc::default() };
        let stop = CancellationToken::new();
        let (progress, queue) = (Arc::clone(&view.progress), Arc::clone(&view.queue));
        let worker = Worker::new(Arc::clone(&self.context), progress, queue, stop.clone());
        let task = self.runtime.spawn(worker.run());
        RunningWorker { view, task, stop, paused: false, passed_to_commit: None }
    }

    /// Pushes a record to the worker of its partition.
    pub fn push(&self, topic: &str, partition: i32, record: Record) -> PushResult {
        let mut table = lock(&self.table);
        let Some(worker) = table.get(topic, partition) else { return PushResult::NotAssigned };
        if worker.stop.is_cancelled() {
            return PushResult::NotAssigned;
        }
        if worker.task.is_finished() {
            return PushResult::WorkerEnded(worker.topic_partition());
        }
        let full = worker.view.push(record, self.queue_limit());
        if full && !worker.paused {
            PushResult::QueueFull(worker.topic_partition())
        } else {
            PushResult::Queued
        }
    }

    /// Marks the partition as paused.
    pub fn mark_paused(&self, (topic, partition): &TopicPartition) {
        if let Some(worker) = lock(&self.table).get(topic, *partition) {
            worker.paused = true;
            self.paused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A worker whose task ended although it was not stopped, which is a bug.
    pub fn unexpectedly_ended(&self) -> Option<TopicPartition> {
        let has_ended =
            |worker: &&mut RunningWorker| worker.task.is_finished() && !worker.stop.is_cancelled();
        lock(&self.table).all().find(has_ended).map(|worker| worker.topic_partition())
    }

    /// Whether any partition is paused.
    pub fn any_paused(&self) -> bool {
        #[cfg(test)]
        self.panic_on_purpose();
        self.paused.load(Ordering::Relaxed) > 0
    }

    /// Returns the paused partitions whose queues have room again, and marks them as resumed.
    pub fn take_resumable(&self) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        let limit = self.queue_limit();
        for worker in lock(&self.table).all().filter(|worker| worker.paused) {
            if worker.view.queue.is_half_empty(limit) {
                worker.paused = false;
                self.paused.fetch_sub(1, Ordering::Relaxed);
                list.add_partition(&worker.view.progress.topic, worker.view.progress.partition);
            }
        }
        list
    }

    #[cfg(test)]
    fn panic_on_purpose(&self) {
        let panics = self.panicking_thread.get().copied();
        assert!(panics.is_none() || std::thread::current().name() != panics, "the test ends this thread");
    }

    /// Returns the offsets that were not passed to a commit yet, and marks them as passed.
    pub fn take_uncommitted(&self) -> TopicPartitionList {
        #[cfg(test)]
        self.panic_on_purpose();
        let mut list = TopicPartitionList::new();
        for worker in lock(&self.table).all() {
            let committable = worker.view.progress.committable();
            if committable.is_some() && committable != worker.passed_to_commit {
                worker.passed_to_commit = committable;
                add_committable(&mut list, &worker.view.progress);
            }
        }
        list
    }

    /// Marks the offsets of a failed commit, so that they are committed again.
    pub fn mark_uncommitted(&self, offsets: &TopicPartitionList) {
        let mut table = lock(&self.table);
        for element in offsets.elements() {
            if let Some(worker) = table.get(element.topic(), element.partition()) {
                worker.passed_to_commit = None;
            }
        }
    }

    /// Stops the workers of `revoked`: each finishes its current batch or is aborted after
    /// `timeout`. Returns the offsets to commit for these partitions.
    pub fn stop(&self, revoked: &[TopicPartition], timeout: Duration) -> TopicPartitionList {
        let mut stopping = self.remove(revoked);
        stopping.iter().for_each(|worker| worker.stop.cancel());
        let deadline = Instant::now() + timeout;
        let deadline = self.shutdown_deadline.get().map_or(deadline, |at_most| deadline.min(*at_most));
        self.runtime.block_on(async {
            for worker in &mut stopping {
                if timeout_at(deadline, &mut worker.task).await.is_err() {
                    worker.task.abort();
                    _ = (&mut worker.task).await;
                    let (topic, partition) = worker.topic_partition();
                    tracing::warn!(topic = &*topic, partition, "batch not finished in time and abandoned");
                }
            }
        });
        self.remember_finished(&stopping);
        let mut finished = TopicPartitionList::new();
        stopping.iter().for_each(|worker| add_committable(&mut finished, &worker.view.progress));
        for progress in self.take_closed(revoked) {
            add_committable(&mut finished, &progress);
        }
        finished
    }

    /// Stops every worker as [`Workers::stop`] does. No worker starts afterwards. The offsets to
    /// commit are [`Workers::final_offsets`].
    pub fn close(&self, timeout: Duration) {
        lock(&self.table).closed = true;
        let views = self.views();
        drop(self.stop(&self.assigned(), timeout));
        *lock(&self.closed) = views.into_iter().map(|view| view.progress).collect();
    }

    /// Offsets to commit of closed workers whose partitions are still assigned.
    pub fn final_offsets(&self) -> TopicPartitionList {
        let mut finished = TopicPartitionList::new();
        lock(&self.closed).iter().for_each(|progress| add_committable(&mut finished, progress));
        finished
    }

    fn take_closed(&self, removed: &[TopicPartition]) -> Vec<Arc<Progress>> {
        let is_removed = |progress: &mut Arc<Progress>| removed.contains(&progress.topic_partition());
        lock(&self.closed).extract_if(.., is_removed).collect()
    }

    /// Aborts the workers of `lost`. Nothing of these partitions may be committed.
    pub fn abort(&self, lost: &[TopicPartition]) {
        drop(self.take_closed(lost));
        let mut aborted = self.remove(lost);
        aborted.iter().for_each(|worker| worker.task.abort());
        self.runtime.block_on(async {
            for worker in &mut aborted {
                _ = (&mut worker.task).await;
            }
        });
        self.remember_finished(&aborted);
    }

    /// Forgets the finished offsets of a topic that was recreated, because its offsets start again.
    pub fn forget_finished(&self, topic: &str) {
        lock(&self.table).finished_before.retain(|(finished, _), _| **finished != *topic);
    }

    /// Whether this process has finished the record, committed or not.
    pub fn has_finished(&self, topic: &str, partition: i32, offset: i64) -> bool {
        let mut table = lock(&self.table);
        if let Some(worker) = table.get(topic, partition) {
            return worker.view.progress.finished().contains(offset);
        }
        let before = table.finished_before.get(&(Arc::from(topic), partition));
        before.is_some_and(|finished| finished.contains(offset))
    }

    fn remember_finished(&self, removed: &[RunningWorker]) {
        let finished: Vec<_> = removed
            .iter()
            .map(|worker| (worker.topic_partition(), worker.view.progress.finished()))
            .collect();
        lock(&self.table).finished_before.extend(finished);
    }

    /// The partitions that have a worker.
    pub fn assigned(&self) -> Vec<TopicPartition> {
        self.views().iter().map(|view| view.progress.topic_partition()).collect()
    }

    fn remove(&self, partitions: &[TopicPartition]) -> Vec<RunningWorker> {
        let mut table = lock(&self.table);
        let removed: Vec<RunningWorker> =
            partitions.iter().filter_map(|partition| table.remove(partition)).collect();
        self.paused.fetch_sub(removed.iter().filter(|worker| worker.paused).count(), Ordering::Relaxed);
        self.share_queue_memory(&mut table);
        removed
    }

    fn share_queue_memory(&self, table: &mut Table) {
        self.queue_bytes.store(QUEUES_BYTES / table.all().count().max(1), Ordering::Relaxed);
    }

    fn queue_limit(&self) -> QueueLimit {
        let records = MAX_QUEUED_BATCHES * self.context.limits.records;
        QueueLimit { records, bytes: self.queue_bytes.load(Ordering::Relaxed) }
    }
}

fn add_committable(list: &mut TopicPartitionList, progress: &Progress) {
    if let Some(offset) = progress.committable() {
        let added = list.add_partition_offset(&progress.topic, progress.partition, Offset::Offset(offset));
        debug_assert!(added.is_ok(), "an offset that was read can be committed");
    }
}

#[cfg(test)]
pub use tests::unreachable_context;

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;
    use rdkafka::ClientConfig;

    use super::*;
    use crate::kafka::dead_letters::DeadLetters;
    use crate::metrics::Metrics;
    use crate::mongo::{CALL_DEADLINE, Store, StoreConfig, UpsertKeys, check_uri};
    use crate::partition::batch::{BatchLimits, ExpectedSources};
    use crate::partition::retry::UNLISTED_GRACE;

    /// A context without reachable servers.
    pub async fn unreachable_context() -> Arc<WorkerContext> {
        let store = StoreConfig {
            uri: check_uri("mongodb://127.0.0.1:1").unwrap(),
            database: "d".into(),
            upsert_keys: UpsertKeys::parse("event_id").unwrap(),
            batch_max_bytes: 1 << 20,
        };
        Arc::new(WorkerContext {
            store: Store::with_deadline(store, CALL_DEADLINE).await.unwrap(),
            dead_letters: DeadLetters::new(ClientConfig::new(), "g".into(), None),
            metrics: Metrics::new(&mut Registry::default(), &[]),
            expected: ExpectedSources::All,
            limits: BatchLimits { records: 10, bytes: 1 << 20 },
            unlisted_grace: UNLISTED_GRACE,
        })
    }

    /// Without a bug, a worker's task ends unexpectedly only if its runtime ends.
    #[test]
    fn worker_that_ended_unexpectedly_is_reported_and_can_be_restarted() {
        let (first, second) = [(); 2].map(|()| tokio::runtime::Runtime::new().unwrap()).into();
        let context = second.block_on(unreachable_context());
        let workers = Workers::new(Arc::clone(&context), first.handle().clone());
        let assigned: TopicPartition = (Arc::from("t"), 3);
        workers.start(vec![assigned.clone()]);
        assert_eq!(workers.unexpectedly_ended(), None);
        first.shutdown_timeout(Duration::from_secs(10));
        assert_eq!(workers.unexpectedly_ended(), Some(assigned.clone()));
        let record = Record::new(0, None, None, None, std::iter::empty);
        assert_eq!(workers.push("t", 3, record.clone()), PushResult::WorkerEnded(assigned.clone()));

        let workers = Workers { runtime: second.handle().clone(), ..workers };
        workers.abort(std::slice::from_ref(&assigned));
        assert_eq!(workers.push("t", 3, record.clone()), PushResult::NotAssigned);
        workers.start(vec![assigned.clone()]);
        assert_eq!(workers.push("t", 3, record), PushResult::Queued);
        assert_eq!(workers.unexpectedly_ended(), None);
        let finished = workers.stop(&[assigned], Duration::from_secs(10));
        assert!(finished.count() <= 1);
    }
}
