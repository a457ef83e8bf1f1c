//! The Kafka cluster, asked by a client of our own that joins no group.

use std::collections::BTreeMap;
use std::time::Duration;

use kafka::group::{Group, describe};
use kafka::{QuietContext, client_config};
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::consumer::Consumer;
use rdkafka::metadata::MetadataTopic;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};

use super::group::Position;
use super::topic::{Partition, Settings, Topic};
use crate::Failure;
use crate::kafka::{Asker, Unanswered, committed};

/// How long a topic's settings may take.
const LIMIT: Duration = Duration::from_secs(5);

/// A connection to the cluster, as a client of the consumer's group that does not join it.
pub struct Cluster {
    asker: Asker,
    admin: AdminClient<QuietContext>,
    group: String,
}

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
            asker: Asker::new(&client)?,
            admin: admin.create_with_context(QuietContext)?,
            group: config.group_id.clone(),
        })
    }

    /// Every topic that the user may describe, without its settings.
    ///
    /// # Errors
    /// Why Kafka does not answer.
    pub async fn topics(&self) -> Result<BTreeMap<String, Topic>, Unanswered> {
        let ask = self.asker.ask_aside("its topics", |client, limit| {
            let metadata = client.fetch_metadata(None, limit)?;
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
        });
        ask.await
    }

    /// Whether a topic is none of [`Cluster::topics`] for want of a right: Kafka lists it as little as one that is missing,
    /// and tells them apart only when asked for it by name.
    ///
    /// # Errors
    /// Why Kafka does not say.
    pub async fn hides(&self, topic: &str) -> Result<bool, Unanswered> {
        let (what, topic) = (format!("of topic {topic}"), topic.to_owned());
        let ask = self.asker.ask_aside(what, move |client, limit| {
            Ok(client.fetch_metadata(Some(&topic), limit)?.topics().iter().any(is_hidden))
        });
        ask.await
    }

    /// The settings of a topic.
    ///
    /// # Errors
    /// Why they are not to be had.
    pub async fn settings(&self, topic: &str) -> Result<Settings, String> {
        // An administrator's client asks again by itself within this time.
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
    pub async fn group(&self) -> Result<Group, Unanswered> {
        let (what, name) = (format!("the members of group {}", self.group), self.group.clone());
        self.asker.ask_aside(what, move |client, limit| describe(client.client(), &name, limit)).await
    }

    /// How far the group is in these partitions of `topic`.
    ///
    /// # Errors
    /// Why Kafka does not say.
    pub async fn positions(&self, topic: &str, ids: Vec<i32>) -> Result<Vec<Position>, Unanswered> {
        let what = format!("the offsets of group {} in topic {topic}", self.group);
        let topic = topic.to_owned();
        let ask = self.asker.ask_aside(what, move |client, limit| {
            let mut list = TopicPartitionList::new();
            for id in &ids {
                list.add_partition(&topic, *id);
            }
            let committed = committed(client, list, limit)?;
            ids.iter()
                .map(|&partition| {
                    let (first, end) = client.fetch_watermarks(&topic, partition, limit)?;
                    let found = committed.find_partition(&topic, partition);
                    let note = found.as_ref().map(|found| found.metadata().to_owned()).unwrap_or_default();
                    let committed = match found.map(|found| found.offset()) {
                        Some(Offset::Offset(offset)) => Some(offset),
                        _ => None,
                    };
                    Ok(Position { topic: topic.clone(), partition, committed, note, first, end })
                })
                .collect()
        });
        ask.await
    }
}

fn is_hidden(topic: &MetadataTopic) -> bool {
    topic.error() == Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED)
}
