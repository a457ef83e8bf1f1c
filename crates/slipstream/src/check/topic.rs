//! Checks topics: whether they exist, whether an acknowledged record can be lost, and whether dead
//! letters are kept.

use super::finding::Finding;
use kafka::cluster::Topic;
use service::plural::counted;

fn number(topic: &Topic, property: &str) -> Option<i64> {
    topic.config.get(property)?.parse().ok()
}

fn replicas(topic: &Topic) -> usize {
    topic.partitions.iter().map(|partition| partition.replicas).min().unwrap_or(0)
}

/// The finding for a missing topic.
pub fn missing(name: &str) -> Finding {
    let remedy =
        "start the producer or the consumer, which create it; if they run, their /readyz has the cause";
    Finding::fail(subject(name), "does not exist", remedy)
}

/// The finding for a topic that the user may not describe, so that Kafka hides whether it exists.
pub fn hidden(name: &str) -> Finding {
    let remedy = format!(
        "grant the user of KAFKA_PROPERTIES the rights of a consumer: kafka-acls.sh --add --allow-principal User:NAME \
         --operation Describe --operation DescribeConfigs --operation Read --topic {name}"
    );
    Finding::fail(subject(name), "is hidden from this user: no right to describe it", remedy)
}

/// Checks whether Kafka deletes records of the source topic `name`, even unread ones.
pub fn check_retention(name: &str, topic: &Topic) -> Vec<Finding> {
    if topic.config.get("cleanup.policy").is_some_and(|policy| !policy.contains("delete")) {
        return Vec::new();
    }
    let warning = |(property, when): (&str, String)| {
        let cause = format!("records are deleted {when} ({property}), even unread ones");
        let remedy = format!(
            "keep the lag below that, or raise the limit: kafka-configs.sh --alter --entity-type topics --entity-name {name} \
             --add-config {property}=-1 keeps all records"
        );
        Finding::warn(subject(name), cause, remedy)
    };
    retention_limits(topic).map(warning).collect()
}

/// The properties by which Kafka deletes records of the topic, each with the time of the deletion.
fn retention_limits(topic: &Topic) -> impl Iterator<Item = (&'static str, String)> {
    let limit = |property| Some((property, number(topic, property).filter(|limit| *limit >= 0)?));
    let by_age = limit("retention.ms").map(|(name, ms)| (name, format!("after {}", duration_text(ms))));
    let by_size =
        limit("retention.bytes").map(|(name, bytes)| (name, format!("once a partition has {bytes} bytes")));
    by_age.into_iter().chain(by_size)
}

/// A duration in the largest unit in which it is a whole number.
fn duration_text(ms: i64) -> String {
    let units = [(86_400_000, "day"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"), (1, "ms")];
    let (factor, unit) = units.into_iter().find(|(factor, _)| ms % factor == 0).unwrap_or((1, "ms"));
    match unit {
        "day" => counted(ms / factor, unit),
        unit => format!("{} {unit}", ms / factor),
    }
}

/// Checks whether the topic accepts records, and how safe they are.
pub fn check(name: &str, topic: &Topic) -> Vec<Finding> {
    let shape = Finding::ok(subject(name), shape(topic));
    let faults =
        [leaders(name, topic), in_sync(name, topic), replication(name, topic), min_in_sync(name, topic)];
    std::iter::once(shape).chain(faults.into_iter().flatten()).collect()
}

fn shape(topic: &Topic) -> String {
    let min_in_sync = topic.config.get("min.insync.replicas").map_or("unknown", String::as_str);
    format!(
        "{}, replication factor {}, min.insync.replicas {min_in_sync}",
        counted(topic.partitions.len(), "partition"),
        replicas(topic)
    )
}

fn leaders(name: &str, topic: &Topic) -> Option<Finding> {
    let leaderless: Vec<String> =
        topic.partitions.iter().filter(|p| !p.has_leader).map(|partition| partition.id.to_string()).collect();
    let remedy = "start the brokers that hold these partitions";
    (!leaderless.is_empty()).then(|| {
        Finding::fail(subject(name), format!("no leader for partition {}", leaderless.join(", ")), remedy)
    })
}

fn in_sync(name: &str, topic: &Topic) -> Option<Finding> {
    let behind = topic.partitions.iter().filter(|partition| partition.in_sync < partition.replicas).count();
    let cause = format!("too few replicas are in sync: {}", counted(behind, "partition"));
    (behind > 0).then(|| Finding::warn(subject(name), cause, "find the broker that is down or slow"))
}

fn replication(name: &str, topic: &Topic) -> Option<Finding> {
    let remedy = "on a cluster of three brokers, set KAFKA_REPLICATION_FACTOR to 3 before the topic is created, or \
                  reassign its partitions";
    (replicas(topic) == 1)
        .then(|| Finding::warn(subject(name), "replication factor 1: one broker holds the only copy", remedy))
}

/// `acks=all` waits for the in-sync replicas. min.insync.replicas is therefore the minimum number
/// of replicas that have an acknowledged record.
fn min_in_sync(name: &str, topic: &Topic) -> Option<Finding> {
    let (replicas, min) = (replicas(topic), usize::try_from(number(topic, "min.insync.replicas")?).ok()?);
    let change = |to: usize| {
        format!(
            "kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config min.insync.replicas={to}"
        )
    };
    if min > replicas {
        let cause = format!(
            "min.insync.replicas {min} is above the replication factor {replicas}: no event can be accepted"
        );
        return Some(Finding::fail(subject(name), cause, change(replicas.max(1))));
    }
    if replicas > 1 && min == 1 {
        let cause = "min.insync.replicas 1: an acknowledged event may be on one broker only";
        return Some(Finding::warn(subject(name), cause, change(2)));
    }
    if replicas > 1 && min == replicas {
        let cause = format!(
            "min.insync.replicas {min} equals the replication factor: with one broker down no event can be accepted"
        );
        return Some(Finding::warn(subject(name), cause, change(replicas - 1)));
    }
    None
}

/// Checks whether the dead-letter topic `name` keeps every dead letter of `sources` without a
/// limit.
pub fn check_dead_letter_topic<'a>(
    name: &str,
    topic: &Topic,
    sources: impl Iterator<Item = &'a Topic>,
) -> Vec<Finding> {
    let faults = [compaction(name, topic), max_message_bytes(name, topic, sources)];
    dead_letter_retention(name, topic).into_iter().chain(faults.into_iter().flatten()).collect()
}

fn dead_letter_retention(name: &str, topic: &Topic) -> Vec<Finding> {
    let warning = |(property, when): (&str, String)| {
        let cause = format!("dead letters are deleted {when} ({property})");
        let remedy = format!(
            "kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config {property}=-1"
        );
        Finding::warn(subject(name), cause, remedy)
    };
    retention_limits(topic).map(warning).collect()
}

fn compaction(name: &str, topic: &Topic) -> Option<Finding> {
    let policy = topic.config.get("cleanup.policy")?;
    let cause = "cleanup.policy compact: Kafka keeps only the last dead letter of each key";
    let remedy = format!(
        "kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config cleanup.policy=delete"
    );
    policy.contains("compact").then(|| Finding::warn(subject(name), cause, remedy))
}

fn max_message_bytes<'a>(
    name: &str,
    topic: &Topic,
    sources: impl Iterator<Item = &'a Topic>,
) -> Option<Finding> {
    let limit = |topic: &Topic| number(topic, "max.message.bytes");
    let (max, needed) = (limit(topic)?, sources.filter_map(limit).max()?);
    let cause = format!(
        "max.message.bytes {max} is below the source's {needed}: the partition worker of a larger record would block"
    );
    let remedy = format!(
        "kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config max.message.bytes={}",
        needed + 65_536
    );
    (max < needed).then(|| Finding::fail(subject(name), cause, remedy))
}

