//! The progress of one partition and what its worker waits for. The worker writes it; the reader,
//! the committer, the lag monitor, health and metrics read it.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use service::tasks::lock;
use tokio::sync::mpsc::UnboundedSender;

use crate::kafka::record::{Record, TopicPartition};
use crate::partition::offsets::{FinishedOffsets, OffsetTracker};
use crate::partition::queue::{QueueLimit, RecordQueue, SetAsideRequest};

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
    state: Mutex<State>,
    repeated: Counter,
}

#[derive(Debug)]
struct State {
    tracker: OffsetTracker,
    /// The next offset to finish, if known.
    position: Option<i64>,
    /// The end of the partition, if known.
    end: Option<i64>,
    /// The offset of the last confirmed commit, if known.
    committed: Option<i64>,
    /// A position reset whose lost records were not counted yet.
    reset: Option<PositionReset>,
    /// Unfinished records of the current batch.
    in_batch: usize,
    progressed_at: Instant,
    /// What the worker waits for.
    wait_reason: Option<WaitReason>,
}

impl State {
    fn update_position(&mut self) {
        self.position = self.tracker.committable().or(self.position);
    }

    fn records_from(&self, offset: Option<i64>) -> Option<u64> {
        let behind = self.end?.saturating_sub(offset?);
        Some(u64::try_from(behind).unwrap_or_default())
    }
}

