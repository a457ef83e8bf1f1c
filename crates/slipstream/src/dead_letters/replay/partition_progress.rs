//! The progress of a replay in a partition, from the group's position to the end of the partition
//! at the start of the run.

use super::replayed_offsets::ReplayedOffsets;
use kafka::cluster::GroupPosition;

/// The progress in a partition.
#[derive(Debug)]
pub struct PartitionProgress {
    replayed: ReplayedOffsets,
    /// The replayed offsets and those in flight.
    planned: ReplayedOffsets,
    /// The offset after the last one that was read.
    seen: i64,
    /// The end of the partition at the start of the run.
    end: i64,
    is_open: bool,
    is_changed: bool,
}

impl PartitionProgress {
    /// Starts at the group's position.
    pub fn new(position: &GroupPosition) -> Self {
        let next = position.committed.unwrap_or(position.first);
        let mut replayed = ReplayedOffsets::parse(next, &position.metadata);
        // The topic was recreated: the metadata is that of the former topic.
        if replayed.end() > position.end {
            replayed = ReplayedOffsets::below(next);
        }
        // Records that Kafka deleted cannot be replayed.
        replayed.add(next, position.first);
        // If the offset is past the end, Kafka restarts the read at the beginning.
        let is_open = replayed.next() != position.end;
        Self {
            planned: replayed.clone(),
            seen: replayed.next(),
            replayed,
            end: position.end,
            is_open,
            is_changed: false,
        }
    }

    /// Whether the record at `offset` is replayed. After a topic was recreated, no record is.
    pub fn is_replayed(&self, offset: i64) -> bool {
        self.replayed.next() <= self.end && self.replayed.contains(offset)
    }

    /// The next offset to read.
    pub fn next(&self) -> i64 {
        self.replayed.next()
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
            self.skip_offsets(self.seen, self.end);
            self.close();
        }
    }

    /// Advances to the record at `offset`, and returns whether it must be processed.
    pub fn advance(&mut self, offset: i64) -> bool {
        if !self.is_open {
            return false;
        }
        if offset >= self.end {
            self.reach_end();
            return false;
        }
        if offset < self.replayed.next() {
            // The read restarted at the beginning: the topic was recreated, and no record is
            // replayed.
            (self.replayed, self.planned, self.seen) =
                (ReplayedOffsets::below(offset), ReplayedOffsets::below(offset), offset);
            self.is_changed = true;
        }
        self.skip_offsets(self.seen, offset);
        self.seen = offset + 1;
        if self.seen >= self.end {
            self.close();
        }
        !self.planned.contains(offset)
    }

    /// Marks offsets without a record as replayed.
    fn skip_offsets(&mut self, start: i64, end: i64) {
        if start < end {
            self.planned.add(start, end);
            self.replayed.add(start, end);
            self.is_changed = true;
        }
    }

    /// Whether the commit metadata has room for the record at `offset`.
    pub fn has_room_for(&self, offset: i64) -> bool {
        self.planned.has_room_for(offset)
    }

    /// Marks the record at `offset` as in flight.
    pub fn mark_sent(&mut self, offset: i64) {
        self.planned.add(offset, offset + 1);
    }

    /// Marks the record at `offset` as acknowledged by Kafka.
    pub fn mark_acknowledged(&mut self, offset: i64) {
        self.replayed.add(offset, offset + 1);
        self.is_changed = true;
    }

    /// The offset and metadata to commit, if they changed since the last call.
    pub fn take_changed(&mut self) -> Option<(i64, String)> {
        std::mem::take(&mut self.is_changed).then(|| (self.replayed.next(), self.replayed.metadata()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(committed: Option<i64>, metadata: &str, first: i64, end: i64) -> GroupPosition {
        GroupPosition { topic: "t".into(), partition: 0, committed, metadata: metadata.into(), first, end }
    }

    fn advanced(partition: &mut PartitionProgress, offsets: std::ops::Range<i64>) -> Vec<i64> {
        offsets.filter(|offset| partition.advance(*offset)).collect()
    }

    #[test]
    fn progress_starts_at_the_group_position_and_ends_at_the_partition_end() {
        let mut partition = PartitionProgress::new(&position(Some(2), "replayed-1 1 2", 0, 6));
        assert!(partition.is_open());
        assert_eq!(advanced(&mut partition, 2..9), [2, 5]);
        assert!(!partition.is_open());
        assert!(!PartitionProgress::new(&position(Some(6), "", 0, 6)).is_open());
        assert!(!PartitionProgress::new(&position(None, "", 0, 0)).is_open());
        assert_eq!(PartitionProgress::new(&position(None, "", 3, 6)).next(), 3);
    }

    #[test]
    fn a_record_that_is_left_out_is_never_committed_past() {
        let mut partition = PartitionProgress::new(&position(None, "", 0, 5));
        assert_eq!(advanced(&mut partition, 0..5), [0, 1, 2, 3, 4]);
        for offset in [0, 2, 3] {
            partition.mark_sent(offset);
        }
        assert_eq!(partition.take_changed(), None, "nothing is acknowledged yet");
        partition.mark_acknowledged(2);
        assert_eq!(partition.take_changed(), Some((0, "replayed-1 2 1".into())));
        partition.mark_acknowledged(0);
        assert_eq!(partition.take_changed(), Some((1, "replayed-1 1 1".into())));
        assert_eq!(partition.take_changed(), None);
    }

    #[test]
    fn offsets_without_a_record_do_not_block_the_commit() {
        let mut partition = PartitionProgress::new(&position(Some(1), "", 3, 9));
        assert_eq!(partition.next(), 3, "the first three are deleted");
        assert!(partition.advance(5));
        partition.mark_sent(5);
        partition.mark_acknowledged(5);
        assert_eq!(partition.take_changed(), Some((6, String::new())));
        partition.reach_end();
        assert_eq!(partition.take_changed(), Some((9, String::new())));
    }

    #[test]
    fn no_record_of_a_recreated_topic_is_replayed() {
        let replayed = |position: GroupPosition| {
            let partition = PartitionProgress::new(&position);
            (0..6).filter(|offset| partition.is_replayed(*offset)).collect::<Vec<_>>()
        };
        assert_eq!(replayed(position(Some(2), "replayed-1 1 2", 0, 6)), [0, 1, 3, 4]);
        assert!(replayed(position(None, "", 0, 6)).is_empty());
        assert!(replayed(position(Some(100), "", 0, 6)).is_empty());
    }

    #[test]
    fn a_recreated_topic_is_replayed_from_its_beginning() {
        let mut partition = PartitionProgress::new(&position(Some(100), "", 0, 2));
        assert!(partition.is_open());
        assert_eq!(advanced(&mut partition, 0..2), [0, 1]);
        partition.mark_acknowledged(0);
        assert_eq!(partition.take_changed(), Some((1, String::new())));
        let mut partition = PartitionProgress::new(&position(Some(1), "replayed-1 1 50", 0, 5));
        assert_eq!(advanced(&mut partition, 1..5), [1, 2, 3, 4], "the metadata is that of the former topic");
    }
}
