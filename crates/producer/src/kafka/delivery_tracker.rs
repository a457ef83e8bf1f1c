//! What became of the records of one batch, written by librdkafka's thread and read by the request: 16 bytes a
//! record, no task and no channel.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use prometheus_client::metrics::histogram::Histogram;
use rdkafka::error::RDKafkaErrorCode as Code;
use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::client::{Delivery, Sent};
use super::delivery::Stored;
use service::lock::lock;

/// Slots are kept in pages, so that a long list is never copied to grow.
const PAGE: usize = 4096;

/// What is known of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// Nothing yet.
    Pending,
    /// Where it is.
    Stored {
        /// The partition.
        partition: i32,
        /// The offset.
        offset: i64,
    },
    /// The number of its failure in a list that the owner of the batch keeps.
    Failed(u32),
}

/// A record that librdkafka has, and where its outcome goes.
#[derive(Debug)]
pub struct Ticket {
    /// The batch.
    pub tally: Arc<Tally>,
    /// The record's slot.
    pub slot: u32,
    /// The number of its source's label.
    pub label: u32,
    /// Its timestamp; librdkafka does not tell that of a record that failed.
    pub timestamp_ms: i64,
    /// Whether it was alone in its batch of librdkafka.
    pub alone: bool,
    /// When it was sent.
    pub sent: Sent,
    /// The same as a clock's reading, to be measured.
    pub sent_at: Instant,
    /// The memory that it takes, given back with the outcome.
    pub _room: OwnedSemaphorePermit,
}

/// A copy of a record that was refused.
#[derive(Debug)]
pub struct Copied {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
}

/// A delivery that failed and is not judged yet.
#[derive(Debug)]
pub struct Failed {
    /// Which record.
    pub ticket: Ticket,
    /// Why.
    pub code: Code,
    /// Whether librdkafka is certain that it is not stored.
    pub never_stored: bool,
    /// Set where the record may be sent again.
    pub copy: Option<Copied>,
}

/// The outcomes of one batch.
#[derive(Debug)]
pub struct Tally {
    state: Mutex<State>,
    changed: Notify,
    troubled: AtomicBool,
    delivery_seconds: Histogram,
}

#[derive(Debug, Default)]
struct State {
    pages: Vec<Vec<Slot>>,
    pending: usize,
    failed: Vec<Failed>,
    stored_by_label: Vec<u64>,
    closed: bool,
}

/// What is left when a batch is over.
#[derive(Debug, Default)]
pub struct Closed {
    /// The slots, in the order in which they were opened.
    pub pages: Vec<Vec<Slot>>,
    /// How many records were stored, by the number of their label.
    pub stored_by_label: Vec<u64>,
}

impl Tally {
    /// No records yet.
    pub fn new(delivery_seconds: Histogram) -> Self {
        Self {
            state: Mutex::default(),
            changed: Notify::new(),
            troubled: AtomicBool::new(false),
            delivery_seconds,
        }
    }

    /// A slot for the next record.
    pub fn open(&self) -> u32 {
        let mut state = lock(&self.state);
        if state.pages.last().is_none_or(|page| page.len() == PAGE) {
            state.pages.push(Vec::new());
        }
        let slot = (state.pages.len() - 1) * PAGE + state.pages.last().map_or(0, Vec::len);
        if let Some(page) = state.pages.last_mut() {
            page.push(Slot::Pending);
        }
        state.pending += 1;
        u32::try_from(slot).unwrap_or(u32::MAX)
    }

    /// The record was not sent, or its delivery was judged.
    pub fn fail(&self, slot: u32, failure: u32, pending: bool) {
        let mut state = lock(&self.state);
        state.set(slot, Slot::Failed(failure));
        state.pending -= usize::from(pending);
    }

    /// The outcome of a delivery, from librdkafka's thread.
    pub fn delivered(ticket: Ticket, delivery: Delivery, copy: impl FnOnce() -> Option<Copied>) {
        let tally = Arc::clone(&ticket.tally);
        if delivery.is_ok() {
            tally.delivery_seconds.observe(ticket.sent_at.elapsed().as_secs_f64());
        }
        let mut state = lock(&tally.state);
        if state.closed {
            return;
        }
        state.pending -= 1;
        let troubled = delivery.is_err();
        match delivery {
            Ok(Stored { partition, offset }) => {
                state.set(ticket.slot, Slot::Stored { partition, offset });
                state.count(ticket.label);
            }
            Err((code, never_stored)) => {
                let copy = if code == Code::MessageSizeTooLarge && !ticket.alone { copy() } else { None };
                state.failed.push(Failed { ticket, code, never_stored, copy });
                tally.troubled.store(true, Ordering::Release);
            }
        }
        if troubled || state.pending == 0 {
            tally.changed.notify_one();
        }
    }

