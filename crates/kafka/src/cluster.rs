//! Descriptions of topics, groups and offsets, read by a client that does not join the group.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::consumer::Consumer;
use rdkafka::metadata::MetadataTopic;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};

use crate::context::QuietContext;
use crate::group::{Group, describe};
use crate::properties::{KafkaProperties, client_config};
use crate::requests::{BoxError, RequestClient, RequestError, committed};

/// Maximum time to read the configuration of a topic.
const TOPIC_CONFIG_TIMEOUT: Duration = Duration::from_secs(5);

/// The configuration of a topic, by property name.
pub type TopicConfig = BTreeMap<String, String>;

/// A topic.
#[derive(Debug, Clone, Default)]
pub struct Topic {
    /// Its partitions.
    pub partitions: Vec<TopicPartition>,
    /// Its configuration; empty until [`Cluster::topic_config`] was read.
    pub config: TopicConfig,
}

/// A partition of a topic.
#[derive(Debug, Clone, Copy)]
pub struct TopicPartition {
    /// Its number.
    pub id: i32,
    /// Whether the partition has a leader and accepts records.
    pub has_leader: bool,
    /// Number of replicas.
    pub replicas: usize,
    /// Number of in-sync replicas.
    pub in_sync: usize,
}

impl Topic {
    /// The numbers of its partitions.
    pub fn partition_ids(&self) -> Vec<i32> {
        self.partitions.iter().map(|partition| partition.id).collect()
    }
}

/// The position of a group in a partition.
#[derive(Debug, Clone)]
pub struct GroupPosition {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// The committed offset, if the group committed one.
    pub committed: Option<i64>,
    /// The offset of the first record that Kafka still has.
    pub first: i64,
    /// The offset of the next record that is written.
    pub end: i64,
}

/// A connection to the cluster. Its client names the group but does not join it.
pub struct Cluster {
    requests: RequestClient,
    admin: AdminClient<QuietContext>,
    group: String,
}

impl Cluster {
    /// Creates the clients without connecting; `bootstrap` is KAFKA_BROKER.
    ///
    /// # Errors
    /// librdkafka rejects the configuration.
    pub fn new(
        bootstrap: &str,
        properties: &KafkaProperties,
        client_id: &str,
        group: &str,
    ) -> Result<Self, BoxError> {
        let defaults = [("group.id", group), ("enable.auto.commit", "false")];
        let client = client_config(bootstrap, client_id, &defaults, properties);
        let admin = client_config(bootstrap, client_id, &[], properties);
        Ok(Self {
            requests: RequestClient::new(&client)?,
            admin: admin.create_with_context(QuietContext)?,
            group: group.to_owned(),
        })
    }

    /// All topics that the user may describe, without their configuration.
    ///
    /// # Errors
    /// Kafka is unavailable.
    pub async fn topics(&self) -> Result<BTreeMap<String, Topic>, RequestError> {
        let request = self.requests.request_async("its topics", |client, timeout| {
            let metadata = client.fetch_metadata(None, timeout)?;
            let topics = metadata.topics().iter().filter(|topic| !is_hidden(topic)).map(|topic| {
                let partitions = topic.partitions().iter().map(|partition| TopicPartition {
                    id: partition.id(),
                    has_leader: partition.leader() >= 0,
                    replicas: partition.replicas().len(),
                    in_sync: partition.isr().len(),
                });
                let found = Topic { partitions: partitions.collect(), config: TopicConfig::new() };
                (topic.name().to_owned(), found)
            });
            Ok(topics.collect())
        });
        request.await
    }

    /// Whether [`Cluster::topics`] lacks a topic because the user may not describe it. Kafka lists
    /// neither such a topic nor a missing one; a request by name returns different errors.
    ///
    /// # Errors
    /// Kafka is unavailable.
    pub async fn is_topic_hidden(&self, topic: &str) -> Result<bool, RequestError> {
        let (subject, topic) = (format!("the metadata of topic {topic}"), topic.to_owned());
        let request = self.requests.request_async(subject, move |client, timeout| {
            Ok(client.fetch_metadata(Some(&topic), timeout)?.topics().iter().any(is_hidden))
        });
        request.await
    }

    /// The configuration of a topic.
    ///
    /// # Errors
    /// The cause, in words.
    pub async fn topic_config(&self, topic: &str) -> Result<TopicConfig, String> {
        // The admin client retries within this time.
        let options = AdminOptions::new().request_timeout(Some(TOPIC_CONFIG_TIMEOUT));
        let response = self.admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options).await;
        let resource = response.map_err(|error| error.to_string())?.into_iter().next();
        let resource = resource.ok_or("no response for the topic")?.map_err(|code| code.to_string())?;
        Ok(resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect())
    }

    /// The group's state and members.
    ///
    /// # Errors
    /// Kafka is unavailable.
    pub async fn group(&self) -> Result<Group, RequestError> {
        let (subject, name) = (format!("the members of group {}", self.group), self.group.clone());
        let send = move |client: &crate::requests::Client, timeout| describe(client.client(), &name, timeout);
        self.requests.request_async(subject, send).await
    }

    /// The group's positions in the given partitions of `topic`.
    ///
    /// # Errors
    /// Kafka is unavailable.
    pub async fn positions(
        &self,
        topic: &str,
        partitions: Vec<i32>,
    ) -> Result<Vec<GroupPosition>, RequestError> {
        let subject = format!("the offsets of group {} in topic {topic}", self.group);
        let topic = topic.to_owned();
        let request = self.requests.request_async(subject, move |client, timeout| {
            let mut list = TopicPartitionList::new();
            for partition in &partitions {
                list.add_partition(&topic, *partition);
            }
            let all_committed = committed(client, list, timeout)?;
            let position = |partition: i32| {
                let (first, end) = client.fetch_watermarks(&topic, partition, timeout)?;
                let found = all_committed.find_partition(&topic, partition);
                let committed = match found.map(|found| found.offset()) {
                    Some(Offset::Offset(offset)) => Some(offset),
                    _ => None,
                };
                Ok(GroupPosition { topic: topic.clone(), partition, committed, first, end })
            };
            partitions.iter().map(|partition| position(*partition)).collect()
        });
        request.await
    }
}

fn is_hidden(topic: &MetadataTopic) -> bool {
    topic.error() == Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED)
}