impl Progress {
    /// Creates the progress of a partition. `earlier` are the offsets that this process finished in
    /// an earlier assignment. Records that are finished again are counted in `repeated`.
    pub fn new(topic: Arc<str>, partition: i32, earlier: FinishedOffsets, repeated: Counter) -> Self {
        let state = State {
            tracker: OffsetTracker::new(earlier),
            position: None,
            end: None,
            committed: None,
            reset: None,
            in_batch: 0,
            progressed_at: Instant::now(),
            wait_reason: None,
        };
        Self { topic, partition, state: Mutex::new(state), repeated }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub fn topic_partition(&self) -> TopicPartition {
        (Arc::clone(&self.topic), self.partition)
    }

    /// A record was read.
    pub fn read(&self, offset: i64) {
        let mut state = self.state();
        state.tracker.read(offset);
        if let Some(reset) = &mut state.reset {
            reset.next.get_or_insert(offset);
        }
    }

    /// Sets the client's position. Every record below it was read.
    pub fn set_position(&self, position: i64) {
        let mut state = self.state();
        state.tracker.set_position(position);
        state.update_position();
    }

    /// Kafka has no record at the client's `position`; the client continues at the beginning.
    pub fn set_position_reset(&self, position: i64) {
        self.state().reset.get_or_insert(PositionReset { position, next: None });
    }

    /// Whether there is a position reset whose lost records were not counted yet.
    pub fn has_position_reset(&self) -> bool {
        self.state().reset.is_some()
    }

    /// The offsets that were deleted before they were read, if the partition begins at `first` now.
    /// A recreated topic begins below the position, so nothing was lost.
    pub fn take_lost(&self, first: i64) -> Option<Range<i64>> {
        let PositionReset { position, next } = self.state().reset.take()?;
        let lost = position..next.map_or(first, |next| next.min(first));
        (!lost.is_empty()).then_some(lost)
    }

    /// Begins a batch and returns the sequence number of its first record.
    pub fn begin(&self, offsets: impl Iterator<Item = i64>) -> u64 {
        let mut state = self.state();
        let sequences: Vec<u64> = offsets.map(|offset| state.tracker.begin(offset)).collect();
        state.in_batch = sequences.len();
        state.progressed_at = Instant::now();
        sequences.first().copied().unwrap_or_default()
    }

    /// Marks records as finished.
    pub fn finish(&self, sequences: impl Iterator<Item = u64>) {
        let mut state = self.state();
        let (mut count, mut repeated) = (0, 0);
        for sequence in sequences {
            count += 1;
            repeated += u64::from(state.tracker.finish(sequence));
        }
        if count == 0 {
            return;
        }
        self.repeated.inc_by(repeated);
        state.update_position();
        state.in_batch = state.in_batch.saturating_sub(count);
        state.progressed_at = Instant::now();
    }

    /// The offset that may be committed, as soon as there is one.
    pub fn committable(&self) -> Option<i64> {
        self.state().tracker.committable()
    }

    /// The offsets that this process has finished.
    pub fn finished(&self) -> FinishedOffsets {
        self.state().tracker.finished()
    }

    /// The next offset to finish, if known.
    pub fn position(&self) -> Option<i64> {
        self.state().position
    }

    /// Sets the offset at which the group started, unless something was finished here already.
    pub fn set_start(&self, offset: i64) {
        let mut state = self.state();
        state.position.get_or_insert(offset);
        state.committed.get_or_insert(offset);
    }

    /// Kafka confirmed a commit of this offset.
    pub fn set_committed(&self, offset: i64) {
        self.state().committed = Some(offset);
    }

    /// Whether the lag monitor has to read the group's start offset.
    pub fn needs_start(&self) -> bool {
        let state = self.state();
        state.position.is_none() || state.committed.is_none()
    }

    /// Sets the partition's end offset.
    pub fn set_end(&self, offset: i64) {
        self.state().end = Some(offset);
    }

    /// Records between the position and the end of the partition, once both are known.
    pub fn lag(&self) -> Option<u64> {
        let state = self.state();
        state.records_from(state.position)
    }

    /// Records between the last confirmed commit and the end of the partition, once both are known.
    pub fn committed_lag(&self) -> Option<u64> {
        let state = self.state();
        state.records_from(state.committed)
    }

    /// Unfinished records of the current batch.
    pub fn in_batch(&self) -> usize {
        self.state().in_batch
    }

    /// A record arrives in an empty queue. If the worker is idle, the idle time before it does not
    /// count as time without progress.
    fn end_idle_time(&self) {
        let mut state = self.state();
        if state.in_batch == 0 {
            state.progressed_at = Instant::now();
        }
    }

    /// Sets what the worker waits for; `None` if it continues.
    pub fn set_wait_reason(&self, reason: Option<WaitReason>) {
        self.state().wait_reason = reason;
    }

    /// What the worker waits for.
    pub fn wait_reason(&self) -> Option<WaitReason> {
        self.state().wait_reason.clone()
    }
}

/// The shared state of one partition: what the reader, the monitors and the endpoints see of it.
#[derive(Debug, Clone)]
pub struct PartitionView {
    pub progress: Arc<Progress>,
    /// Records that the worker has not taken yet.
    pub queue: Arc<RecordQueue>,
    /// Requests of an operator to set a record aside.
    pub set_aside: UnboundedSender<SetAsideRequest>,
}

impl PartitionView {
    /// Queues a record. Returns whether the queue has reached `limit`.
    pub fn push(&self, record: Record, limit: QueueLimit) -> bool {
        self.progress.read(record.offset);
        self.queue.push(record, limit, || self.progress.end_idle_time())
    }

    /// How long, at `now`, nothing was finished while records wait; `None` if no record waits.
    pub fn stalled_for(&self, now: Instant) -> Option<Duration> {
        let waits = self.progress.in_batch() > 0 || self.queue.len() > 0;
        // Read last: the first record of a queue ends the idle time before it is visible.
        waits.then(|| now.saturating_duration_since(self.progress.state().progressed_at))
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

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
        for order in testkit::interleavings(&[4, 3]) {
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
        for order in testkit::interleavings(&[3, 6]) {
            let progress = Progress::new("t".into(), 0, FinishedOffsets::default(), Counter::default());
            let partition = PartitionView {
                progress: Arc::new(progress),
                queue: Arc::default(),
                set_aside: unbounded_channel().0,
            };
            let limit = QueueLimit { records: usize::MAX, bytes: usize::MAX };
            let (mut pushed, mut worked, mut batch) = (0, 0, Vec::new());
            let (mut waiting, mut waiting_since, mut progressed) = (false, 0, 0);
            for (now, thread) in (1..).zip(&order) {
                partition.progress.state().progressed_at -= STEP;
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
