//! Sends the records of one batch request.
//!
//! - Records are handed to librdkafka in order and in bounded memory.
//! - A full queue delays the next record, at most for the delivery timeout.
//! - Each record has its own outcome, as reliable as that of a single record.
//! - If the broker rejects a librdkafka batch for its size, its records are sent again one by one.
//!   Only then can a record be stored after a later one of the same id and request.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::kafka::client::{ReplaceableClient, ReportReceiver};
use crate::kafka::delivery::{AttemptError, DeliveryError, Record};
use crate::kafka::delivery_tracker::{
    DeliveryState, DeliveryTracker, FailedDelivery, PendingRecord, RecordCopy,
};
use crate::kafka::publisher::Publisher;

/// Memory of a record besides its value, estimated.
const OVERHEAD_BYTES: usize = 1024;
/// Pause between two attempts to hand a record to a full queue.
const QUEUE_RETRY_INTERVAL: Duration = Duration::from_millis(2);

/// Sends the records of one request.
#[derive(Debug)]
pub struct BatchPublisher<'p> {
    publisher: &'p Publisher,
    /// Cancelled when the shutdown abandons unfinished requests.
    abandoned: CancellationToken,
    traceparent: Option<&'p str>,
    tracker: Arc<DeliveryTracker>,
    errors: Vec<DeliveryError>,
    last_sent_at: Instant,
}

impl<'p> BatchPublisher<'p> {
    /// Begins a batch. Nothing is sent after `abandoned` is cancelled.
    pub fn new(
        publisher: &'p Publisher,
        traceparent: Option<&'p str>,
        delivery_seconds: Histogram,
        abandoned: CancellationToken,
    ) -> Self {
        Self {
            publisher,
            abandoned,
            traceparent,
            tracker: Arc::new(DeliveryTracker::new(delivery_seconds)),
            errors: Vec::new(),
            last_sent_at: Instant::now(),
        }
    }

    /// Sends a record to KAFKA_TOPIC, as [`BatchPublisher::send_to`].
    #[cfg(test)]
    pub async fn send(&mut self, record: Record<'_>) {
        self.send_to(&Arc::clone(&self.publisher.topic), record).await;
    }

    /// Sends a record as soon as the queue has room for it. Its outcome is always in the next slot.
    pub async fn send_to(&mut self, topic: &str, record: Record<'_>) {
        let permit = self.queue_permit(topic, record.value.len()).await;
        // The slot is opened only now: the wait for the permit may include all open slots.
        let slot = self.tracker.open();
        let sent = match permit {
            Ok(permit) => {
                let client = &self.publisher.client;
                let pending = PendingRecord {
                    tracker: Arc::clone(&self.tracker),
                    slot,
                    timestamp_ms: record.timestamp_ms,
                    alone: false,
                    mark: client.mark(),
                    sent_at: std::time::Instant::now(),
                    _queue_permit: permit,
                };
                self.enqueue(client, topic, record, pending).await
            }
            Err(error) => Err(error),
        };
        self.fail_unsent(slot, sent);
    }

    /// Sets the outcome of a record that could not be sent.
    fn fail_unsent(&mut self, slot: usize, sent: Result<(), DeliveryError>) {
        if let Err(error) = sent {
            let error_index = self.error_index(error);
            self.tracker.fail(slot, error_index, true);
        }
    }

