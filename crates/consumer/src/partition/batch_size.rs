//! Batch size control: limits the records and the deadline of a worker's next write.
//!
//! A timeout halves the batch and a success doubles it. For a single record that times out, the
//! deadline is doubled instead.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::mongo::MAX_DOUBLINGS;

/// Batch size control of one worker.
#[derive(Debug)]
pub struct BatchSize {
    max_records: usize,
    records: AtomicUsize,
    doublings: AtomicU32,
}

/// The result of a write, as far as it affects the size of the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteResult {
    /// All records are finished.
    Complete,
    TimedOut {
        /// Whether the server replies to other calls.
        server_answers: bool,
    },
    /// Another error, against which neither fewer records nor more time help.
    Failed,
}

impl BatchSize {
    /// Starts with `max_records` records per write.
    pub fn new(max_records: usize) -> Self {
        Self { max_records, records: AtomicUsize::new(max_records), doublings: AtomicU32::new(0) }
    }

    /// Current maximum of records per write.
    pub fn records(&self) -> usize {
        self.records.load(Ordering::Relaxed)
    }

    /// How often the deadline of a write of `records` records is doubled.
    pub fn doublings(&self, records: usize) -> u32 {
        if records == 1 { self.doublings.load(Ordering::Relaxed) } else { 0 }
    }

    /// Adapts to the result of a write of `records` records.
    pub fn update(&self, records: usize, result: WriteResult) {
        match result {
            WriteResult::Complete => {
                self.records.store((self.records() * 2).min(self.max_records), Ordering::Relaxed);
                self.doublings.store(0, Ordering::Relaxed);
            }
            WriteResult::TimedOut { server_answers } => {
                self.records.store((records / 2).max(1), Ordering::Relaxed);
                if records == 1 && server_answers {
                    let doublings = self.doublings.load(Ordering::Relaxed);
                    self.doublings.store((doublings + 1).min(MAX_DOUBLINGS), Ordering::Relaxed);
                }
            }
            WriteResult::Failed => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_halve_the_batch_to_one_record_then_double_the_deadline() {
        let size = BatchSize::new(4);
        let slow = WriteResult::TimedOut { server_answers: true };
        for expected in [2, 1, 1] {
            assert_eq!(size.doublings(size.records()), 0);
            size.update(size.records(), slow);
            assert_eq!(size.records(), expected);
        }
        size.update(1, WriteResult::Failed);
        assert_eq!((size.records(), size.doublings(1), size.doublings(2)), (1, 1, 0));
        size.update(1, WriteResult::TimedOut { server_answers: false });
        assert_eq!(size.doublings(1), 1, "no doubling while the server is unavailable");
        (0..10).for_each(|_| size.update(1, slow));
        assert_eq!(size.doublings(1), MAX_DOUBLINGS);
        for expected in [2, 4, 4] {
            size.update(size.records(), WriteResult::Complete);
            assert_eq!((size.records(), size.doublings(1)), (expected, 0));
        }
    }
}
