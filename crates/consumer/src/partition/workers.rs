//! The lanes of this member's partitions. The reader gives them records and takes their watermarks; a rebalance
//! starts and ends them. All of it happens in the reader's thread; health and metrics look on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::kafka::record::Record;
use crate::partition::offsets::Finished;
use crate::partition::progress::Progress;
use crate::partition::queue::Bound;
use crate::partition::view::View;
use crate::partition::worker::{Lane, Work};

use service::lock::lock;

/// Memory for records that wait, over all lanes.
const BUDGET_BYTES: usize = 16 << 20;
/// Batches that may wait in one lane. More than two, because each pause throws away what librdkafka has already
/// fetched of the partition.
const BATCHES_WAITING: usize = 8;

/// A topic and one of its partitions.
pub type Place = (Arc<str>, i32);

/// What became of a record that was given to its lane.
#[derive(Debug, PartialEq, Eq)]
pub enum Given {
    /// It waits, and there is room for more.
    Taken,
    /// It waits, and the partition is to be paused.
    Full(Place),
    /// The partition is not ours any more, or its lane was told to end: the record is read by whoever is next.
    NotOurs,
    /// The lane's task ended by itself, which is a fault of this program.
    LaneEnded(Place),
}

struct Running {
    view: View,
    task: JoinHandle<()>,
    end: CancellationToken,
    paused: bool,
    /// The offset that was last sent to be committed.
    sent: Option<i64>,
}

#[derive(Default)]
struct Table {
    topics: HashMap<Arc<str>, HashMap<i32, Running>>,
    /// What lanes that are gone had finished: some of it may come again.
    past: HashMap<Place, Finished>,
    closed: bool,
}

impl Table {
    fn each(&mut self) -> impl Iterator<Item = &mut Running> {
        self.topics.values_mut().flat_map(HashMap::values_mut)
    }

    fn get(&mut self, topic: &str, partition: i32) -> Option<&mut Running> {
        self.topics.get_mut(topic)?.get_mut(&partition)
    }

    fn remove(&mut self, (topic, partition): &Place) -> Option<Running> {
        self.topics.get_mut(topic)?.remove(partition)
    }
}

/// All lanes.
pub struct Lanes {
    work: Arc<Work>,
    runtime: Handle,
    table: Mutex<Table>,
    share_bytes: AtomicUsize,
    paused: AtomicUsize,
    last_error: Mutex<Option<(String, std::time::Instant)>>,
    /// Of closed lanes, whose partitions are still ours.
    left: Mutex<Vec<Arc<Progress>>>,
    /// When lanes that were told to stop are given up, whoever waits for them.
    give_up_at: OnceLock<Instant>,
    /// Why the process cannot go on.
    broken: OnceLock<String>,
    /// Makes the committer panic.
    #[cfg(test)]
    pub(crate) panics: std::sync::atomic::AtomicBool,
}

impl Lanes {
    /// No lanes yet; their tasks will run on `runtime`.
    pub fn new(work: Arc<Work>, runtime: Handle) -> Self {
        let share_bytes = AtomicUsize::new(BUDGET_BYTES);
        let (table, paused, last_error) = (Mutex::default(), AtomicUsize::new(0), Mutex::default());
        let (left, give_up_at) = (Mutex::default(), OnceLock::new());
        Self {
            work,
            runtime,
            table,
            share_bytes,
            paused,
            last_error,
            left,
            give_up_at,
            broken: OnceLock::new(),
            #[cfg(test)]
            panics: std::sync::atomic::AtomicBool::new(false),
        }
    }

    /// Tells every lane to end after its batch in hand, within `grace` from now. The reader may be waiting for a
    /// revoked one at this moment: the others must not wait for that, and it must not wait longer either.
    pub fn stop(&self, grace: Duration) {
        _ = self.give_up_at.set(Instant::now() + grace);
        lock(&self.table).each().for_each(|running| running.end.cancel());
    }

    /// The process cannot go on, and why: `/livez` fails from now on.
    pub fn breaks(&self, reason: String) {
        _ = self.broken.set(reason);
    }

    /// Why the process cannot go on, if it cannot.
    pub fn broken(&self) -> Option<&str> {
        self.broken.get().map(String::as_str)
    }

    /// The positions of the client, where every record below them was given to its lane. A lane that was told
    /// to end takes no more records: its position says nothing.
    pub fn pass(&self, positions: &TopicPartitionList) {
        let mut table = lock(&self.table);
        for element in positions.elements() {
            if let Offset::Offset(position) = element.offset()
                && let Some(running) = table.get(element.topic(), element.partition())
                && !running.end.is_cancelled()
            {
                running.view.progress.pass(position);
            }
        }
    }

