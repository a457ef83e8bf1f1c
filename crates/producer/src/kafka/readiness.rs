//! The state of Kafka, from the health of the client and the state of the topic, and one log line
//! for each change. A fatal error of the client is not a state of Kafka; the client logs it.

use std::sync::Arc;

use kafka::topics::KafkaReadiness;
use tokio::sync::watch;

use super::client::ReplaceableClient;
use super::client_health::{ACK_FRESHNESS, ClientHealth, ClientStatus};

/// The state of Kafka, where `topic_state` is the result of the last topic check.
pub fn kafka_state(health: &ClientHealth, topic_state: &KafkaReadiness) -> KafkaReadiness {
    match (health.status(), topic_state) {
        (ClientStatus::Unreachable(reason), _) => KafkaReadiness::Unavailable(reason),
        // The topic check timed out, but the broker acknowledges records.
        (_, KafkaReadiness::Unavailable(_)) if health.has_recent_ack() => KafkaReadiness::Ready,
        (_, topic_state) => topic_state.clone(),
    }
}

/// Logs each change of state. Ends when the topic check ends.
pub async fn log_state_changes(
    client: Arc<ReplaceableClient>,
    mut topic_states: watch::Receiver<KafkaReadiness>,
) {
    let (mut statuses, mut last) = (client.health.subscribe(), KafkaReadiness::Unknown);
    loop {
        let topic_state = topic_states.borrow_and_update().clone();
        let state = kafka_state(&client.health, &topic_state);
        state.log_change_from(&last);
        // The state relies on a recent acknowledgement, which proves nothing after ACK_FRESHNESS.
        let relies_on_ack = state == KafkaReadiness::Ready && topic_state != KafkaReadiness::Ready;
        last = state;
        tokio::select! {
            // The client owns the sending side, so this never fails.
            _ = statuses.changed() => {}
            changed = topic_states.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(ACK_FRESHNESS), if relies_on_ack => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::client_health::ErrorClass;
    use super::*;

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
