//! Detects foreign members of the consumer group: members that are not Slipstream consumers.
//!
//! A foreign member either keeps this consumer out of the group, as the Python system's consumer
//! does, or it is assigned partitions whose records are then not stored.

use std::time::Duration;

use ::kafka::QuietContext;
use ::kafka::group::{ForeignMembers, Group, describe};
use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A task that describes group `name` periodically until `stop`. The receiver holds a message about
/// the foreign members, if there are any.
pub fn watch_group(
    config: ClientConfig,
    name: String,
    client_id: String,
    stop: CancellationToken,
) -> (watch::Receiver<Option<String>>, impl Future<Output = ()> + Send) {
    let (sender, receiver) = watch::channel(None);
    let watching = async move {
        let mut client = None;
        while !stop.is_cancelled() {
            let (config, group_name) = (config.clone(), name.clone());
            // The request blocks its thread for up to REQUEST_TIMEOUT.
            let described = tokio::task::spawn_blocking(move || {
                let client: AdminClient<_> = match client {
                    Some(client) => client,
                    None => config.create_with_context(QuietContext)?,
                };
                let group = describe(client.inner(), &group_name, REQUEST_TIMEOUT);
                Ok::<_, KafkaError>((client, group))
            });
            client = match described.await {
                Ok(Ok((client, Ok(group)))) => {
                    publish(&sender, foreign_members(&name, &group, &client_id));
                    Some(client)
                }
                Ok(Ok((client, Err(error)))) => {
                    tracing::debug!(error = %error, "members of the group could not be read");
                    is_broker_reply(&error).then_some(client)
                }
                Ok(Err(_)) | Err(_) => None,
            };
            tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(INTERVAL) => {} }
        }
    };
    (receiver, watching)
}

/// Whether a broker returned `error`. A client without a reply may have lost every broker, so the
/// next request uses a new client.
fn is_broker_reply(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    // librdkafka's own error codes are negative.
    code.is_some_and(|code| code as i32 >= 0 || code == RDKafkaErrorCode::UnsupportedFeature)
}

/// Publishes `message`. Logs when the first foreign member joins and when the last one leaves.
fn publish(sender: &watch::Sender<Option<String>>, message: Option<String>) {
    match (&*sender.borrow(), &message) {
        (None, Some(reason)) => tracing::warn!(reason, "group has foreign members"),
        (Some(_), None) => tracing::info!("group has no foreign members any more"),
        _ => {}
    }
    sender.send_replace(message);
}

/// The effect of foreign members on this consumer, and the remedy.
fn foreign_members(name: &str, group: &Group, client_id: &str) -> Option<String> {
    let ForeignMembers { description: named, has_other_assignor, .. } = group.foreign_members(client_id)?;
    Some(match has_other_assignor {
        true => format!(
            "group {name} has members with the assignor {}, such as the consumer of the Python system: {named}. This \
             consumer cannot join the group; stop these members, then it joins and continues at their committed \
             offsets",
            group.assignor
        ),
        false => format!(
            "group {name} has members that are not Slipstream consumers: {named}. Records of their partitions are not \
             stored; stop these members or give them another group"
        ),
    })
}

#[cfg(test)]
mod tests {
    use ::kafka::group::{ASSIGNOR, Member};

    use super::*;

    fn message(assignor: &str, is_consumer_protocol: bool) -> String {
        let member =
            |client_id: &str| Member { client_id: client_id.into(), host: "/10.0.0.7".into(), partitions: 2 };
        // A group with another assignor does not accept our members.
        let ours = (is_consumer_protocol || assignor == ASSIGNOR).then(|| member("ours"));
        let members = ours.into_iter().chain([member("kafka-python-2.0.2")]).collect();
        let state = "Stable".into();
        let group = Group { state, assignor: assignor.into(), is_consumer_protocol, members };
        foreign_members("g", &group, "ours").unwrap()
    }

    #[test]
    fn message_about_foreign_members_names_group_members_and_remedy() {
        let excluded =
            ["group g has members", "assignor range", "cannot join", "stop these members, then it joins"];
        let shared =
            ["group g has members", "are not stored", "stop these members or give them another group"];
        for (message, parts) in [
            (message("range", false), &excluded[..]),
            (message(ASSIGNOR, false), &shared),
            (message("uniform", true), &shared),
        ] {
            let missing: Vec<_> = parts.iter().filter(|part| !message.contains(**part)).collect();
            assert!(missing.is_empty(), "{missing:?}: {message}");
            assert!(message.contains(": kafka-python-2.0.2 at 10.0.0.7 (2 partitions)."), "{message}");
        }
        assert_eq!(foreign_members("g", &Group::default(), "ours"), None);
    }
}
