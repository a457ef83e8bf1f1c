//! What happens to lanes when the group moves partitions. A revoked partition is given away only after its batch in
//! hand is finished or given up, and what is finished is committed; of a lost partition nothing is committed, since
//! it may already be another member's. Runs in the reader's thread, inside its poll.

use std::sync::Arc;
use std::time::Duration;

use kafka::rebootstrap::Rebootstrap;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::TopicPartitionList;

use crate::kafka::committer::Gate;
use crate::partition::workers::{Lanes, Place};

/// How long a lane may finish its batch in hand before its partition is given away: within the 10 s session timeout
/// of the group, whose heartbeats librdkafka goes on sending.
const GRACE: Duration = Duration::from_secs(8);

/// The group member's side of a rebalance.
pub struct Member {
    lanes: Arc<Lanes>,
    gate: Gate,
    bootstrap: Arc<Rebootstrap>,
}

impl Member {
    /// A member whose partitions have `lanes` and whose commits pass `gate`.
    pub fn new(lanes: Arc<Lanes>, gate: Gate, bootstrap: Arc<Rebootstrap>) -> Self {
        Self { lanes, gate, bootstrap }
    }

    /// To be called once a second or so: no client of `consumer` stays without a broker.
    pub fn keep(&self, consumer: &BaseConsumer<Self>) {
        self.bootstrap.restore_brokers(consumer.client());
        self.gate.keep();
    }

    /// What every commit passes.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, places: &[Place]) {
        if consumer.assignment_lost() {
            tracing::warn!(partitions = places.len(), "partitions lost");
            return self.lanes.lose(places);
        }
        let finished = self.lanes.end(places, GRACE);
        if let Err((_, error)) = self.gate.commit(consumer, || finished) {
            tracing::warn!(error = %error, "commit before giving partitions away failed");
        }
        tracing::info!(partitions = places.len(), "partitions revoked");
    }
}

impl ClientContext for Member {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        kafka::log_line(facility, message);
        if let Some((topic, partition, at)) = reset(facility, message) {
            self.lanes.is_reset(topic, partition, at);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", error = %error, reason, "client error");
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.bootstrap.on_statistics(statistics);
    }
}

impl ConsumerContext for Member {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => {
                tracing::info!(partitions = list.count(), "partitions assigned");
                self.lanes.start(places(list));
            }
            Rebalance::Revoke(list) => self.revoke(consumer, &places(list)),
            Rebalance::Error(error) => {
                tracing::warn!(error = %error, "rebalance failed");
                self.lanes.lose(&self.lanes.places());
            }
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        // A partition that was paused when it was given away would come back paused.
        if let Rebalance::Assign(list) = rebalance
            && let Err(error) = consumer.resume(list)
        {
            tracing::warn!(error = %error, "new partitions cannot be resumed");
        }
    }
}

/// The partition whose position Kafka no longer has, and that position. librdkafka tells of it only in its log:
/// `[thrd:main]: t [0]: offset reset (at offset 5 (leader epoch 0), broker 1) to …: Broker: Offset out of range`.
fn reset<'a>(facility: &str, message: &'a str) -> Option<(&'a str, i32, i64)> {
    if facility != "OFFSET" {
        return None;
    }
    let (place, rest) = message.split_once(": offset reset (at offset ")?;
    let (topic, partition) = place.rsplit_once(' ')?;
    let topic = topic.rsplit_once(' ').map_or(topic, |(_thread, topic)| topic);
    let partition = partition.strip_prefix('[')?.strip_suffix(']')?.parse().ok()?;
    let at = rest.split([' ', ',', ')']).next()?.parse().ok()?;
    rest.contains("out of range").then_some((topic, partition, at))
}

/// The partitions of `list`.
pub fn places(list: &TopicPartitionList) -> Vec<Place> {
    list.elements().iter().map(|element| (Arc::from(element.topic()), element.partition())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_position_out_of_range_is_taken_for_a_reset() {
        let line = "[thrd:main]: a.b-c [12]: offset reset (at offset 5 (leader epoch 0), broker 1) \
                    to cached BEGINNING offset offset 9 (leader epoch -1): fetch failed due to requested offset \
                    not available on the broker: Broker: Offset out of range";
        assert_eq!(reset("OFFSET", line), Some(("a.b-c", 12, 5)));
        assert_eq!(reset("FETCH", line), None);
        let other = "[thrd:main]: t [0]: offset reset (at offset INVALID (leader epoch -1), broker -1) to \
                     offset BEGINNING (leader epoch -1): no previously committed offset: Local: No offset stored";
        assert_eq!(reset("OFFSET", other), None);
    }
}
