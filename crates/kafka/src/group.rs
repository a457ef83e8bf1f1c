//! The members of a consumer group of the classic protocol or of the consumer protocol (KIP-848).
//!
//! rdkafka lists only classic groups: it reports a group of the consumer protocol without members.

use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt;
use std::ptr;
use std::time::{Duration, Instant};

use rdkafka::bindings::{
    rd_kafka_AdminOptions_destroy, rd_kafka_AdminOptions_new, rd_kafka_AdminOptions_set_broker,
    rd_kafka_AdminOptions_set_request_timeout, rd_kafka_AdminOptions_t,
    rd_kafka_ConsumerGroupDescription_error, rd_kafka_ConsumerGroupDescription_member,
    rd_kafka_ConsumerGroupDescription_member_count, rd_kafka_ConsumerGroupDescription_partition_assignor,
    rd_kafka_ConsumerGroupDescription_state, rd_kafka_ConsumerGroupDescription_t,
    rd_kafka_ConsumerGroupDescription_type, rd_kafka_DescribeConsumerGroups,
    rd_kafka_DescribeConsumerGroups_result_groups, rd_kafka_MemberAssignment_partitions,
    rd_kafka_MemberDescription_assignment, rd_kafka_MemberDescription_client_id,
    rd_kafka_MemberDescription_host, rd_kafka_MemberDescription_t, rd_kafka_admin_op_t,
    rd_kafka_consumer_group_state_name, rd_kafka_consumer_group_type_t, rd_kafka_error_code,
    rd_kafka_event_DescribeConsumerGroups_result, rd_kafka_event_destroy, rd_kafka_event_error,
    rd_kafka_event_t, rd_kafka_metadata, rd_kafka_metadata_destroy, rd_kafka_queue_destroy,
    rd_kafka_queue_new, rd_kafka_queue_poll, rd_kafka_queue_t, rd_kafka_resp_err_t,
};
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

/// The partition assignor of Slipstream's consumers.
pub const ASSIGNOR: &str = "cooperative-sticky";
/// Number of foreign members that a description lists.
const MAX_LISTED: usize = 5;

const NO_ERROR: rd_kafka_resp_err_t = rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
/// The shortest time that a broker gets for its response, if the request has as much left.
const MIN_BROKER_TIMEOUT: Duration = Duration::from_secs(1);
/// Additional wait for the event that librdkafka sends after the request timeout.
const EVENT_MARGIN: Duration = Duration::from_secs(1);

/// A consumer group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// State of the group, for example `Stable` or `Empty`. A group that does not exist is `Dead`.
    pub state: String,
    /// Partition assignor. Empty during a rebalance and without members.
    pub assignor: String,
    /// Whether the broker assigns the partitions (KIP-848). Such a group can also have members of
    /// the classic protocol.
    pub is_consumer_protocol: bool,
    /// Members of the group.
    pub members: Vec<Member>,
}

/// A member of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// `client.id` of the member.
    pub client_id: String,
    /// Address of the member, as the broker reports it.
    pub host: String,
    /// Number of assigned partitions. 0 if it is unknown.
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

/// The members of a group that are not consumers of Slipstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignMembers {
    /// Number of foreign members.
    pub count: usize,
    /// The first of them, for people.
    pub description: String,
    /// Whether they use another assignor. Slipstream's consumers cannot join before they leave.
    pub has_other_assignor: bool,
}

impl Group {
    /// The members whose `client.id` is not `client_id`. All members are foreign if the assignor is
    /// not [`ASSIGNOR`]. `None` if there are no foreign members.
    pub fn foreign_members(&self, client_id: &str) -> Option<ForeignMembers> {
        let has_other_assignor =
            !self.is_consumer_protocol && !self.assignor.is_empty() && self.assignor != ASSIGNOR;
        // tansu reports no client.id.
        let has_other_id = |member: &&Member| !member.client_id.is_empty() && member.client_id != client_id;
        let is_foreign = |member: &&Member| has_other_assignor || has_other_id(member);
        let foreign: Vec<&Member> = self.members.iter().filter(is_foreign).collect();
        let count = Some(foreign.len()).filter(|count| *count > 0)?;
        let mut descriptions: Vec<String> =
            foreign.iter().take(MAX_LISTED).map(ToString::to_string).collect();
        if count > MAX_LISTED {
            descriptions.push(format!("{} more", count - MAX_LISTED));
        }
        Some(ForeignMembers { count, description: descriptions.join(", "), has_other_assignor })
    }
}

