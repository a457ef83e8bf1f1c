//! Sends single events, and says when each was acknowledged: through the producer's HTTP interface, or straight to Kafka.

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use events::Event;
use rdkafka::producer::{FutureProducer, FutureRecord};

use crate::Failure;
use crate::programs::Programs;
use crate::side::{Places, Running, Side};
use crate::stage::Stage;
use crate::topic::{self, Form};

const READY_WITHIN: Duration = Duration::from_secs(60);
const SENT_WITHIN: Duration = Duration::from_secs(10);
const ASK_EVERY: Duration = Duration::from_millis(50);

/// A way to send events.
pub enum Sender {
    /// To our producer, which runs as long as this value: acknowledged by a 202.
    Http {
        /// Its process.
        producer: Running,
        /// Keeps a connection open.
        client: reqwest::Client,
        /// Where events are posted.
        url: String,
    },
    /// To the broker, with acks=all: acknowledged by the delivery report.
    Kafka {
        /// The client.
        producer: FutureProducer,
        /// The topic.
        topic: String,
        /// What the side can read.
        form: Form,
        /// The partition, if it is not the key's.
        partition: Option<i32>,
    },
}

impl Sender {
    /// To Kafka, with the settings of our producer.
    pub fn to_kafka(kafka: &str, topic: &str, side: Side, partition: Option<i32>) -> Result<Sender, Failure> {
        let producer = topic::producer(kafka).set("linger.ms", "0").create()?;
        Ok(Sender::Kafka { producer, topic: topic.to_owned(), form: side.form(), partition })
    }

    /// To a producer of its own.
    pub async fn to_producer(stage: &Stage, programs: &Programs, places: &Places) -> Result<Sender, Failure> {
        let folder = stage.folder("producer")?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = Command::new(programs.binary("producer"));
        command.env_clear().env("KAFKA_BROKER", &places.kafka).env("KAFKA_TOPIC", &places.topic);
        command.env("LISTEN_ADDR", address.to_string());
        let producer = Running::start(command, &folder)?;
        // Another part of the process may have installed it before.
        _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().timeout(SENT_WITHIN).build()?;
        let ready = format!("http://{address}/readyz");
        let answers = async {
            let mut asks = tokio::time::interval(ASK_EVERY);
            loop {
                asks.tick().await;
                if client.get(&ready).send().await.is_ok_and(|answer| answer.status().is_success()) {
                    return Ok(());
                }
            }
        };
        producer.meanwhile("the producer", READY_WITHIN, answers).await?;
        Ok(Sender::Http { producer, client, url: format!("http://{address}/ingest") })
    }

    /// Sends an event; the moment at which it was acknowledged.
    pub async fn send(&self, event: &Event) -> Result<Instant, Failure> {
        match self {
            Sender::Http { client, url, .. } => post(client, url, event).await,
            Sender::Kafka { producer, topic, form, partition } => {
                let value = topic::value(event, *form)?;
                let mut record = FutureRecord::to(topic).key(event.id.as_str()).payload(&value);
                record.partition = *partition;
                producer.send(record, SENT_WITHIN).await.map_err(|(error, _)| error)?;
                Ok(Instant::now())
            }
        }
    }

    /// Ends the process behind it, if there is one.
    pub async fn stop(self) {
        if let Sender::Http { producer, .. } = self {
            producer.stop().await;
        }
    }
}

async fn post(client: &reqwest::Client, url: &str, event: &Event) -> Result<Instant, Failure> {
    let body = serde_json::json!({
        "id": event.id,
        "timestamp": event.timestamp,
        "source": event.source.to_string(),
        "payload": serde_json::from_str::<serde_json::Value>(event.payload.as_str())?,
    });
    let answer = client.post(url).json(&body).send().await?;
    let acknowledged = Instant::now();
    if answer.status().as_u16() != 202 {
        return Err(format!("the producer answered {}: {}", answer.status(), answer.text().await?).into());
    }
    // Read to its end, so that the connection is used again.
    answer.bytes().await?;
    Ok(acknowledged)
}
