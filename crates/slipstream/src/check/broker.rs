//! Checks Kafka: whether it answers, the topics, and the consumer group. A topic must exist, keep
//! acknowledged records, and keep dead letters. A group must have members, and must not have lost
//! records that were deleted before they were read.

use std::collections::BTreeMap;

use kafka::cluster::{Cluster, GroupPosition, Topic};
use kafka::group::{ForeignMembers, Group};
use kafka::requests::UNAVAILABLE_REMEDY;
use kafka::topics::TopicSpec;
use service::plural::{counted, counted_with};

use super::finding::Finding;

/// Maximum number of partitions in a finding.
const MAX_NAMED: usize = 10;

/// Checks the broker, the topics and the group.
pub async fn check(config: &consumer::Config) -> Vec<Finding> {
    let cluster =
        Cluster::new(&config.kafka_broker, &config.properties, "slipstream-check", &config.group_id);
    let cluster = match cluster {
        Ok(cluster) => cluster,
        Err(error) => {
            let cause = format!("no client can be created: {error}");
            return vec![Finding::fail("kafka", cause, "correct KAFKA_BROKER and KAFKA_PROPERTIES")];
        }
    };
    let mut topics = match cluster.topics().await {
        Ok(topics) => topics,
        Err(error) => {
            let cause = format!("does not answer at {} (KAFKA_BROKER): {}", error.address, error.cause);
            return vec![Finding::fail("kafka", cause, UNAVAILABLE_REMEDY)];
        }
    };
    let mut findings = vec![Finding::ok("kafka", format!("answers, {}", counted(topics.len(), "topic")))];
    let specs = config.topic_specs();
    for spec in &specs {
        if let Some(topic) = topics.get_mut(&spec.name) {
            match cluster.topic_config(&spec.name).await {
                Ok(config) => topic.config = config,
                Err(cause) => findings.push(request_failed(topic_subject(&spec.name), &cause)),
            }
        }
    }
    let (positions, is_complete) = check_topics(&cluster, &specs, &topics, &mut findings).await;
    findings.extend(check_tombstones(config, &topics));
    match cluster.group().await {
        Ok(group) => {
            let foreign_members = group.foreign_members(&config.client_id());
            let members = (&group, foreign_members);
            findings.extend(check_group(&config.group_id, members, &positions, is_complete));
        }
        Err(error) => {
            findings.push(request_failed(format!("group {}", config.group_id), &error.cause));
        }
    }
    findings
}

/// Checks the topics. Returns the group's positions, and whether these are all of them.
async fn check_topics(
    cluster: &Cluster,
    specs: &[TopicSpec],
    topics: &BTreeMap<String, Topic>,
    findings: &mut Vec<Finding>,
) -> (Vec<GroupPosition>, bool) {
    let (mut positions, mut is_complete) = (Vec::new(), true);
    for spec in specs {
        let Some(topic) = topics.get(&spec.name) else {
            findings.push(match cluster.is_topic_hidden(&spec.name).await {
                Ok(false) => missing(&spec.name),
                Ok(true) => hidden(&spec.name),
                Err(error) => request_failed(topic_subject(&spec.name), &error.cause),
            });
            is_complete &= spec.is_dead_letter_topic();
            continue;
        };
        findings.extend(check_topic(&spec.name, topic));
        if spec.is_dead_letter_topic() {
            let sources = spec.dead_letters_of.iter().filter_map(|source| topics.get(source));
            findings.extend(check_dead_letter_topic(&spec.name, topic, sources));
            continue;
        }
        findings.extend(check_retention(&spec.name, topic));
        match cluster.positions(&spec.name, topic.partition_ids()).await {
            Ok(found) => positions.extend(found),
            Err(error) => {
                findings.push(request_failed(format!("offsets of {}", spec.name), &error.cause));
                is_complete = false;
            }
        }
    }
    (positions, is_complete)
}

/// The finding if Kafka is available, but a request failed.
fn request_failed(subject: impl Into<String>, cause: &str) -> Finding {
    let remedy = "the addresses that the brokers advertise must be reachable from here, and the user needs the \
                  right to describe topics, configurations and groups";
    Finding::fail(subject, format!("kafka returns an error: {cause}"), remedy)
}

