//! The one place that talks to Kafka. Guarantees: sending never blocks a thread and never waits longer than the
//! delivery deadline; "stored" is said only after the broker's acknowledgement; "not stored" only where that is
//! certain, else the outcome is unknown; a fatal error of the idempotent client replaces the client.

use std::sync::{Arc, OnceLock};

use kafka::topics::{KafkaState, keep_topics};
use rdkafka::error::KafkaError;
use rdkafka::producer::{Producer, PurgeConfig};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::client::{Client, Sender};
use super::client_health::Trouble;
use super::delivery::{Record, SendError, Stored, not_stored};
use super::delivery_error::Refusal;
use super::properties::client_config;
use super::{properties, readiness, supervisor};
use crate::config::Config;

/// The connection to the cluster, for any number of requests at a time.
#[derive(Debug)]
pub struct Kafka {
    pub(super) topic: Arc<str>,
    pub(super) limit: std::time::Duration,
    pub(super) sender: Arc<Sender>,
    /// Sends one record a batch, made when first needed: a broker refuses a whole batch for its size, so only a
    /// record that is alone in its batch can be called too large.
    pub(super) alone: OnceLock<Sender>,
    topics: watch::Receiver<KafkaState>,
}

impl Kafka {
    /// Makes the client and starts the upkeep of connection and topic, until `stop`. No broker need be up.
    ///
    /// # Errors
    /// librdkafka refuses the configuration; why.
    pub fn connect(config: &Config, stop: &CancellationToken) -> Result<Self, String> {
        let said = |error: KafkaError| error.to_string();
        let client_config = client_config(
            &config.kafka_broker,
            &config.kafka_properties,
            config.max_payload_bytes,
            config.delivery_timeout,
        );
        let sender = Arc::new(Sender::new(client_config).map_err(said)?);
        let admin =
            kafka::client_config(&config.kafka_broker, properties::CLIENT_ID, &[], &config.kafka_properties);
        let topics = keep_topics(&admin, vec![config.topic.clone()], stop.clone()).map_err(said)?;
        let kafka = Self {
            topic: config.topic.name.as_str().into(),
            limit: config.delivery_timeout,
            sender,
            alone: OnceLock::new(),
            topics,
        };
        tokio::spawn(supervisor::take_care(
            Arc::clone(&kafka.sender),
            Arc::clone(&kafka.topic),
            stop.clone(),
        ));
        tokio::spawn(readiness::tell_changes(Arc::clone(&kafka.sender), kafka.topics.clone()));
        Ok(kafka)
    }

    /// Whether records can be sent now.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn ready(&self) -> Result<(), String> {
        match self.sender.signals.trouble() {
            Trouble::Fatal(why) | Trouble::Replaced(why) => {
                Err(format!("the kafka client is being replaced after a fatal error: {why}"))
            }
            Trouble::None | Trouble::Suspected | Trouble::Away(_) => {
                readiness::state(&self.sender.signals, &self.topics.borrow()).ready()
            }
        }
    }

    /// Sends a record and waits for the acknowledgement, at most for the delivery deadline.
    ///
    /// # Errors
    /// It is not known to be stored; whether it may be.
    pub async fn send(&self, record: Record<'_>) -> Result<Stored, SendError> {
        self.sendable()?;
        let deadline = Instant::now() + self.limit;
        match self.sender.send(&self.topic, record, deadline).await {
            Ok(stored) => return Ok(stored),
            Err(Refusal::Final(error)) => return Err(error),
            Err(Refusal::Batch) => {}
        }
        self.sendable()?;
        let outcome = self.alone()?.send(&self.topic, record, deadline).await;
        outcome.map_err(|refusal| match refusal {
            Refusal::Batch => SendError::TooLarge,
            Refusal::Final(error) => error,
        })
    }

    pub(super) fn sendable(&self) -> Result<(), SendError> {
        self.ready().map_err(|why| not_stored("kafka_away", why))
    }

    pub(super) fn alone(&self) -> Result<&Sender, SendError> {
        if let Some(alone) = self.alone.get() {
            if let Some(why) = alone.fatal() {
                alone.replace(&why);
            }
            alone.keep();
            return Ok(alone);
        }
        let mut config = self.sender.config.clone();
        config.set("batch.num.messages", "1");
        let alone = Sender::new(config)
            .map_err(|error| not_stored("kafka_refused", format!("no second kafka client: {error}")))?;
        Ok(self.alone.get_or_init(|| alone))
    }

    /// Records that are sent but not acknowledged.
    pub fn queued(&self) -> i64 {
        let senders = std::iter::once(&*self.sender).chain(self.alone.get());
        senders.filter_map(Sender::client).map(|client| i64::from(client.in_flight_count())).sum()
    }

    /// Gives up what is not acknowledged: each waiting request hears at once whether it may be stored.
    pub async fn give_up(&self) {
        for client in self.clients() {
            let purge = move || client.purge(PurgeConfig::default().queue().inflight());
            // It blocks its thread until librdkafka's own threads have taken notice.
            _ = tokio::task::spawn_blocking(purge).await;
        }
    }

    /// Ends the clients.
    pub async fn close(&self) {
        let clients = self.clients();
        for sender in std::iter::once(&*self.sender).chain(self.alone.get()) {
            sender.put(None);
        }
        _ = tokio::task::spawn_blocking(move || drop(clients)).await;
    }

    fn clients(&self) -> Vec<Arc<Client>> {
        std::iter::once(&*self.sender).chain(self.alone.get()).filter_map(Sender::client).collect()
    }
}