/// Requests the description of `group` from its coordinator. Blocks the thread up to `timeout`.
///
/// Asks one broker after the other, because librdkafka's own request to the coordinator aborts the
/// process if it times out before the coordinator is connected (librdkafka issue 4605).
///
/// # Errors
/// The coordinator does not respond within `timeout`, or rejects the request.
pub fn describe<C: ClientContext>(client: &Client<C>, group: &str, timeout: Duration) -> KafkaResult<Group> {
    let name =
        CString::new(group).map_err(|_| KafkaError::GroupListFetch(RDKafkaErrorCode::InvalidGroupId))?;
    let deadline = Instant::now() + timeout;
    let brokers = broker_ids(client, timeout)?;
    let mut failed = RDKafkaErrorCode::CoordinatorNotAvailable;
    for (position, broker) in brokers.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let share = left / u32::try_from(brokers.len() - position).unwrap_or(u32::MAX);
        match describe_at(client, *broker, &name, share.max(MIN_BROKER_TIMEOUT).min(left)) {
            // tansu describes a classic group as a group of the consumer protocol without members.
            Ok(group) if group.members.is_empty() => {
                return Ok(describe_classic(client, &name.to_string_lossy(), left)?.unwrap_or(group));
            }
            Err(RDKafkaErrorCode::NotCoordinator) => {}
            Err(code) => failed = code,
            Ok(group) => return Ok(group),
        }
    }
    Err(KafkaError::GroupListFetch(failed))
}

/// Requests the description of `group` from one broker.
fn describe_at<C: ClientContext>(
    client: &Client<C>,
    broker: i32,
    group: &CStr,
    timeout: Duration,
) -> Result<Group, RDKafkaErrorCode> {
    let event = DescribeRequest::new(client, broker, timeout).send(group)?;
    match event.error() {
        NO_ERROR => event.group(),
        error => Err(error.into()),
    }
}

/// The ids of all brokers.
#[expect(unsafe_code, reason = "rdkafka requests the metadata of at least one topic")]
fn broker_ids<C: ClientContext>(client: &Client<C>, timeout: Duration) -> KafkaResult<Vec<i32>> {
    let mut metadata = ptr::null();
    // SAFETY: the client is alive. Without a topic, the response has the brokers only. After a
    // success, `metadata` has `broker_cnt` brokers until it is destroyed.
    unsafe {
        let (topic, timeout) = (ptr::null_mut(), milliseconds(timeout));
        let error = rd_kafka_metadata(client.native_ptr(), 0, topic, &raw mut metadata, timeout);
        if error != NO_ERROR {
            return Err(KafkaError::MetadataFetch(error.into()));
        }
        let count = usize::try_from((*metadata).broker_cnt).unwrap_or(0);
        let ids = (0..count).map(|n| (*(*metadata).brokers.add(n)).id).collect();
        rd_kafka_metadata_destroy(metadata);
        Ok(ids)
    }
}

/// The group, if it is a classic group with members. The partition count of each
/// member is not read.
fn describe_classic<C: ClientContext>(
    client: &Client<C>,
    name: &str,
    timeout: Duration,
) -> KafkaResult<Option<Group>> {
    let list = client.fetch_group_list(Some(name), timeout)?;
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

/// The options and the result queue of one request. The borrowed client outlives both.
struct DescribeRequest<'a, C: ClientContext> {
    client: &'a Client<C>,
    timeout: Duration,
    options: *mut rd_kafka_AdminOptions_t,
    queue: *mut rd_kafka_queue_t,
}

impl<'a, C: ClientContext> DescribeRequest<'a, C> {
    #[expect(unsafe_code, reason = "rdkafka has no binding for these calls")]
    fn new(client: &'a Client<C>, broker: i32, timeout: Duration) -> Self {
        let operation = rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS;
        // SAFETY: the client is alive while it is borrowed. Both calls allocate and do not fail for
        // a known operation. Every operation has both options; an invalid timeout leaves the default.
        let (options, queue) = unsafe {
            let options = rd_kafka_AdminOptions_new(client.native_ptr(), operation);
            rd_kafka_AdminOptions_set_request_timeout(options, milliseconds(timeout), ptr::null_mut(), 0);
            rd_kafka_AdminOptions_set_broker(options, broker, ptr::null_mut(), 0);
            (options, rd_kafka_queue_new(client.native_ptr()))
        };
        Self { client, timeout, options, queue }
    }