fn number(topic: &Topic, property: &str) -> Option<i64> {
    topic.config.get(property)?.parse().ok()
}

fn replicas(topic: &Topic) -> usize {
    topic.partitions.iter().map(|partition| partition.replicas).min().unwrap_or(0)
}

/// The finding for a missing topic.
fn missing(name: &str) -> Finding {
    let remedy =
        "start the producer or the consumer, which create it; if they run, their /readyz has the cause";
    Finding::fail(topic_subject(name), "does not exist", remedy)
}

/// The finding for a topic that the user may not describe, so that Kafka hides whether it exists.
fn hidden(name: &str) -> Finding {
    let remedy = format!(
        "grant the user of KAFKA_PROPERTIES the rights of a consumer: kafka-acls.sh --add --allow-principal User:NAME \
         --operation Describe --operation DescribeConfigs --operation Read --topic {name}"
    );
    Finding::fail(topic_subject(name), "is hidden from this user: no right to describe it", remedy)
}

/// Checks whether Kafka deletes records of the source topic `name`, even unread ones.
fn check_retention(name: &str, topic: &Topic) -> Vec<Finding> {
    if topic.config.get("cleanup.policy").is_some_and(|policy| !policy.contains("delete")) {
        return Vec::new();
    }
    let warning = |(property, when): (&str, String)| {
        let cause = format!("records are deleted {when} ({property}), even unread ones");
        let remedy = format!(
            "keep the lag below that, or raise the limit: kafka-configs.sh --alter --entity-type topics --entity-name {name} \
             --add-config {property}=-1 keeps all records"
        );
        Finding::warn(topic_subject(name), cause, remedy)
    };
    retention_limits(topic).map(warning).collect()
}

/// Checks that the deletes of each source are remembered as long as its topic keeps records.
fn check_tombstones(config: &consumer::Config, topics: &BTreeMap<String, Topic>) -> Vec<Finding> {
    let Some(configured) = config.expected.configured() else { return Vec::new() };
    let mut findings = Vec::new();
    for source in configured.stored() {
        let kept_for = configured.store(source.as_str()).and_then(|store| store.tombstones);
        let Some(kept_ms) = kept_for.and_then(|kept_for| i64::try_from(kept_for.as_millis()).ok()) else {
            continue;
        };
        for name in config.topics_of(source.as_str()) {
            let topic = topics.get(&name);
            findings.extend(topic.and_then(|topic| forgets_deletes(source.as_str(), kept_ms, &name, topic)));
        }
    }
    findings
}

/// The finding if the topic keeps records longer than deletes of `source` are remembered. Without
/// the topic's configuration nothing is known.
fn forgets_deletes(source: &str, kept_ms: i64, name: &str, topic: &Topic) -> Option<Finding> {
    let retention = number(topic, "retention.ms")?;
    let (kept, retained) = (duration_text(kept_ms), duration_text(retention));
    let longer = match retention {
        ..0 => "without a limit of age".to_owned(),
        _ if retention > kept_ms => format!("for {retained} (retention.ms)"),
        _ => return None,
    };
    let cause =
        format!("deletes of {source} are remembered for {kept}, and the topic keeps records {longer}");
    let remedy = format!(
        "a record that is read again later may bring a deleted document back: raise `tombstones` of {source} in the \
         sources file, or lower retention.ms of the topic"
    );
    Some(Finding::warn(topic_subject(name), cause, remedy))
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
fn check_topic(name: &str, topic: &Topic) -> Vec<Finding> {
    let shape = Finding::ok(topic_subject(name), shape(topic));
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
        Finding::fail(
            topic_subject(name),
            format!("no leader for partition {}", leaderless.join(", ")),
            remedy,
        )
    })
}

fn in_sync(name: &str, topic: &Topic) -> Option<Finding> {
    let behind = topic.partitions.iter().filter(|partition| partition.in_sync < partition.replicas).count();
    let cause = format!("too few replicas are in sync: {}", counted(behind, "partition"));
    (behind > 0).then(|| Finding::warn(topic_subject(name), cause, "find the broker that is down or slow"))
}