    /// A record that failed is on its way again.
    pub fn again(&self) {
        lock(&self.state).pending += 1;
    }

    /// Whether deliveries failed that nobody has judged yet.
    pub fn troubled(&self) -> bool {
        self.troubled.load(Ordering::Acquire)
    }

    /// Waits until deliveries failed that nobody has judged yet.
    pub async fn trouble(&self) {
        while !self.troubled() {
            self.changed.notified().await;
        }
    }

    /// Waits until there is something to judge (true), or every record has its outcome (false).
    pub async fn settled(&self) -> bool {
        loop {
            if self.troubled() {
                return true;
            }
            if lock(&self.state).pending == 0 {
                return self.troubled();
            }
            self.changed.notified().await;
        }
    }

    /// The deliveries that failed, to be judged.
    pub fn take_failed(&self) -> Vec<Failed> {
        let mut state = lock(&self.state);
        self.troubled.store(false, Ordering::Release);
        std::mem::take(&mut state.failed)
    }

    /// What is still pending counts as failed, and nothing that comes later counts.
    pub fn close(&self, failure: u32) -> Closed {
        let mut state = lock(&self.state);
        state.closed = true;
        let mut pages = std::mem::take(&mut state.pages);
        for slot in pages.iter_mut().flatten().filter(|slot| **slot == Slot::Pending) {
            *slot = Slot::Failed(failure);
        }
        Closed { pages, stored_by_label: std::mem::take(&mut state.stored_by_label) }
    }
}

impl State {
    fn set(&mut self, slot: u32, to: Slot) {
        let slot = slot as usize;
        if let Some(place) = self.pages.get_mut(slot / PAGE).and_then(|page| page.get_mut(slot % PAGE)) {
            *place = to;
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
    fn a_slot_takes_sixteen_bytes_and_pages_follow_each_other() {
        assert_eq!(size_of::<Slot>(), 16);
        let tally = Tally::new(Histogram::new([1.0]));
        let slots: Vec<u32> = (0..10_000).map(|_| tally.open()).collect();
        assert!(slots.iter().copied().eq(0..10_000));
        tally.fail(9_000, 7, true);
        let closed = tally.close(3);
        let slots: Vec<Slot> = closed.pages.into_iter().flatten().collect();
        assert_eq!(slots.len(), 10_000);
        assert_eq!((slots[9_000], slots[8_999]), (Slot::Failed(7), Slot::Failed(3)));
    }

    fn ticket(tally: &Arc<Tally>, slot: u32, sent: Sent) -> Ticket {
        let room = Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap();
        let (tally, sent_at) = (Arc::clone(tally), Instant::now());
        Ticket { tally, slot, label: slot, timestamp_ms: 0, alone: false, sent, sent_at, _room: room }
    }

    /// What the request does when it has sent all: it waits until all is settled, and judges what failed meanwhile.
    async fn judges(tally: &Tally) {
        while tally.settled().await {
            tally.take_failed().into_iter().for_each(|failed| tally.fail(failed.ticket.slot, 7, false));
        }
    }

    #[test]
    fn in_every_order_of_outcomes_the_request_learns_each_of_them() {
        // Two threads of the client tell outcomes: slots 0 to 2 and 3 to 5; each second one failed. The request looks
        // between them as often.
        for order in devservers::interleavings(&[3, 3, 4]) {
            let tally = Arc::new(Tally::new(Histogram::new([1.0])));
            let mut tickets: [Vec<Ticket>; 2] = [0..3, 3..6].map(|slots| {
                slots
                    .map(|slot| {
                        tally.open();
                        ticket(&tally, slot, Sent::default())
                    })
                    .collect()
            });
            let mut request = Box::pin(judges(&tally));
            let mut looks = || request.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
            let mut done = false;
            for thread in &order {
                match tickets.get_mut(*thread) {
                    None => done = done || looks(),
                    Some(tickets) => {
                        let ticket = tickets.pop().unwrap();
                        let stored = Stored { partition: 0, offset: i64::from(ticket.slot) };
                        let failed = (Code::MessageTimedOut, true);
                        let outcome = if ticket.slot % 2 == 0 { Ok(stored) } else { Err(failed) };
                        Tally::delivered(ticket, outcome, || None);
                    }
                }
            }
            assert!(done || looks(), "the request waits for ever after {order:?}");
            let closed = tally.close(9);
            let stored = |offset| Slot::Stored { partition: 0, offset };
            let told = [stored(0), Slot::Failed(7), stored(2), Slot::Failed(7), stored(4), Slot::Failed(7)];
            assert_eq!(closed.pages.concat(), told, "{order:?}");
            assert_eq!(closed.stored_by_label, [1, 0, 1, 0, 1], "{order:?}");
        }
    }
}