    #[expect(unsafe_code, reason = "rdkafka has no binding for these calls")]
    fn send(&self, group: &CStr) -> Result<Event, RDKafkaErrorCode> {
        let mut groups = [group.as_ptr()];
        // SAFETY: client, options and queue are alive. The call copies the one name.
        let event = unsafe {
            let (client, groups) = (self.client.native_ptr(), groups.as_mut_ptr());
            rd_kafka_DescribeConsumerGroups(client, groups, 1, self.options, self.queue);
            rd_kafka_queue_poll(self.queue, milliseconds(self.timeout + EVENT_MARGIN))
        };
        match event.is_null() {
            true => Err(RDKafkaErrorCode::OperationTimedOut),
            false => Ok(Event(event)),
        }
    }
}

impl<C: ClientContext> Drop for DescribeRequest<'_, C> {
    #[expect(unsafe_code, reason = "rdkafka has no binding for these calls")]
    fn drop(&mut self) {
        // SAFETY: `new` allocated both, and nothing else has them. A response in flight has its own
        // reference to the queue.
        unsafe {
            rd_kafka_AdminOptions_destroy(self.options);
            rd_kafka_queue_destroy(self.queue);
        }
    }
}

/// The result event of a request.
struct Event(*mut rd_kafka_event_t);

impl Event {
    #[expect(unsafe_code, reason = "rdkafka has no binding for this call")]
    fn error(&self) -> rd_kafka_resp_err_t {
        // SAFETY: the event is alive.
        unsafe { rd_kafka_event_error(self.0) }
    }

    #[expect(unsafe_code, reason = "rdkafka has no binding for these calls")]
    fn group(&self) -> Result<Group, RDKafkaErrorCode> {
        let mut count = 0;
        // SAFETY: the event is alive, and its parts live as long. The result is null for an event
        // of another type. The list has `count` entries.
        unsafe {
            let result = rd_kafka_event_DescribeConsumerGroups_result(self.0);
            if result.is_null() {
                return Err(RDKafkaErrorCode::BadMessage);
            }
            let groups = rd_kafka_DescribeConsumerGroups_result_groups(result, &raw mut count);
            if groups.is_null() || count == 0 {
                return Err(RDKafkaErrorCode::BadMessage);
            }
            read_group(*groups)
        }
    }
}

impl Drop for Event {
    #[expect(unsafe_code, reason = "rdkafka has no binding for this call")]
    fn drop(&mut self) {
        // SAFETY: the event is alive, and this is its only owner.
        unsafe { rd_kafka_event_destroy(self.0) }
    }
}