fn replication(name: &str, topic: &Topic) -> Option<Finding> {
    let remedy = "on a cluster of three brokers, set KAFKA_REPLICATION_FACTOR to 3 before the topic is created, or \
                  reassign its partitions";
    (replicas(topic) == 1).then(|| {
        Finding::warn(topic_subject(name), "replication factor 1: one broker holds the only copy", remedy)
    })
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
        return Some(Finding::fail(topic_subject(name), cause, change(replicas.max(1))));
    }
    if replicas > 1 && min == 1 {
        let cause = "min.insync.replicas 1: an acknowledged event may be on one broker only";
        return Some(Finding::warn(topic_subject(name), cause, change(2)));
    }
    if replicas > 1 && min == replicas {
        let cause = format!(
            "min.insync.replicas {min} equals the replication factor: with one broker down no event can be accepted"
        );
        return Some(Finding::warn(topic_subject(name), cause, change(replicas - 1)));
    }
    None
}

/// Checks whether the dead-letter topic `name` keeps every dead letter of `sources` without a
/// limit.
fn check_dead_letter_topic<'a>(
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
        Finding::warn(topic_subject(name), cause, remedy)
    };
    retention_limits(topic).map(warning).collect()
}

fn compaction(name: &str, topic: &Topic) -> Option<Finding> {
    let policy = topic.config.get("cleanup.policy")?;
    let cause = "cleanup.policy compact: Kafka keeps only the last dead letter of each key";
    let remedy = format!(
        "kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config cleanup.policy=delete"
    );
    policy.contains("compact").then(|| Finding::warn(topic_subject(name), cause, remedy))
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
    (max < needed).then(|| Finding::fail(topic_subject(name), cause, remedy))
}

/// The subject of findings about a topic.
fn topic_subject(name: &str) -> String {
    format!("topic {name}")
}

fn position_lag(position: &GroupPosition) -> i64 {
    // The consumer reads a recreated topic from its beginning.
    let next = position.committed.filter(|_| !is_past_end(position)).unwrap_or(position.first);
    (position.end - next.max(position.first)).max(0)
}

fn is_past_end(position: &GroupPosition) -> bool {
    position.committed.is_some_and(|committed| committed > position.end)
}

/// A group, and its members that are not consumers of Slipstream.
type Members<'a> = (&'a Group, Option<ForeignMembers>);

/// Checks the group `name`. `is_complete` is whether `positions` has all of its partitions.
fn check_group(
    name: &str,
    group: Members<'_>,
    positions: &[GroupPosition],
    is_complete: bool,
) -> Vec<Finding> {
    let subject = format!("group {name}");
    let mut findings = vec![members(&subject, group, positions, is_complete)];
    findings.extend(deleted_unread(&subject, positions));
    findings.extend(past_end(&subject, positions));
    findings
}

fn members(
    subject: &str,
    (group, foreign_members): Members<'_>,
    positions: &[GroupPosition],
    is_complete: bool,
) -> Finding {
    let lag = if is_complete { lag(positions) } else { "lag unknown".into() };
    let members = group.members.len();
    if members == 0 {
        let remedy = "start the consumer; if it does not keep running, its log has the cause";
        return match positions.iter().map(position_lag).sum::<i64>() {
            // A separate finding has the cause of the unknown lag.
            0 if !is_complete => Finding::warn(subject, format!("no consumer runs; {lag}"), remedy),
            0 if positions.iter().any(is_past_end) => {
                Finding::fail(subject, "no consumer runs; its committed offsets are past the end", remedy)
            }
            0 => Finding::warn(subject, "no consumer runs; no records wait", remedy),
            _ => Finding::fail(subject, format!("no consumer runs; {lag}"), remedy),
        };
    }
    if let Some(ForeignMembers { count, description: named, has_other_assignor }) = foreign_members {
        if has_other_assignor {
            let assignor = &group.assignor;
            let cause = format!(
                "its members use the assignor {assignor}, so they are not Slipstream's, and the consumer cannot join: \
                 {named}; {lag}"
            );
            return Finding::fail(
                subject,
                cause,
                "stop the other consumers, for example those of the Python system",
            );
        }
        let cause = format!(
            "members that are not Slipstream's: {count} of {members}; records of their partitions are not stored: \
             {named}; {lag}"
        );
        let remedy = "stop them, or give them another group; to replay the records that they committed, run \
                      kafka-consumer-groups.sh --reset-offsets while no member runs; stored events do not change";
        return Finding::fail(subject, cause, remedy);
    }
    let members = counted(members, "member");
    if group.state != "Stable" {
        let remedy = "check again in some seconds; if the state stays, see the log of each consumer";
        return Finding::warn(subject, format!("{members}, {}; {lag}", group.state), remedy);
    }
    Finding::ok(subject, format!("{members}, stable; {lag}"))
}

