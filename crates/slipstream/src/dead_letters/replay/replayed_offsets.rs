//! The replayed offsets of a partition, in the form of a Kafka commit: the first offset that is not
//! replayed, and metadata with the ranges above it that are. A record that was left out or rejected
//! therefore neither blocks later records nor gets lost.

use std::collections::BTreeMap;

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