    /// Waits for the permit of a record of `bytes`. Failed records hold permits too. They are
    /// classified and sent again meanwhile, which releases these permits.
    async fn queue_permit(
        &mut self,
        topic: &str,
        bytes: usize,
    ) -> Result<OwnedSemaphorePermit, DeliveryError> {
        self.publisher.check_ready(topic)?;
        if self.tracker.has_failures() {
            self.resend_rejected().await;
        }
        let deadline = Instant::now() + self.publisher.delivery_timeout;
        let bytes = u32::try_from(bytes + OVERHEAD_BYTES).unwrap_or(u32::MAX);
        loop {
            let permits =
                self.publisher.client.batch_queue_permits().ok_or_else(DeliveryError::shutting_down)?;
            if let Ok(permit) = Arc::clone(&permits).try_acquire_many_owned(bytes) {
                return Ok(permit);
            }
            let tracker = Arc::clone(&self.tracker);
            tokio::select! {
                acquired = tokio::time::timeout_at(deadline, permits.acquire_many_owned(bytes)) => {
                    return match acquired {
                        // Kafka may have become unavailable meanwhile.
                        Ok(Ok(permit)) => self.publisher.check_ready(topic).map(|()| permit),
                        _ => Err(DeliveryError::queue_full()),
                    };
                }
                () = tracker.wait_for_failures() => self.resend_rejected().await,
                () = self.abandoned.cancelled() => return Err(DeliveryError::shutting_down()),
            }
        }
    }

    /// Hands a record to `client`. Waits while its queue is full, at most for the delivery timeout.
    async fn enqueue(
        &mut self,
        client: &ReplaceableClient,
        topic: &str,
        record: Record<'_>,
        pending: PendingRecord,
    ) -> Result<(), DeliveryError> {
        let deadline = Instant::now() + self.publisher.delivery_timeout;
        let mut receiver = ReportReceiver::Batch(pending);
        loop {
            let (error, returned) = match client.enqueue(topic, record, receiver) {
                Ok(()) => break,
                Err(rejected) => *rejected,
            };
            let full = matches!(error, DeliveryError::NotStored { reason: "queue_full", .. });
            if !full || Instant::now() >= deadline || self.abandoned.is_cancelled() {
                return Err(error);
            }
            receiver = returned;
            tokio::time::sleep(QUEUE_RETRY_INTERVAL).await;
        }
        self.last_sent_at = Instant::now();
        Ok(())
    }

    /// Classifies the failed deliveries. Records that were rejected with their whole librdkafka
    /// batch are sent again one by one, after every record in flight has its outcome.
    async fn resend_rejected(&mut self) {
        let mut rejected = self.classify_failures();
        if rejected.is_empty() {
            return;
        }
        rejected.extend(self.wait_for_reports().await);
        rejected.sort_by_key(|(failed, _)| failed.record.slot);
        for (failed, copy) in rejected {
            let slot = failed.record.slot;
            let sent = self.send_alone(failed, &copy).await;
            self.fail_unsent(slot, sent);
        }
        self.wait_for_reports().await;
    }

    async fn send_alone(&mut self, failed: FailedDelivery, copy: &RecordCopy) -> Result<(), DeliveryError> {
        self.tracker.reopen();
        self.publisher.check_ready(&copy.topic)?;
        let client = self.publisher.single_record_client()?;
        let record = Record {
            key: &copy.key,
            value: &copy.value,
            timestamp_ms: failed.record.timestamp_ms,
            traceparent: self.traceparent,
        };
        let pending = PendingRecord { alone: true, mark: client.mark(), ..failed.record };
        self.enqueue(client, &copy.topic, record, pending).await
    }

    /// Waits for the delivery reports of all records in flight, at most until their deadline.
    /// Returns the records that were rejected with their whole librdkafka batch.
    async fn wait_for_reports(&mut self) -> Vec<(FailedDelivery, RecordCopy)> {
        let mut rejected = Vec::new();
        while self.wait_for_failures().await {
            rejected.extend(self.classify_failures());
        }
        rejected
    }

    /// Waits until there are failures to classify (true), or until no record is pending or the
    /// deadline of the last record has passed (false).
    async fn wait_for_failures(&self) -> bool {
        let deadline = self.last_sent_at + self.publisher.delivery_timeout;
        tokio::time::timeout_at(deadline, self.tracker.wait_for_failures_or_end()).await.unwrap_or(false)
    }

