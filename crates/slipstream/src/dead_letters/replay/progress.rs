//! The progress of a replay in a partition, from the group's offset to the end of the partition at
//! the start of the run. The group's offset is the first dead letter that the next run reads.

use std::collections::BTreeSet;

use kafka::cluster::GroupPosition;

/// The progress in a partition.
#[derive(Debug)]
pub struct PartitionProgress {
    /// The next offset to read.
    next: i64,
    /// The end of the partition at the start of the run.
    end: i64,
    is_open: bool,
    in_flight: BTreeSet<i64>,
    /// The first offset that stays for the next run.
    kept: Option<i64>,
    committed: i64,
}

impl PartitionProgress {
    /// Starts at the group's position.
    pub fn new(position: &GroupPosition) -> Self {
        // An offset past the end is that of a former topic with the same name. Records that Kafka
        // deleted cannot be replayed.
        let committed = position.committed.filter(|committed| *committed <= position.end);
        let next = committed.unwrap_or(position.first).max(position.first);
        Self {
            next,
            end: position.end,
            is_open: next < position.end,
            in_flight: BTreeSet::new(),
            kept: None,
            committed: position.committed.unwrap_or(next),
        }
    }

    /// The next offset to read.
    pub fn next(&self) -> i64 {
        self.next
    }

    /// Whether the run reads further records of it.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Ends the read of the partition.
    pub fn close(&mut self) {
        self.is_open = false;
    }

    /// Ends the read at the end of the partition; offsets that were not read have no record.
    pub fn reach_end(&mut self) {
        if self.is_open {
            self.next = self.end;
            self.close();
        }
    }

    /// Advances past the record at `offset`, and returns whether it must be processed.
    pub fn advance(&mut self, offset: i64) -> bool {
        if offset >= self.end {
            self.reach_end();
        }
        if !self.is_open {
            return false;
        }
        self.next = offset + 1;
        self.is_open = self.next < self.end;
        true
    }

    /// Marks the record at `offset` as in flight.
    pub fn mark_sent(&mut self, offset: i64) {
        self.in_flight.insert(offset);
    }

    /// Marks the record at `offset` as acknowledged by Kafka.
    pub fn mark_acknowledged(&mut self, offset: i64) {
        self.in_flight.remove(&offset);
    }

    /// Keeps the record at `offset` for the next run.
    pub fn keep(&mut self, offset: i64) {
        self.in_flight.remove(&offset);
        self.kept = Some(self.kept.map_or(offset, |kept| kept.min(offset)));
    }

    /// The offset to commit, if it changed since the last call.
    pub fn take_changed(&mut self) -> Option<i64> {
        let held = self.kept.into_iter().chain(self.in_flight.first().copied());
        let offset = held.chain([self.next]).min()?;
        (std::mem::replace(&mut self.committed, offset) != offset).then_some(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(committed: Option<i64>, first: i64, end: i64) -> GroupPosition {
        GroupPosition { topic: "t".into(), partition: 0, committed, first, end }
    }

    fn advanced(partition: &mut PartitionProgress, offsets: std::ops::Range<i64>) -> Vec<i64> {
        offsets.filter(|offset| partition.advance(*offset)).collect()
    }

    #[test]
    fn progress_starts_at_the_group_position_and_ends_at_the_partition_end() {
        let mut partition = PartitionProgress::new(&position(Some(2), 0, 6));
        assert!(partition.is_open());
        assert_eq!(advanced(&mut partition, 2..9), [2, 3, 4, 5]);
        assert!(!partition.is_open());
        assert!(!PartitionProgress::new(&position(Some(6), 0, 6)).is_open());
        assert!(!PartitionProgress::new(&position(None, 0, 0)).is_open());
        assert_eq!(PartitionProgress::new(&position(None, 3, 6)).next(), 3);
    }

    #[test]
    fn a_record_that_is_kept_or_in_flight_is_never_committed_past() {
        let mut partition = PartitionProgress::new(&position(None, 0, 5));
        assert_eq!(advanced(&mut partition, 0..5), [0, 1, 2, 3, 4]);
        for offset in [0, 2, 3] {
            partition.mark_sent(offset);
        }
        assert_eq!(partition.take_changed(), None, "nothing is acknowledged yet");
        partition.mark_acknowledged(2);
        assert_eq!(partition.take_changed(), None, "the first one is in flight");
        partition.mark_acknowledged(0);
        assert_eq!(partition.take_changed(), Some(3));
        partition.keep(3);
        partition.keep(4);
        assert_eq!(partition.take_changed(), None);
        partition.keep(1);
        assert_eq!(partition.take_changed(), Some(1), "the run left it out");
    }

    #[test]
    fn offsets_without_a_record_do_not_block_the_commit() {
        let mut partition = PartitionProgress::new(&position(Some(1), 3, 9));
        assert_eq!(partition.next(), 3, "the first three are deleted");
        assert!(partition.advance(5));
        partition.mark_sent(5);
        partition.mark_acknowledged(5);
        assert_eq!(partition.take_changed(), Some(6));
        partition.reach_end();
        assert_eq!(partition.take_changed(), Some(9));
    }

    #[test]
    fn a_recreated_topic_is_replayed_from_its_beginning() {
        let mut partition = PartitionProgress::new(&position(Some(100), 0, 2));
        assert!(partition.is_open() && partition.next() == 0);
        assert_eq!(advanced(&mut partition, 0..2), [0, 1]);
        partition.mark_sent(1);
        assert_eq!(partition.take_changed(), Some(1));
    }
}
