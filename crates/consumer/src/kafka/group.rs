//! Whether the group is ours alone. A member that is no Slipstream consumer either keeps ours out of the group, as the
//! consumer of the Python system does, or gets partitions whose records are then not stored.

use std::time::Duration;

use kafka::QuietContext;
use kafka::group::{ForeignMembers, Group, describe};
use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Between two questions.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long one question may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Asks who is in group `name`, until `stop`. What the receiver holds are the strangers among the members, in words.
pub fn watch_group(
    config: ClientConfig,
    name: String,
    client_id: String,
    stop: CancellationToken,
) -> watch::Receiver<Option<String>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let mut client = None;
        while !stop.is_cancelled() {
            let (config, asked) = (config.clone(), name.clone());
            // The question blocks its thread for up to ANSWER_LIMIT.
            let answer = tokio::task::spawn_blocking(move || {
                let client: AdminClient<_> = match client {
                    Some(client) => client,
                    None => config.create_with_context(QuietContext)?,
                };
                let answer = describe(client.inner(), &asked, ANSWER_LIMIT);
                Ok::<_, KafkaError>((client, answer))
            });
            client = match answer.await {
                Ok(Ok((client, Ok(group)))) => {
                    tell(&sender, strangers(&name, &group, &client_id));
                    Some(client)
                }
                Ok(Ok((client, Err(error)))) => {
                    tracing::debug!(error = %error, "members of the group are not known");
                    is_an_answer(&error).then_some(client)
                }
                Ok(Err(_)) | Err(_) => None,
            };
            tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(INTERVAL) => {} }
        }
    });
    receiver
}

/// Whether a broker said so. A client without an answer may have lost sight of every broker: the next question has
/// another client.
fn is_an_answer(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    // The codes of the client library itself are negative.
    code.is_some_and(|code| code as i32 >= 0 || code == RDKafkaErrorCode::UnsupportedFeature)
}

/// Hands `now` over, and logs a line when strangers come and when the last one is gone.
fn tell(sender: &watch::Sender<Option<String>>, now: Option<String>) {
    match (&*sender.borrow(), &now) {
        (None, Some(reason)) => tracing::warn!(reason, "group has members of another application"),
        (Some(_), None) => tracing::info!("group has no members of another application any more"),
        _ => {}
    }
    sender.send_replace(now);
}

/// What the members that are not ours do to this consumer, and the remedy.
fn strangers(name: &str, group: &Group, client_id: &str) -> Option<String> {
    let ForeignMembers { description: named, has_other_assignor, .. } = group.foreign_members(client_id)?;
    Some(match has_other_assignor {
        true => format!(
            "group {name} is held by consumers that share partitions by {}, as the consumer of the Python system does: \
             {named}. This consumer cannot join before they leave: stop them, then it joins by itself and goes on at \
             their committed offsets",
            group.assignor
        ),
        false => format!(
            "group {name} has members that are no Slipstream consumers: {named}. Records of their partitions are not \
             stored: stop them, or give them another group"
        ),
    })
}

#[cfg(test)]
mod tests {
    use kafka::group::{ASSIGNOR, Member};

    use super::*;

    fn told(assignor: &str, is_consumer_protocol: bool) -> String {
        let member =
            |client_id: &str| Member { client_id: client_id.into(), host: "/10.0.0.7".into(), partitions: 2 };
        // A group whose members share by another assignor takes none of ours in.
        let ours = (is_consumer_protocol || assignor == ASSIGNOR).then(|| member("ours"));
        let members = ours.into_iter().chain([member("kafka-python-2.0.2")]).collect();
        let state = "Stable".into();
        let group = Group { state, assignor: assignor.into(), is_consumer_protocol, members };
        strangers("g", &group, "ours").unwrap()
    }

    #[test]
    fn the_words_name_group_strangers_and_remedy() {
        let held = ["group g is held", "by range", "cannot join", "stop them, then it joins by itself"];
        let shared = ["group g has members", "are not stored", "stop them, or give them another group"];
        for (told, parts) in [
            (told("range", false), &held[..]),
            (told(ASSIGNOR, false), &shared),
            (told("uniform", true), &shared),
        ] {
            let missing: Vec<_> = parts.iter().filter(|part| !told.contains(**part)).collect();
            assert!(missing.is_empty(), "{missing:?}: {told}");
            assert!(told.contains(": kafka-python-2.0.2 at 10.0.0.7 (2 partitions)."), "{told}");
        }
        assert_eq!(strangers("g", &Group::default(), "ours"), None);
    }
}
