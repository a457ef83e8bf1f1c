//! Which offset may be committed: the one after the longest run of finished records, counted from the first that
//! was begun. A record that is not finished holds it back, whatever was finished after it.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

/// The records of one partition that this process has finished, as far as they may come again: what was not committed
/// when the partition was lost is read again by whoever is next, which may be this process.
#[derive(Debug, Clone, Default)]
pub struct Finished {
    run: Range<i64>,
    beyond: BTreeSet<i64>,
}

impl Finished {
    /// Whether the record at `offset` is one of them.
    pub fn has(&self, offset: i64) -> bool {
        self.run.contains(&offset) || self.beyond.contains(&offset)
    }

    /// With what was finished later. Of an earlier run that does not reach to the later one nothing comes again: it
    /// was committed, by us or by another member. What was finished beyond it may come, since a later run does not
    /// reach back over offsets that no record has.
    fn and(&self, later: Self) -> Self {
        if later.run.is_empty() && later.beyond.is_empty() {
            return self.clone();
        }
        let reaches = self.run.contains(&later.run.start) || self.run.end == later.run.start;
        let run = if reaches { self.run.start..self.run.end.max(later.run.end) } else { later.run };
        let beyond = self.beyond.iter().chain(&later.beyond).copied().filter(|offset| *offset >= run.end);
        Self { beyond: beyond.collect(), run }
    }
}

/// Follows the records of one partition, in the order in which they were begun.
///
/// Order is that of arrival and not of offset: after a topic was made anew its offsets start again.
#[derive(Debug, Default)]
pub struct Tracker {
    open: VecDeque<(i64, bool)>,
    /// The sequence number of the first of `open`.
    first: u64,
    /// The offset of the first record of all.
    start: Option<i64>,
    watermark: Option<i64>,
    /// The offset after the last record that was read.
    read_to: Option<i64>,
    /// The client's position behind the last record, past control records and aborted records.
    passed: Option<i64>,
    /// What this process finished of the partition before.
    earlier: Finished,
}

impl Tracker {
    /// Of a partition of which `earlier` was finished before.
    pub fn after(earlier: Finished) -> Self {
        Self { earlier, ..Self::default() }
    }

    /// A record was read; it is begun later.
    pub fn read(&mut self, offset: i64) {
        self.read_to = Some(offset + 1);
        self.passed = None;
    }

    /// The client's position: no record is left between the last one that was read and `position`.
    pub fn pass(&mut self, position: i64) {
        if self.read_to.is_none_or(|read_to| position > read_to) {
            self.passed = Some(position);
        }
    }

    /// A record was taken in hand; its sequence number.
    pub fn begin(&mut self, offset: i64) -> u64 {
        self.start.get_or_insert(offset);
        self.open.push_back((offset, false));
        self.first + self.open.len() as u64 - 1
    }

    /// The record with this sequence number is finished. Saying it twice changes nothing. The answer is whether the
    /// record had been finished before the partition came, so that it was counted twice.
    pub fn finish(&mut self, sequence: u64) -> bool {
        let Some(index) = sequence.checked_sub(self.first) else { return false };
        let mut again = false;
        if let Some(record) = usize::try_from(index).ok().and_then(|index| self.open.get_mut(index)) {
            again = !record.1 && self.earlier.has(record.0);
            record.1 = true;
        }
        while let Some(&(offset, true)) = self.open.front() {
            self.open.pop_front();
            self.first += 1;
            self.watermark = Some(offset + 1);
        }
        again
    }

    /// What is finished, earlier than this and here.
    pub fn finished(&self) -> Finished {
        let start = self.start.unwrap_or_default();
        let beyond = self.open.iter().filter(|(_, finished)| *finished).map(|(offset, _)| *offset);
        self.earlier.and(Finished { run: start..self.watermark.unwrap_or(start), beyond: beyond.collect() })
    }

    /// The offset to commit: the next one to read after a restart. `None` until the first record is finished
    /// or the client passed offsets that have no record. It is behind such offsets only if every record that
    /// was read is finished.
    pub fn watermark(&self) -> Option<i64> {
        let all_finished = self.open.is_empty() && self.watermark == self.read_to;
        self.passed.filter(|_| all_finished).or(self.watermark)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    /// What happens to a partition.
    #[derive(Debug, Clone)]
    enum Step {
        /// Its next record is begun.
        Begin,
        /// A record that was begun is finished, for the first time or again.
        Finish(Index),
        /// It is lost, and comes back at some record: ours that were not committed come again, others may have gone on.
        Lose(Index),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            5 => Just(Step::Begin),
            5 => any::<Index>().prop_map(Step::Finish),
            1 => any::<Index>().prop_map(Step::Lose),
        ];
        vec(step, 1..100)
    }

    /// Offsets with gaps, as compaction and transactions leave them.
    fn offsets() -> impl Strategy<Value = Vec<i64>> {
        vec(1_i64..4, 1..40).prop_map(|gaps| {
            let next = |at: &mut i64, gap: i64| {
                *at += gap;
                Some(*at)
            };
            gaps.into_iter().scan(-1, next).collect()
        })
    }

    /// A tracker, and the sets that it stands for.
    #[derive(Default)]
    struct Partition {
        offsets: Vec<i64>,
        tracker: Tracker,
        /// Of the records that were begun since it came, with their sequence numbers.
        begun: Vec<(i64, u64)>,
        /// How many records are before the first of these.
        before: usize,
        finished_here: BTreeSet<i64>,
        finished_earlier: BTreeSet<i64>,
    }