/// # Safety
/// `group` is alive.
#[expect(unsafe_code, reason = "rdkafka has no binding for these calls")]
unsafe fn read_group(group: *const rd_kafka_ConsumerGroupDescription_t) -> Result<Group, RDKafkaErrorCode> {
    // SAFETY: the group is alive, and it owns the members.
    unsafe {
        let error = rd_kafka_ConsumerGroupDescription_error(group);
        if !error.is_null() && rd_kafka_error_code(error) != NO_ERROR {
            return Err(rd_kafka_error_code(error).into());
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
#[expect(unsafe_code, reason = "rdkafka has no binding for these calls")]
unsafe fn read_member(member: *const rd_kafka_MemberDescription_t) -> Member {
    // SAFETY: the member is alive and owns its parts. A missing part is null.
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
/// `text` is null or ends with NUL.
#[expect(unsafe_code, reason = "librdkafka returns C strings")]
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: it is not null, so it ends with NUL.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

fn milliseconds(duration: Duration) -> c_int {
    c_int::try_from(duration.as_millis()).unwrap_or(c_int::MAX)
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;
    use rdkafka::admin::AdminClient;
    use rdkafka::mocking::{MockCluster, MockCoordinator};

    use super::*;
    use crate::QuietContext;

    fn client(cluster: &MockCluster<'_, impl ClientContext>) -> AdminClient<QuietContext> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers()).set("reconnect.backoff.max.ms", "100");
        config.create_with_context(QuietContext).unwrap()
    }

    /// librdkafka's request to the coordinator aborted the process on the coordinator's return.
    #[test]
    fn g6_a_coordinator_that_returns_after_the_timeout_does_not_abort_the_process() {
        let cluster = MockCluster::new(3).unwrap();
        cluster.coordinator(MockCoordinator::Group("g".into()), 2).unwrap();
        let waiting = client(&cluster);
        let request = || describe_at(waiting.inner(), 2, c"g", Duration::from_millis(300)).unwrap_err();
        for _ in 0..3 {
            cluster.broker_down(2).unwrap();
            let deadline = Instant::now() + Duration::from_secs(20);
            while request() != RDKafkaErrorCode::OperationTimedOut {
                assert!(Instant::now() < deadline, "the broker responds");
            }
            cluster.broker_up(2).unwrap();
            let deadline = Instant::now() + Duration::from_secs(1);
            while request() != RDKafkaErrorCode::UnsupportedFeature && Instant::now() < deadline {}
        }
        // The brokers of the test have no groups, so the error is a response.
        let response = KafkaError::GroupListFetch(RDKafkaErrorCode::UnsupportedFeature);
        let error = describe(client(&cluster).inner(), "g", Duration::from_secs(20)).unwrap_err();
        assert_eq!(error, response);
    }

    #[test]
    fn every_broker_is_asked_and_the_last_error_returned() {
        let cluster = MockCluster::new(3).unwrap();
        let client = client(&cluster);
        assert_eq!(broker_ids(client.inner(), Duration::from_secs(20)).unwrap(), [1, 2, 3]);
        // The brokers of the test have no groups.
        let error = describe(client.inner(), "g", Duration::from_secs(20)).unwrap_err();
        assert_eq!(error, KafkaError::GroupListFetch(RDKafkaErrorCode::UnsupportedFeature));
        (1..=3).for_each(|broker| cluster.broker_down(broker).unwrap());
        let started = Instant::now();
        describe(client.inner(), "g", Duration::from_secs(2)).unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    }

    fn group(assignor: &str, is_consumer_protocol: bool, client_ids: &[&str]) -> Group {
        let member = |id: &&str| Member { client_id: (*id).into(), host: "/h".into(), partitions: 2 };
        let members = client_ids.iter().map(member).collect();
        Group { state: "Stable".into(), assignor: assignor.into(), is_consumer_protocol, members }
    }

    #[test]
    fn members_with_our_client_id_are_not_foreign() {
        for group in [
            Group::default(),
            group(ASSIGNOR, false, &["ours"; 3]),
            // With the consumer protocol, the broker assigns the partitions.
            group("uniform", true, &["ours"]),
            group(ASSIGNOR, false, &["ours", ""]),
        ] {
            assert_eq!(group.foreign_members("ours"), None, "{group:?}");
        }
    }

    #[test]
    fn members_with_another_client_id_are_foreign_in_both_protocols() {
        for (assignor, is_consumer_protocol, has_other_assignor) in [
            ("range", false, true),
            ("roundrobin", false, true),
            (ASSIGNOR, false, false),
            ("uniform", true, false),
            ("range", true, false),
            // The broker reports no assignor during a rebalance.
            ("", false, false),
        ] {
            let found = group(assignor, is_consumer_protocol, &["other"]).foreign_members("ours");
            let description = "other at h (2 partitions)".to_owned();
            assert_eq!(
                found,
                Some(ForeignMembers { count: 1, description, has_other_assignor }),
                "{assignor}"
            );
        }
        let many = group(ASSIGNOR, false, &["other"; 7]).foreign_members("ours").unwrap();
        assert!(many.count == 7 && many.description.ends_with("(2 partitions), 2 more"), "{many:?}");
    }

    #[test]
    fn a_member_is_displayed_with_address_and_partitions() {
        let member =
            Member { client_id: "kafka-python-2.0.2".into(), host: "/10.0.0.7".into(), partitions: 1 };
        assert_eq!(member.to_string(), "kafka-python-2.0.2 at 10.0.0.7 (1 partition)");
        assert_eq!(
            Member { partitions: 6, ..member }.to_string(),
            "kafka-python-2.0.2 at 10.0.0.7 (6 partitions)"
        );
    }
}
