//! The delivery states of one batch request. librdkafka's thread writes them and the request reads
//! them: 16 bytes a record, no task and no channel.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use prometheus_client::metrics::histogram::Histogram;
use rdkafka::error::RDKafkaErrorCode as Code;
use service::tasks::lock;
use tokio::sync::{Notify, OwnedSemaphorePermit};

use crate::kafka::delivery::{DeliveryFailure, DeliveryReport, Position, SendMark};

/// The delivery state of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryState {
    /// There is no delivery report yet.
    Pending,
    /// The record is stored at this position.
    Stored { partition: i32, offset: i64 },
    /// The delivery failed. The value is the error's index in the list of the batch's owner.
    Failed(usize),
}

/// A record that librdkafka holds.
#[derive(Debug)]
pub struct PendingRecord {
    pub tracker: Arc<DeliveryTracker>,
    /// Index of the record's state in the tracker.
    pub slot: usize,
    /// Its timestamp, which librdkafka does not report for a record that failed.
    pub timestamp_ms: i64,
    /// It was alone in its librdkafka batch.
    pub alone: bool,
    pub mark: SendMark,
    /// When it was sent, for the metric of delivery times.
    pub sent_at: Instant,
    /// Its share of the send queue, released with the delivery report.
    pub _queue_permit: OwnedSemaphorePermit,
}

/// A copy of a rejected record.
#[derive(Debug)]
pub struct RecordCopy {
    pub topic: String,
    pub key: String,
    pub value: Vec<u8>,
}

/// A failed delivery that is not classified yet.
#[derive(Debug)]
pub struct FailedDelivery {
    pub record: PendingRecord,
    pub failure: DeliveryFailure,
    /// Set if the record may be sent again.
    pub copy: Option<RecordCopy>,
}

/// The delivery states of one batch request.
#[derive(Debug)]
pub struct DeliveryTracker {
    state: Mutex<State>,
    changed: Notify,
    delivery_seconds: Histogram,
}

#[derive(Debug, Default)]
struct State {
    /// The states, in the order in which their slots were opened.
    slots: Vec<DeliveryState>,
    pending: usize,
    failed: Vec<FailedDelivery>,
    closed: bool,
}

impl DeliveryTracker {
    pub fn new(delivery_seconds: Histogram) -> Self {
        Self { state: Mutex::default(), changed: Notify::new(), delivery_seconds }
    }

    /// Opens a slot for the next record.
    pub fn open(&self) -> usize {
        let mut state = lock(&self.state);
        state.slots.push(DeliveryState::Pending);
        state.pending += 1;
        state.slots.len() - 1
    }

    /// Sets a slot to the error at `error_index`. `pending` says that the slot still counts as
    /// pending, because its record was never sent.
    pub fn fail(&self, slot: usize, error_index: usize, pending: bool) {
        let mut state = lock(&self.state);
        state.slots[slot] = DeliveryState::Failed(error_index);
        state.pending -= usize::from(pending);
    }

    /// Records a delivery report. librdkafka's thread calls it.
    pub fn record_report(
        record: PendingRecord,
        report: DeliveryReport,
        copy: impl FnOnce() -> Option<RecordCopy>,
    ) {
        let tracker = Arc::clone(&record.tracker);
        if report.is_ok() {
            tracker.delivery_seconds.observe(record.sent_at.elapsed().as_secs_f64());
        }
        let mut state = lock(&tracker.state);
        if state.closed {
            return;
        }
        state.pending -= 1;
        match report {
            Ok(Position { partition, offset }) => {
                state.slots[record.slot] = DeliveryState::Stored { partition, offset };
            }
            Err(failure) => {
                let may_resend = failure.code == Code::MessageSizeTooLarge && !record.alone;
                let copy = if may_resend { copy() } else { None };
                state.failed.push(FailedDelivery { record, failure, copy });
            }
        }
        if report.is_err() || state.pending == 0 {
            tracker.changed.notify_one();
        }
    }

    /// Records that a failed record is sent again.
    pub fn reopen(&self) {
        lock(&self.state).pending += 1;
    }

    /// Whether there are failed deliveries that are not classified yet.
    pub fn has_failures(&self) -> bool {
        !lock(&self.state).failed.is_empty()
    }

    /// Waits until there are failed deliveries that are not classified yet.
    pub async fn wait_for_failures(&self) {
        while !self.has_failures() {
            self.changed.notified().await;
        }
    }

