//! The lag monitor: reads the end offset of each assigned partition once a second.
//!
//! It runs in its own thread beside the reader, because the requests block. It also detects records
//! that Kafka deleted before they were read.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::tasks::Supervisor;

use crate::partition::progress::PartitionView;
use crate::partition::workers::Workers;

const INTERVAL: Duration = Duration::from_secs(1);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Handle of the lag monitor thread.
pub struct LagMonitor {
    alive: Sender<()>,
    thread: JoinHandle<()>,
}

impl LagMonitor {
    /// Starts the thread. `tasks` has to allow its end before [`LagMonitor::stop`].
    ///
    /// # Errors
    /// The thread cannot be created.
    pub fn start<C: ConsumerContext + 'static>(
        tasks: &Supervisor,
        consumer: Arc<BaseConsumer<C>>,
        workers: Arc<Workers>,
    ) -> std::io::Result<Self> {
        let (alive, stopped) = channel();
        let thread = tasks.spawn_thread("lag monitor", move || run(&consumer, &workers, &stopped))?;
        Ok(Self { alive, thread })
    }

    /// Stops the thread after its current request.
    pub fn stop(self) {
        drop(self.alive);
        _ = self.thread.join();
    }
}

fn run(consumer: &BaseConsumer<impl ConsumerContext>, workers: &Workers, stopped: &Receiver<()>) {
    while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
        if let Err(error) = update(consumer, workers) {
            tracing::debug!(error = %error, "partition offsets could not be read");
        }
    }
}

fn update(consumer: &BaseConsumer<impl ConsumerContext>, workers: &Workers) -> KafkaResult<()> {
    let assigned = &workers.views()[..];
    if assigned.is_empty() {
        return Ok(());
    }
    let ends = consumer.offsets_for_times(list(assigned, Offset::End)?, REQUEST_TIMEOUT)?;
    for (partition, end) in offsets(assigned, &ends) {
        partition.progress.set_end(end);
    }
    let reset: Vec<PartitionView> =
        assigned.iter().filter(|partition| partition.progress.has_position_reset()).cloned().collect();
    if !reset.is_empty() {
        let starts = consumer.offsets_for_times(list(&reset, Offset::Beginning)?, REQUEST_TIMEOUT)?;
        offsets(&reset, &starts)
            .for_each(|(partition, first)| workers.count_lost(&partition.progress, first));
    }
    let new = without_start(assigned);
    if new.is_empty() {
        return Ok(());
    }
    let committed = consumer.committed_offsets(list(&new, Offset::Invalid)?, REQUEST_TIMEOUT)?;
    for (partition, offset) in offsets(&new, &committed) {
        partition.progress.set_start(offset);
    }
    // A partition without a committed offset is read from its first record.
    let uncommitted = without_start(&new);
    if !uncommitted.is_empty() {
        let starts = consumer.offsets_for_times(list(&uncommitted, Offset::Beginning)?, REQUEST_TIMEOUT)?;
        offsets(&uncommitted, &starts).for_each(|(partition, offset)| partition.progress.set_start(offset));
    }
    Ok(())
}

fn without_start(partitions: &[PartitionView]) -> Vec<PartitionView> {
    partitions.iter().filter(|partition| partition.progress.needs_start()).cloned().collect()
}

fn list(partitions: &[PartitionView], offset: Offset) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for partition in partitions {
        list.add_partition_offset(&partition.progress.topic, partition.progress.partition, offset)?;
    }
    Ok(list)
}

/// The partitions for which `list` has an offset, with that offset.
fn offsets<'a>(
    partitions: &'a [PartitionView],
    list: &'a TopicPartitionList,
) -> impl Iterator<Item = (&'a PartitionView, i64)> {
    partitions.iter().filter_map(|partition| {
        let element = list.find_partition(&partition.progress.topic, partition.progress.partition)?;
        match (element.error(), element.offset()) {
            (Ok(()), Offset::Offset(offset)) => Some((partition, offset)),
            _ => None,
        }
    })
}
