//! Judges the consumer group: whether somebody reads, whether it is us, and whether records were missed.

use kafka::cluster::GroupPosition;
use kafka::group::{ForeignMembers, Group};

use super::finding::Finding;
use service::plural::{counted, counted_with};

/// Partitions that are named one by one.
const NAMED: usize = 10;

fn position_lag(position: &GroupPosition) -> i64 {
    // The consumer reads a recreated topic from its beginning.
    let next = position.committed.filter(|_| !is_past_end(position)).unwrap_or(position.first);
    (position.end - next.max(position.first)).max(0)
}

fn is_past_end(position: &GroupPosition) -> bool {
    position.committed.is_some_and(|committed| committed > position.end)
}

/// A group, and its members that are no consumers of Slipstream.
pub type Members<'a> = (&'a Group, Option<ForeignMembers>);

/// Everything that there is to say of the group `name`; `all` is whether these are all of its positions.
pub fn judge(name: &str, group: Members<'_>, positions: &[GroupPosition], all: bool) -> Vec<Finding> {
    let subject = format!("group {name}");
    let mut findings = vec![members(&subject, group, positions, all)];
    findings.extend(gone(&subject, positions));
    findings.extend(past_the_end(&subject, positions));
    findings
}

fn members(
    subject: &str,
    (group, strangers): Members<'_>,
    positions: &[GroupPosition],
    all: bool,
) -> Finding {
    let lag = if all { lag(positions) } else { "lag unknown".into() };
    let members = group.members.len();
    if members == 0 {
        let remedy = "start the consumer, and see its log if it does not stay";
        return match positions.iter().map(position_lag).sum::<i64>() {
            // Why it is not known is a failure of its own.
            0 if !all => Finding::warn(subject, format!("no consumer runs; {lag}"), remedy),
            0 if positions.iter().any(is_past_end) => {
                Finding::fail(subject, "no consumer runs; its committed offsets are past the end", remedy)
            }
            0 => Finding::warn(subject, "no consumer runs; nothing waits", remedy),
            _ => Finding::fail(subject, format!("no consumer runs; {lag}"), remedy),
        };
    }
    if let Some(ForeignMembers { count, description: named, has_other_assignor }) = strangers {
        if has_other_assignor {
            let assignor = &group.assignor;
            let cause = format!(
                "its members share partitions by {assignor}, so they are not Slipstream's, and ours cannot join: \
                 {named}; {lag}"
            );
            return Finding::fail(subject, cause, "stop the other consumers, as those of the Python system");
        }
        let cause = format!(
            "members that are not Slipstream's: {count} of {members}; records of their partitions are not stored: \
             {named}; {lag}"
        );
        let remedy = "stop them, or give them another group; records that they committed are replayed with \
                      kafka-consumer-groups.sh --reset-offsets while no member runs, which changes nothing that is stored";
        return Finding::fail(subject, cause, remedy);
    }
    let members = counted(members, "member");
    if group.state != "Stable" {
        let remedy = "ask again in some seconds; if it stays so, see the log of each consumer";
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
        .take(NAMED)
        .map(|position| format!("{}/{}: {}", position.topic, position.partition, position_lag(position)))
        .collect::<Vec<_>>();
    let more = if behind.len() > NAMED { ", …" } else { "" };
    if total == 0 { "lag 0".into() } else { format!("lag {total} ({}{more})", named.join(", ")) }
}

/// Records that Kafka deleted before the group read them.
fn gone(subject: &str, positions: &[GroupPosition]) -> Option<Finding> {
    let missed =
        |position: &GroupPosition| (position.first - position.committed.unwrap_or(position.first)).max(0);
    let total: i64 = positions.iter().map(missed).sum();
    let deleted = counted_with(total, "record", ["was", "were"]);
    let cause = format!("{deleted} deleted before the group read them");
    let remedy = "they are lost: send them again if their source still has them; raise retention.ms of the topic, and keep the lag below it";
    (total > 0).then(|| Finding::fail(subject, cause, remedy))
}

/// A topic that was made anew: what comes next would be skipped up to the old offset.
fn past_the_end(subject: &str, positions: &[GroupPosition]) -> Option<Finding> {
    let ahead: Vec<String> = positions
        .iter()
        .filter(|position| is_past_end(position))
        .map(|position| format!("{}/{}", position.topic, position.partition))
        .collect();
    let cause = format!(
        "its committed offset is past the end of {}: the topic was made anew, and new records may be skipped",
        ahead.join(", ")
    );
    let remedy = "stop the consumer, then kafka-consumer-groups.sh --reset-offsets --to-earliest --execute for the group and topic";
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

    fn judged(group: &Group, all: bool) -> Finding {
        judge("g", (group, group.foreign_members("ours")), &[], all).swap_remove(0)
    }

    // A group is in between for milliseconds on a quick machine.
    #[test]
    fn a_group_that_is_moving_partitions_is_a_warning() {
        assert_eq!(judged(&group("PreparingRebalance", "", &["ours"; 2]), true).level, Level::Warn);
        assert_eq!(judged(&group("Stable", ASSIGNOR, &["ours"; 2]), true).level, Level::Ok);
    }

    #[test]
    fn a_member_of_another_application_is_a_failure_that_names_it() {
        let new = |group: Group| Group { is_consumer_protocol: true, ..group };
        for (group, part) in [
            (group("Stable", "range", &["python"]), "share partitions by range"),
            (group("Stable", ASSIGNOR, &["ours", "python"]), "not Slipstream's: 1 of 2;"),
            (group("PreparingRebalance", "", &["ours", "python"]), "not Slipstream's: 1 of 2;"),
            (new(group("Stable", "uniform", &["ours", "python"])), "not Slipstream's: 1 of 2;"),
        ] {
            let found = judged(&group, true);
            let cause = &found.cause;
            assert!(found.level == Level::Fail && cause.contains(part), "{found:?}");
            assert!(cause.contains("python at h (1 partition)") && found.remedy.is_some(), "{found:?}");
        }
        assert_eq!(judged(&new(group("Stable", "uniform", &["ours"])), true).level, Level::Ok);
    }

    #[test]
    fn a_lag_that_kafka_does_not_tell_is_not_0() {
        let stable = group("Stable", ASSIGNOR, &["ours"; 2]);
        assert_eq!(judged(&stable, true).cause, "2 members, stable; lag 0");
        assert_eq!(judged(&stable, false).cause, "2 members, stable; lag unknown");
        let empty = judged(&Group::default(), false);
        assert!(empty.level == Level::Warn && empty.cause == "no consumer runs; lag unknown", "{empty:?}");
    }

    #[test]
    fn the_lag_counts_what_is_still_there_and_names_the_first_ten() {
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
    fn an_offset_past_the_end_is_never_told_as_nothing_waits() {
        let position = |committed: i64, first: i64, end: i64| GroupPosition {
            topic: "t".into(),
            partition: 0,
            committed: Some(committed),
            metadata: String::new(),
            first,
            end,
        };
        for (at, part) in [(position(9, 0, 3), "lag 3 (t/0: 3)"), (position(9, 0, 0), "past the end")] {
            let found = judge("g", (&Group::default(), None), &[at], true);
            assert!(found[0].level == Level::Fail && found[0].cause.contains(part), "{found:?}");
            assert!(
                found[1].level == Level::Fail && found[1].cause.contains("past the end of t/0"),
                "{found:?}"
            );
            assert!(!format!("{found:?}").contains("nothing waits"), "{found:?}");
        }
    }
}
