//! The progress of one partition and what its worker waits for. The worker writes it; the reader,
//! the committer, the lag monitor, health and metrics read it.

use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use service::lock::lock;

use crate::kafka::record::{Record, TopicPartition};
use crate::partition::offsets::{FinishedOffsets, OffsetTracker};
use crate::partition::queue::{QueueLimit, RecordQueue};

/// The value of an offset that is not known yet.
const UNKNOWN: i64 = -1;

/// Why a worker does not continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitReason {
    /// MongoDB did not complete a write, which is retried.
    MongoDb(String),
    /// A dead letter cannot be produced. The text names the record, the cause and the remedy.
    DeadLetter(String),
}

impl WaitReason {
    /// The text of the reason.
    pub fn text(&self) -> &str {
        match self {
            Self::MongoDb(reason) | Self::DeadLetter(reason) => reason,
        }
    }
}

/// A position at which Kafka has no record any more.
#[derive(Debug)]
struct PositionReset {
    position: i64,
    /// The first record that was read afterwards.
    next: Option<i64>,
}

/// The progress of one partition.
#[derive(Debug)]
pub struct Progress {
    pub topic: Arc<str>,
    pub partition: i32,
    tracker: Mutex<OffsetTracker>,
    position: AtomicI64,
    end: AtomicI64,
    committed: AtomicI64,
    reset: Mutex<Option<PositionReset>>,
    in_batch: AtomicUsize,
    progressed_at: Mutex<Instant>,
    wait_reason: Mutex<Option<WaitReason>>,
    repeated: Counter,
}

impl Progress {
    /// Creates the progress of a partition. `earlier` are the offsets that this process finished in
    /// an earlier assignment. Records that are finished again are counted in `repeated`.
    pub fn new(topic: Arc<str>, partition: i32, earlier: FinishedOffsets, repeated: Counter) -> Self {
        Self {
            topic,
            partition,
            tracker: Mutex::new(OffsetTracker::new(earlier)),
            position: AtomicI64::new(UNKNOWN),
            end: AtomicI64::new(UNKNOWN),
            committed: AtomicI64::new(UNKNOWN),
            reset: Mutex::default(),
            in_batch: AtomicUsize::new(0),
            progressed_at: Mutex::new(Instant::now()),
            wait_reason: Mutex::default(),
            repeated,
        }
    }

    pub fn topic_partition(&self) -> TopicPartition {
        (Arc::clone(&self.topic), self.partition)
    }

    /// A record was read.
    pub fn read(&self, offset: i64) {
        lock(&self.tracker).read(offset);
        if let Some(reset) = &mut *lock(&self.reset) {
            reset.next.get_or_insert(offset);
        }
    }

    /// Sets the client's position. Every record below it was read.
    pub fn set_position(&self, position: i64) {
        let mut tracker = lock(&self.tracker);
        tracker.set_position(position);
        self.store_position(&tracker);
    }

    fn store_position(&self, tracker: &OffsetTracker) {
        if let Some(offset) = tracker.committable() {
            self.position.store(offset, Ordering::Release);
        }
    }

    /// Kafka has no record at the client's `position`; the client continues at the beginning.
    pub fn set_position_reset(&self, position: i64) {
        lock(&self.reset).get_or_insert(PositionReset { position, next: None });
    }

    /// Whether there is a position reset whose lost records were not counted yet.
    pub fn has_position_reset(&self) -> bool {
        lock(&self.reset).is_some()
    }

    /// The offsets that were deleted before they were read, if the partition begins at `first` now.
    /// A recreated topic begins below the position, so nothing was lost.
    pub fn take_lost(&self, first: i64) -> Option<Range<i64>> {
        let PositionReset { position, next } = lock(&self.reset).take()?;
        let lost = position..next.map_or(first, |next| next.min(first));
        (!lost.is_empty()).then_some(lost)
    }

    /// Begins a batch and returns the sequence number of its first record.
    pub fn begin(&self, offsets: impl Iterator<Item = i64>) -> u64 {
        let mut tracker = lock(&self.tracker);
        let sequences: Vec<u64> = offsets.map(|offset| tracker.begin(offset)).collect();
        self.in_batch.store(sequences.len(), Ordering::Relaxed);
        *lock(&self.progressed_at) = Instant::now();
        sequences.first().copied().unwrap_or_default()
    }

