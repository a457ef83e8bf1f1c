//! Judges topics: whether they are there, whether an acknowledged record can be lost, and whether dead letters are kept.

use super::finding::Finding;
use kafka::cluster::Topic;
use service::plural::counted;

fn number(topic: &Topic, property: &str) -> Option<i64> {
    topic.config.get(property)?.parse().ok()
}

fn replicas(topic: &Topic) -> usize {
    topic.partitions.iter().map(|partition| partition.replicas).min().unwrap_or(0)
}

/// A topic that is not there.
pub fn missing(name: &str) -> Finding {
    let remedy = "start the producer or the consumer, which make it, and see why if they run already: their /readyz says so";
    Finding::fail(subject(name), "does not exist", remedy)
}

/// A topic of which Kafka does not even say whether it is there.
pub fn hidden(name: &str) -> Finding {
    let remedy = format!(
        "grant the user of KAFKA_PROPERTIES the rights of a consumer: kafka-acls.sh --add --allow-principal User:NAME \
         --operation Describe --operation DescribeConfigs --operation Read --topic {name}"
    );
    Finding::fail(subject(name), "is kept from this user: no right to describe it", remedy)
}

/// Whether records of the source topic `name` are deleted while they may wait to be read.
pub fn judge_retention(name: &str, topic: &Topic) -> Vec<Finding> {
    if topic.config.get("cleanup.policy").is_some_and(|policy| !policy.contains("delete")) {
        return Vec::new();
    }
    let warning = |(setting, when): (&str, String)| {
        let cause = format!("records are deleted {when} ({setting}), read or not");
        let remedy = format!(
            "keep the lag below that, or raise it: kafka-configs.sh --alter --entity-type topics --entity-name {name} \
             --add-config {setting}=-1 keeps them for ever"
        );
        Finding::warn(subject(name), cause, remedy)
    };
    limits(topic).map(warning).collect()
}

/// The settings by which Kafka deletes records of the topic, each with when it does so.
fn limits(topic: &Topic) -> impl Iterator<Item = (&'static str, String)> {
    let limit = |setting| Some((setting, number(topic, setting).filter(|limit| *limit >= 0)?));
    let by_age = limit("retention.ms").map(|(name, ms)| (name, format!("after {}", length(ms))));
    let by_size =
        limit("retention.bytes").map(|(name, most)| (name, format!("once a partition has {most} bytes")));
    by_age.into_iter().chain(by_size)
}

/// A time in the largest unit that says it in a whole number.
fn length(ms: i64) -> String {
    let units = [(86_400_000, "day"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"), (1, "ms")];
    let (factor, unit) = units.into_iter().find(|(factor, _)| ms % factor == 0).unwrap_or((1, "ms"));
    match unit {
        "day" => counted(ms / factor, unit),
        unit => format!("{} {unit}", ms / factor),
    }
}

/// Whether records go in, and how safe they are.
pub fn judge(name: &str, topic: &Topic) -> Vec<Finding> {
    let shape = Finding::ok(subject(name), shape(topic));
    let judged = [leaders(name, topic), in_sync(name, topic), copies(name, topic), acknowledged(name, topic)];
    std::iter::once(shape).chain(judged.into_iter().flatten()).collect()
}

fn shape(topic: &Topic) -> String {
    let least = topic.config.get("min.insync.replicas").map_or("unknown", String::as_str);
    format!(
        "{}, replication factor {}, min.insync.replicas {least}",
        counted(topic.partitions.len(), "partition"),
        replicas(topic)
    )
}

fn leaders(name: &str, topic: &Topic) -> Option<Finding> {
    let lost: Vec<String> =
        topic.partitions.iter().filter(|p| !p.has_leader).map(|partition| partition.id.to_string()).collect();
    let remedy = "start the brokers that hold these partitions";
    (!lost.is_empty())
        .then(|| Finding::fail(subject(name), format!("no leader for partition {}", lost.join(", ")), remedy))
}

fn in_sync(name: &str, topic: &Topic) -> Option<Finding> {
    let behind = topic.partitions.iter().filter(|partition| partition.in_sync < partition.replicas).count();
    let cause = format!("too few copies are in sync: {}", counted(behind, "partition"));
    (behind > 0).then(|| Finding::warn(subject(name), cause, "see which broker is down or slow"))
}

fn copies(name: &str, topic: &Topic) -> Option<Finding> {
    let remedy = "on a cluster of three brokers, set KAFKA_REPLICATION_FACTOR to 3 before the topic is made, or \
                  reassign its partitions";
    (replicas(topic) == 1).then(|| {
        Finding::warn(subject(name), "replication factor 1: a broker's disk holds the only copy", remedy)
    })
}

/// `acks=all` waits for the copies that are in sync, so min.insync.replicas says how many hold an acknowledged record.
fn acknowledged(name: &str, topic: &Topic) -> Option<Finding> {
    let (replicas, least) = (replicas(topic), usize::try_from(number(topic, "min.insync.replicas")?).ok()?);
    let change = |to: usize| {
        format!(
            "kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config min.insync.replicas={to}"
        )
    };
    if least > replicas {
        let cause = format!(
            "min.insync.replicas {least} is above the replication factor {replicas}: no event can be accepted"
        );
        return Some(Finding::fail(subject(name), cause, change(replicas.max(1))));
    }
    if replicas > 1 && least == 1 {
        let cause = "min.insync.replicas 1: an acknowledged event may be on one broker only";
        return Some(Finding::warn(subject(name), cause, change(2)));
    }
    if replicas > 1 && least == replicas {
        let cause = format!(
            "min.insync.replicas {least} equals the replication factor: with one broker down no event can be accepted"
        );
        return Some(Finding::warn(subject(name), cause, change(replicas - 1)));
    }
    None
}

/// Whether the dead-letter topic `name` holds every record of `sources` for as long as it takes.
pub fn judge_dead_letters<'a>(
    name: &str,
    topic: &Topic,
    sources: impl Iterator<Item = &'a Topic>,
) -> Vec<Finding> {
    let judged = [not_compacted(name, topic), holds(name, topic, sources)];
    kept_for_ever(name, topic).into_iter().chain(judged.into_iter().flatten()).collect()
}

fn kept_for_ever(name: &str, topic: &Topic) -> Vec<Finding> {
    let warning = |(setting, when): (&str, String)| {
        let cause = format!("dead letters are deleted {when} ({setting})");
        let remedy = format!(
            "kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config {setting}=-1"
        );
        Finding::warn(subject(name), cause, remedy)
    };
    limits(topic).map(warning).collect()
}

fn not_compacted(name: &str, topic: &Topic) -> Option<Finding> {
    let policy = topic.config.get("cleanup.policy")?;
    let cause = "cleanup.policy compact: of the dead letters of one key only the last is kept";
    let remedy = format!(
        "kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config cleanup.policy=delete"
    );
    policy.contains("compact").then(|| Finding::warn(subject(name), cause, remedy))
}

fn holds<'a>(name: &str, topic: &Topic, sources: impl Iterator<Item = &'a Topic>) -> Option<Finding> {
    let limit = |topic: &Topic| number(topic, "max.message.bytes");
    let (most, needed) = (limit(topic)?, sources.filter_map(limit).max()?);
    let cause = format!(
        "max.message.bytes {most} is below the source's {needed}: a large record's lane would wait for ever"
    );
    let remedy = format!(
        "kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config max.message.bytes={}",
        needed + 65_536
    );
    (most < needed).then(|| Finding::fail(subject(name), cause, remedy))
}

