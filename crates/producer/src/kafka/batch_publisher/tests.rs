//! A batch and the queue that it shares with single events.

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::*;
use crate::config::Config;
use crate::kafka::client_health::Break;

const VALUE: [u8; 4096] = [b'x'; 4096];

fn record(key: &str) -> Record<'_> {
    Record { key, value: &VALUE, timestamp_ms: 1_730_000_000_000, traceparent: None }
}

/// A client that is ready, and has sent a record.
async fn connect(mock: &MockCluster<'static, DefaultProducerContext>) -> (Kafka, CancellationToken) {
    mock.create_topic("events.raw", 1, 1).unwrap();
    let environment = [("KAFKA_BROKER", mock.bootstrap_servers()), ("DELIVERY_TIMEOUT_MS", "1500".into())];
    let environment = environment.map(|(name, value)| (name.to_owned(), value));
    let stop = CancellationToken::new();
    let kafka = Kafka::connect(&Config::from_environment(environment).unwrap(), &stop).unwrap();
    while kafka.ready().is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(kafka.send(record("first")).await.is_ok());
    (kafka, stop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_waits_when_it_has_half_of_the_queue_and_leaves_the_rest_to_single_events() {
    let mock: MockCluster<'static, DefaultProducerContext> = MockCluster::new(1).unwrap();
    let (kafka, _stop) = connect(&mock).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_never_left_the_queue_in_an_outage_is_not_stored_when_it_is_given_up() {
    let mock: MockCluster<'static, DefaultProducerContext> = MockCluster::new(1).unwrap();
    let (kafka, _stop) = connect(&mock).await;
    mock.broker_down(-1).unwrap();
    while kafka.ready().is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // As if it had been taken just before.
    let sending = kafka.sender.send(&kafka.topic, record("queued"), Instant::now() + Duration::from_secs(20));
    let give_up = async {
        while kafka.queued() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        kafka.give_up().await;
    };
    let (outcome, ()) = tokio::join!(sending, give_up);
    assert!(matches!(outcome, Err(Refusal::Final(SendError::NotStored { .. }))), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_must_go_alone_is_not_sent_while_kafka_is_away() {
    let mock: MockCluster<'static, DefaultProducerContext> = MockCluster::new(1).unwrap();
    let (kafka, _stop) = connect(&mock).await;
    // Slow enough that the question whether a broker answers finds none.
    mock.broker_round_trip_time(-1, Duration::from_millis(700)).unwrap();
    let too_large = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE];
    let away = |error: &SendError| matches!(error, SendError::NotStored { reason: "kafka_away", .. });
    let goes = async {
        while kafka.queued() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        kafka.sender.signals.broke(Break::AllBrokers, "1/1 brokers are down");
    };

    mock.request_errors(RDKafkaApiKey::Produce, &too_large);
    let mut batch = kafka.batch(None, Histogram::new([1.0]), CancellationToken::new());
    batch.send(record("one of many"), 0).await;
    kafka.sender.signals.broke(Break::AllBrokers, "1/1 brokers are down");
    let outcomes = batch.finish().await;
    let failed: Vec<(&SendError, u64)> = outcomes.failed().collect();
    assert!(failed.len() == 1 && away(failed[0].0), "{failed:?}");

    mock.broker_round_trip_time(-1, Duration::ZERO).unwrap();
    while kafka.ready().is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    mock.broker_round_trip_time(-1, Duration::from_millis(700)).unwrap();
    mock.request_errors(RDKafkaApiKey::Produce, &too_large);
    let (outcome, ()) = tokio::join!(kafka.send(record("single")), goes);
    assert!(outcome.as_ref().is_err_and(away), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_is_not_away_while_it_acknowledges_although_its_metadata_is_slow() {
    let mock: MockCluster<'static, DefaultProducerContext> = MockCluster::new(1).unwrap();
    let (kafka, _stop) = connect(&mock).await;
    mock.broker_round_trip_time(-1, Duration::from_millis(600)).unwrap();
    let sends = (0..100_u32).map(|number| {
        let kafka = &kafka;
        async move {
            tokio::time::sleep(Duration::from_millis(20) * number).await;
            if number == 50 {
                kafka.sender.signals.broke(Break::Connection, "one broker of several");
            }
            kafka.send(record("steady")).await
        }
    });
    for (number, outcome) in futures::future::join_all(sends).await.into_iter().enumerate() {
        assert!(outcome.is_ok(), "{number}: {outcome:?}");
    }
}
