//! Serializes the commits of a group member and checks the group's offsets before each commit.
//!
//! One commit runs at a time. An older offset can therefore never overtake a newer one, nor arrive
//! after its partition was released.
//!
//! Kafka deletes a group's offsets of a topic together with the topic. A recreated topic has the
//! same name and starts at offset 0. A client that missed the deletion stays at its old position
//! and skips records that were never read. A commit at that position would hide this for good. So
//! the guard first reads the committed offsets back. If Kafka no longer has them, it blocks all
//! commits, and the reader replaces the client by one that starts at the beginning.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use ::kafka::ConnectionContext;
use ::kafka::rebootstrap::Rebootstrap;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::lock::lock;

use crate::kafka::record::{TopicPartition, topic_partitions};

/// Timeout for reading the committed offsets.
const COMMITTED_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum polls of the observer client per call. A client has fewer events in a second.
const MAX_POLLS: usize = 100;

/// Offsets that were collected but not committed, with the cause.
pub type CommitFailure = (TopicPartitionList, KafkaError);

/// Lets one commit run at a time, and none after the group's offsets were reset.
pub struct CommitGuard {
    /// Reads committed offsets. It joins no group, because the coordinator connection of a group
    /// member answers nothing else while the member joins.
    observer: BaseConsumer<ConnectionContext>,
    rebootstrap: Arc<Rebootstrap>,
    /// Partitions on which this client has committed.
    committed: Mutex<HashSet<TopicPartition>>,
    /// The topic whose committed offsets Kafka no longer has.
    reset_topic: OnceLock<Arc<str>>,
}

impl CommitGuard {
    /// Creates the guard and its observer client with the properties of `config`.
    ///
    /// # Errors
    /// librdkafka rejects the configuration.
    pub fn new(config: &ClientConfig) -> KafkaResult<Self> {
        let mut config = config.clone();
        let rebootstrap = Rebootstrap::enable(&mut config);
        let observer = config.create_with_context(ConnectionContext::new(Arc::clone(&rebootstrap)))?;
        Ok(Self { observer, rebootstrap, committed: Mutex::default(), reset_topic: OnceLock::new() })
    }

    /// Commits what `collect_offsets` returns, and returns the same offsets. Blocks until the
    /// broker replies: at most the session timeout of 10 s, if the coordinator is unavailable.
    ///
    /// The offsets are collected after the check, directly before the commit. Otherwise they could
    /// contain a partition that was lost meanwhile. Kafka rejects such a commit, and librdkafka
    /// then leaves the group that it is just rejoining. The member that it was about to become
    /// stays in the group, and the group waits for it until its session expires.
    ///
    /// # Errors
    /// At least one offset is not committed. Contains the collected offsets and the cause.
    pub fn commit<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        collect_offsets: impl FnOnce() -> TopicPartitionList,
    ) -> Result<TopicPartitionList, CommitFailure> {
        let mut committed = lock(&self.committed);
        // Also without offsets to commit: a recreated topic may end before the client's position.
        self.check_for_reset(&committed).map_err(|error| (TopicPartitionList::new(), error))?;
        let offsets = collect_offsets();
        if offsets.count() == 0 {
            return Ok(offsets);
        }
        if consumer.assignment_lost() {
            return Err((offsets, KafkaError::ConsumerCommit(RDKafkaErrorCode::AssignmentLost)));
        }
        consumer.commit(&offsets, CommitMode::Sync).map_err(|error| (offsets.clone(), error))?;
        committed.extend(topic_partitions(&offsets));
        Ok(offsets)
    }

    /// Handles the events of the observer client and keeps it connected. Call it about once a
    /// second.
    pub fn poll_observer(&self) {
        // A poll handles one event and does not report whether there are more.
        for _ in 0..MAX_POLLS {
            _ = self.observer.poll(Duration::ZERO);
        }
        self.rebootstrap.restore_brokers(self.observer.client());
    }

    /// The topic whose committed offsets Kafka no longer has. Once set, every commit fails.
    pub fn reset_topic(&self) -> Option<&Arc<str>> {
        self.reset_topic.get()
    }

    fn check_for_reset(&self, committed: &HashSet<TopicPartition>) -> KafkaResult<()> {
        const RESET: KafkaError = KafkaError::ConsumerCommit(RDKafkaErrorCode::UnknownTopicOrPartition);
        // Another member may have committed there since, so the first observation is final.
        if self.reset_topic.get().is_some() {
            return Err(RESET);
        }
        if committed.is_empty() {
            return Ok(());
        }
        let mut list = TopicPartitionList::with_capacity(committed.len());
        for (topic, partition) in committed {
            list.add_partition(topic, *partition);
        }
        let stored = self.observer.committed_offsets(list, COMMITTED_TIMEOUT)?;
        let reset = stored
            .elements()
            .into_iter()
            .find(|element| element.offset() == Offset::Invalid && element.error().is_ok());
        match reset.map(|element| Arc::from(element.topic())) {
            None => Ok(()),
            Some(topic) => {
                _ = self.reset_topic.set(topic);
                Err(RESET)
            }
        }
    }
}

#[cfg(test)]
mod tests;
