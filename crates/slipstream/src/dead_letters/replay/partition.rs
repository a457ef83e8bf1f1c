//! A partition of a dead-letter topic, from where its replay goes on to what was its end at the start.

use super::replayed::Replayed;
use kafka::cluster::GroupPosition;

/// How far a replay is in a partition.
#[derive(Debug)]
pub struct Partition {
    replayed: Replayed,
    /// With what is under way: what will be replayed, unless Kafka refuses it.
    planned: Replayed,
    /// The offset after the last that was seen.
    seen: i64,
    /// Where the partition ended at the start.
    end: i64,
    reads: bool,
    changed: bool,
}

impl Partition {
    /// From where its group says.
    pub fn new(position: &GroupPosition) -> Self {
        let next = position.committed.unwrap_or(position.first);
        let mut replayed = Replayed::read(next, &position.metadata);
        // The topic was made anew: the note is of another one.
        if replayed.end() > position.end {
            replayed = Replayed::below(next);
        }
        // What Kafka has deleted is not there to be replayed.
        replayed.add(next, position.first);
        // Where the offset is past the end, Kafka sends the read back to the beginning.
        let reads = replayed.next() != position.end;
        Self {
            planned: replayed.clone(),
            seen: replayed.next(),
            replayed,
            end: position.end,
            reads,
            changed: false,
        }
    }

    /// Whether the record at `offset` is replayed. Nothing is of a topic that was made anew since.
    pub fn is_replayed(&self, offset: i64) -> bool {
        self.replayed.next() <= self.end && self.replayed.has(offset)
    }

    /// Where it goes on.
    pub fn next(&self) -> i64 {
        self.replayed.next()
    }

    /// Whether there may be more for this run.
    pub fn reads(&self) -> bool {
        self.reads
    }

    /// No more of it in this run.
    pub fn close(&mut self) {
        self.reads = false;
    }

    /// The read came to the end: what was not there to be seen does not exist.
    pub fn at_end(&mut self) {
        if self.reads {
            self.absent(self.seen, self.end);
            self.close();
        }
    }

    /// Whether the record at `offset`, which was just read, is to be looked at.
    pub fn meets(&mut self, offset: i64) -> bool {
        if !self.reads {
            return false;
        }
        if offset >= self.end {
            self.at_end();
            return false;
        }
        if offset < self.replayed.next() {
            // Sent back to the beginning: the topic was made anew, and nothing of it is replayed.
            (self.replayed, self.planned, self.seen) =
                (Replayed::below(offset), Replayed::below(offset), offset);
            self.changed = true;
        }
        self.absent(self.seen, offset);
        self.seen = offset + 1;
        if self.seen >= self.end {
            self.close();
        }
        !self.planned.has(offset)
    }

    /// Offsets of which there is no record.
    fn absent(&mut self, start: i64, end: i64) {
        if start < end {
            self.planned.add(start, end);
            self.replayed.add(start, end);
            self.changed = true;
        }
    }

    /// Whether its group can note that the record at `offset` is replayed, with what is left out before it.
    pub fn has_room_for(&self, offset: i64) -> bool {
        self.planned.has_room_for(offset)
    }

    /// The record at `offset` is under way.
    pub fn sent(&mut self, offset: i64) {
        self.planned.add(offset, offset + 1);
    }

    /// Kafka acknowledged the record at `offset`.
    pub fn acknowledged(&mut self, offset: i64) {
        self.replayed.add(offset, offset + 1);
        self.changed = true;
    }

    /// What is to be committed, if that has changed since it was last asked.
    pub fn take_changed(&mut self) -> Option<(i64, String)> {
        std::mem::take(&mut self.changed).then(|| (self.replayed.next(), self.replayed.note()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(committed: Option<i64>, note: &str, first: i64, end: i64) -> GroupPosition {
        GroupPosition { topic: "t".into(), partition: 0, committed, metadata: note.into(), first, end }
    }

    fn met(partition: &mut Partition, offsets: std::ops::Range<i64>) -> Vec<i64> {
        offsets.filter(|offset| partition.meets(*offset)).collect()
    }

    #[test]
    fn it_goes_on_where_the_group_says_and_ends_where_the_partition_ended() {
        let mut partition = Partition::new(&position(Some(2), "replayed-1 1 2", 0, 6));
        assert!(partition.reads());
        assert_eq!(met(&mut partition, 2..9), [2, 5]);
        assert!(!partition.reads());
        assert!(!Partition::new(&position(Some(6), "", 0, 6)).reads());
        assert!(!Partition::new(&position(None, "", 0, 0)).reads());
        assert_eq!(Partition::new(&position(None, "", 3, 6)).next(), 3);
    }

    #[test]
    fn what_is_left_out_stays_for_the_next_run_and_is_never_committed_past() {
        let mut partition = Partition::new(&position(None, "", 0, 5));
        assert_eq!(met(&mut partition, 0..5), [0, 1, 2, 3, 4]);
        for offset in [0, 2, 3] {
            partition.sent(offset);
        }
        assert_eq!(partition.take_changed(), None, "nothing is acknowledged yet");
        partition.acknowledged(2);
        assert_eq!(partition.take_changed(), Some((0, "replayed-1 2 1".into())));
        partition.acknowledged(0);
        assert_eq!(partition.take_changed(), Some((1, "replayed-1 1 1".into())));
        assert_eq!(partition.take_changed(), None);
    }

    #[test]
    fn offsets_without_a_record_hold_nothing_back() {
        let mut partition = Partition::new(&position(Some(1), "", 3, 9));
        assert_eq!(partition.next(), 3, "the first three are deleted");
        assert!(partition.meets(5));
        partition.sent(5);
        partition.acknowledged(5);
        assert_eq!(partition.take_changed(), Some((6, String::new())));
        partition.at_end();
        assert_eq!(partition.take_changed(), Some((9, String::new())));
    }

    #[test]
    fn what_was_replayed_is_told_and_nothing_of_a_topic_that_was_made_anew() {
        let told = |position: GroupPosition| {
            let partition = Partition::new(&position);
            (0..6).filter(|offset| partition.is_replayed(*offset)).collect::<Vec<_>>()
        };
        assert_eq!(told(position(Some(2), "replayed-1 1 2", 0, 6)), [0, 1, 3, 4]);
        assert!(told(position(None, "", 0, 6)).is_empty());
        assert!(told(position(Some(100), "", 0, 6)).is_empty());
    }

    #[test]
    fn a_topic_that_was_made_anew_is_replayed_from_its_beginning() {
        let mut partition = Partition::new(&position(Some(100), "", 0, 2));
        assert!(partition.reads());
        assert_eq!(met(&mut partition, 0..2), [0, 1]);
        partition.acknowledged(0);
        assert_eq!(partition.take_changed(), Some((1, String::new())));
        let mut partition = Partition::new(&position(Some(1), "replayed-1 1 50", 0, 5));
        assert_eq!(met(&mut partition, 1..5), [1, 2, 3, 4], "the note is of another topic");
    }
}
