//! The commit rule: which offset of a partition may be committed.
//!
//! It is the offset after the longest run of finished records, counted from the first record that a
//! worker began. An unfinished record holds it back, even if later records are finished.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

/// Offsets of one partition that this process has finished and that may be read again.
///
/// If a partition is lost before its finished records are committed, its next owner reads them
/// again. The next owner may be this process.
#[derive(Debug, Clone, Default)]
pub struct FinishedOffsets {
    contiguous: Range<i64>,
    /// Finished offsets after the contiguous range.
    beyond: BTreeSet<i64>,
}

impl FinishedOffsets {
    /// Whether this process has finished the record at `offset`.
    pub fn contains(&self, offset: i64) -> bool {
        self.contiguous.contains(&offset) || self.beyond.contains(&offset)
    }

    /// Adds offsets that were finished later.
    ///
    /// An earlier range that does not reach the later one is dropped: it was committed, by this or
    /// another member, and is not read again. Single offsets beyond it are kept.
    /// Offsets without a record (transaction markers, compaction) end a range, so such a single
    /// offset may be read again.
    fn merge(&self, later: Self) -> Self {
        if later.contiguous.is_empty() && later.beyond.is_empty() {
            return self.clone();
        }
        let earlier = &self.contiguous;
        let reaches = earlier.contains(&later.contiguous.start) || earlier.end == later.contiguous.start;
        let contiguous =
            if reaches { earlier.start..earlier.end.max(later.contiguous.end) } else { later.contiguous };
        let beyond =
            self.beyond.iter().chain(&later.beyond).copied().filter(|offset| *offset >= contiguous.end);
        Self { beyond: beyond.collect(), contiguous }
    }
}

/// A record that a worker began.
#[derive(Debug)]
struct BegunRecord {
    offset: i64,
    finished: bool,
}

/// Tracks the records of one partition in the order in which they were begun.
///
/// The order is that of arrival and not of offsets, because a recreated topic starts again at
/// offset 0.
#[derive(Debug, Default)]
pub struct OffsetTracker {
    /// Begun records from the first unfinished one on.
    begun: VecDeque<BegunRecord>,
    /// Sequence number of the first entry of `begun`.
    first_sequence: u64,
    /// Offset of the first record that was begun.
    start: Option<i64>,
    /// Offset after the contiguous finished records.
    finished_to: Option<i64>,
    /// Offset after the last record that was read.
    read_to: Option<i64>,
    /// The client's position after the last record, past control records and aborted records.
    passed_to: Option<i64>,
    /// Offsets that this process finished before the current assignment.
    earlier: FinishedOffsets,
}

impl OffsetTracker {
    /// A tracker for a partition of which this process finished `earlier` before.
    pub fn new(earlier: FinishedOffsets) -> Self {
        Self { earlier, ..Self::default() }
    }

    /// A record was read. It is begun later.
    pub fn read(&mut self, offset: i64) {
        self.read_to = Some(offset + 1);
        self.passed_to = None;
    }

    /// Sets the client's position. There is no record between the last one that was read and
    /// `position`.
    pub fn set_position(&mut self, position: i64) {
        if self.read_to.is_none_or(|read_to| position > read_to) {
            self.passed_to = Some(position);
        }
    }

    /// Begins a record and returns its sequence number.
    pub fn begin(&mut self, offset: i64) -> u64 {
        self.start.get_or_insert(offset);
        self.begun.push_back(BegunRecord { offset, finished: false });
        self.first_sequence + self.begun.len() as u64 - 1
    }

    /// Marks the record with this sequence number as finished; a second call has no effect. Returns
    /// whether it was already finished before the current assignment, and so is counted twice.
    pub fn finish(&mut self, sequence: u64) -> bool {
        let Some(index) = sequence.checked_sub(self.first_sequence) else { return false };
        let mut repeated = false;
        if let Some(record) = usize::try_from(index).ok().and_then(|index| self.begun.get_mut(index)) {
            repeated = !record.finished && self.earlier.contains(record.offset);
            record.finished = true;
        }
        while let Some(&BegunRecord { offset, finished: true }) = self.begun.front() {
            self.begun.pop_front();
            self.first_sequence += 1;
            self.finished_to = Some(offset + 1);
        }
        repeated
    }

