//! The delivery states of one batch request. librdkafka's thread writes them and the request reads
//! them: 16 bytes a record, no task and no channel.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use prometheus_client::metrics::histogram::Histogram;
use rdkafka::error::RDKafkaErrorCode as Code;
use service::lock::lock;
use tokio::sync::{Notify, OwnedSemaphorePermit};

use crate::kafka::delivery::{DeliveryFailure, DeliveryReport, Position, SendMark};

/// States per page. Pages are never copied when the list grows.
const PAGE_LEN: usize = 4096;

/// The delivery state of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryState {
    /// There is no delivery report yet.
    Pending,
    /// The record is stored at this position.
    Stored { partition: i32, offset: i64 },
    /// The delivery failed. The value is the error's index in the list of the batch's owner.
    Failed(u32),
}

/// A record that librdkafka holds.
#[derive(Debug)]
pub struct PendingRecord {
    pub tracker: Arc<DeliveryTracker>,
    /// Index of the record's state in the tracker.
    pub slot: u32,
    /// Index of its source's metric label.
    pub label: u32,
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
    /// There are failed deliveries that are not classified yet.
    has_failures: AtomicBool,
    delivery_seconds: Histogram,
}

#[derive(Debug, Default)]
struct State {
    pages: Vec<Vec<DeliveryState>>,
    pending: usize,
    failed: Vec<FailedDelivery>,
    stored_by_label: Vec<u64>,
    closed: bool,
}

/// The final states of a batch.
#[derive(Debug, Default)]
pub struct FinalStates {
    /// The states, in the order in which their slots were opened.
    pub pages: Vec<Vec<DeliveryState>>,
    /// Number of stored records by the index of their label.
    pub stored_by_label: Vec<u64>,
}

impl DeliveryTracker {
    pub fn new(delivery_seconds: Histogram) -> Self {
        Self {
            state: Mutex::default(),
            changed: Notify::new(),
            has_failures: AtomicBool::new(false),
            delivery_seconds,
        }
    }

    /// Opens a slot for the next record.
    pub fn open(&self) -> u32 {
        let mut state = lock(&self.state);
        if state.pages.last().is_none_or(|page| page.len() == PAGE_LEN) {
            state.pages.push(Vec::new());
        }
        let slot = (state.pages.len() - 1) * PAGE_LEN + state.pages.last().map_or(0, Vec::len);
        if let Some(page) = state.pages.last_mut() {
            page.push(DeliveryState::Pending);
        }
        state.pending += 1;
        u32::try_from(slot).unwrap_or(u32::MAX)
    }

    /// Sets a slot to the error at `error_index`. `pending` is true if the record was not sent, so
    /// that it still counts as pending.
    pub fn fail(&self, slot: u32, error_index: u32, pending: bool) {
        let mut state = lock(&self.state);
        state.set(slot, DeliveryState::Failed(error_index));
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
        let has_failed = report.is_err();
        match report {
            Ok(Position { partition, offset }) => {
                state.set(record.slot, DeliveryState::Stored { partition, offset });
                state.count(record.label);
            }
            Err(failure) => {
                let may_resend = failure.code == Code::MessageSizeTooLarge && !record.alone;
                let copy = if may_resend { copy() } else { None };
                state.failed.push(FailedDelivery { record, failure, copy });
                tracker.has_failures.store(true, Ordering::Release);
            }
        }
        if has_failed || state.pending == 0 {
            tracker.changed.notify_one();
        }
    }

    /// Records that a failed record is sent again.
    pub fn reopen(&self) {
        lock(&self.state).pending += 1;
    }

    /// Whether there are failed deliveries that are not classified yet.
    pub fn has_failures(&self) -> bool {
        self.has_failures.load(Ordering::Acquire)
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
            if self.has_failures() {
                return true;
            }
            if lock(&self.state).pending == 0 {
                return self.has_failures();
            }
            self.changed.notified().await;
        }
    }

    /// Takes the failed deliveries that are not classified yet.
    pub fn take_failures(&self) -> Vec<FailedDelivery> {
        let mut state = lock(&self.state);
        self.has_failures.store(false, Ordering::Release);
        std::mem::take(&mut state.failed)
    }

    /// Ends the tracking. Pending records fail with the error at `error_index`; later delivery
    /// reports are ignored.
    pub fn close(&self, error_index: u32) -> FinalStates {
        let mut state = lock(&self.state);
        state.closed = true;
        let mut pages = std::mem::take(&mut state.pages);
        for slot in pages.iter_mut().flatten().filter(|slot| **slot == DeliveryState::Pending) {
            *slot = DeliveryState::Failed(error_index);
        }
        FinalStates { pages, stored_by_label: std::mem::take(&mut state.stored_by_label) }
    }
}

impl State {
    fn set(&mut self, slot: u32, new: DeliveryState) {
        let slot = slot as usize;
        if let Some(state) =
            self.pages.get_mut(slot / PAGE_LEN).and_then(|page| page.get_mut(slot % PAGE_LEN))
        {
            *state = new;
        }
    }

    fn count(&mut self, label: u32) {
        let label = label as usize;
        if self.stored_by_label.len() <= label {
            self.stored_by_label.resize(label + 1, 0);
        }
        if let Some(count) = self.stored_by_label.get_mut(label) {
            *count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn a_state_takes_16_bytes_and_slots_are_numbered_across_pages() {
        assert_eq!(size_of::<DeliveryState>(), 16);
        let tracker = DeliveryTracker::new(Histogram::new([1.0]));
        let slots: Vec<u32> = (0..10_000).map(|_| tracker.open()).collect();
        assert!(slots.iter().copied().eq(0..10_000));
        tracker.fail(9_000, 7, true);
        let closed = tracker.close(3);
        let states: Vec<DeliveryState> = closed.pages.into_iter().flatten().collect();
        assert_eq!(states.len(), 10_000);
        assert_eq!((states[9_000], states[8_999]), (DeliveryState::Failed(7), DeliveryState::Failed(3)));
    }

    fn pending_record(tracker: &Arc<DeliveryTracker>, slot: u32) -> PendingRecord {
        let permit = Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap();
        PendingRecord {
            tracker: Arc::clone(tracker),
            slot,
            label: slot,
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
        for order in devservers::interleavings(&[3, 3, 4]) {
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
                        let position = Position { partition: 0, offset: i64::from(record.slot) };
                        let failure = DeliveryFailure { code: Code::MessageTimedOut, never_stored: true };
                        let report = if record.slot % 2 == 0 { Ok(position) } else { Err(failure) };
                        DeliveryTracker::record_report(record, report, || None);
                    }
                }
            }
            assert!(done || poll(), "the request waits for ever after {order:?}");
            let closed = tracker.close(9);
            let stored = |offset| DeliveryState::Stored { partition: 0, offset };
            let failed = DeliveryState::Failed(7);
            let expected = [stored(0), failed, stored(2), failed, stored(4), failed];
            assert_eq!(closed.pages.concat(), expected, "{order:?}");
            assert_eq!(closed.stored_by_label, [1, 0, 1, 0, 1], "{order:?}");
        }
    }
}
