//! Which dead letters of a partition are replayed. As Kafka keeps it for a group: the first offset that is not, and beside
//! it a note of the runs above that are, since what was left out or refused must not hold back what follows, nor be lost.

use std::collections::BTreeMap;

/// What a broker takes beside an offset, unless it is told otherwise (`offset.metadata.max.bytes`).
const NOTE_BYTES: usize = 4096;
/// Where it becomes too much: records that are under way may still add gaps, when Kafka refuses some.
const FULL_BYTES: usize = 3900;
/// What a note of ours begins with.
const HEAD: &str = "replayed-1";

/// Offsets: all below `next`, and runs above it. Runs touch neither each other nor `next`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    next: i64,
    /// From the first offset to the one after the last.
    runs: BTreeMap<i64, i64>,
}

impl Replayed {
    /// All below `next`, and nothing else.
    pub fn below(next: i64) -> Self {
        Self { next, runs: BTreeMap::new() }
    }

    /// All below `next`, and what `note` says of those above; a note that is not ours says nothing.
    pub fn read(next: i64, note: &str) -> Self {
        let mut replayed = Self::below(next);
        let Some(numbers) = note.strip_prefix(HEAD) else { return replayed };
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

    /// The offset after the last that is.
    pub fn end(&self) -> i64 {
        self.runs.last_key_value().map_or(self.next, |(_, end)| *end)
    }

    /// Whether `offset` is.
    pub fn has(&self, offset: i64) -> bool {
        offset < self.next || self.runs.range(..=offset).next_back().is_some_and(|(_, end)| offset < *end)
    }

    /// From now on those from `start` on are, up to `end`, which is not.
    pub fn add(&mut self, start: i64, end: i64) {
        if end <= start.max(self.next) {
            return;
        }
        let (mut start, mut end) = (start.max(self.next), end);
        if let Some((before, its_end)) = self.runs.range(..=start).next_back()
            && *its_end >= start
        {
            (start, end) = (*before, end.max(*its_end));
        }
        while let Some((touching, its_end)) = self.runs.range(start..=end).next() {
            let (touching, its_end) = (*touching, *its_end);
            end = end.max(its_end);
            self.runs.remove(&touching);
        }
        if start == self.next {
            self.next = end;
        } else {
            self.runs.insert(start, end);
        }
    }

    /// The runs above [`Replayed::next`], as far as a broker takes them; what is not in it is replayed once more.
    pub fn note(&self) -> String {
        let (mut note, mut at) = (String::new(), self.next);
        for (start, end) in &self.runs {
            let run = format!(" {} {}", start - at, end - start);
            if HEAD.len() + note.len() + run.len() > NOTE_BYTES {
                break;
            }
            note.push_str(&run);
            at = *end;
        }
        if note.is_empty() { note } else { format!("{HEAD}{note}") }
    }

    /// Whether `offset` may be added: not where it would leave one more gap, and the note has no room for more.
    pub fn has_room_for(&self, offset: i64) -> bool {
        let touches = self.has(offset - 1) || self.has(offset + 1);
        // A run takes four bytes at the least, and 42 at the most.
        touches || self.runs.len() < FULL_BYTES / 42 || self.note().len() <= FULL_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(next: i64, runs: &[(i64, i64)]) -> Replayed {
        let mut replayed = Replayed::below(next);
        runs.iter().for_each(|(start, end)| replayed.add(*start, *end));
        replayed
    }

    /// Offsets in any order are what a plain set says, and a note brings them back.
    #[test]
    fn any_order_of_offsets_gives_the_set_of_them_and_a_note_brings_it_back() {
        let mut random = 7_u64;
        for round in 0..300 {
            let mut set = std::collections::BTreeSet::new();
            let mut replayed = Replayed::below(10);
            for _ in 0..round % 40 {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let start = (random >> 33) as i64 % 60;
                let end = start + (random >> 20) as i64 % 6;
                replayed.add(start, end);
                set.extend(start..end);
            }
            let has = |offset: i64| offset < 10 || set.contains(&offset);
            assert!((0..80).all(|offset| replayed.has(offset) == has(offset)), "{set:?} {replayed:?}");
            assert_eq!(replayed.next(), (0..).find(|offset| !has(*offset)).unwrap());
            assert_eq!(replayed.end(), set.last().map_or(10, |last| 10.max(last + 1)));
            assert_eq!(Replayed::read(replayed.next(), &replayed.note()), replayed);
        }
    }

    #[test]
    fn a_note_is_short_and_one_that_is_not_ours_says_nothing() {
        assert_eq!(of(5, &[(8, 9), (12, 20)]).note(), "replayed-1 3 1 3 8");
        assert_eq!(of(5, &[(5, 9)]).note(), "");
        for note in
            ["", "x", "replayed-2 3 1", "replayed-1 3 x", "replayed-1 -3 1", "replayed-1 3", "replayed-1 0 1"]
        {
            assert_eq!(Replayed::read(5, note), Replayed::below(5), "{note}");
        }
        let far = format!("replayed-1 {} {}", i64::MAX, i64::MAX);
        assert_eq!(Replayed::read(5, &far), Replayed::below(5));
    }

    #[test]
    fn a_note_never_grows_beyond_what_a_broker_takes() {
        let mut replayed = Replayed::below(0);
        let mut full_at = None;
        for n in 1..3_000 {
            full_at = full_at.or((!replayed.has_room_for(2 * n)).then_some(n));
            replayed.add(2 * n, 2 * n + 1);
        }
        assert!((900..1_000).contains(&full_at.unwrap()), "{full_at:?}");
        assert!(replayed.note().len() <= NOTE_BYTES);
        let read = Replayed::read(0, &replayed.note());
        assert!(replayed.has_room_for(0) && replayed.has_room_for(601) && !replayed.has_room_for(9_000));
        assert!(read.has(1_800) && !read.has(1_801) && !read.has(5_000), "the first of them are kept");
    }
}