    /// Marks records as finished.
    pub fn finish(&self, sequences: impl Iterator<Item = u64>) {
        let mut tracker = lock(&self.tracker);
        let (mut count, mut repeated) = (0, 0);
        for sequence in sequences {
            count += 1;
            repeated += u64::from(tracker.finish(sequence));
        }
        if count == 0 {
            return;
        }
        self.repeated.inc_by(repeated);
        self.store_position(&tracker);
        _ = self
            .in_batch
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(n.saturating_sub(count)));
        *lock(&self.progressed_at) = Instant::now();
    }

    /// The offset that may be committed, as soon as there is one.
    pub fn committable(&self) -> Option<i64> {
        lock(&self.tracker).committable()
    }

    /// The offsets that this process has finished.
    pub fn finished(&self) -> FinishedOffsets {
        lock(&self.tracker).finished()
    }

    /// The next offset to finish, if known.
    pub fn position(&self) -> Option<i64> {
        known(&self.position)
    }

    /// Sets the offset at which the group started, unless something was finished here already.
    pub fn set_start(&self, offset: i64) {
        for start in [&self.position, &self.committed] {
            _ = start.compare_exchange(UNKNOWN, offset, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Kafka confirmed a commit of this offset.
    pub fn set_committed(&self, offset: i64) {
        self.committed.store(offset, Ordering::Release);
    }

    /// Whether the lag monitor has to read the group's start offset.
    pub fn needs_start(&self) -> bool {
        self.position().is_none() || known(&self.committed).is_none()
    }

    /// Sets the partition's end offset.
    pub fn set_end(&self, offset: i64) {
        self.end.store(offset, Ordering::Relaxed);
    }

    /// Records between the position and the end of the partition, once both are known.
    pub fn lag(&self) -> Option<u64> {
        self.records_from(self.position()?)
    }

    /// Records between the last confirmed commit and the end of the partition, once both are known.
    pub fn committed_lag(&self) -> Option<u64> {
        self.records_from(known(&self.committed)?)
    }

    fn records_from(&self, offset: i64) -> Option<u64> {
        let behind = known(&self.end)?.saturating_sub(offset);
        Some(u64::try_from(behind).unwrap_or_default())
    }

    /// Unfinished records of the current batch.
    pub fn in_batch(&self) -> usize {
        self.in_batch.load(Ordering::Relaxed)
    }

    /// A record arrives in an empty queue. If the worker is idle, the idle time before it does not
    /// count as time without progress.
    pub fn end_idle_time(&self) {
        if self.in_batch() == 0 {
            *lock(&self.progressed_at) = Instant::now();
        }
    }

    /// How long, at `now`, nothing was finished.
    pub fn time_since_progress(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*lock(&self.progressed_at))
    }

    /// Sets what the worker waits for; `None` if it continues.
    pub fn set_wait_reason(&self, reason: Option<WaitReason>) {
        *lock(&self.wait_reason) = reason;
    }

    /// What the worker waits for.
    pub fn wait_reason(&self) -> Option<WaitReason> {
        lock(&self.wait_reason).clone()
    }
}

/// The shared state of one partition: what the reader, the monitors and the endpoints see of it.
#[derive(Debug, Clone)]
pub struct PartitionView {
    pub progress: Arc<Progress>,
    /// Records that the worker has not taken yet.
    pub queue: Arc<RecordQueue>,
}

impl PartitionView {
    /// Queues a record. Returns whether the queue has reached `limit`.
    pub fn push(&self, record: Record, limit: QueueLimit) -> bool {
        self.progress.read(record.offset);
        self.queue.push(record, limit, || self.progress.end_idle_time())
    }

    /// How long, at `now`, nothing was finished while records wait; `None` if no record waits.
    pub fn stalled_for(&self, now: Instant) -> Option<Duration> {
        (self.progress.in_batch() > 0 || self.queue.len() > 0).then(|| self.progress.time_since_progress(now))
    }
}

fn known(offset: &AtomicI64) -> Option<i64> {
    Some(offset.load(Ordering::Acquire)).filter(|&offset| offset != UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_counts_from_the_committed_offset_until_a_record_is_finished() {
        let progress = Progress::new("t".into(), 0, FinishedOffsets::default(), Counter::default());
        assert_eq!(progress.lag(), None);
        progress.set_end(10);
        progress.set_start(4);
        assert_eq!(progress.lag(), Some(6));
        let first = progress.begin([4, 5].into_iter());
        progress.finish([first].into_iter());
        progress.set_start(0);
        assert_eq!((progress.lag(), progress.committable(), progress.in_batch()), (Some(5), Some(5), 1));
    }

    #[test]
    fn committed_lag_counts_from_the_confirmed_commit() {
        let progress = Progress::new("t".into(), 0, FinishedOffsets::default(), Counter::default());
        progress.set_end(10);
        progress.set_start(4);
        let first = progress.begin([4, 5].into_iter());
        progress.finish([first, first + 1].into_iter());
        assert_eq!((progress.lag(), progress.committed_lag()), (Some(4), Some(6)));
        progress.set_committed(6);
        assert_eq!((progress.lag(), progress.committed_lag()), (Some(4), Some(4)));
    }

    #[test]
    fn g2_lost_records_are_those_between_the_reset_position_and_the_beginning() {
        // The position, the first record read afterwards, the beginning, and the lost offsets.
        for (at, next, first, lost) in [
            (5, None, 9, Some(5..9)),
            (5, Some(9), 9, Some(5..9)),
            (5, Some(9), 20, Some(5..9)),
            (5, Some(12), 9, Some(5..9)),
            (50, Some(0), 0, None),
            (50, None, 0, None),
        ] {
            let progress = Progress::new("t".into(), 0, FinishedOffsets::default(), Counter::default());
            progress.set_position_reset(at);
            next.into_iter().for_each(|next| progress.read(next));
            assert!(progress.has_position_reset());
            assert_eq!(progress.take_lost(first), lost);
            assert_eq!(progress.take_lost(first), None, "returned once");
        }
    }

    #[test]
    fn position_equals_the_committable_offset_in_every_order_of_updates() {
        // The worker begins 10 to 12 and finishes them in another order. The lag monitor sets the
        // end of the partition and the committed offset, then, without a check in between, the
        // start of the partition.
        for order in devservers::interleavings(&[4, 3]) {
            let progress = Progress::new("t".into(), 0, FinishedOffsets::default(), Counter::default());
            let mut taken = [0; 2];
            for thread in &order {
                match (thread, taken[*thread]) {
                    (0, 0) => assert_eq!(progress.begin(10..13), 0),
                    (0, finished) => progress.finish([[1, 0, 2][finished - 1]].into_iter()),
                    (_, 0) => progress.set_end(20),
                    (_, 1) => progress.set_start(4),
                    (_, _) => progress.set_start(0),
                }
                taken[*thread] += 1;
                let [worked, monitored] = taken;
                let committable = [None, None, None, Some(12), Some(13)][worked];
                let position = committable.or([None, None, Some(4), Some(4)][monitored]);
                let lag = position.filter(|_| monitored > 0).map(|position| 20_u64.abs_diff(position as u64));
                let state = (progress.committable(), progress.position(), progress.lag());
                assert_eq!(state, (committable, position, lag), "{taken:?} of {order:?}");
                assert_eq!(progress.in_batch(), [0, 3, 2, 1, 0][worked]);
            }
        }
    }

    #[test]
    fn idle_time_counts_only_while_records_wait_in_every_order() {
        const STEP: Duration = Duration::from_secs(600);
        // The reader pushes three records. The worker takes at most two, begins and finishes them,
        // twice.
        for order in devservers::interleavings(&[3, 6]) {
            let progress = Progress::new("t".into(), 0, FinishedOffsets::default(), Counter::default());
            let partition = PartitionView { progress: Arc::new(progress), queue: Arc::default() };
            let limit = QueueLimit { records: usize::MAX, bytes: usize::MAX };
            let (mut pushed, mut worked, mut batch) = (0, 0, Vec::new());
            let (mut waiting, mut waiting_since, mut progressed) = (false, 0, 0);
            for (now, thread) in (1..).zip(&order) {
                *lock(&partition.progress.progressed_at) -= STEP;
                if *thread == 0 {
                    partition.push(Record::new(pushed, None, None, None, std::iter::empty), limit);
                    pushed += 1;
                } else {
                    match worked % 3 {
                        0 => batch = partition.queue.take(2, usize::MAX),
                        _ if batch.is_empty() => {}
                        1 => _ = partition.progress.begin(batch.iter().map(|record| record.offset)),
                        _ => {
                            partition
                                .progress
                                .finish(batch.iter().map(|record| record.offset.unsigned_abs()));
                        }
                    }
                    if worked % 3 > 0 && !batch.is_empty() {
                        progressed = now;
                    }
                    worked += 1;
                }
                let waits = partition.queue.len() > 0 || partition.progress.in_batch() > 0;
                if waits && !waiting {
                    waiting_since = now;
                }
                waiting = waits;
                let stalled =
                    partition.stalled_for(Instant::now()).map(|stalled| stalled.as_secs() / STEP.as_secs());
                assert_eq!(
                    stalled,
                    waits.then(|| now - progressed.max(waiting_since)),
                    "step {now} of {order:?}"
                );
            }
        }
    }
}