    /// The finished offsets of this and of earlier assignments.
    pub fn finished(&self) -> FinishedOffsets {
        let start = self.start.unwrap_or_default();
        let beyond = self.begun.iter().filter(|record| record.finished).map(|record| record.offset);
        self.earlier.merge(FinishedOffsets {
            contiguous: start..self.finished_to.unwrap_or(start),
            beyond: beyond.collect(),
        })
    }

    /// The offset that may be committed: the next one to read after a restart. It is `None` until
    /// the first record is finished or the client passed offsets without a record. Such offsets are
    /// included only if every record that was read is finished.
    pub fn committable(&self) -> Option<i64> {
        let all_finished = self.begun.is_empty() && self.finished_to == self.read_to;
        self.passed_to.filter(|_| all_finished).or(self.finished_to)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    /// An event of a partition.
    #[derive(Debug, Clone)]
    enum Step {
        /// The next record is begun.
        Begin,
        /// A begun record is finished, for the first time or again.
        Finish(Index),
        /// The partition is lost and assigned again. It continues at an uncommitted record or at a
        /// later one, if another member made progress.
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

    /// A tracker and a model of its state.
    #[derive(Default)]
    struct Partition {
        offsets: Vec<i64>,
        tracker: OffsetTracker,
        /// Records begun since the last assignment, with their sequence numbers.
        begun: Vec<(i64, u64)>,
        /// Number of records before the first of these.
        before: usize,
        finished_here: BTreeSet<i64>,
        finished_earlier: BTreeSet<i64>,
    }

    impl Partition {
        fn of(offsets: Vec<i64>) -> Self {
            Self { offsets, ..Self::default() }
        }

        /// For a finished record, returns whether the tracker and the model count it as repeated.
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
                    let repeated =
                        self.finished_here.insert(offset) && self.finished_earlier.contains(&offset);
                    Some((self.tracker.finish(sequence), repeated))
                }
                Step::Lose(at) => {
                    self.before += at.index(self.begun.len() + 3);
                    self.tracker = OffsetTracker::new(self.tracker.finished());
                    self.begun.clear();
                    self.finished_earlier.append(&mut self.finished_here);
                    None
                }
            }
        }

        fn committable(&self) -> Option<i64> {
            let prefix = self.begun.iter().take_while(|(offset, _)| self.finished_here.contains(offset));
            prefix.last().map(|(offset, _)| offset + 1)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn committable_offset_follows_the_finished_prefix(offsets in offsets(), steps in steps()) {
            let mut partition = Partition::of(offsets);
            for step in &steps {
                partition.step(step);
                prop_assert_eq!(partition.tracker.committable(), partition.committable());
            }
        }

        #[test]
        fn record_finished_in_any_earlier_assignment_is_reported_as_repeated(
            offsets in offsets(),
            steps in steps(),
        ) {
            let mut partition = Partition::of(offsets);
            for step in &steps {
                if let Some((repeated, expected)) = partition.step(step) {
                    prop_assert_eq!(repeated, expected);
                }
                // Records before the first begun one are not read again.
                let finished = partition.tracker.finished();
                for offset in partition.offsets.iter().skip(partition.before) {
                    let expected =
                        partition.finished_here.contains(offset) || partition.finished_earlier.contains(offset);
                    prop_assert_eq!(finished.contains(*offset), expected, "offset {}", offset);
                }
            }
        }
    }

