//! The lag of each partition, from the end offsets that the broker tells once a second. In a thread of its own beside
//! the reader, since the questions block.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::kafka::rebalance::Member;
use crate::partition::view::View;
use crate::partition::workers::Lanes;

const INTERVAL: Duration = Duration::from_secs(1);
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// The asking thread. It ends when this is dropped.
pub struct Follower {
    alive: Sender<()>,
    thread: JoinHandle<()>,
}

impl Follower {
    /// Asks for the ends of the partitions of `lanes`.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(consumer: Arc<BaseConsumer<Member>>, lanes: Arc<Lanes>) -> std::io::Result<Self> {
        let (alive, ended) = channel();
        let name = "lag".to_owned();
        let thread =
            std::thread::Builder::new().name(name).spawn(move || follow(&consumer, &lanes, &ended))?;
        Ok(Self { alive, thread })
    }

    /// Ends the thread; waits for its question under way.
    pub fn end(self) {
        drop(self.alive);
        _ = self.thread.join();
    }
}

fn follow(consumer: &BaseConsumer<Member>, lanes: &Lanes, ended: &Receiver<()>) {
    while ended.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
        if let Err(error) = ask(consumer, lanes) {
            tracing::debug!(error = %error, "the broker did not tell the ends of partitions");
        }
    }
}

fn ask(consumer: &BaseConsumer<Member>, all: &Lanes) -> KafkaResult<()> {
    let lanes = &all.list()[..];
    if lanes.is_empty() {
        return Ok(());
    }
    let ends = consumer.offsets_for_times(list(lanes, Offset::End)?, ANSWER_LIMIT)?;
    for (lane, end) in pairs(lanes, &ends) {
        lane.progress.ends_at(end);
    }
    let reset: Vec<View> = lanes.iter().filter(|lane| lane.progress.was_reset()).cloned().collect();
    if !reset.is_empty() {
        let starts = consumer.offsets_for_times(list(&reset, Offset::Beginning)?, ANSWER_LIMIT)?;
        pairs(&reset, &starts).for_each(|(lane, first)| all.count_lost(&lane.progress, first));
    }
    let begun: Vec<View> = lanes.iter().filter(|lane| lane.progress.is_new()).cloned().collect();
    if begun.is_empty() {
        return Ok(());
    }
    let committed = consumer.committed_offsets(list(&begun, Offset::Invalid)?, ANSWER_LIMIT)?;
    for (lane, offset) in pairs(&begun, &committed) {
        lane.progress.starts_at(offset);
    }
    // Where nothing was ever committed, the partition is read from its first record.
    let fresh: Vec<View> = begun.into_iter().filter(|lane| lane.progress.is_new()).collect();
    if !fresh.is_empty() {
        let starts = consumer.offsets_for_times(list(&fresh, Offset::Beginning)?, ANSWER_LIMIT)?;
        pairs(&fresh, &starts).for_each(|(lane, offset)| lane.progress.starts_at(offset));
    }
    Ok(())
}

fn list(lanes: &[View], offset: Offset) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(lanes.len());
    for lane in lanes {
        list.add_partition_offset(&lane.progress.topic, lane.progress.partition, offset)?;
    }
    Ok(list)
}

/// The lanes for which `list` has an offset.
fn pairs<'a>(lanes: &'a [View], list: &'a TopicPartitionList) -> impl Iterator<Item = (&'a View, i64)> {
    lanes.iter().filter_map(|lane| {
        let element = list.find_partition(&lane.progress.topic, lane.progress.partition)?;
        match (element.error(), element.offset()) {
            (Ok(()), Offset::Offset(offset)) => Some((lane, offset)),
            _ => None,
        }
    })
}
