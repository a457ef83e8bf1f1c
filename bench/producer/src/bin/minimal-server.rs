//! The least that an HTTP server can do and still answer after the broker's acknowledgement: the body is the record.
//! No validation, no metrics, no limits. With keys, each record has one of its own, as an event has its id: then the
//! records spread over the partitions. Without, librdkafka puts all records of 10 ms into one partition.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// The next key, if records have keys.
    next: Option<Arc<AtomicU64>>,
}

async fn ingest(State(sending): State<Sending>, body: Bytes) -> Result<(StatusCode, String), StatusCode> {
    let key = sending.next.map(|next| format!("{:016x}", next.fetch_add(1, Ordering::Relaxed)));
    let record =
        FutureRecord { key: key.as_deref(), ..FutureRecord::<str, [u8]>::to(&sending.topic).payload(&body) };
    let sent = sending.producer.send(record, Duration::from_secs(10)).await;
    let delivery = sent.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    let (partition, offset) = (delivery.partition, delivery.offset);
    Ok((StatusCode::ACCEPTED, format!("{{\"partition\":{partition},\"offset\":{offset}}}")))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("minimal-server BROKER TOPIC ADDRESS LINGER_MS keyed|keyless");
    let (broker, topic, address, linger_ms, keys) = (next()?, next()?, next()?, next()?, next()?);
    let producer = ClientConfig::new()
        .set("bootstrap.servers", broker)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", linger_ms)
        .set("partitioner", "murmur2_random")
        .create()?;
    let router = Router::new()
        .route("/readyz", get(async || "ready"))
        .route("/ingest", post(ingest))
        .with_state(Sending { producer, topic, next: (keys == "keyed").then(Arc::default) });
    axum::serve(tokio::net::TcpListener::bind(address).await?, router).await?;
    Ok(())
}