/// The subject of findings about a topic.
pub fn subject(name: &str) -> String {
    format!("topic {name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::Level;
    use kafka::cluster::TopicPartition;

    fn topic(replicas: usize, in_sync: usize, min_in_sync: &str) -> Topic {
        let partition = |id| TopicPartition { id, has_leader: true, replicas, in_sync };
        let settings = [("min.insync.replicas".to_owned(), min_in_sync.to_owned())];
        Topic { partitions: vec![partition(0), partition(1)], config: settings.into() }
    }

    /// The levels and causes of the faults.
    fn faults(topic: &Topic) -> Vec<(Level, String)> {
        check("t", topic)
            .into_iter()
            .filter(|finding| finding.level != Level::Ok)
            .map(|finding| (finding.level, finding.cause))
            .collect()
    }

    #[test]
    fn retention_of_a_source_topic_is_a_warning_with_the_duration() {
        let causes = |settings: &[(&str, &str)]| {
            let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let topic = Topic { config: settings.collect(), ..topic(3, 3, "2") };
            let found = check_retention("t", &topic);
            assert!(found.iter().all(|finding| finding.level == Level::Warn), "{found:?}");
            found.into_iter().map(|finding| finding.cause).collect::<Vec<_>>().join("; ")
        };
        for (ms, duration) in [
            ("604800000", "7 days"),
            ("86400000", "1 day"),
            ("3600000", "1 h"),
            ("5400000", "90 min"),
            ("61000", "61 s"),
            ("1500", "1500 ms"),
        ] {
            let wanted = format!("records are deleted after {duration} (retention.ms), even unread ones");
            assert_eq!(causes(&[("retention.ms", ms)]), wanted);
        }
        assert_eq!(causes(&[("retention.ms", "-1"), ("retention.bytes", "-1")]), "");
        assert!(causes(&[("retention.bytes", "9")]).contains("once a partition has 9 bytes"));
        assert_eq!(causes(&[("retention.ms", "1"), ("cleanup.policy", "compact")]), "");
        assert_ne!(causes(&[("retention.ms", "1"), ("cleanup.policy", "compact,delete")]), "");
    }

    // The tests with real servers have a single broker, which cannot have these.
    #[test]
    fn min_insync_replicas_must_be_between_1_and_the_replication_factor() {
        assert_eq!(faults(&topic(3, 3, "2")), []);
        for (min, part) in [("1", "one broker only"), ("3", "one broker down")] {
            let found = faults(&topic(3, 3, min));
            assert!(matches!(&found[..], [(Level::Warn, cause)] if cause.contains(part)), "{found:?}");
        }
    }

    #[test]
    fn a_leaderless_partition_fails_and_a_replica_behind_warns() {
        let behind = faults(&topic(3, 2, "2"));
        assert!(
            matches!(&behind[..], [(Level::Warn, cause)] if cause.ends_with(": 2 partitions")),
            "{behind:?}"
        );
        let mut leaderless = topic(3, 3, "2");
        leaderless.partitions[1].has_leader = false;
        let found = faults(&leaderless);
        assert!(matches!(&found[..], [(Level::Fail, cause)] if cause.contains("partition 1")), "{found:?}");
    }
}
