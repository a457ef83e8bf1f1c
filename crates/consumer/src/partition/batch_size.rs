//! How much a lane asks of the database at once, and how long it may take: less after a timeout, more after a success,
//! and more time for a record that is too slow even when it is alone.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::mongo::MAX_DOUBLINGS;

/// One lane's pace.
#[derive(Debug)]
pub struct Pace {
    most: usize,
    records: AtomicUsize,
    doublings: AtomicU32,
}

/// How a write went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Went {
    /// Everything was finished.
    Well,
    /// A deadline passed.
    TimedOut {
        /// The server answers other calls.
        server_answers: bool,
    },
    /// Something else was wrong, which neither fewer records nor more time helps.
    Wrong,
}

impl Pace {
    /// Starts with `most` records in one write.
    pub fn new(most: usize) -> Self {
        Self { most, records: AtomicUsize::new(most), doublings: AtomicU32::new(0) }
    }

    /// Most records in one write now.
    pub fn records(&self) -> usize {
        self.records.load(Ordering::Relaxed)
    }

    /// How often the deadline of a write of `records` is doubled.
    pub fn doublings(&self, records: usize) -> u32 {
        if records == 1 { self.doublings.load(Ordering::Relaxed) } else { 0 }
    }

    /// A write of `records` ended.
    pub fn after(&self, records: usize, went: Went) {
        match went {
            Went::Well => {
                self.records.store((self.records() * 2).min(self.most), Ordering::Relaxed);
                self.doublings.store(0, Ordering::Relaxed);
            }
            Went::TimedOut { server_answers } => {
                self.records.store((records / 2).max(1), Ordering::Relaxed);
                if records == 1 && server_answers {
                    let doublings = self.doublings.load(Ordering::Relaxed);
                    self.doublings.store((doublings + 1).min(MAX_DOUBLINGS), Ordering::Relaxed);
                }
            }
            Went::Wrong => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_halve_the_batch_down_to_one_record_and_then_double_the_deadline() {
        let pace = Pace::new(4);
        let slow = Went::TimedOut { server_answers: true };
        for wanted in [2, 1, 1] {
            assert_eq!(pace.doublings(pace.records()), 0);
            pace.after(pace.records(), slow);
            assert_eq!(pace.records(), wanted);
        }
        pace.after(1, Went::Wrong);
        assert_eq!((pace.records(), pace.doublings(1), pace.doublings(2)), (1, 1, 0));
        pace.after(1, Went::TimedOut { server_answers: false });
        assert_eq!(pace.doublings(1), 1, "more time does not bring a server back");
        (0..10).for_each(|_| pace.after(1, slow));
        assert_eq!(pace.doublings(1), MAX_DOUBLINGS);
        for wanted in [2, 4, 4] {
            pace.after(pace.records(), Went::Well);
            assert_eq!((pace.records(), pace.doublings(1)), (wanted, 0));
        }
    }
}
