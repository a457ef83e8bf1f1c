//! The queue between the reader and one partition worker.
//!
//! A push never fails, so no record is lost. Its result says whether the partition must be paused,
//! which bounds the queue. Requests to set a record aside reach the worker through a channel.

use std::collections::VecDeque;
use std::sync::Mutex;

use ::kafka::topic_reader::RecordPosition;
use service::tasks::lock;
use tokio::sync::{Notify, oneshot};

use crate::kafka::record::Record;

/// The size from which on a partition is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimit {
    pub records: usize,
    /// Memory of the records.
    pub bytes: usize,
}

#[derive(Debug, Default)]
struct Contents {
    records: VecDeque<Record>,
    bytes: usize,
}

/// Records that a worker has not taken yet.
#[derive(Debug, Default)]
pub struct RecordQueue {
    contents: Mutex<Contents>,
    pushed: Notify,
}

impl RecordQueue {
    /// Adds a record. If the queue was empty, calls `before_first` before the record is visible to
    /// other threads. Returns whether `limit` is reached and the partition must be paused.
    pub fn push(&self, record: Record, limit: QueueLimit, before_first: impl FnOnce()) -> bool {
        let full = {
            let mut contents = lock(&self.contents);
            if contents.records.is_empty() {
                before_first();
            }
            contents.bytes += record.memory_bytes();
            contents.records.push_back(record);
            contents.records.len() >= limit.records || contents.bytes >= limit.bytes
        };
        self.pushed.notify_one();
        full
    }

    /// Takes the oldest records: at most `records`, and at most `bytes` unless the first record
    /// alone is larger.
    pub fn take(&self, records: usize, bytes: usize) -> Vec<Record> {
        let mut contents = lock(&self.contents);
        let mut taken = Vec::with_capacity(records.min(contents.records.len()));
        let mut taken_bytes = 0;
        while taken.len() < records
            && let Some(cost) = contents.records.front().map(Record::memory_bytes)
            && (taken.is_empty() || taken_bytes + cost <= bytes)
        {
            taken_bytes += cost;
            contents.bytes -= cost;
            taken.extend(contents.records.pop_front());
        }
        taken
    }

    /// Whether the queue has drained to half of `limit`, so that the partition can be resumed.
    pub fn is_half_empty(&self, limit: QueueLimit) -> bool {
        let contents = lock(&self.contents);
        contents.records.len() <= limit.records / 2 && contents.bytes <= limit.bytes / 2
    }

    pub fn len(&self) -> usize {
        lock(&self.contents).records.len()
    }

    /// Waits for the next push. Returns at once if there was a push since the last wait.
    pub async fn wait_for_push(&self) {
        self.pushed.notified().await;
    }
}

/// The worker's reply to a request.
#[derive(Debug, PartialEq, Eq)]
pub enum SetAsideReply {
    /// The dead letter is written, and the record is finished.
    DeadLettered(RecordPosition),
    /// The dead letter of the record is already being produced.
    InProgress,
    /// The current batch has no unfinished record with this offset.
    NotInBatch,
}

/// A request to set the record at `offset` aside.
#[derive(Debug)]
pub struct SetAsideRequest {
    pub offset: i64,
    /// The operator's reason.
    pub reason: String,
    /// Gets the reply. It is dropped if the worker ends before it replies.
    pub reply: oneshot::Sender<SetAsideReply>,
}

impl SetAsideRequest {
    /// Sends the reply. The receiver may be gone.
    pub fn reply(self, reply: SetAsideReply) {
        _ = self.reply.send(reply);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::pin::Pin;
    use std::task::{Context, Waker};

    fn record(offset: i64, bytes: usize) -> Record {
        Record::new(offset, None, None, Some(&vec![0; bytes]), std::iter::empty)
    }

    #[test]
    fn full_queue_reports_it_and_keeps_every_record() {
        let queue = RecordQueue::default();
        let limit = QueueLimit { records: 2, bytes: usize::MAX };
        assert!(!queue.push(record(0, 1), limit, || ()));
        assert!(queue.push(record(1, 1), limit, || ()));
        assert!(queue.push(record(2, 1), limit, || ()));
        assert!(!queue.is_half_empty(limit));
        let offsets: Vec<i64> = queue.take(10, usize::MAX).iter().map(|record| record.offset).collect();
        assert_eq!(offsets, [0, 1, 2]);
        assert!(queue.is_half_empty(limit));
    }

    #[test]
    fn queue_is_limited_by_bytes_and_returns_a_record_above_the_limit() {
        let queue = RecordQueue::default();
        let limit = QueueLimit { records: 100, bytes: 1000 };
        assert!(queue.push(record(0, 2000), limit, || ()));
        queue.push(record(1, 2000), limit, || ());
        assert_eq!(queue.take(10, 1000).len(), 1);
        assert_eq!(queue.take(10, 1000).len(), 1);
        assert!(queue.is_half_empty(limit));
    }

    #[test]
    fn callback_of_the_first_record_runs_before_the_record_is_visible() {
        let queue = RecordQueue::default();
        let limit = QueueLimit { records: 100, bytes: 1000 };
        let calls = Cell::new(0);
        let count = || {
            assert!(queue.contents.try_lock().is_err());
            calls.set(calls.get() + 1);
        };
        for offset in 0..3 {
            queue.push(record(offset, 1), limit, count);
        }
        assert_eq!(calls.get(), 1);
        queue.take(10, usize::MAX);
        queue.push(record(3, 1), limit, count);
        assert_eq!(calls.get(), 2);
    }

    /// A worker that runs step by step: it takes the queued records or waits.
    enum Worker<'a> {
        Running,
        Waiting(Pin<Box<dyn Future<Output = ()> + 'a>>),
    }

    impl<'a> Worker<'a> {
        fn step(self, queue: &'a RecordQueue, taken: &mut Vec<i64>) -> Self {
            match self {
                Worker::Running => {
                    let records = queue.take(2, usize::MAX);
                    taken.extend(records.iter().map(|record| record.offset));
                    // It checks the queue before it waits. A push in between must not be missed.
                    if records.is_empty() {
                        Worker::Waiting(Box::pin(queue.wait_for_push()))
                    } else {
                        Worker::Running
                    }
                }
                Worker::Waiting(mut arrival) => {
                    let poll = arrival.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                    if poll.is_ready() { Worker::Running } else { Worker::Waiting(arrival) }
                }
            }
        }
    }

    #[test]
    fn no_record_is_left_or_reordered_in_any_order_of_push_and_take() {
        let unlimited = QueueLimit { records: usize::MAX, bytes: usize::MAX };
        for order in testkit::interleavings(&[5, 7]) {
            let queue = RecordQueue::default();
            let (mut worker, mut pushed, mut taken) = (Worker::Running, 0, Vec::new());
            for thread in &order {
                if *thread == 0 {
                    queue.push(record(pushed, 1), unlimited, || ());
                    pushed += 1;
                } else {
                    worker = worker.step(&queue, &mut taken);
                }
            }
            // There are no more pushes: a worker that is not woken now is never woken.
            for _ in 0..20 {
                worker = worker.step(&queue, &mut taken);
            }
            assert!(taken.iter().copied().eq(0..5), "{taken:?} after {order:?}");
        }
    }
}