    /// Waits until there are failures to classify (true) or no record is pending (false).
    pub async fn wait_for_failures_or_end(&self) -> bool {
        loop {
            let (failures, pending) = {
                let state = lock(&self.state);
                (!state.failed.is_empty(), state.pending)
            };
            if failures || pending == 0 {
                return failures;
            }
            self.changed.notified().await;
        }
    }

    /// The slots from `first` on that failed with the error at `error_index`.
    pub fn failed_since(&self, first: usize, error_index: usize) -> Vec<usize> {
        let state = lock(&self.state);
        let slots = state.slots.iter().enumerate().skip(first);
        let failed = slots.filter(|(_, state)| **state == DeliveryState::Failed(error_index));
        failed.map(|(slot, _)| slot).collect()
    }

    /// Takes the failed deliveries that are not classified yet.
    pub fn take_failures(&self) -> Vec<FailedDelivery> {
        std::mem::take(&mut lock(&self.state).failed)
    }

    /// Ends the tracking and returns all states. Pending records fail with the error at
    /// `error_index`; later delivery reports are ignored.
    pub fn close(&self, error_index: usize) -> Vec<DeliveryState> {
        let mut state = lock(&self.state);
        state.closed = true;
        let mut slots = std::mem::take(&mut state.slots);
        for slot in slots.iter_mut().filter(|slot| **slot == DeliveryState::Pending) {
            *slot = DeliveryState::Failed(error_index);
        }
        slots
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn a_state_takes_16_bytes_and_slots_are_numbered() {
        assert_eq!(size_of::<DeliveryState>(), 16);
        let tracker = DeliveryTracker::new(Histogram::new([1.0]));
        let slots: Vec<usize> = (0..10_000).map(|_| tracker.open()).collect();
        assert!(slots.iter().copied().eq(0..10_000));
        tracker.fail(9_000, 7, true);
        let states = tracker.close(3);
        assert_eq!(states.len(), 10_000);
        assert_eq!((states[9_000], states[8_999]), (DeliveryState::Failed(7), DeliveryState::Failed(3)));
    }

    fn pending_record(tracker: &Arc<DeliveryTracker>, slot: usize) -> PendingRecord {
        let permit = Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap();
        PendingRecord {
            tracker: Arc::clone(tracker),
            slot,
            timestamp_ms: 0,
            alone: false,
            mark: SendMark::default(),
            sent_at: Instant::now(),
            _queue_permit: permit,
        }
    }

    /// The request after it sent all records: it waits for the end and classifies each failure.
    async fn classify_until_end(tracker: &DeliveryTracker) {
        while tracker.wait_for_failures_or_end().await {
            tracker.take_failures().into_iter().for_each(|failed| tracker.fail(failed.record.slot, 7, false));
        }
    }

    #[test]
    fn in_every_order_of_reports_the_request_learns_each_outcome() {
        // Two client threads report: slots 0 to 2 and slots 3 to 5. Every second record failed. The
        // request is polled four times in between.
        for order in testkit::interleavings(&[3, 3, 4]) {
            let tracker = Arc::new(DeliveryTracker::new(Histogram::new([1.0])));
            let mut records: [Vec<PendingRecord>; 2] = [0..3, 3..6].map(|slots| {
                slots
                    .map(|slot| {
                        tracker.open();
                        pending_record(&tracker, slot)
                    })
                    .collect()
            });
            let mut request = Box::pin(classify_until_end(&tracker));
            let mut poll = || request.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
            let mut done = false;
            for thread in &order {
                match records.get_mut(*thread) {
                    None => done = done || poll(),
                    Some(records) => {
                        let record = records.pop().unwrap();
                        let position = Position { partition: 0, offset: i64::try_from(record.slot).unwrap() };
                        let failure = DeliveryFailure { code: Code::MessageTimedOut, never_stored: true };
                        let report = if record.slot % 2 == 0 { Ok(position) } else { Err(failure) };
                        DeliveryTracker::record_report(record, report, || None);
                    }
                }
            }
            assert!(done || poll(), "the request waits for ever after {order:?}");
            let stored = |offset| DeliveryState::Stored { partition: 0, offset };
            let failed = DeliveryState::Failed(7);
            let expected = [stored(0), failed, stored(2), failed, stored(4), failed];
            assert_eq!(tracker.close(9), expected, "{order:?}");
        }
    }
}