    impl Partition {
        fn of(offsets: Vec<i64>) -> Self {
            Self { offsets, ..Self::default() }
        }

        /// For a record that is finished, whether the tracker takes it for one that was finished earlier, and whether
        /// it is one.
        fn step(&mut self, step: &Step) -> Option<(bool, bool)> {
            match step {
                Step::Begin => {
                    let offset = *self.offsets.get(self.before + self.begun.len())?;
                    self.begun.push((offset, self.tracker.begin(offset)));
                    None
                }
                Step::Finish(_) if self.begun.is_empty() => None,
                Step::Finish(which) => {
                    let (offset, sequence) = *which.get(&self.begun);
                    let again = self.finished_here.insert(offset) && self.finished_earlier.contains(&offset);
                    Some((self.tracker.finish(sequence), again))
                }
                Step::Lose(at) => {
                    self.before += at.index(self.begun.len() + 3);
                    self.tracker = Tracker::after(self.tracker.finished());
                    self.begun.clear();
                    self.finished_earlier.append(&mut self.finished_here);
                    None
                }
            }
        }

        fn watermark(&self) -> Option<i64> {
            let prefix = self.begun.iter().take_while(|(offset, _)| self.finished_here.contains(offset));
            prefix.last().map(|(offset, _)| offset + 1)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_watermark_is_the_offset_after_the_finished_prefix(offsets in offsets(), steps in steps()) {
            let mut partition = Partition::of(offsets);
            for step in &steps {
                partition.step(step);
                prop_assert_eq!(partition.tracker.watermark(), partition.watermark());
            }
        }

        #[test]
        fn what_was_finished_in_any_earlier_life_and_comes_again_is_told(
            offsets in offsets(),
            steps in steps(),
        ) {
            let mut partition = Partition::of(offsets);
            for step in &steps {
                if let Some((told, wanted)) = partition.step(step) {
                    prop_assert_eq!(told, wanted);
                }
                // Of the records before the first that was begun nobody asks: they do not come again.
                let finished = partition.tracker.finished();
                for offset in partition.offsets.iter().skip(partition.before) {
                    let wanted =
                        partition.finished_here.contains(offset) || partition.finished_earlier.contains(offset);
                    prop_assert_eq!(finished.has(*offset), wanted, "offset {}", offset);
                }
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
    fn g2_the_watermark_passes_control_records_once_all_read_are_finished() {
        let mut tracker = Tracker::default();
        tracker.pass(4);
        assert_eq!(tracker.watermark(), Some(4), "control records only");
        tracker.read(4);
        tracker.read(5);
        assert_eq!(tracker.watermark(), None, "both records wait");
        tracker.pass(7);
        let first = tracker.begin(4);
        tracker.finish(first);
        assert_eq!(tracker.watermark(), Some(5), "the second record is not begun");
        let second = tracker.begin(5);
        assert_eq!(tracker.watermark(), Some(5), "the second record is not finished");
        tracker.finish(second);
        assert_eq!(tracker.watermark(), Some(7));
        tracker.read(7);
        assert_eq!(tracker.watermark(), Some(6), "a record came behind the control record");
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

    #[test]
    fn a_record_that_was_finished_before_the_partition_came_is_told_once() {
        let mut before = Tracker::default();
        let [a, _, c] = [5, 6, 7].map(|offset| before.begin(offset));
        assert!(!before.finish(a) && !before.finish(c));
        // Lost: 5 and 7 were finished, nothing was committed.
        let mut tracker = Tracker::after(before.finished());
        let sequences = [5, 6, 7, 8].map(|offset| tracker.begin(offset));
        assert_eq!(sequences.map(|sequence| tracker.finish(sequence)), [true, false, true, false]);
        assert!(!tracker.finish(sequences[0]), "twice is once");
        // Lost once more, after 7 was committed.
        let mut tracker = Tracker::after(tracker.finished());
        let sequences = [8, 9].map(|offset| tracker.begin(offset));
        assert_eq!(sequences.map(|sequence| tracker.finish(sequence)), [true, false]);
        let finished = tracker.finished();
        assert!((5..10).all(|offset| finished.has(offset)) && !finished.has(4) && !finished.has(10));
    }

    #[test]
    fn what_was_finished_beyond_a_gap_is_kept_for_as_long_as_it_may_come() {
        // 7 is the marker of a transaction.
        let mut tracker = Tracker::default();
        let [a, b, _, d] = [5, 6, 8, 9].map(|offset| tracker.begin(offset));
        assert_eq!([a, b, d].map(|sequence| tracker.finish(sequence)), [false; 3]);
        // Lost twice, each time after 7 was committed.
        let mut tracker = Tracker::after(tracker.finished());
        let [c, _] = [8, 9].map(|offset| tracker.begin(offset));
        assert!(!tracker.finish(c));
        let mut tracker = Tracker::after(tracker.finished());
        let sequences = [8, 9].map(|offset| tracker.begin(offset));
        assert_eq!(sequences.map(|sequence| tracker.finish(sequence)), [true, true]);
    }

    #[test]
    fn what_others_finished_meanwhile_is_not_ours() {
        let mut before = Tracker::default();
        let first = before.begin(5);
        before.finish(first);
        let mut tracker = Tracker::after(before.finished());
        assert!(tracker.finished().has(5), "nothing came since");
        let later = tracker.begin(30);
        assert!(!tracker.finish(later));
        let finished = tracker.finished();
        assert!(finished.has(30) && !finished.has(20));
    }
}
