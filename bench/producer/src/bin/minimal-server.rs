//! The least that an HTTP server can do and still answer after the broker's acknowledgement: the body is the record.
//! No validation, no metrics, no limits.

use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone)]
struct Sending {
    producer: FutureProducer,
    topic: String,
}

async fn ingest(State(sending): State<Sending>, body: Bytes) -> Result<(StatusCode, String), StatusCode> {
    let record = FutureRecord::<(), [u8]>::to(&sending.topic).payload(&body);
    let sent = sending.producer.send(record, Duration::from_secs(10)).await;
    let delivery = sent.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    let (partition, offset) = (delivery.partition, delivery.offset);
    Ok((StatusCode::ACCEPTED, format!("{{\"partition\":{partition},\"offset\":{offset}}}")))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("minimal-server BROKER TOPIC ADDRESS LINGER_MS");
    let (broker, topic, address, linger_ms) = (next()?, next()?, next()?, next()?);
    let producer = ClientConfig::new()
        .set("bootstrap.servers", broker)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", linger_ms)
        .create()?;
    let router = Router::new()
        .route("/readyz", get(async || "ready"))
        .route("/ingest", post(ingest))
        .with_state(Sending { producer, topic });
    axum::serve(tokio::net::TcpListener::bind(address).await?, router).await?;
    Ok(())
}
