//! The Kafka cluster, asked by a client of our own. Every question has a deadline, and a failed one says what the client
//! library last heard: its error codes alone name no cause.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::metadata::MetadataTopic;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use service::group::{Group, describe};
use service::kafka::{QuietContext, client_config, log_line};
use service::lock::lock;

use super::group::Position;
use super::topic::{Partition, Settings, Topic};
use crate::Failure;

/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(5);

/// A connection to the cluster, as a client of the consumer's group that does not join it.
pub struct Cluster {
    client: Arc<BaseConsumer<Listener>>,
    admin: AdminClient<QuietContext>,
    group: String,
}

/// Keeps what the client library last said was wrong.
#[derive(Debug, Clone, Default)]
struct Listener {
    heard: Arc<Mutex<Option<String>>>,
}

impl ClientContext for Listener {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(facility, message);
        // Its lines name the cause; an error's code is the same for all of them.
        if facility == "FAIL" {
            let text = message.split_once("]: ").map_or(message, |(_thread, text)| text);
            *lock(&self.heard) = Some(text.to_owned());
        }
    }
}

impl ConsumerContext for Listener {}

impl Cluster {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// The client library refuses the configuration.
    pub fn new(config: &consumer::Config) -> Result<Self, Failure> {
        let defaults = [("group.id", config.group_id.as_str()), ("enable.auto.commit", "false")];
        let client = client_config(&config.kafka_broker, "slipstream-check", &defaults, &config.properties);
        let admin = client_config(&config.kafka_broker, "slipstream-check", &[], &config.properties);
        Ok(Self {
            client: Arc::new(client.create_with_context(Listener::default())?),
            admin: admin.create_with_context(QuietContext)?,
            group: config.group_id.clone(),
        })
    }

    /// Every topic that the user may describe, without its settings.
    ///
    /// # Errors
    /// Why Kafka does not answer.
    pub async fn topics(&self) -> Result<BTreeMap<String, Topic>, String> {
        self.ask(|client| {
            let metadata = client.fetch_metadata(None, LIMIT)?;
            let topics = metadata.topics().iter().filter(|topic| !is_hidden(topic)).map(|topic| {
                let partitions = topic.partitions().iter().map(|partition| Partition {
                    id: partition.id(),
                    has_leader: partition.leader() >= 0,
                    replicas: partition.replicas().len(),
                    in_sync: partition.isr().len(),
                });
                let found = Topic { partitions: partitions.collect(), settings: Settings::new() };
                (topic.name().to_owned(), found)
            });
            Ok(topics.collect())
        })
        .await
    }

    /// Whether a topic is none of [`Cluster::topics`] for want of a right: Kafka lists it as little as one that is missing,
    /// and tells them apart only when asked for it by name.
    ///
    /// # Errors
    /// Why Kafka does not say.
    pub async fn hides(&self, topic: &str) -> Result<bool, String> {
        let topic = topic.to_owned();
        self.ask(move |client| Ok(client.fetch_metadata(Some(&topic), LIMIT)?.topics().iter().any(is_hidden)))
            .await
    }

    /// The settings of a topic.
    ///
    /// # Errors
    /// Why they are not to be had.
    pub async fn settings(&self, topic: &str) -> Result<Settings, String> {
        let options = AdminOptions::new().request_timeout(Some(LIMIT));
        let answer = self.admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options).await;
        let resource = answer.map_err(|error| error.to_string())?.into_iter().next();
        let resource = resource.ok_or("no answer for the topic")?.map_err(|code| code.to_string())?;
        Ok(resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect())
    }

    /// The group's members.
    ///
    /// # Errors
    /// Why Kafka does not say.
    pub async fn group(&self) -> Result<Group, String> {
        let name = self.group.clone();
        self.ask(move |client| describe(client.client(), &name, LIMIT)).await
    }

    /// How far the group is in these partitions of `topic`.
    ///
    /// # Errors
    /// Why Kafka does not say.
    pub async fn positions(&self, topic: &str, ids: Vec<i32>) -> Result<Vec<Position>, String> {
        let topic = topic.to_owned();
        self.ask(move |client| {
            let mut list = TopicPartitionList::new();
            for id in &ids {
                list.add_partition(&topic, *id);
            }
            let committed = client.committed_offsets(list, LIMIT)?;
            ids.iter()
                .map(|&partition| {
                    let (first, end) = client.fetch_watermarks(&topic, partition, LIMIT)?;
                    let found = committed.find_partition(&topic, partition);
                    let note = found.as_ref().map(|found| found.metadata().to_owned()).unwrap_or_default();
                    let committed = match found.map(|found| found.offset()) {
                        Some(Offset::Offset(offset)) => Some(offset),
                        _ => None,
                    };
                    Ok(Position { topic: topic.clone(), partition, committed, note, first, end })
                })
                .collect()
        })
        .await
    }

    /// The client library's questions block their thread.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&BaseConsumer<Listener>) -> KafkaResult<T> + Send + 'static,
    ) -> Result<T, String> {
        let client = Arc::clone(&self.client);
        let asked = tokio::task::spawn_blocking(move || {
            question(&client).map_err(|error| {
                // What it has to say comes out while it is polled.
                while client.poll(Duration::ZERO).is_some() {}
                cause(&error, lock(&client.context().heard).take())
            })
        });
        asked.await.map_err(|error| error.to_string())?
    }
}

fn is_hidden(topic: &MetadataTopic) -> bool {
    topic.error() == Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED)
}

/// What to say of an error: some codes stand for many causes, of which the last line that was heard names one. Any other
/// speaks for itself, whatever connection failed before it.
fn cause(error: &KafkaError, heard: Option<String>) -> String {
    use RDKafkaErrorCode as Code;
    let vague = matches!(
        error.rdkafka_error_code(),
        Some(
            Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::Resolve
                | Code::OperationTimedOut
                | Code::RequestTimedOut
                | Code::SSL
                | Code::Authentication
                | Code::SaslAuthenticationFailed
        )
    );
    heard.filter(|_| vague).unwrap_or_else(|| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_names_the_cause_of_a_failed_connection_only() {
        let said = |code| cause(&KafkaError::MetadataFetch(code), Some("127.0.0.1:9: refused".into()));
        for vague in [
            RDKafkaErrorCode::BrokerTransportFailure,
            RDKafkaErrorCode::AllBrokersDown,
            RDKafkaErrorCode::OperationTimedOut,
            RDKafkaErrorCode::Authentication,
        ] {
            assert_eq!(said(vague), "127.0.0.1:9: refused");
        }
        let clear = said(RDKafkaErrorCode::GroupAuthorizationFailed);
        assert!(clear.contains("GroupAuthorizationFailed") && !clear.contains("refused"), "{clear}");
        let silent = cause(&KafkaError::MetadataFetch(RDKafkaErrorCode::AllBrokersDown), None);
        assert!(silent.contains("AllBrokersDown"), "{silent}");
    }
}
