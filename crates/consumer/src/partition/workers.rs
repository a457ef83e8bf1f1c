//! The workers of the assigned partitions.
//!
//! The reader pushes records to them, a rebalance starts and stops them, and the committer collects
//! the offsets to commit. Health and metrics read their state.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::tasks::lock;
use tokio::runtime::Handle;
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::kafka::record::{Record, TopicPartition};
use crate::metrics::Snapshot;
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

/// The assigned partitions and their workers.
#[derive(Default)]
struct Assignment {
    topics: HashMap<Arc<str>, HashMap<i32, RunningWorker>>,
    /// Offsets that former workers finished. They may be read again.
    finished_before: HashMap<TopicPartition, FinishedOffsets>,
    /// Memory for the queue of one worker.
    queue_bytes: usize,
    /// Number of paused partitions.
    paused: usize,
    /// No worker starts any more.
    closed: bool,
    /// Progress of closed workers whose partitions are still assigned.
    closed_progress: Vec<Arc<Progress>>,
}

impl Assignment {
    fn all(&mut self) -> impl Iterator<Item = &mut RunningWorker> {
        self.topics.values_mut().flat_map(HashMap::values_mut)
    }

    fn get(&mut self, topic: &str, partition: i32) -> Option<&mut RunningWorker> {
        self.topics.get_mut(topic)?.get_mut(&partition)
    }

    /// Calls `update` with the worker and the offset of each partition in `list`.
    fn for_each(&mut self, list: &TopicPartitionList, update: impl Fn(&mut RunningWorker, Offset)) {
        for element in list.elements() {
            if let Some(worker) = self.get(element.topic(), element.partition()) {
                update(worker, element.offset());
            }
        }
    }

    fn remove(&mut self, partitions: &[TopicPartition]) -> Vec<RunningWorker> {
        let remove = |(topic, partition): &TopicPartition| self.topics.get_mut(topic)?.remove(partition);
        let removed: Vec<RunningWorker> = partitions.iter().filter_map(remove).collect();
        self.paused -= removed.iter().filter(|worker| worker.paused).count();
        self.share_queue_memory();
        removed
    }

    fn share_queue_memory(&mut self) {
        self.queue_bytes = QUEUES_BYTES / self.all().count().max(1);
    }

    fn take_closed(&mut self, removed: &[TopicPartition]) -> Vec<Arc<Progress>> {
        let is_removed = |progress: &mut Arc<Progress>| removed.contains(&progress.topic_partition());
        self.closed_progress.extract_if(.., is_removed).collect()
    }

    fn remember_finished(&mut self, removed: &[RunningWorker]) {
        let finished =
            removed.iter().map(|worker| (worker.topic_partition(), worker.view.progress.finished()));
        self.finished_before.extend(finished);
    }
}

