//! The progress of a replay in a partition, from the group's position to the end of the partition
//! at the start of the run. The replayed offsets have the form of a Kafka commit: the first offset
//! that is not replayed, and metadata with the ranges above it that are.

use std::collections::BTreeMap;

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

/// Maximum size of commit metadata on a broker with default settings (`offset.metadata.max.bytes`).
const MAX_METADATA_BYTES: usize = 4096;
/// Size from which no gap is added on purpose: records in flight can still add gaps if Kafka
/// rejects them.
const FULL_BYTES: usize = 3900;
/// Prefix of the metadata.
const PREFIX: &str = "replayed-1";

/// All offsets below `next`, and ranges above it. Ranges are not adjacent to each other or to
/// `next`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayedOffsets {
    next: i64,
    /// Each range from its first offset to the one after its last.
    ranges: BTreeMap<i64, i64>,
}

impl ReplayedOffsets {
    /// All offsets below `next`.
    pub fn below(next: i64) -> Self {
        Self { next, ranges: BTreeMap::new() }
    }

    /// All offsets below `next`, and the ranges in `metadata`. Metadata in another format is
    /// ignored.
    pub fn parse(next: i64, metadata: &str) -> Self {
        let mut replayed = Self::below(next);
        let Some(numbers) = metadata.strip_prefix(PREFIX) else { return replayed };
        let numbers: Option<Vec<i64>> =
            numbers.split_whitespace().map(|text| text.parse().ok().filter(|number| *number > 0)).collect();
        let mut at = next;
        for pair in numbers.unwrap_or_default().chunks_exact(2) {
            let (Some(start), Some(end)) =
                (at.checked_add(pair[0]), at.checked_add(pair[0].saturating_add(pair[1])))
            else {
                return Self::below(next);
            };
            replayed.add(start, end);
            at = end;
        }
        replayed
    }

    /// The first offset that is not replayed.
    pub fn next(&self) -> i64 {
        self.next
    }

    /// The offset after the last replayed one.
    pub fn end(&self) -> i64 {
        self.ranges.last_key_value().map_or(self.next, |(_, end)| *end)
    }

    /// Whether `offset` is replayed.
    pub fn contains(&self, offset: i64) -> bool {
        offset < self.next || self.ranges.range(..=offset).next_back().is_some_and(|(_, end)| offset < *end)
    }

    /// Adds the offsets from `start` to `end`, without `end`.
    pub fn add(&mut self, start: i64, end: i64) {
        if end <= start.max(self.next) {
            return;
        }
        let (mut start, mut end) = (start.max(self.next), end);
        if let Some((before, before_end)) = self.ranges.range(..=start).next_back()
            && *before_end >= start
        {
            (start, end) = (*before, end.max(*before_end));
        }
        while let Some((adjacent, adjacent_end)) = self.ranges.range(start..=end).next() {
            let (adjacent, adjacent_end) = (*adjacent, *adjacent_end);
            end = end.max(adjacent_end);
            self.ranges.remove(&adjacent);
        }
        if start == self.next {
            self.next = end;
        } else {
            self.ranges.insert(start, end);
        }
    }

    /// The ranges above [`ReplayedOffsets::next`], up to the maximum size. Ranges that do not fit
    /// are replayed again.
    pub fn metadata(&self) -> String {
        let (mut metadata, mut at) = (String::new(), self.next);
        for (start, end) in &self.ranges {
            let range = format!(" {} {}", start - at, end - start);
            if PREFIX.len() + metadata.len() + range.len() > MAX_METADATA_BYTES {
                break;
            }
            metadata.push_str(&range);
            at = *end;
        }
        if metadata.is_empty() { metadata } else { format!("{PREFIX}{metadata}") }
    }

    /// Whether `offset` may be added: not if it leaves another gap and the metadata is full.
    pub fn has_room_for(&self, offset: i64) -> bool {
        let is_adjacent = self.contains(offset - 1) || self.contains(offset + 1);
        // A range takes 4 to 42 bytes.
        is_adjacent || self.ranges.len() < FULL_BYTES / 42 || self.metadata().len() <= FULL_BYTES
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

    fn of(next: i64, ranges: &[(i64, i64)]) -> ReplayedOffsets {
        let mut replayed = ReplayedOffsets::below(next);
        ranges.iter().for_each(|(start, end)| replayed.add(*start, *end));
        replayed
    }

    #[test]
    fn offsets_in_any_order_equal_a_set_and_survive_the_metadata() {
        let mut random = 7_u64;
        for round in 0..300 {
            let mut set = std::collections::BTreeSet::new();
            let mut replayed = ReplayedOffsets::below(10);
            for _ in 0..round % 40 {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let start = (random >> 33) as i64 % 60;
                let end = start + (random >> 20) as i64 % 6;
                replayed.add(start, end);
                set.extend(start..end);
            }
            let has = |offset: i64| offset < 10 || set.contains(&offset);
            assert!((0..80).all(|offset| replayed.contains(offset) == has(offset)), "{set:?} {replayed:?}");
            assert_eq!(replayed.next(), (0..).find(|offset| !has(*offset)).unwrap());
            assert_eq!(replayed.end(), set.last().map_or(10, |last| 10.max(last + 1)));
            assert_eq!(ReplayedOffsets::parse(replayed.next(), &replayed.metadata()), replayed);
        }
    }

    #[test]
    fn metadata_is_compact_and_another_format_is_ignored() {
        assert_eq!(of(5, &[(8, 9), (12, 20)]).metadata(), "replayed-1 3 1 3 8");
        assert_eq!(of(5, &[(5, 9)]).metadata(), "");
        for metadata in
            ["", "x", "replayed-2 3 1", "replayed-1 3 x", "replayed-1 -3 1", "replayed-1 3", "replayed-1 0 1"]
        {
            assert_eq!(ReplayedOffsets::parse(5, metadata), ReplayedOffsets::below(5), "{metadata}");
        }
        let far = format!("replayed-1 {} {}", i64::MAX, i64::MAX);
        assert_eq!(ReplayedOffsets::parse(5, &far), ReplayedOffsets::below(5));
    }

    #[test]
    fn metadata_never_exceeds_the_limit_of_a_broker() {
        let mut replayed = ReplayedOffsets::below(0);
        let mut full_at = None;
        for n in 1..3_000 {
            full_at = full_at.or((!replayed.has_room_for(2 * n)).then_some(n));
            replayed.add(2 * n, 2 * n + 1);
        }
        assert!((900..1_000).contains(&full_at.unwrap()), "{full_at:?}");
        assert!(replayed.metadata().len() <= MAX_METADATA_BYTES);
        let read = ReplayedOffsets::parse(0, &replayed.metadata());
        assert!(replayed.has_room_for(0) && replayed.has_room_for(601) && !replayed.has_room_for(9_000));
        assert!(
            read.contains(1_800) && !read.contains(1_801) && !read.contains(5_000),
            "the first ranges are kept"
        );
    }
}
