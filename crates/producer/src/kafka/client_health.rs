//! The health of a Kafka client, from its errors, log lines and delivery reports. librdkafka's
//! threads write it and requests read it. No call waits.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kafka::topics::KafkaReadiness;
use service::tasks::lock;
use tokio::sync::watch;

/// Within this time librdkafka does not report the same error of a connection again.
const ERROR_SUPPRESSION: Duration = Duration::from_secs(30);
/// Time for which an acknowledgement proves that a broker answers.
pub const ACK_FRESHNESS: Duration = Duration::from_secs(1);

/// The class of an error that librdkafka reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// A connection broke or could not be opened.
    Connection,
    /// No broker is connected.
    AllBrokers,
    /// Another error of the client. No connection broke.
    Client,
    /// The client can no longer be used.
    Fatal,
}

/// The status of the client. The texts are the cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientStatus {
    /// No error is known.
    Healthy,
    /// A connection broke. The supervisor probes whether a broker answers.
    Suspected,
    /// No broker answers.
    Unreachable(String),
    /// The client can no longer be used.
    Fatal(String),
    /// A new client replaced one that had a fatal error. No broker has answered it yet.
    Replaced(String),
}

/// The health of the client, and of the clients that it replaced.
#[derive(Debug)]
pub struct ClientHealth {
    created: Instant,
    error_count: AtomicU64,
    /// Milliseconds since `created` plus 1; 0 means never.
    disconnected_at: AtomicU64,
    acked_at: AtomicU64,
    last_error: Mutex<String>,
    status: watch::Sender<ClientStatus>,
}

impl Default for ClientHealth {
    fn default() -> Self {
        Self {
            created: Instant::now(),
            error_count: AtomicU64::new(0),
            disconnected_at: AtomicU64::new(0),
            acked_at: AtomicU64::new(0),
            last_error: Mutex::new("no connection yet".into()),
            status: watch::Sender::new(ClientStatus::Healthy),
        }
    }
}

impl ClientHealth {
    /// Time since the creation, for the methods that end in `_since`.
    pub fn elapsed(&self) -> Duration {
        self.created.elapsed()
    }

    /// Moves a point in time forward, never back: several threads report, and one of them may have
    /// been suspended after it read the clock.
    fn advance(at: &AtomicU64, now: Duration) {
        let ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX - 1);
        at.fetch_max(ms + 1, Ordering::AcqRel);
    }

    fn load(at: &AtomicU64) -> Option<Duration> {
        at.load(Ordering::Acquire).checked_sub(1).map(Duration::from_millis)
    }

    /// Records an error that librdkafka reported.
    pub fn record_error(&self, class: ErrorClass, reason: &str) {
        // Only a broken connection makes librdkafka send a record twice.
        if matches!(class, ErrorClass::Connection | ErrorClass::AllBrokers) {
            Self::advance(&self.disconnected_at, self.elapsed());
        }
        let next = match class {
            ErrorClass::Fatal => ClientStatus::Fatal(reason.to_owned()),
            ErrorClass::AllBrokers => ClientStatus::Unreachable(lock(&self.last_error).clone()),
            ErrorClass::Connection | ErrorClass::Client => {
                reason.clone_into(&mut lock(&self.last_error));
                ClientStatus::Suspected
            }
        };
        self.status.send_if_modified(|status| {
            // The count changes under the lock. An answer to an older probe then sees both the
            // error and its status, or neither.
            self.error_count.fetch_add(1, Ordering::AcqRel);
            let worse = severity(&next) > severity(status);
            if worse {
                *status = next;
            }
            worse
        });
    }

    /// Records a log line of librdkafka. Some broken connections are only logged.
    pub fn record_log(&self, facility: &str) {
        if matches!(facility, "FAIL" | "REQTMOUT") {
            Self::advance(&self.disconnected_at, self.elapsed());
        }
    }

    /// Records that a broker acknowledged a record.
    pub fn record_ack(&self) {
        Self::advance(&self.acked_at, self.elapsed());
    }

    /// Whether a record was acknowledged within [`ACK_FRESHNESS`].
    pub fn has_recent_ack(&self) -> bool {
        Self::load(&self.acked_at).is_some_and(|at| self.elapsed().saturating_sub(at) < ACK_FRESHNESS)
    }

    /// Whether a record was acknowledged after `time`.
    pub fn acked_since(&self, time: Duration) -> bool {
        Self::load(&self.acked_at).is_some_and(|at| at > time)
    }

    /// Whether a connection may have broken after `time`. A record that was sent at `time` may then
    /// have been sent twice.
    pub fn may_have_disconnected_since(&self, time: Duration) -> bool {
        Self::load(&self.disconnected_at).is_some_and(|at| at + ERROR_SUPPRESSION >= time)
    }

    /// Number of errors so far.
    pub fn error_count(&self) -> u64 {
        self.error_count.load(Ordering::Acquire)
    }

    pub fn status(&self) -> ClientStatus {
        self.status.borrow().clone()
    }

    /// Receives each change of the status.
    pub fn subscribe(&self) -> watch::Receiver<ClientStatus> {
        self.status.subscribe()
    }

    /// Records that a broker answered a probe. `error_count` is the number of errors before the
    /// probe; a newer error makes the answer void.
    pub fn record_answer(&self, error_count: u64) {
        self.status.send_if_modified(|status| {
            let healthy = self.error_count() == error_count
                && !matches!(status, ClientStatus::Fatal(_) | ClientStatus::Healthy);
            if healthy {
                *status = ClientStatus::Healthy;
            }
            healthy
        });
    }

    /// Records that no broker answered a probe.
    pub fn record_no_answer(&self) {
        let reason = lock(&self.last_error).clone();
        self.status.send_if_modified(|status| {
            let new = *status == ClientStatus::Suspected;
            if new {
                *status = ClientStatus::Unreachable(reason);
            }
            new
        });
    }

    /// Records that a new client replaced one that had a fatal error.
    pub fn record_replacement(&self, error: &str) {
        self.status.send_replace(ClientStatus::Replaced(error.to_owned()));
    }
}

