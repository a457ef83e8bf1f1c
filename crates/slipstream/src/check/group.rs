//! Checks the consumer group: its members, its lag, and records that were deleted before they were
//! read.

use kafka::cluster::GroupPosition;
use kafka::group::{ForeignMembers, Group};

use super::finding::Finding;
use service::plural::{counted, counted_with};

/// Maximum number of partitions in a finding.
const MAX_NAMED: usize = 10;

fn position_lag(position: &GroupPosition) -> i64 {
    // The consumer reads a recreated topic from its beginning.
    let next = position.committed.filter(|_| !is_past_end(position)).unwrap_or(position.first);
    (position.end - next.max(position.first)).max(0)
}

fn is_past_end(position: &GroupPosition) -> bool {
    position.committed.is_some_and(|committed| committed > position.end)
}

/// A group, and its members that are not consumers of Slipstream.
pub type Members<'a> = (&'a Group, Option<ForeignMembers>);

/// Checks the group `name`. `is_complete` is whether `positions` has all of its partitions.
pub fn check(name: &str, group: Members<'_>, positions: &[GroupPosition], is_complete: bool) -> Vec<Finding> {
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
    use kafka::group::{ASSIGNOR, Member};

    use super::*;
    use crate::check::finding::Level;

    fn group(state: &str, assignor: &str, client_ids: &[&str]) -> Group {
        let member = |id: &&str| Member { client_id: (*id).into(), host: "/h".into(), partitions: 1 };
        let members = client_ids.iter().map(member).collect();
        Group { state: state.into(), assignor: assignor.into(), members, ..Group::default() }
    }

    fn members_finding(group: &Group, is_complete: bool) -> Finding {
        check("g", (group, group.foreign_members("ours")), &[], is_complete).swap_remove(0)
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
            metadata: String::new(),
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
            metadata: String::new(),
            first,
            end,
        };
        for (at, part) in [(position(9, 0, 3), "lag 3 (t/0: 3)"), (position(9, 0, 0), "past the end")] {
            let found = check("g", (&Group::default(), None), &[at], true);
            assert!(found[0].level == Level::Fail && found[0].cause.contains(part), "{found:?}");
            assert!(
                found[1].level == Level::Fail && found[1].cause.contains("past the end of t/0"),
                "{found:?}"
            );
            assert!(!format!("{found:?}").contains("no records wait"), "{found:?}");
        }
    }
}