/// All workers of this process.
pub struct Workers {
    pub context: Arc<WorkerContext>,
    runtime: Handle,
    assignment: Mutex<Assignment>,
    client_error: Mutex<Option<(String, std::time::Instant)>>,
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
            assignment: Mutex::default(),
            client_error: Mutex::default(),
            shutdown_deadline: OnceLock::new(),
            #[cfg(test)]
            panicking_thread: OnceLock::new(),
        }
    }

    fn assignment(&self) -> MutexGuard<'_, Assignment> {
        lock(&self.assignment)
    }

    /// Signals every worker to end after its current batch, within `timeout` from now.
    ///
    /// The reader may be waiting for a revoked partition at this moment. The other workers must not
    /// wait for that, and the reader must not wait longer than `timeout`.
    pub fn begin_shutdown(&self, timeout: Duration) {
        _ = self.shutdown_deadline.set(Instant::now() + timeout);
        self.assignment().all().for_each(|worker| worker.stop.cancel());
    }

    /// Updates the client's positions. Every record below them was pushed to its worker. A stopping
    /// worker receives no records any more, so its position is ignored.
    pub fn set_positions(&self, positions: &TopicPartitionList) {
        self.assignment().for_each(positions, |worker, offset| {
            if let Offset::Offset(position) = offset
                && !worker.stop.is_cancelled()
            {
                worker.view.progress.set_position(position);
            }
        });
    }

    /// Kafka has no record at `position` of a partition; the client continues at the beginning.
    pub fn set_position_reset(&self, topic: &str, partition: i32, position: i64) {
        if let Some(worker) = self.assignment().get(topic, partition) {
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
        self.assignment().for_each(offsets, |worker, offset| {
            if let Offset::Offset(offset) = offset {
                worker.view.progress.set_committed(offset);
            }
        });
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
        self.assignment().all().map(|worker| worker.view.clone()).collect()
    }

    /// The counters at this moment.
    pub fn snapshot(&self) -> Snapshot {
        let partitions = self.views();
        let lag = match partitions.is_empty() {
            true => None,
            false => partitions.iter().map(|partition| partition.progress.lag()).sum(),
        };
        self.context.metrics.snapshot(lag)
    }

    /// Starts a worker for each partition of `assigned` that does not have one.
    pub fn start(&self, assigned: Vec<TopicPartition>) {
        let mut assignment = self.assignment();
        if assignment.closed {
            return;
        }
        let Assignment { topics, finished_before, .. } = &mut *assignment;
        for topic_partition in assigned {
            let partitions = topics.entry(Arc::clone(&topic_partition.0)).or_default();
            partitions.entry(topic_partition.1).or_insert_with(|| {
                let earlier = finished_before.get(&topic_partition).cloned().unwrap_or_default();
                self.start_worker(topic_partition, earlier)
            });
        }
        assignment.share_queue_memory();
    }

    fn start_worker(&self, (topic, partition): TopicPartition, earlier: FinishedOffsets) -> RunningWorker {
        let repeated = self.context.metrics.repeated.clone();
        let progress = Arc::new(Progress::new(topic, partition, earlier, repeated));
        let (set_aside, requests) = unbounded_channel();
        let view = PartitionView { progress, queue: Arc::default(), set_aside };
        let stop = CancellationToken::new();
        let (progress, queue) = (Arc::clone(&view.progress), Arc::clone(&view.queue));
        let worker = Worker::new(Arc::clone(&self.context), progress, queue, stop.clone());
        let task = self.runtime.spawn(worker.run(requests));
        RunningWorker { view, task, stop, paused: false, passed_to_commit: None }
    }

    /// Pushes a record to the worker of its partition.
    pub fn push(&self, topic: &str, partition: i32, record: Record) -> PushResult {
        let mut assignment = self.assignment();
        let limit = self.queue_limit(&assignment);
        let Some(worker) = assignment.get(topic, partition) else { return PushResult::NotAssigned };
        if worker.stop.is_cancelled() {
            return PushResult::NotAssigned;
        }
        if worker.task.is_finished() {
            return PushResult::WorkerEnded(worker.topic_partition());
        }
        let full = worker.view.push(record, limit);
        if full && !worker.paused {
            PushResult::QueueFull(worker.topic_partition())
        } else {
            PushResult::Queued
        }
    }

    /// Marks the partition as paused.
    pub fn mark_paused(&self, (topic, partition): &TopicPartition) {
        let mut assignment = self.assignment();
        if let Some(worker) = assignment.get(topic, *partition) {
            worker.paused = true;
            assignment.paused += 1;
        }
    }

    /// A worker whose task ended although it was not stopped, which is a bug.
    pub fn unexpectedly_ended(&self) -> Option<TopicPartition> {
        let has_ended =
            |worker: &&mut RunningWorker| worker.task.is_finished() && !worker.stop.is_cancelled();
        self.assignment().all().find(has_ended).map(|worker| worker.topic_partition())
    }

    /// Whether any partition is paused.
    pub fn any_paused(&self) -> bool {
        #[cfg(test)]
        self.panic_on_purpose();
        self.assignment().paused > 0
    }

    /// Returns the paused partitions whose queues have room again, and marks them as resumed.
    pub fn take_resumable(&self) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        let mut assignment = self.assignment();
        let limit = self.queue_limit(&assignment);
        for worker in
            assignment.all().filter(|worker| worker.paused && worker.view.queue.is_half_empty(limit))
        {
            worker.paused = false;
            list.add_partition(&worker.view.progress.topic, worker.view.progress.partition);
        }
        assignment.paused -= list.count();
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
        let mut assignment = self.assignment();
        let uncommitted = assignment.all().filter_map(|worker| {
            let committable = worker.view.progress.committable();
            let is_new = committable.is_some() && committable != worker.passed_to_commit;
            if is_new {
                worker.passed_to_commit = committable;
            }
            is_new.then_some(&worker.view.progress)
        });
        committable(uncommitted)
    }

    /// Marks the offsets of a failed commit, so that they are committed again.
    pub fn mark_uncommitted(&self, offsets: &TopicPartitionList) {
        self.assignment().for_each(offsets, |worker, _| worker.passed_to_commit = None);
    }

    /// Stops the workers of `revoked`: each finishes its current batch or is aborted after
    /// `timeout`. Returns the offsets to commit for these partitions.
    pub fn stop(&self, revoked: &[TopicPartition], timeout: Duration) -> TopicPartitionList {
        let mut stopping = self.assignment().remove(revoked);
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
        let mut assignment = self.assignment();
        assignment.remember_finished(&stopping);
        let stopped = stopping.iter().map(|worker| &worker.view.progress);
        committable(stopped.chain(&assignment.take_closed(revoked)))
    }

    /// Stops every worker as [`Workers::stop`] does. No worker starts afterwards. The offsets to
    /// commit are [`Workers::final_offsets`].
    pub fn close(&self, timeout: Duration) {
        self.assignment().closed = true;
        let views = self.views();
        drop(self.stop(&self.assigned(), timeout));
        self.assignment().closed_progress = views.into_iter().map(|view| view.progress).collect();
    }

    /// Offsets to commit of closed workers whose partitions are still assigned.
    pub fn final_offsets(&self) -> TopicPartitionList {
        committable(&self.assignment().closed_progress)
    }

    /// Aborts the workers of `lost`. Nothing of these partitions may be committed.
    pub fn abort(&self, lost: &[TopicPartition]) {
        let mut aborted = {
            let mut assignment = self.assignment();
            drop(assignment.take_closed(lost));
            assignment.remove(lost)
        };
        aborted.iter().for_each(|worker| worker.task.abort());
        self.runtime.block_on(async {
            for worker in &mut aborted {
                _ = (&mut worker.task).await;
            }
        });
        self.assignment().remember_finished(&aborted);
    }

    /// Forgets the finished offsets of a topic that was recreated, because its offsets start again.
    pub fn forget_finished(&self, topic: &str) {
        self.assignment().finished_before.retain(|(finished, _), _| **finished != *topic);
    }

    /// Whether this process has finished the record, committed or not.
    pub fn has_finished(&self, topic: &str, partition: i32, offset: i64) -> bool {
        let mut assignment = self.assignment();
        if let Some(worker) = assignment.get(topic, partition) {
            return worker.view.progress.finished().contains(offset);
        }
        let before = assignment.finished_before.get(&(Arc::from(topic), partition));
        before.is_some_and(|finished| finished.contains(offset))
    }

    /// The partitions that have a worker.
    pub fn assigned(&self) -> Vec<TopicPartition> {
        self.views().iter().map(|view| view.progress.topic_partition()).collect()
    }

    fn queue_limit(&self, assignment: &Assignment) -> QueueLimit {
        let records = MAX_QUEUED_BATCHES * self.context.limits.records;
        QueueLimit { records, bytes: assignment.queue_bytes }
    }
}