    /// Kafka has no record at the position `at` of a partition; the client goes on at the beginning.
    pub fn is_reset(&self, topic: &str, partition: i32, at: i64) {
        if let Some(running) = lock(&self.table).get(topic, partition) {
            running.view.progress.is_reset(at);
        }
    }

    /// Counts and logs records that were deleted before they were read, now that the partition of `progress`
    /// begins at `first`.
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
        // Where nothing is left of the partition, the group goes on behind what was deleted.
        progress.pass(next_offset);
        self.work.metrics.lost(topic, records.unsigned_abs());
    }

    /// Kafka confirmed a commit of these offsets.
    pub fn confirm(&self, offsets: &TopicPartitionList) {
        let mut table = lock(&self.table);
        for element in offsets.elements() {
            if let (Offset::Offset(offset), Some(running)) =
                (element.offset(), table.get(element.topic(), element.partition()))
            {
                running.view.progress.is_committed(offset);
            }
        }
    }

    /// Keeps what the client complained of last, for health; it goes on by itself.
    pub fn note(&self, error: &KafkaError) {
        tracing::debug!(error = %error, "poll failed");
        self.failed(error.to_string());
    }

    /// Keeps why the client was given up, for health; another one is made.
    pub fn failed(&self, reason: String) {
        *lock(&self.last_error) = Some((reason, std::time::Instant::now()));
    }

    /// What the client complained of last, and how long ago.
    pub fn last_error(&self) -> Option<(String, Duration)> {
        lock(&self.last_error).as_ref().map(|(error, at)| (error.clone(), at.elapsed()))
    }

    /// Every lane, in no order.
    pub fn list(&self) -> Vec<View> {
        lock(&self.table).each().map(|running| running.view.clone()).collect()
    }

    /// Starts a lane for each of `places` that has none.
    pub fn start(&self, places: Vec<Place>) {
        let mut table = lock(&self.table);
        if table.closed {
            return;
        }
        let Table { topics, past, .. } = &mut *table;
        for place in places {
            let lanes = topics.entry(Arc::clone(&place.0)).or_default();
            lanes.entry(place.1).or_insert_with(|| {
                let earlier = past.get(&place).cloned().unwrap_or_default();
                let (topic, partition) = place;
                let progress = Progress::new(topic, partition, earlier, self.work.metrics.repeated());
                let (progress, inbox) = (Arc::new(progress), Arc::default());
                let (end, view) = (CancellationToken::new(), View { progress, inbox });
                let (progress, inbox) = (Arc::clone(&view.progress), Arc::clone(&view.inbox));
                let lane = Lane::new(Arc::clone(&self.work), progress, inbox, end.clone());
                Running { view, task: self.runtime.spawn(lane.run()), end, paused: false, sent: None }
            });
        }
        self.share(&mut table);
    }

    /// Hands a record to its lane.
    pub fn give(&self, topic: &str, partition: i32, record: Record) -> Given {
        let mut table = lock(&self.table);
        let Some(running) = table.get(topic, partition) else { return Given::NotOurs };
        if running.end.is_cancelled() {
            return Given::NotOurs;
        }
        if running.task.is_finished() {
            return Given::LaneEnded(place(running));
        }
        let full = running.view.push(record, self.bound());
        if full && !running.paused { Given::Full(place(running)) } else { Given::Taken }
    }

    /// The partition was paused.
    pub fn paused(&self, (topic, partition): &Place) {
        if let Some(running) = lock(&self.table).get(topic, *partition) {
            running.paused = true;
            self.paused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A lane whose task ended without being told to, which is a fault of this program.
    pub fn ended(&self) -> Option<Place> {
        let by_itself = |running: &&mut Running| running.task.is_finished() && !running.end.is_cancelled();
        lock(&self.table).each().find(by_itself).map(|running| place(running))
    }

    /// Whether any partition is paused.
    pub fn any_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed) > 0
    }

    /// The paused partitions that have room again; they count as resumed.
    pub fn resumable(&self) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        let bound = self.bound();
        for running in lock(&self.table).each().filter(|running| running.paused) {
            if running.view.inbox.is_half_empty(bound) {
                running.paused = false;
                self.paused.fetch_sub(1, Ordering::Relaxed);
                list.add_partition(&running.view.progress.topic, running.view.progress.partition);
            }
        }
        list
    }

    /// The watermarks that were not sent yet; they count as sent.
    pub fn unsent(&self) -> TopicPartitionList {
        #[cfg(test)]
        assert!(!self.panics.load(Ordering::Relaxed), "the test ends the committer");
        let mut list = TopicPartitionList::new();
        for running in lock(&self.table).each() {
            let watermark = running.view.progress.watermark();
            if watermark.is_some() && watermark != running.sent {
                running.sent = watermark;
                add(&mut list, &running.view.progress);
            }
        }
        list
    }

    /// A commit failed: its offsets are to be sent again.
    pub fn send_again(&self, offsets: &TopicPartitionList) {
        let mut table = lock(&self.table);
        for element in offsets.elements() {
            if let Some(running) = table.get(element.topic(), element.partition()) {
                running.sent = None;
            }
        }
    }

    /// Lets the lanes of `places` finish what they have in hand, for at most `grace`, and forgets them; what they
    /// finished, to be committed.
    pub fn end(&self, places: &[Place], grace: Duration) -> TopicPartitionList {
        let mut ending = self.remove(places);
        ending.iter().for_each(|running| running.end.cancel());
        let deadline = Instant::now() + grace;
        let deadline = self.give_up_at.get().map_or(deadline, |give_up_at| deadline.min(*give_up_at));
        self.runtime.block_on(async {
            for running in &mut ending {
                if timeout_at(deadline, &mut running.task).await.is_err() {
                    running.task.abort();
                    _ = (&mut running.task).await;
                    let (topic, partition) = (&*running.view.progress.topic, running.view.progress.partition);
                    tracing::warn!(topic, partition, "lane did not finish in time, its batch is given up");
                }
            }
        });
        self.remember(&ending);
        let mut finished = TopicPartitionList::new();
        ending.iter().for_each(|running| add(&mut finished, &running.view.progress));
        for progress in self.take_left(places) {
            add(&mut finished, &progress);
        }
        finished
    }

    /// Ends every lane as [`Lanes::end`] does; none is started any more. What they finished is [`Lanes::left`].
    pub fn close(&self, grace: Duration) {
        lock(&self.table).closed = true;
        let views = self.list();
        drop(self.end(&self.places(), grace));
        *lock(&self.left) = views.into_iter().map(|view| view.progress).collect();
    }

    /// What closed lanes finished on partitions that are still ours, to be committed.
    pub fn left(&self) -> TopicPartitionList {
        let mut finished = TopicPartitionList::new();
        lock(&self.left).iter().for_each(|progress| add(&mut finished, progress));
        finished
    }

    fn take_left(&self, places: &[Place]) -> Vec<Arc<Progress>> {
        let gone = |progress: &mut Arc<Progress>| {
            places.contains(&(Arc::clone(&progress.topic), progress.partition))
        };
        lock(&self.left).extract_if(.., gone).collect()
    }

    /// Stops the lanes of `places` where they are; nothing of them may be committed.
    pub fn lose(&self, places: &[Place]) {
        drop(self.take_left(places));
        let mut lost = self.remove(places);
        lost.iter().for_each(|running| running.task.abort());
        self.runtime.block_on(async {
            for running in &mut lost {
                _ = (&mut running.task).await;
            }
        });
        self.remember(&lost);
    }

    /// Forgets what was finished of a topic whose offsets start again.
    pub fn forget(&self, topic: &str) {
        lock(&self.table).past.retain(|place, _| *place.0 != *topic);
    }

    /// Whether this process has finished the record, committed or not.
    pub fn has_finished(&self, topic: &str, partition: i32, offset: i64) -> bool {
        let mut table = lock(&self.table);
        if let Some(running) = table.get(topic, partition) {
            return running.view.progress.finished().has(offset);
        }
        table.past.get(&(Arc::from(topic), partition)).is_some_and(|finished| finished.has(offset))
    }

    fn remember(&self, gone: &[Running]) {
        let past = gone.iter().map(|running| (place(running), running.view.progress.finished()));
        lock(&self.table).past.extend(past.collect::<Vec<_>>());
    }

    /// The partitions that have a lane.
    pub fn places(&self) -> Vec<Place> {
        self.list().iter().map(|view| (Arc::clone(&view.progress.topic), view.progress.partition)).collect()
    }

    fn remove(&self, places: &[Place]) -> Vec<Running> {
        let mut table = lock(&self.table);
        let removed: Vec<Running> = places.iter().filter_map(|place| table.remove(place)).collect();
        self.paused.fetch_sub(removed.iter().filter(|running| running.paused).count(), Ordering::Relaxed);
        self.share(&mut table);
        removed
    }

    fn share(&self, table: &mut Table) {
        self.share_bytes.store(BUDGET_BYTES / table.each().count().max(1), Ordering::Relaxed);
    }

    fn bound(&self) -> Bound {
        let records = BATCHES_WAITING * self.work.limits.records;
        Bound { records, bytes: self.share_bytes.load(Ordering::Relaxed) }
    }
}

fn place(running: &Running) -> Place {
    (Arc::clone(&running.view.progress.topic), running.view.progress.partition)
}

fn add(list: &mut TopicPartitionList, progress: &Progress) {
    if let Some(watermark) = progress.watermark() {
        let added = list.add_partition_offset(&progress.topic, progress.partition, Offset::Offset(watermark));
        debug_assert!(added.is_ok(), "an offset that was read can be committed");
    }
}

#[cfg(test)]
pub(crate) mod tests;