    #[test]
    fn unfinished_record_holds_back_later_finished_records() {
        let mut tracker = OffsetTracker::default();
        let (a, b) = (tracker.begin(10), tracker.begin(11));
        tracker.finish(b);
        assert_eq!(tracker.committable(), None);
        let c = tracker.begin(12);
        tracker.finish(a);
        assert_eq!(tracker.committable(), Some(12));
        tracker.finish(c);
        assert_eq!(tracker.committable(), Some(13));
    }

    #[test]
    fn g2_committable_offset_passes_control_records_once_all_finished() {
        let mut tracker = OffsetTracker::default();
        tracker.set_position(4);
        assert_eq!(tracker.committable(), Some(4), "control records only");
        tracker.read(4);
        tracker.read(5);
        assert_eq!(tracker.committable(), None, "both records wait");
        tracker.set_position(7);
        let first = tracker.begin(4);
        tracker.finish(first);
        assert_eq!(tracker.committable(), Some(5), "the second record is not begun");
        let second = tracker.begin(5);
        assert_eq!(tracker.committable(), Some(5), "the second record is not finished");
        tracker.finish(second);
        assert_eq!(tracker.committable(), Some(7));
        tracker.read(7);
        assert_eq!(tracker.committable(), Some(6), "a record arrived after the control record");
    }

    #[test]
    fn tracker_follows_offsets_that_start_again() {
        let mut tracker = OffsetTracker::default();
        let old = tracker.begin(1000);
        tracker.finish(old);
        let new = tracker.begin(0);
        tracker.finish(new);
        assert_eq!(tracker.committable(), Some(1));
    }

    #[test]
    fn record_finished_before_the_assignment_is_reported_once() {
        let mut before = OffsetTracker::default();
        let [a, _, c] = [5, 6, 7].map(|offset| before.begin(offset));
        assert!(!before.finish(a) && !before.finish(c));
        // The partition is lost: 5 and 7 were finished, nothing was committed.
        let mut tracker = OffsetTracker::new(before.finished());
        let sequences = [5, 6, 7, 8].map(|offset| tracker.begin(offset));
        assert_eq!(sequences.map(|sequence| tracker.finish(sequence)), [true, false, true, false]);
        assert!(!tracker.finish(sequences[0]), "a second call has no effect");
        // It is lost again after 7 was committed.
        let mut tracker = OffsetTracker::new(tracker.finished());
        let sequences = [8, 9].map(|offset| tracker.begin(offset));
        assert_eq!(sequences.map(|sequence| tracker.finish(sequence)), [true, false]);
        let finished = tracker.finished();
        assert!(
            (5..10).all(|offset| finished.contains(offset))
                && !finished.contains(4)
                && !finished.contains(10)
        );
    }

    #[test]
    fn record_finished_beyond_a_gap_is_remembered_until_committed() {
        // Offset 7 is a transaction marker.
        let mut tracker = OffsetTracker::default();
        let [a, b, _, d] = [5, 6, 8, 9].map(|offset| tracker.begin(offset));
        assert_eq!([a, b, d].map(|sequence| tracker.finish(sequence)), [false; 3]);
        // The partition is lost twice, each time after 7 was committed.
        let mut tracker = OffsetTracker::new(tracker.finished());
        let [c, _] = [8, 9].map(|offset| tracker.begin(offset));
        assert!(!tracker.finish(c));
        let mut tracker = OffsetTracker::new(tracker.finished());
        let sequences = [8, 9].map(|offset| tracker.begin(offset));
        assert_eq!(sequences.map(|sequence| tracker.finish(sequence)), [true, true]);
    }

    #[test]
    fn records_finished_by_other_members_are_not_included() {
        let mut before = OffsetTracker::default();
        let first = before.begin(5);
        before.finish(first);
        let mut tracker = OffsetTracker::new(before.finished());
        assert!(tracker.finished().contains(5), "no record was read since");
        let later = tracker.begin(30);
        assert!(!tracker.finish(later));
        let finished = tracker.finished();
        assert!(finished.contains(30) && !finished.contains(20));
    }
}
