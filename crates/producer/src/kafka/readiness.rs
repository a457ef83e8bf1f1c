//! What the producer knows of Kafka, from its client's connections and from the upkeep of the topic together, and the
//! log's one line for each change of it. That its client had a fatal error is not Kafka's state: the sender tells of it.

use std::sync::Arc;

use kafka::topics::KafkaState;
use tokio::sync::watch;

use super::client::Sender;
use super::client_health::{PROOF, Signals, Trouble};

/// Kafka's state, where `topic` is what the upkeep knows.
pub fn state(signals: &Signals, topic: &KafkaState) -> KafkaState {
    match (signals.trouble(), topic) {
        (Trouble::Away(why), _) => KafkaState::Away(why),
        // The question was slow, but records are being acknowledged.
        (_, KafkaState::Away(_)) if signals.confirmed_lately() => KafkaState::Ready,
        (_, topic) => topic.clone(),
    }
}

/// Tells of each change of state. Ends with the upkeep.
pub async fn tell_changes(sender: Arc<Sender>, mut topics: watch::Receiver<KafkaState>) {
    let (mut troubles, mut last) = (sender.signals.troubles(), KafkaState::Unknown);
    loop {
        let topic = topics.borrow_and_update().clone();
        let state = state(&sender.signals, &topic);
        state.tell_after(&last);
        // That rests on acknowledgements, which prove nothing for longer.
        let look_again = state == KafkaState::Ready && topic != KafkaState::Ready;
        last = state;
        tokio::select! {
            // The sender has the other end.
            _ = troubles.changed() => {}
            changed = topics.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(PROOF), if look_again => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::client_health::Break;
    use super::*;

    #[test]
    fn kafka_is_away_if_the_client_or_the_upkeep_says_so_unless_records_are_acknowledged() {
        let (signals, away) = (Signals::default(), KafkaState::Away("no answer".into()));
        assert_eq!(state(&signals, &KafkaState::Unknown), KafkaState::Unknown);
        assert_eq!(state(&signals, &away), away);
        signals.confirmed();
        assert_eq!(state(&signals, &away), KafkaState::Ready);
        signals.broke(Break::AllBrokers, "down");
        assert!(matches!(state(&signals, &KafkaState::Ready), KafkaState::Away(_)));
    }

    #[test]
    fn a_client_that_is_replaced_says_nothing_of_kafka() {
        let signals = Signals::default();
        signals.broke(Break::Fatal, "fenced");
        assert_eq!(state(&signals, &KafkaState::Ready), KafkaState::Ready);
        signals.replaced("fenced");
        assert_eq!(state(&signals, &KafkaState::Ready), KafkaState::Ready);
    }
}