    /// Classifies the failed deliveries. Returns the records that were rejected with their whole
    /// librdkafka batch.
    fn classify_failures(&mut self) -> Vec<(FailedDelivery, RecordCopy)> {
        let mut rejected = Vec::new();
        for mut failed in self.tracker.take_failures() {
            let client = self.publisher.client_of(failed.record.alone);
            let error = match (client.classify(failed.failure, failed.record.mark), failed.copy.take()) {
                (AttemptError::BatchTooLarge, Some(copy)) => {
                    rejected.push((failed, copy));
                    continue;
                }
                (AttemptError::BatchTooLarge, None) => DeliveryError::TooLarge,
                (AttemptError::Final(error), _) => error,
            };
            let error_index = self.error_index(error);
            self.tracker.fail(failed.record.slot, error_index, false);
        }
        rejected
    }

    /// The index of an error. Many records share one error, most often the last, so the search
    /// begins there.
    fn error_index(&mut self, error: DeliveryError) -> usize {
        let known = self.errors.iter().rposition(|known| *known == error);
        known.unwrap_or_else(|| {
            self.errors.push(error);
            self.errors.len() - 1
        })
    }

    /// Waits for every outcome, at most until the deadline of the last record.
    async fn wait_for_outcomes(&mut self) {
        while self.wait_for_failures().await {
            self.resend_rejected().await;
        }
    }

    /// Waits for every outcome so far. Returns the slots from `first` on whose records are larger
    /// than the limit of the broker.
    pub async fn too_large_since(&mut self, first: usize) -> Vec<usize> {
        self.wait_for_outcomes().await;
        let too_large = self.errors.iter().position(|error| *error == DeliveryError::TooLarge);
        too_large.map_or_else(Vec::new, |error| self.tracker.failed_since(first, error))
    }

    /// Waits for every outcome, at most until the deadline of the last record. Returns the states
    /// in the order of sending, and the errors that they refer to.
    pub async fn finish(mut self) -> (Vec<DeliveryState>, Vec<DeliveryError>) {
        self.wait_for_outcomes().await;
        let no_report = self.error_index(DeliveryError::no_report());
        (self.tracker.close(no_report), self.errors)
    }
}

#[cfg(test)]
mod tests {
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
        let environment =
            [("KAFKA_BROKER", mock.bootstrap_servers()), ("DELIVERY_TIMEOUT_MS", "1500".into())];
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

    fn error_of<'e>(state: &DeliveryState, errors: &'e [DeliveryError]) -> Option<&'e DeliveryError> {
        match state {
            DeliveryState::Failed(error) => errors.get(*error),
            _ => None,
        }
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
            batch.send(record("many")).await;
        }
        assert_eq!(publisher.queued_records(), fits);
        let one_more = tokio::time::timeout(Duration::from_millis(200), batch.send(record("many"))).await;
        assert!(one_more.is_err(), "the record waits for its permit");
        assert_eq!(publisher.queued_records(), fits);
        // The single record is sent, because the queue has room for it. It is not acknowledged.
        assert!(matches!(publisher.send(record("single")).await, Err(DeliveryError::Unknown(_))));

        abandoned.cancel();
        publisher.purge().await;
        let (states, errors) = batch.finish().await;
        let expected = usize::try_from(fits).unwrap();
        assert_eq!(states.len(), expected, "a record that waited for its permit has no slot");
        assert!(states.iter().all(|state| matches!(state, DeliveryState::Failed(_))), "each has its outcome");
        let failed = states.iter().filter(|state| error_of(state, &errors).is_some());
        assert_eq!(failed.count(), expected);
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
        let disconnect =
            || publisher.client.health.record_error(ErrorClass::AllBrokers, "1/1 brokers are down");
        let disconnect_after_send = async {
            while publisher.queued_records() == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            disconnect();
        };

        mock.request_errors(RDKafkaApiKey::Produce, &too_large);
        let mut batch = batch(&publisher, CancellationToken::new());
        batch.send(record("one of many")).await;
        disconnect();
        let (states, errors) = batch.finish().await;
        assert!(
            states.len() == 1 && error_of(&states[0], &errors).is_some_and(unavailable),
            "{states:?} {errors:?}"
        );

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
}