fn lag(positions: &[GroupPosition]) -> String {
    let total: i64 = positions.iter().map(position_lag).sum();
    let behind: Vec<&GroupPosition> =
        positions.iter().filter(|position| position_lag(position) > 0).collect();
    let named = behind
        .iter()
        .take(MAX_NAMED)
        .map(|position| format!("{}/{}: {}", position.topic, position.partition, position_lag(position)))
        .collect::<Vec<_>>();
    let more = if behind.len() > MAX_NAMED { ", …" } else { "" };
    if total == 0 { "lag 0".into() } else { format!("lag {total} ({}{more})", named.join(", ")) }
}

/// Counts the records that Kafka deleted before the group read them.
fn deleted_unread(subject: &str, positions: &[GroupPosition]) -> Option<Finding> {
    let deleted =
        |position: &GroupPosition| (position.first - position.committed.unwrap_or(position.first)).max(0);
    let total: i64 = positions.iter().map(deleted).sum();
    let records = counted_with(total, "record", ["was", "were"]);
    let cause = format!("{records} deleted before the group read them");
    let remedy = "they are lost: send them again if their source still has them; raise retention.ms of the topic, and keep the lag below it";
    (total > 0).then(|| Finding::fail(subject, cause, remedy))
}

/// Finds offsets past the end, which a recreated topic leaves: the consumer would skip new records
/// up to the old offset.
fn past_end(subject: &str, positions: &[GroupPosition]) -> Option<Finding> {
    let ahead: Vec<String> = positions
        .iter()
        .filter(|position| is_past_end(position))
        .map(|position| format!("{}/{}", position.topic, position.partition))
        .collect();
    let cause = format!(
        "its committed offset is past the end of {}: the topic was recreated, and new records may be skipped",
        ahead.join(", ")
    );
    let remedy = "stop the consumer, then run kafka-consumer-groups.sh --reset-offsets --to-earliest --execute for the group and topic";
    (!ahead.is_empty()).then(|| Finding::fail(subject, cause, remedy))
}

#[cfg(test)]
mod tests {
    use kafka::cluster::TopicPartition;
    use kafka::group::{ASSIGNOR, Member};

    use super::*;
    use crate::check::finding::Level;

    fn topic(replicas: usize, in_sync: usize, min_in_sync: &str) -> Topic {
        let partition = |id| TopicPartition { id, has_leader: true, replicas, in_sync };
        let settings = [("min.insync.replicas".to_owned(), min_in_sync.to_owned())];
        Topic { partitions: vec![partition(0), partition(1)], config: settings.into() }
    }

    /// The levels and causes of the faults.
    fn faults(topic: &Topic) -> Vec<(Level, String)> {
        check_topic("t", topic)
            .into_iter()
            .filter(|finding| finding.level != Level::Ok)
            .map(|finding| (finding.level, finding.cause))
            .collect()
    }

