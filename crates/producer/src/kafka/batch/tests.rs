//! A batch and the queue that it shares with single events.

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

use super::*;
use crate::config::Config;

const VALUE: [u8; 4096] = [b'x'; 4096];

fn record(key: &str) -> Record<'_> {
    Record { key, value: &VALUE, timestamp_ms: 1_730_000_000_000, traceparent: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_waits_when_it_has_half_of_the_queue_and_leaves_the_rest_to_single_events() {
    let mock: MockCluster<'static, DefaultProducerContext> = MockCluster::new(1).unwrap();
    mock.create_topic("events.raw", 1, 1).unwrap();
    let environment = [("KAFKA_BROKER", mock.bootstrap_servers()), ("DELIVERY_TIMEOUT_MS", "1500".into())];
    let environment = environment.map(|(name, value)| (name.to_owned(), value));
    let stop = CancellationToken::new();
    let kafka = Kafka::connect(&Config::from_environment(environment).unwrap(), &stop).unwrap();
    while kafka.ready().is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(kafka.send(record("first")).await.is_ok());
    mock.broker_round_trip_time(-1, Duration::from_secs(60)).unwrap();

    let give_up = CancellationToken::new();
    let mut batch = kafka.batch(None, Histogram::new([1.0]), give_up.clone());
    let fits = i64::try_from(32 * 1024 * 1024 / (VALUE.len() + OVERHEAD_BYTES)).unwrap();
    for _ in 0..fits {
        batch.send(record("many"), 0).await;
    }
    assert_eq!(kafka.queued(), fits);
    let one_more = tokio::time::timeout(Duration::from_millis(200), batch.send(record("many"), 0)).await;
    assert!(one_more.is_err(), "it waits for room");
    assert_eq!(kafka.queued(), fits);
    // Taken, and not confirmed: there was room for it.
    assert!(matches!(kafka.send(record("single")).await, Err(SendError::Unknown(_))));

    give_up.cancel();
    kafka.give_up().await;
    let outcomes = batch.finish().await;
    let slots: Vec<&Slot> = outcomes.closed.pages.iter().flatten().collect();
    assert_eq!(slots.len(), usize::try_from(fits).unwrap(), "who was not waited for has no slot");
    assert!(slots.iter().all(|slot| matches!(slot, Slot::Failed(_))), "each has its outcome");
    let failed: u64 = outcomes.failed().map(|(_, count)| count).sum();
    assert_eq!(failed, u64::try_from(fits).unwrap());
}
