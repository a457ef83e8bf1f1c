//! Which offset may be committed: the one after the longest run of finished records, counted from the first that
//! was begun. A record that is not finished holds it back, whatever was finished after it.

use std::collections::VecDeque;

/// Follows the records of one partition, in the order in which they were begun.
///
/// Order is that of arrival and not of offset: after a topic was made anew its offsets start again.
#[derive(Debug, Default)]
pub struct Tracker {
    open: VecDeque<(i64, bool)>,
    /// The sequence number of the first of `open`.
    first: u64,
    watermark: Option<i64>,
}

impl Tracker {
    /// A record was taken in hand; its sequence number.
    pub fn begin(&mut self, offset: i64) -> u64 {
        self.open.push_back((offset, false));
        self.first + self.open.len() as u64 - 1
    }

    /// The record with this sequence number is finished. Saying it twice changes nothing.
    pub fn finish(&mut self, sequence: u64) {
        let Some(index) = sequence.checked_sub(self.first) else { return };
        if let Some(record) = usize::try_from(index).ok().and_then(|index| self.open.get_mut(index)) {
            record.1 = true;
        }
        while let Some(&(offset, true)) = self.open.front() {
            self.open.pop_front();
            self.first += 1;
            self.watermark = Some(offset + 1);
        }
    }

    /// The offset to commit: the next one to read after a restart. `None` until the first record is finished.
    pub fn watermark(&self) -> Option<i64> {
        self.watermark
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Offsets with gaps, as compaction and transactions leave them; finished in any order.
        #[test]
        fn the_watermark_is_the_offset_after_the_finished_prefix(
            gaps in prop::collection::vec(1_i64..4, 1..40),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        ) {
            let offsets: Vec<i64> = gaps.iter().scan(-1, |at, gap| { *at += gap; Some(*at) }).collect();
            let mut tracker = Tracker::default();
            let sequences: Vec<u64> = offsets.iter().map(|&offset| tracker.begin(offset)).collect();
            let mut finished = vec![false; offsets.len()];
            for index in order {
                let index = index.index(offsets.len());
                tracker.finish(sequences[index]);
                finished[index] = true;
                let prefix = finished.iter().take_while(|&&done| done).count();
                let model = prefix.checked_sub(1).map(|last| offsets[last] + 1);
                prop_assert_eq!(tracker.watermark(), model);
            }
        }
    }

    #[test]
    fn records_begun_later_are_held_back_by_an_earlier_one() {
        let mut tracker = Tracker::default();
        let (a, b) = (tracker.begin(10), tracker.begin(11));
        tracker.finish(b);
        assert_eq!(tracker.watermark(), None);
        let c = tracker.begin(12);
        tracker.finish(a);
        assert_eq!(tracker.watermark(), Some(12));
        tracker.finish(c);
        assert_eq!(tracker.watermark(), Some(13));
    }

    #[test]
    fn offsets_that_start_again_are_followed() {
        let mut tracker = Tracker::default();
        let old = tracker.begin(1000);
        tracker.finish(old);
        let new = tracker.begin(0);
        tracker.finish(new);
        assert_eq!(tracker.watermark(), Some(1));
    }
}
