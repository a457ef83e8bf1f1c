//! Rebalances: starts and stops partition workers when the group moves partitions.
//!
//! A revoked partition is released only after its current batch was finished or abandoned and the
//! finished records were committed. Nothing of a lost partition is committed, because another
//! member may already have it. Everything runs in the reader thread, inside its poll.

use std::sync::Arc;
use std::time::Duration;

use ::kafka::rebootstrap::Rebootstrap;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;

use crate::kafka::commit_guard::CommitGuard;
use crate::kafka::record::{TopicPartition, topic_partitions};
use crate::partition::workers::Workers;

/// How long a worker may finish its current batch before its partition is released. This is below
/// the group's session timeout of 10 s; librdkafka sends heartbeats meanwhile.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(8);

/// The librdkafka context of the group member.
pub struct GroupMember {
    workers: Arc<Workers>,
    commit_guard: CommitGuard,
    rebootstrap: Arc<Rebootstrap>,
}

impl GroupMember {
    /// A context that starts and stops `workers` and commits through `commit_guard`.
    pub fn new(workers: Arc<Workers>, commit_guard: CommitGuard, rebootstrap: Arc<Rebootstrap>) -> Self {
        Self { workers, commit_guard, rebootstrap }
    }

    /// Reconnects the clients if they lost every broker. Call it about once a second.
    pub fn keep_connected(&self, consumer: &BaseConsumer<Self>) {
        self.rebootstrap.restore_brokers(consumer.client());
        self.commit_guard.poll_observer();
    }

    /// The guard of every commit.
    pub fn commit_guard(&self) -> &CommitGuard {
        &self.commit_guard
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, revoked: &[TopicPartition]) {
        if consumer.assignment_lost() {
            tracing::warn!(partitions = revoked.len(), "partitions lost");
            return self.workers.abort(revoked);
        }
        let finished = self.workers.stop(revoked, REVOKE_TIMEOUT);
        if let Err((_, error)) = self.commit_guard.commit(consumer, || finished) {
            tracing::warn!(error = %error, "commit of revoked partitions failed");
        }
        tracing::info!(partitions = revoked.len(), "partitions revoked");
    }
}

impl ClientContext for GroupMember {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        ::kafka::log_line(facility, message);
        if let Some((topic, partition, position)) = parse_offset_reset(facility, message) {
            self.workers.set_position_reset(topic, partition, position);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", error = %error, reason, "client error");
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.rebootstrap.on_statistics(statistics);
    }
}

impl ConsumerContext for GroupMember {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => {
                tracing::info!(partitions = list.count(), "partitions assigned");
                self.workers.start(topic_partitions(list));
            }
            Rebalance::Revoke(list) => self.revoke(consumer, &topic_partitions(list)),
            Rebalance::Error(error) => {
                tracing::warn!(error = %error, "rebalance failed");
                self.workers.abort(&self.workers.assigned());
            }
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        // A partition that was paused when it was revoked would otherwise return paused.
        if let Rebalance::Assign(list) = rebalance
            && let Err(error) = consumer.resume(list)
        {
            tracing::warn!(error = %error, "assigned partitions could not be resumed");
        }
    }
}

/// The partition and position of an `Offset out of range` reset. librdkafka reports it only in its
/// log: `[thrd:main]: t [0]: offset reset (at offset 5 (leader epoch 0), broker 1) to …:
/// Broker: Offset out of range`.
fn parse_offset_reset<'a>(facility: &str, message: &'a str) -> Option<(&'a str, i32, i64)> {
    if facility != "OFFSET" {
        return None;
    }
    let (topic_partition, rest) = message.split_once(": offset reset (at offset ")?;
    let (topic, partition) = topic_partition.rsplit_once(' ')?;
    let topic = topic.rsplit_once(' ').map_or(topic, |(_thread, topic)| topic);
    let partition = partition.strip_prefix('[')?.strip_suffix(']')?.parse().ok()?;
    let position = rest.split([' ', ',', ')']).next()?.parse().ok()?;
    rest.contains("out of range").then_some((topic, partition, position))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_out_of_range_position_counts_as_a_reset() {
        let line = "[thrd:main]: a.b-c [12]: offset reset (at offset 5 (leader epoch 0), broker 1) \
                    to cached BEGINNING offset offset 9 (leader epoch -1): fetch failed due to requested offset \
                    not available on the broker: Broker: Offset out of range";
        assert_eq!(parse_offset_reset("OFFSET", line), Some(("a.b-c", 12, 5)));
        assert_eq!(parse_offset_reset("FETCH", line), None);
        let other = "[thrd:main]: t [0]: offset reset (at offset INVALID (leader epoch -1), broker -1) to \
                     offset BEGINNING (leader epoch -1): no previously committed offset: Local: No offset stored";
        assert_eq!(parse_offset_reset("OFFSET", other), None);
    }
}