    #[test]
    fn a_topic_that_outlives_the_deletes_of_a_source_is_a_warning() {
        let cause = |retention: &str| {
            let config = BTreeMap::from([("retention.ms".to_owned(), retention.to_owned())]);
            let found = forgets_deletes("orders", 86_400_000, "t", &Topic { config, ..topic(3, 3, "2") });
            found.map(|finding| (finding.level, finding.cause))
        };
        let warning = |longer: &str| {
            let text =
                format!("deletes of orders are remembered for 1 day, and the topic keeps records {longer}");
            Some((Level::Warn, text))
        };
        assert_eq!(cause("-1"), warning("without a limit of age"));
        assert_eq!(cause("172800000"), warning("for 2 days (retention.ms)"));
        assert_eq!(cause("86400000"), None);
        assert!(forgets_deletes("orders", 1, "t", &topic(3, 3, "2")).is_none(), "nothing is known");
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

    fn group(state: &str, assignor: &str, client_ids: &[&str]) -> Group {
        let member = |id: &&str| Member { client_id: (*id).into(), host: "/h".into(), partitions: 1 };
        let members = client_ids.iter().map(member).collect();
        Group { state: state.into(), assignor: assignor.into(), members, ..Group::default() }
    }

    fn members_finding(group: &Group, is_complete: bool) -> Finding {
        check_group("g", (group, group.foreign_members("ours")), &[], is_complete).swap_remove(0)
    }

    // With real servers a rebalance takes milliseconds.
    #[test]
    fn a_group_in_a_rebalance_is_a_warning() {
        assert_eq!(members_finding(&group("PreparingRebalance", "", &["ours"; 2]), true).level, Level::Warn);
        assert_eq!(members_finding(&group("Stable", ASSIGNOR, &["ours"; 2]), true).level, Level::Ok);
    }

    #[test]
    fn a_member_of_another_application_is_a_failure_with_its_name() {
        let new = |group: Group| Group { is_consumer_protocol: true, ..group };
        for (group, part) in [
            (group("Stable", "range", &["python"]), "use the assignor range"),
            (group("Stable", ASSIGNOR, &["ours", "python"]), "not Slipstream's: 1 of 2;"),
            (group("PreparingRebalance", "", &["ours", "python"]), "not Slipstream's: 1 of 2;"),
            (new(group("Stable", "uniform", &["ours", "python"])), "not Slipstream's: 1 of 2;"),
        ] {
            let found = members_finding(&group, true);
            let cause = &found.cause;
            assert!(found.level == Level::Fail && cause.contains(part), "{found:?}");
            assert!(cause.contains("python at h (1 partition)") && found.remedy.is_some(), "{found:?}");
        }
        assert_eq!(members_finding(&new(group("Stable", "uniform", &["ours"])), true).level, Level::Ok);
    }

    #[test]
    fn an_unknown_lag_is_not_shown_as_0() {
        let stable = group("Stable", ASSIGNOR, &["ours"; 2]);
        assert_eq!(members_finding(&stable, true).cause, "2 members, stable; lag 0");
        assert_eq!(members_finding(&stable, false).cause, "2 members, stable; lag unknown");
        let empty = members_finding(&Group::default(), false);
        assert!(empty.level == Level::Warn && empty.cause == "no consumer runs; lag unknown", "{empty:?}");
    }

    #[test]
    fn the_lag_counts_existing_records_and_names_10_partitions() {
        let position = |partition: i32, committed: Option<i64>| GroupPosition {
            topic: "t".into(),
            partition,
            committed,
            first: 10,
            end: 15,
        };
        let mut positions: Vec<GroupPosition> =
            (0..11).map(|partition| position(partition, Some(14))).collect();
        assert!(lag(&positions).starts_with("lag 11 (t/0: 1,") && lag(&positions).ends_with(", …)"));
        positions =
            vec![position(0, None), position(1, Some(3)), position(2, Some(15)), position(3, Some(99))];
        assert_eq!(lag(&positions), "lag 15 (t/0: 5, t/1: 5, t/3: 5)");
    }

    #[test]
    fn an_offset_past_the_end_is_a_failure() {
        let position = |committed: i64, first: i64, end: i64| GroupPosition {
            topic: "t".into(),
            partition: 0,
            committed: Some(committed),
            first,
            end,
        };
        for (at, part) in [(position(9, 0, 3), "lag 3 (t/0: 3)"), (position(9, 0, 0), "past the end")] {
            let found = check_group("g", (&Group::default(), None), &[at], true);
            assert!(found[0].level == Level::Fail && found[0].cause.contains(part), "{found:?}");
            assert!(
                found[1].level == Level::Fail && found[1].cause.contains("past the end of t/0"),
                "{found:?}"
            );
            assert!(!format!("{found:?}").contains("no records wait"), "{found:?}");
        }
    }
}
