//! Batches, and the queue that they share with single events, on librdkafka's mock cluster.

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use service::tasks::Supervisor;

use super::*;
use crate::config::Config;
use crate::kafka::client_health::ErrorClass;

const VALUE: [u8; 4096] = [b'x'; 4096];

fn record(key: &str) -> Record<'_> {
    Record { key, value: &VALUE, timestamp_ms: 1_730_000_000_000, traceparent: None }
}

/// A publisher that is ready and has sent one record.
async fn connect(mock: &MockCluster<'static, DefaultProducerContext>) -> (Publisher, CancellationToken) {
    mock.create_topic("events.raw", 1, 1).unwrap();
    let environment = [("KAFKA_BROKER", mock.bootstrap_servers()), ("DELIVERY_TIMEOUT_MS", "1500".into())];
    let environment = environment.map(|(name, value)| (name.to_owned(), value));
    let shutdown = CancellationToken::new();
    let config = Config::from_environment(environment).unwrap();
    let publisher = Publisher::connect(&config, &Supervisor::new(&shutdown), &shutdown).unwrap();
    while publisher.ready().is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(publisher.send(record("first")).await.is_ok());
    (publisher, shutdown)
}

fn batch(publisher: &Publisher, abandoned: CancellationToken) -> BatchPublisher<'_> {
    BatchPublisher::new(publisher, None, Histogram::new([1.0]), abandoned)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_with_half_of_the_queue_waits_and_single_events_are_sent() {
    let mock: MockCluster<'static, DefaultProducerContext> = MockCluster::new(1).unwrap();
    let (publisher, _shutdown) = connect(&mock).await;
    mock.broker_round_trip_time(-1, Duration::from_secs(60)).unwrap();

    let abandoned = CancellationToken::new();
    let mut batch = batch(&publisher, abandoned.clone());
    let fits = i64::try_from(32 * 1024 * 1024 / (VALUE.len() + OVERHEAD_BYTES)).unwrap();
    for _ in 0..fits {
        batch.send(record("many"), 0).await;
    }
    assert_eq!(publisher.queued_records(), fits);
    let one_more = tokio::time::timeout(Duration::from_millis(200), batch.send(record("many"), 0)).await;
    assert!(one_more.is_err(), "the record waits for its permit");
    assert_eq!(publisher.queued_records(), fits);
    // The single record is sent, because the queue has room for it. It is not acknowledged.
    assert!(matches!(publisher.send(record("single")).await, Err(DeliveryError::Unknown(_))));

    abandoned.cancel();
    publisher.purge().await;
    let outcome = batch.finish().await;
    let states: Vec<&DeliveryState> = outcome.states.pages.iter().flatten().collect();
    let expected = usize::try_from(fits).unwrap();
    assert_eq!(states.len(), expected, "a record that waited for its permit has no slot");
    assert!(states.iter().all(|state| matches!(state, DeliveryState::Failed(_))), "each has its outcome");
    let failed: u64 = outcome.error_counts().map(|(_, count)| count).sum();
    assert_eq!(failed, u64::try_from(fits).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_never_left_the_queue_is_not_stored_when_it_is_purged() {
    let mock: MockCluster<'static, DefaultProducerContext> = MockCluster::new(1).unwrap();
    let (publisher, _shutdown) = connect(&mock).await;
    mock.broker_down(-1).unwrap();
    while publisher.ready().is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // As if the record had been sent just before the outage was detected.
    let deadline = Instant::now() + Duration::from_secs(20);
    let send = publisher.client.send(&publisher.topic, record("queued"), deadline);
    let purge = async {
        while publisher.queued_records() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        publisher.purge().await;
    };
    let (outcome, ()) = tokio::join!(send, purge);
    assert!(matches!(outcome, Err(AttemptError::Final(DeliveryError::NotStored { .. }))), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_to_resend_alone_is_not_sent_while_kafka_is_unavailable() {
    let mock: MockCluster<'static, DefaultProducerContext> = MockCluster::new(1).unwrap();
    let (publisher, _shutdown) = connect(&mock).await;
    // Slower than PROBE_TIMEOUT: the probe gets no answer.
    mock.broker_round_trip_time(-1, Duration::from_millis(700)).unwrap();
    let too_large = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE];
    let unavailable =
        |error: &DeliveryError| matches!(error, DeliveryError::NotStored { reason: "kafka_away", .. });
    let disconnect = || publisher.client.health.record_error(ErrorClass::AllBrokers, "1/1 brokers are down");
    let disconnect_after_send = async {
        while publisher.queued_records() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        disconnect();
    };

    mock.request_errors(RDKafkaApiKey::Produce, &too_large);
    let mut batch = batch(&publisher, CancellationToken::new());
    batch.send(record("one of many"), 0).await;
    disconnect();
    let outcome = batch.finish().await;
    let failed: Vec<(&DeliveryError, u64)> = outcome.error_counts().collect();
    assert!(failed.len() == 1 && unavailable(failed[0].0), "{failed:?}");

    mock.broker_round_trip_time(-1, Duration::ZERO).unwrap();
    while publisher.ready().is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    mock.broker_round_trip_time(-1, Duration::from_millis(700)).unwrap();
    mock.request_errors(RDKafkaApiKey::Produce, &too_large);
    let (outcome, ()) = tokio::join!(publisher.send(record("single")), disconnect_after_send);
    assert!(outcome.as_ref().is_err_and(unavailable), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_stays_available_while_it_acknowledges_with_slow_metadata() {
    let mock: MockCluster<'static, DefaultProducerContext> = MockCluster::new(1).unwrap();
    let (publisher, _shutdown) = connect(&mock).await;
    mock.broker_round_trip_time(-1, Duration::from_millis(600)).unwrap();
    let sends = (0..100_u32).map(|number| {
        let publisher = &publisher;
        async move {
            tokio::time::sleep(Duration::from_millis(20) * number).await;
            if number == 50 {
                let health = &publisher.client.health;
                health.record_error(ErrorClass::Connection, "one broker of several");
            }
            publisher.send(record("steady")).await
        }
    });
    for (number, outcome) in futures::future::join_all(sends).await.into_iter().enumerate() {
        assert!(outcome.is_ok(), "{number}: {outcome:?}");
    }
}