/// The offsets to commit of these partitions.
fn committable<'a>(partitions: impl IntoIterator<Item = &'a Arc<Progress>>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for progress in partitions {
        if let Some(offset) = progress.committable() {
            let added =
                list.add_partition_offset(&progress.topic, progress.partition, Offset::Offset(offset));
            debug_assert!(added.is_ok(), "an offset that was read can be committed");
        }
    }
    list
}

#[cfg(test)]
pub use tests::unreachable_context;

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;
    use rdkafka::ClientConfig;

    use super::*;
    use crate::configured_sources::ExpectedSources;
    use crate::kafka::dead_letters::DeadLetters;
    use crate::metrics::Metrics;
    use crate::mongo::{CALL_DEADLINE, Store, StoreConfig, UpsertKeys, check_uri};
    use crate::partition::batch::BatchLimits;
    use crate::partition::retry::UNLISTED_GRACE;

    /// A context without reachable servers.
    pub fn unreachable_context() -> Arc<WorkerContext> {
        let store = StoreConfig {
            uri: check_uri("mongodb://127.0.0.1:1").unwrap(),
            database: "d".into(),
            upsert_keys: UpsertKeys::parse("event_id").unwrap(),
            batch_max_bytes: 1 << 20,
        };
        Arc::new(WorkerContext {
            store: Store::new(store, CALL_DEADLINE).unwrap(),
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
        let context = unreachable_context();
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
