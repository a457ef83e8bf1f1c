//! The queue between the reader and one lane. What is pushed is never refused, so no record is lost; the answer says
//! when the partition must be paused, which bounds the queue. Requests to set a record aside come the same way.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::sync::Notify;

use crate::kafka::record::Record;
use crate::partition::set_aside::Requests;
use service::lock::lock;

/// How much may wait before the partition is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// Records.
    pub records: usize,
    /// Bytes of memory.
    pub bytes: usize,
}

#[derive(Debug, Default)]
struct Queue {
    records: VecDeque<Record>,
    bytes: usize,
}

/// Records that a lane has yet to take in hand.
#[derive(Debug, Default)]
pub struct Inbox {
    queue: Mutex<Queue>,
    arrived: Notify,
    /// Requests to set a record aside.
    pub requests: Requests,
}

impl Inbox {
    /// Adds a record; before anyone sees that it waits, and if none did, calls `first`. The answer is whether the
    /// bound is reached, so that the partition must be paused.
    pub fn push(&self, record: Record, bound: Bound, first: impl FnOnce()) -> bool {
        let full = {
            let mut queue = lock(&self.queue);
            if queue.records.is_empty() {
                first();
            }
            queue.bytes += record.cost_bytes();
            queue.records.push_back(record);
            queue.records.len() >= bound.records || queue.bytes >= bound.bytes
        };
        self.arrived.notify_one();
        full
    }

    /// Takes the oldest records: at most `records`, and at most `bytes` unless the first alone is larger.
    pub fn take(&self, records: usize, bytes: usize) -> Vec<Record> {
        let mut queue = lock(&self.queue);
        let mut taken = Vec::with_capacity(records.min(queue.records.len()));
        let mut taken_bytes = 0;
        while taken.len() < records
            && let Some(cost) = queue.records.front().map(Record::cost_bytes)
            && (taken.is_empty() || taken_bytes + cost <= bytes)
        {
            taken_bytes += cost;
            queue.bytes -= cost;
            taken.extend(queue.records.pop_front());
        }
        taken
    }

    /// Whether the queue has drained to half of its bound, so that the partition may go on.
    pub fn is_half_empty(&self, bound: Bound) -> bool {
        let queue = lock(&self.queue);
        queue.records.len() <= bound.records / 2 && queue.bytes <= bound.bytes / 2
    }

    /// How many records wait.
    pub fn len(&self) -> usize {
        lock(&self.queue).records.len()
    }

    /// Waits for the next push; one that happened since the last wait counts.
    pub async fn arrival(&self) {
        self.arrived.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::pin::Pin;
    use std::task::{Context, Waker};

    use super::*;

    fn record(offset: i64, bytes: usize) -> Record {
        Record::new(offset, None, None, Some(&vec![0; bytes]), std::iter::empty)
    }

    #[test]
    fn a_full_inbox_says_so_and_still_keeps_every_record() {
        let inbox = Inbox::default();
        let bound = Bound { records: 2, bytes: usize::MAX };
        assert!(!inbox.push(record(0, 1), bound, || ()));
        assert!(inbox.push(record(1, 1), bound, || ()));
        assert!(inbox.push(record(2, 1), bound, || ()));
        assert!(!inbox.is_half_empty(bound));
        let offsets: Vec<i64> = inbox.take(10, usize::MAX).iter().map(|record| record.offset).collect();
        assert_eq!(offsets, [0, 1, 2]);
        assert!(inbox.is_half_empty(bound));
    }

    #[test]
    fn bytes_bound_it_too_and_a_record_above_them_still_comes_out() {
        let inbox = Inbox::default();
        let bound = Bound { records: 100, bytes: 1000 };
        assert!(inbox.push(record(0, 2000), bound, || ()));
        inbox.push(record(1, 2000), bound, || ());
        assert_eq!(inbox.take(10, 1000).len(), 1);
        assert_eq!(inbox.take(10, 1000).len(), 1);
        assert!(inbox.is_half_empty(bound));
    }

    #[test]
    fn nobody_sees_that_a_record_waits_before_the_first_is_told() {
        let inbox = Inbox::default();
        let bound = Bound { records: 100, bytes: 1000 };
        let told = Cell::new(0);
        let tell = || {
            assert!(inbox.queue.try_lock().is_err());
            told.set(told.get() + 1);
        };
        for offset in 0..3 {
            inbox.push(record(offset, 1), bound, tell);
        }
        assert_eq!(told.get(), 1);
        inbox.take(10, usize::MAX);
        inbox.push(record(3, 1), bound, tell);
        assert_eq!(told.get(), 2);
    }

    /// The lane's side, a step at a time: take what is there, or wait.
    enum Lane<'a> {
        Works,
        Waits(Pin<Box<dyn Future<Output = ()> + 'a>>),
    }

    impl<'a> Lane<'a> {
        fn step(self, inbox: &'a Inbox, taken: &mut Vec<i64>) -> Self {
            match self {
                Lane::Works => {
                    let records = inbox.take(2, usize::MAX);
                    taken.extend(records.iter().map(|record| record.offset));
                    // It looks, and only then waits: what comes in between must not be missed.
                    if records.is_empty() { Lane::Waits(Box::pin(inbox.arrival())) } else { Lane::Works }
                }
                Lane::Waits(mut arrival) => {
                    let poll = arrival.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                    if poll.is_ready() { Lane::Works } else { Lane::Waits(arrival) }
                }
            }
        }
    }

    #[test]
    fn in_every_order_of_pushing_and_taking_no_record_is_left_behind_or_turned_round() {
        let unbounded = Bound { records: usize::MAX, bytes: usize::MAX };
        for order in devservers::interleavings(&[5, 7]) {
            let inbox = Inbox::default();
            let (mut lane, mut pushed, mut taken) = (Lane::Works, 0, Vec::new());
            for thread in &order {
                if *thread == 0 {
                    inbox.push(record(pushed, 1), unbounded, || ());
                    pushed += 1;
                } else {
                    lane = lane.step(&inbox, &mut taken);
                }
            }
            // Nothing more is pushed: a lane that is not woken now never is.
            for _ in 0..20 {
                lane = lane.step(&inbox, &mut taken);
            }
            assert!(taken.iter().copied().eq(0..5), "{taken:?} after {order:?}");
        }
    }
}
