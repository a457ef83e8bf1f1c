//! The members of a consumer group, of the classic group protocol and of the new one (KIP-848) alike. rdkafka's own
//! list of groups knows only classic groups: to it, a group of the new protocol is one without members.

use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt;
use std::ptr;
use std::time::Duration;

use rdkafka::bindings::{
    rd_kafka_AdminOptions_destroy, rd_kafka_AdminOptions_new, rd_kafka_AdminOptions_set_request_timeout,
    rd_kafka_AdminOptions_t, rd_kafka_ConsumerGroupDescription_error,
    rd_kafka_ConsumerGroupDescription_member, rd_kafka_ConsumerGroupDescription_member_count,
    rd_kafka_ConsumerGroupDescription_partition_assignor, rd_kafka_ConsumerGroupDescription_state,
    rd_kafka_ConsumerGroupDescription_t, rd_kafka_ConsumerGroupDescription_type,
    rd_kafka_DescribeConsumerGroups, rd_kafka_DescribeConsumerGroups_result_groups,
    rd_kafka_MemberAssignment_partitions, rd_kafka_MemberDescription_assignment,
    rd_kafka_MemberDescription_client_id, rd_kafka_MemberDescription_host, rd_kafka_MemberDescription_t,
    rd_kafka_admin_op_t, rd_kafka_consumer_group_state_name, rd_kafka_consumer_group_type_t,
    rd_kafka_error_code, rd_kafka_event_DescribeConsumerGroups_result, rd_kafka_event_destroy,
    rd_kafka_event_error, rd_kafka_event_t, rd_kafka_queue_destroy, rd_kafka_queue_new, rd_kafka_queue_poll,
    rd_kafka_queue_t, rd_kafka_resp_err_t,
};
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

/// How the consumers of Slipstream share partitions.
pub const ASSIGNOR: &str = "cooperative-sticky";
/// ForeignMembers that are named one by one.
const NAMED: usize = 5;

const NO_ERROR: rd_kafka_resp_err_t = rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
/// The event comes after the limit at the latest; this is added before the wait for it is given up.
const MARGIN: Duration = Duration::from_secs(1);

/// A consumer group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// `Stable`, `Empty`, `Dead`, or one of the states in between. A group that does not exist is `Dead`.
    pub state: String,
    /// How the members share partitions; empty while they do not.
    pub assignor: String,
    /// Whether the broker shares the partitions, as the new protocol (KIP-848) has it. Members of the classic protocol
    /// can be in such a group too.
    pub is_consumer_protocol: bool,
    /// The members.
    pub members: Vec<Member>,
}

/// A member of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// Its `client.id`.
    pub client_id: String,
    /// Its address, as the broker sees it.
    pub host: String,
    /// How many partitions it has, as far as that is known.
    pub partitions: usize,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.client_id.is_empty() { "a member without client.id" } else { &self.client_id };
        write!(f, "{name} at {}", self.host.trim_start_matches('/'))?;
        match self.partitions {
            0 => Ok(()),
            1 => f.write_str(" (1 partition)"),
            count => write!(f, " ({count} partitions)"),
        }
    }
}

/// The members of a group that belong to another application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignMembers {
    /// How many they are.
    pub count: usize,
    /// Who they are; the first of them by name.
    pub description: String,
    /// They share partitions in another way than the consumers of Slipstream, which cannot join before they leave.
    pub has_other_assignor: bool,
}

impl Group {
    /// The members that are no consumers of Slipstream, whose `client.id` is `client_id`.
    pub fn foreign_members(&self, client_id: &str) -> Option<ForeignMembers> {
        let has_other_assignor =
            !self.is_consumer_protocol && !self.assignor.is_empty() && self.assignor != ASSIGNOR;
        // tansu tells no client.id.
        let other = |member: &&Member| !member.client_id.is_empty() && member.client_id != client_id;
        let is_stranger = |member: &&Member| has_other_assignor || other(member);
        let others: Vec<&Member> = self.members.iter().filter(is_stranger).collect();
        let count = Some(others.len()).filter(|count| *count > 0)?;
        let mut named: Vec<String> = others.iter().take(NAMED).map(ToString::to_string).collect();
        if count > NAMED {
            named.push(format!("{} more", count - NAMED));
        }
        Some(ForeignMembers { count, description: named.join(", "), has_other_assignor })
    }
}