fn severity(status: &ClientStatus) -> u8 {
    match status {
        ClientStatus::Healthy => 0,
        ClientStatus::Suspected => 1,
        ClientStatus::Unreachable(_) | ClientStatus::Replaced(_) => 2,
        ClientStatus::Fatal(_) => 3,
    }
}

/// The state of Kafka, where `topic_state` is the result of the last topic check.
pub fn kafka_state(health: &ClientHealth, topic_state: &KafkaReadiness) -> KafkaReadiness {
    match (health.status(), topic_state) {
        (ClientStatus::Unreachable(reason), _) => KafkaReadiness::Unavailable(reason),
        // The topic check timed out, but the broker acknowledges records.
        (_, KafkaReadiness::Unavailable(_)) if health.has_recent_ack() => KafkaReadiness::Ready,
        (_, topic_state) => topic_state.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_severe_status_stays_until_a_broker_answers() {
        let health = ClientHealth::default();
        health.record_error(ErrorClass::Connection, "k:9092: connection refused");
        assert_eq!(health.status(), ClientStatus::Suspected);
        health.record_error(ErrorClass::AllBrokers, "1/1 brokers are down");
        assert_eq!(health.status(), ClientStatus::Unreachable("k:9092: connection refused".into()));
        health.record_error(ErrorClass::Connection, "k:9092: connection refused");
        assert!(matches!(health.status(), ClientStatus::Unreachable(_)));
        health.record_answer(health.error_count());
        assert_eq!(health.status(), ClientStatus::Healthy);
    }

    #[test]
    fn an_answer_to_a_probe_from_before_a_new_error_is_void() {
        let health = ClientHealth::default();
        health.record_error(ErrorClass::AllBrokers, "down");
        let before_probe = health.error_count();
        health.record_error(ErrorClass::AllBrokers, "down again");
        health.record_answer(before_probe);
        assert!(matches!(health.status(), ClientStatus::Unreachable(_)));
    }

    #[test]
    fn only_a_replacement_ends_a_fatal_status() {
        let health = ClientHealth::default();
        health.record_error(ErrorClass::Fatal, "fenced");
        health.record_error(ErrorClass::AllBrokers, "down");
        health.record_answer(health.error_count());
        assert_eq!(health.status(), ClientStatus::Fatal("fenced".into()));
        health.record_replacement("fenced");
        health.record_error(ErrorClass::AllBrokers, "down");
        assert_eq!(health.status(), ClientStatus::Replaced("fenced".into()));
        health.record_answer(health.error_count());
        assert_eq!(health.status(), ClientStatus::Healthy);
    }

    #[test]
    fn a_disconnect_makes_records_sent_shortly_before_or_after_uncertain() {
        let health = ClientHealth::default();
        health.record_error(ErrorClass::Fatal, "fenced");
        health.record_error(ErrorClass::Client, "no permission");
        assert!(!health.may_have_disconnected_since(Duration::ZERO), "no connection broke");
        health.record_log("FAIL");
        assert!(health.may_have_disconnected_since(Duration::ZERO));
        assert!(health.may_have_disconnected_since(health.elapsed() + ERROR_SUPPRESSION / 2));
        assert!(!health.may_have_disconnected_since(health.elapsed() + ERROR_SUPPRESSION * 2));
    }

    #[test]
    fn in_every_thread_order_a_late_report_hides_no_newer_disconnect() {
        // Two client threads read the clock and then record a disconnect. A request sends a record
        // and classifies it. Between two clock readings passes more than ERROR_SUPPRESSION.
        for order in testkit::interleavings(&[2, 2, 2]) {
            let health = ClientHealth::default();
            let (mut clock, mut read_at, mut last_recorded) = (Duration::ZERO, [None; 3], Duration::ZERO);
            for thread in &order {
                match (thread, read_at[*thread]) {
                    (_, None) => {
                        clock += ERROR_SUPPRESSION * 2;
                        read_at[*thread] = Some(clock);
                    }
                    (2, Some(sent)) => {
                        assert_eq!(
                            health.may_have_disconnected_since(sent),
                            last_recorded > sent,
                            "{order:?}"
                        );
                    }
                    (_, Some(at)) => {
                        ClientHealth::advance(&health.disconnected_at, at);
                        last_recorded = last_recorded.max(at);
                    }
                }
            }
        }
    }

    #[test]
    fn in_every_order_an_answer_clears_only_errors_before_its_probe() {
        // Two client threads record errors. The supervisor probes three times, and the second probe
        // gets no answer.
        for order in testkit::interleavings(&[2, 2, 6]) {
            let health = ClientHealth::default();
            let errors = [
                [ErrorClass::Connection, ErrorClass::AllBrokers],
                [ErrorClass::Client, ErrorClass::Connection],
            ];
            let (mut steps_done, mut probe) = ([0; 3], (0, 0));
            let (mut last_error, mut last_answered) = (None, None);
            for (now, thread) in order.iter().enumerate() {
                match (errors.get(*thread), steps_done[2]) {
                    (Some(errors), _) => {
                        health.record_error(errors[steps_done[*thread]], "k:9092: connection refused");
                        last_error = Some(now);
                    }
                    (None, 0 | 2 | 4) => probe = (health.error_count(), now),
                    (None, 3) => health.record_no_answer(),
                    (None, _) => {
                        health.record_answer(probe.0);
                        last_answered = Some(probe.1);
                    }
                }
                steps_done[*thread] += 1;
                let unhealthy = last_error > last_answered;
                assert_eq!(health.status() != ClientStatus::Healthy, unhealthy, "step {now} of {order:?}");
            }
        }
    }

    #[test]
    fn kafka_is_unavailable_per_client_or_topic_check_without_recent_ack() {
        let (health, away) = (ClientHealth::default(), KafkaReadiness::Unavailable("no answer".into()));
        assert_eq!(kafka_state(&health, &KafkaReadiness::Unknown), KafkaReadiness::Unknown);
        assert_eq!(kafka_state(&health, &away), away);
        health.record_ack();
        assert_eq!(kafka_state(&health, &away), KafkaReadiness::Ready);
        health.record_error(ErrorClass::AllBrokers, "down");
        assert!(matches!(kafka_state(&health, &KafkaReadiness::Ready), KafkaReadiness::Unavailable(_)));
    }

    #[test]
    fn a_client_replacement_does_not_change_the_state_of_kafka() {
        let health = ClientHealth::default();
        health.record_error(ErrorClass::Fatal, "fenced");
        assert_eq!(kafka_state(&health, &KafkaReadiness::Ready), KafkaReadiness::Ready);
        health.record_replacement("fenced");
        assert_eq!(kafka_state(&health, &KafkaReadiness::Ready), KafkaReadiness::Ready);
    }
}