/// How the findings name a topic.
pub fn subject(name: &str) -> String {
    format!("topic {name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::Level;
    use kafka::cluster::TopicPartition;

    fn topic(replicas: usize, in_sync: usize, least: &str) -> Topic {
        let partition = |id| TopicPartition { id, has_leader: true, replicas, in_sync };
        let settings = [("min.insync.replicas".to_owned(), least.to_owned())];
        Topic { partitions: vec![partition(0), partition(1)], config: settings.into() }
    }

    /// The levels of what is not well, each with a word of its cause.
    fn unwell(topic: &Topic) -> Vec<(Level, String)> {
        judge("t", topic)
            .into_iter()
            .filter(|finding| finding.level != Level::Ok)
            .map(|finding| (finding.level, finding.cause))
            .collect()
    }

    #[test]
    fn a_source_topic_that_deletes_records_is_a_warning_with_the_length() {
        let told = |settings: &[(&str, &str)]| {
            let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let topic = Topic { config: settings.collect(), ..topic(3, 3, "2") };
            let found = judge_retention("t", &topic);
            assert!(found.iter().all(|finding| finding.level == Level::Warn), "{found:?}");
            found.into_iter().map(|finding| finding.cause).collect::<Vec<_>>().join("; ")
        };
        for (ms, length) in [
            ("604800000", "7 days"),
            ("86400000", "1 day"),
            ("3600000", "1 h"),
            ("5400000", "90 min"),
            ("61000", "61 s"),
            ("1500", "1500 ms"),
        ] {
            let wanted = format!("records are deleted after {length} (retention.ms), read or not");
            assert_eq!(told(&[("retention.ms", ms)]), wanted);
        }
        assert_eq!(told(&[("retention.ms", "-1"), ("retention.bytes", "-1")]), "");
        assert!(told(&[("retention.bytes", "9")]).contains("once a partition has 9 bytes"));
        assert_eq!(told(&[("retention.ms", "1"), ("cleanup.policy", "compact")]), "");
        assert_ne!(told(&[("retention.ms", "1"), ("cleanup.policy", "compact,delete")]), "");
    }

    // A single broker cannot have these.
    #[test]
    fn a_topic_with_several_copies_is_judged_by_how_many_must_acknowledge() {
        assert_eq!(unwell(&topic(3, 3, "2")), []);
        for (least, part) in [("1", "one broker only"), ("3", "one broker down")] {
            let found = unwell(&topic(3, 3, least));
            assert!(matches!(&found[..], [(Level::Warn, cause)] if cause.contains(part)), "{found:?}");
        }
    }

    #[test]
    fn a_partition_without_leader_fails_and_one_that_is_behind_warns() {
        let behind = unwell(&topic(3, 2, "2"));
        assert!(
            matches!(&behind[..], [(Level::Warn, cause)] if cause.ends_with(": 2 partitions")),
            "{behind:?}"
        );
        let mut leaderless = topic(3, 3, "2");
        leaderless.partitions[1].has_leader = false;
        let found = unwell(&leaderless);
        assert!(matches!(&found[..], [(Level::Fail, cause)] if cause.contains("partition 1")), "{found:?}");
    }
}