/// Asks the coordinator of `group`. Blocks for up to `limit`.
///
/// # Errors
/// It does not answer within `limit`, or refuses.
pub fn describe<C: ClientContext>(client: &Client<C>, group: &str, limit: Duration) -> KafkaResult<Group> {
    let failed = |error: rd_kafka_resp_err_t| KafkaError::GroupListFetch(error.into());
    let name =
        CString::new(group).map_err(|_| KafkaError::GroupListFetch(RDKafkaErrorCode::InvalidGroupId))?;
    let event = Question::new(client, limit).ask(&name)?;
    let described = match event.error() {
        NO_ERROR => event.group()?,
        error => return Err(failed(error)),
    };
    // tansu takes a classic group for one of the new protocol that has no members.
    match described.members.is_empty() {
        true => Ok(classic(client, group, limit)?.unwrap_or(described)),
        false => Ok(described),
    }
}

/// The group, if it is a classic one with members. How many partitions each of them has is not read.
fn classic<C: ClientContext>(client: &Client<C>, name: &str, limit: Duration) -> KafkaResult<Option<Group>> {
    let list = client.fetch_group_list(Some(name), limit)?;
    let found = list.groups().iter().find(|group| group.name() == name && !group.members().is_empty());
    Ok(found.map(|group| Group {
        state: group.state().to_owned(),
        assignor: group.protocol().to_owned(),
        is_consumer_protocol: false,
        members: group
            .members()
            .iter()
            .map(|member| Member {
                client_id: member.client_id().to_owned(),
                host: member.client_host().to_owned(),
                partitions: 0,
            })
            .collect(),
    }))
}

/// The options and the queue of one question. Freed when it is dropped, before the client, which it borrows.
struct Question<'a, C: ClientContext> {
    client: &'a Client<C>,
    limit: Duration,
    options: *mut rd_kafka_AdminOptions_t,
    queue: *mut rd_kafka_queue_t,
}

impl<'a, C: ClientContext> Question<'a, C> {
    #[expect(unsafe_code, reason = "rdkafka does not pass on these calls")]
    fn new(client: &'a Client<C>, limit: Duration) -> Self {
        let operation = rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS;
        // SAFETY: the client is alive for as long as it is borrowed. Both calls allocate and never fail for a known
        // operation. The timeout is an option of every operation; a value that is refused leaves the default.
        let (options, queue) = unsafe {
            let options = rd_kafka_AdminOptions_new(client.native_ptr(), operation);
            rd_kafka_AdminOptions_set_request_timeout(options, milliseconds(limit), ptr::null_mut(), 0);
            (options, rd_kafka_queue_new(client.native_ptr()))
        };
        Self { client, limit, options, queue }
    }

    #[expect(unsafe_code, reason = "rdkafka does not pass on these calls")]
    fn ask(&self, group: &CStr) -> KafkaResult<Event> {
        let mut groups = [group.as_ptr()];
        // SAFETY: client, options and queue are alive; the call copies the names, of which there is one.
        let event = unsafe {
            let (client, groups) = (self.client.native_ptr(), groups.as_mut_ptr());
            rd_kafka_DescribeConsumerGroups(client, groups, 1, self.options, self.queue);
            rd_kafka_queue_poll(self.queue, milliseconds(self.limit + MARGIN))
        };
        match event.is_null() {
            true => Err(KafkaError::GroupListFetch(RDKafkaErrorCode::OperationTimedOut)),
            false => Ok(Event(event)),
        }
    }
}

impl<C: ClientContext> Drop for Question<'_, C> {
    #[expect(unsafe_code, reason = "rdkafka does not pass on these calls")]
    fn drop(&mut self) {
        // SAFETY: both were allocated by `new`, and nothing else has them: an answer that is still under way has a
        // reference of its own to the queue.
        unsafe {
            rd_kafka_AdminOptions_destroy(self.options);
            rd_kafka_queue_destroy(self.queue);
        }
    }
}

/// The answer.
struct Event(*mut rd_kafka_event_t);

impl Event {
    #[expect(unsafe_code, reason = "rdkafka does not pass on this call")]
    fn error(&self) -> rd_kafka_resp_err_t {
        // SAFETY: the event is alive.
        unsafe { rd_kafka_event_error(self.0) }
    }

    #[expect(unsafe_code, reason = "rdkafka does not pass on these calls")]
    fn group(&self) -> KafkaResult<Group> {
        let missing = || KafkaError::GroupListFetch(RDKafkaErrorCode::BadMessage);
        let mut count = 0;
        // SAFETY: the event is alive, and what is read from it lives as long; the result is null for an event of another
        // kind, and the list has `count` entries.
        unsafe {
            let result = rd_kafka_event_DescribeConsumerGroups_result(self.0);
            if result.is_null() {
                return Err(missing());
            }
            let groups = rd_kafka_DescribeConsumerGroups_result_groups(result, &raw mut count);
            if groups.is_null() || count == 0 {
                return Err(missing());
            }
            read(*groups)
        }
    }
}

impl Drop for Event {
    #[expect(unsafe_code, reason = "rdkafka does not pass on this call")]
    fn drop(&mut self) {
        // SAFETY: the event is alive, and nothing else has it.
        unsafe { rd_kafka_event_destroy(self.0) }
    }
}

/// # Safety
/// `group` is alive.
#[expect(unsafe_code, reason = "rdkafka does not pass on these calls")]
unsafe fn read(group: *const rd_kafka_ConsumerGroupDescription_t) -> KafkaResult<Group> {
    // SAFETY: the group is alive; each member is one of its own.
    unsafe {
        let error = rd_kafka_ConsumerGroupDescription_error(group);
        if !error.is_null() && rd_kafka_error_code(error) != NO_ERROR {
            return Err(KafkaError::GroupListFetch(rd_kafka_error_code(error).into()));
        }
        let state = rd_kafka_ConsumerGroupDescription_state(group);
        let members = 0..rd_kafka_ConsumerGroupDescription_member_count(group);
        Ok(Group {
            state: text(rd_kafka_consumer_group_state_name(state)),
            assignor: text(rd_kafka_ConsumerGroupDescription_partition_assignor(group)),
            is_consumer_protocol: rd_kafka_ConsumerGroupDescription_type(group)
                == rd_kafka_consumer_group_type_t::RD_KAFKA_CONSUMER_GROUP_TYPE_CONSUMER,
            members: members
                .map(|n| read_member(rd_kafka_ConsumerGroupDescription_member(group, n)))
                .collect(),
        })
    }
}

/// # Safety
/// `member` is alive.
#[expect(unsafe_code, reason = "rdkafka does not pass on these calls")]
unsafe fn read_member(member: *const rd_kafka_MemberDescription_t) -> Member {
    // SAFETY: the member is alive, and so is what it has; what it has not is null.
    unsafe {
        let assignment = rd_kafka_MemberDescription_assignment(member);
        let partitions = match assignment.is_null() {
            true => ptr::null(),
            false => rd_kafka_MemberAssignment_partitions(assignment),
        };
        let partitions = partitions.as_ref().map_or(0, |list| usize::try_from(list.cnt).unwrap_or(0));
        Member {
            client_id: text(rd_kafka_MemberDescription_client_id(member)),
            host: text(rd_kafka_MemberDescription_host(member)),
            partitions,
        }
    }
}

/// # Safety
/// `text` is null, or ends with a NUL.
#[expect(unsafe_code, reason = "librdkafka has texts as C has them")]
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: it is not null, so it ends with a NUL.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

fn milliseconds(duration: Duration) -> c_int {
    c_int::try_from(duration.as_millis()).unwrap_or(c_int::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(assignor: &str, is_consumer_protocol: bool, client_ids: &[&str]) -> Group {
        let member = |id: &&str| Member { client_id: (*id).into(), host: "/h".into(), partitions: 2 };
        let members = client_ids.iter().map(member).collect();
        Group { state: "Stable".into(), assignor: assignor.into(), is_consumer_protocol, members }
    }

    #[test]
    fn a_group_of_members_with_our_client_id_has_no_strangers() {
        for group in [
            Group::default(),
            group(ASSIGNOR, false, &["ours"; 3]),
            // The broker shares the partitions until the group is of the classic protocol again.
            group("uniform", true, &["ours"]),
            group(ASSIGNOR, false, &["ours", ""]),
        ] {
            assert_eq!(group.foreign_members("ours"), None, "{group:?}");
        }
    }

    #[test]
    fn members_with_another_client_id_are_strangers_in_either_protocol() {
        for (assignor, is_consumer_protocol, has_other_assignor) in [
            ("range", false, true),
            ("roundrobin", false, true),
            (ASSIGNOR, false, false),
            ("uniform", true, false),
            ("range", true, false),
            // While a group moves partitions it tells no assignor.
            ("", false, false),
        ] {
            let found = group(assignor, is_consumer_protocol, &["stranger"]).foreign_members("ours");
            let named = "stranger at h (2 partitions)".to_owned();
            assert_eq!(
                found,
                Some(ForeignMembers { count: 1, description: named, has_other_assignor }),
                "{assignor}"
            );
        }
        let many = group(ASSIGNOR, false, &["stranger"; 7]).foreign_members("ours").unwrap();
        assert!(many.count == 7 && many.description.ends_with("(2 partitions), 2 more"), "{many:?}");
    }

    #[test]
    fn a_member_is_shown_with_address_and_partitions() {
        let member =
            Member { client_id: "kafka-python-2.0.2".into(), host: "/10.0.0.7".into(), partitions: 1 };
        assert_eq!(member.to_string(), "kafka-python-2.0.2 at 10.0.0.7 (1 partition)");
        assert_eq!(
            Member { partitions: 6, ..member }.to_string(),
            "kafka-python-2.0.2 at 10.0.0.7 (6 partitions)"
        );
    }
}
