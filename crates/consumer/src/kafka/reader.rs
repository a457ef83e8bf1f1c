//! The reader thread: polls Kafka and pushes each record to the worker of its partition.
//!
//! It has its own thread, because a rebalance blocks it until batches are finished. Otherwise,
//! polling never waits for a worker.
//!
//! A rebalance starts and stops partition workers when the group moves partitions. A revoked
//! partition is released only after its current batch was finished or abandoned and the finished
//! records were committed. Nothing of a lost partition is committed, because another member may
//! already have it.
//!
//! Delivery is at least once. An offset is committed only when all lower records are finished;
//! after a crash the later records are read again. A graceful shutdown commits all finished
//! records, so no record is processed twice.

use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use ::kafka::context::Rebootstrap;
use ::kafka::topics::KafkaReadiness;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::TopicPartitionList;
use service::tasks::Supervisor;
use service::time::Backoff;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::kafka::commits::{CommitThread, OffsetCommitter};
use crate::kafka::lag::LagMonitor;
use crate::kafka::record::{Record, TopicPartition, topic_partitions};
use crate::partition::workers::{PushResult, Workers};

/// How long a poll waits for a record, and so the delay until a stop or a due check is noticed.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// The same while a partition is paused, because it can be resumed at any moment.
const POLL_TIMEOUT_PAUSED: Duration = Duration::from_millis(5);
/// Interval of the checks of workers and clients.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// How long workers may finish their current batches after the stop signal.
pub const WORKER_STOP_TIMEOUT: Duration = Duration::from_secs(8);
/// Deadline of the final commit after the stop. The rest of the 10 s is for leaving the group.
const FINAL_COMMIT_TIMEOUT: Duration = Duration::from_millis(8800);
/// Timeout of the final commit if Kafka is known to be unavailable.
const FINAL_COMMIT_TIMEOUT_UNAVAILABLE: Duration = Duration::from_millis(500);
/// How long the reader waits for the creation of missing topics before it joins the group.
const TOPICS_TIMEOUT: Duration = Duration::from_secs(2);
/// A client that worked for longer than this is replaced after the shortest delay.
const BACKOFF_RESET_AGE: Duration = Duration::from_secs(60);

/// Why a client's session ended.
enum SessionEnd {
    Stopped,
    ClientFailed(String),
    /// Kafka no longer has the group's committed offsets of this topic.
    OffsetsReset(Arc<str>),
}

fn worker_ended((topic, partition): &TopicPartition) -> SessionEnd {
    SessionEnd::ClientFailed(format!("worker of {topic}/{partition} ended unexpectedly"))
}

/// The state of the reader thread.
pub struct Reader {
    /// Configuration of the group member.
    pub client: ClientConfig,
    /// Topics to subscribe to.
    pub topics: Vec<String>,
    /// Receivers of the records.
    pub workers: Arc<Workers>,
    /// Availability of Kafka.
    pub kafka: watch::Receiver<KafkaReadiness>,
    /// Runtime for waits.
    pub runtime: Handle,
    /// Ends the reader.
    pub stop: CancellationToken,
    /// Starts the threads of each client.
    pub tasks: Supervisor,
}

impl Reader {
    /// Reads until `stop`. Replaces a client after a fatal error or after its offsets were reset.
    pub fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        while self.wait_for_kafka() {
            let started = Instant::now();
            match self.run_session() {
                SessionEnd::Stopped => return,
                SessionEnd::OffsetsReset(topic) => {
                    tracing::warn!(
                        topic = &*topic,
                        "committed offsets are gone because the topic was deleted, reading it from the beginning"
                    );
                }
                SessionEnd::ClientFailed(reason) => {
                    tracing::error!(reason, "consumer client failed and will be recreated");
                    self.workers.set_client_error(reason);
                    if started.elapsed() > BACKOFF_RESET_AGE {
                        backoff.reset();
                    }
                    let delay = backoff.next_delay();
                    self.runtime.block_on(async {
                        tokio::select! { () = tokio::time::sleep(delay) => {}, () = self.stop.cancelled() => {} }
                    });
                }
            }
        }
    }

    /// Waits until Kafka is available and, for a limited time, until the topics exist. Joining the
    /// group earlier would only delay the join. Returns false at a stop.
    fn wait_for_kafka(&mut self) -> bool {
        let (kafka, stop) = (&mut self.kafka, &self.stop);
        self.runtime.block_on(async {
            let wait = async {
                _ = kafka
                    .wait_for(|state| {
                        matches!(state, KafkaReadiness::Ready | KafkaReadiness::TopicMissing(_))
                    })
                    .await;
                _ = tokio::time::timeout(
                    TOPICS_TIMEOUT,
                    kafka.wait_for(|state| *state == KafkaReadiness::Ready),
                )
                .await;
            };
            tokio::select! { () = wait => !stop.is_cancelled(), () = stop.cancelled() => false }
        })
    }

    /// Creates a client, reads with it, and leaves the group.
    fn run_session(&self) -> SessionEnd {
        let client = match Client::start(self) {
            Ok(client) => client,
            Err(reason) => return SessionEnd::ClientFailed(reason),
        };
        let end = self.read(&client);
        match &end {
            SessionEnd::Stopped => self.stop_workers(&client),
            SessionEnd::ClientFailed(_) => self.workers.abort(&self.workers.assigned()),
            SessionEnd::OffsetsReset(topic) => {
                self.workers.abort(&self.workers.assigned());
                self.workers.forget_finished(topic);
            }
        }
        self.leave_group(client);
        end
    }

    fn read(&self, client: &Client) -> SessionEnd {
        let consumer = &*client.consumer;
        let mut checked_at = Instant::now();
        while !self.stop.is_cancelled() {
            let timeout = if self.workers.any_paused() { POLL_TIMEOUT_PAUSED } else { POLL_TIMEOUT };
            match consumer.poll(timeout) {
                Some(Ok(message)) => {
                    let record = Record::copy_of(&message);
                    match self.workers.push(message.topic(), message.partition(), record) {
                        PushResult::Queued | PushResult::NotAssigned => {}
                        PushResult::QueueFull(full) => self.pause(consumer, &full),
                        PushResult::WorkerEnded(ended) => return worker_ended(&ended),
                    }
                }
                Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                    return SessionEnd::ClientFailed(code.to_string());
                }
                // The client recovers from this error by itself.
                Some(Err(error)) => {
                    tracing::debug!(error = %error, "poll failed");
                    self.workers.set_client_error(error.to_string());
                }
                None => {}
            }
            if self.workers.any_paused() {
                self.resume(consumer);
            }
            if checked_at.elapsed() >= CHECK_INTERVAL {
                checked_at = Instant::now();
                // Reconnects the clients if they lost every broker.
                consumer.context().rebootstrap.restore_brokers(consumer.client());
                client.committer.poll_observer();
                // Offsets that the client passed without a record, such as those of control
                // records, count as finished.
                match consumer.position() {
                    Ok(positions) => self.workers.set_positions(&positions),
                    Err(error) => tracing::debug!(error = %error, "positions could not be read"),
                }
                if let Some(ended) = self.workers.unexpectedly_ended() {
                    return worker_ended(&ended);
                }
                if let Some(topic) = client.committer.reset_topic() {
                    return SessionEnd::OffsetsReset(Arc::clone(topic));
                }
            }
        }
        SessionEnd::Stopped
    }

    fn pause(&self, consumer: &BaseConsumer<GroupMember>, full: &TopicPartition) {
        let mut list = TopicPartitionList::new();
        list.add_partition(&full.0, full.1);
        match consumer.pause(&list) {
            Ok(()) => self.workers.mark_paused(full),
            Err(error) => tracing::warn!(error = %error, "partition could not be paused"),
        }
    }

    fn resume(&self, consumer: &BaseConsumer<GroupMember>) {
        let list = self.workers.take_resumable();
        if list.count() > 0
            && let Err(error) = consumer.resume(&list)
        {
            tracing::warn!(error = %error, "partitions could not be resumed");
            topic_partitions(&list).iter().for_each(|paused| self.workers.mark_paused(paused));
        }
    }

    /// Graceful shutdown: workers finish their current batches, then the offsets are committed.
    fn stop_workers(&self, client: &Client) {
        let deadline = Instant::now() + FINAL_COMMIT_TIMEOUT;
        self.workers.close(WORKER_STOP_TIMEOUT);
        let timeout = if self.is_kafka_available() {
            deadline.saturating_duration_since(Instant::now())
        } else {
            FINAL_COMMIT_TIMEOUT_UNAVAILABLE
        };
        let deadline = Instant::now() + timeout;
        let Some(mut committed) = client.commit_thread.request_final_commit() else {
            return self.commit_without_committer(client);
        };
        // After a reset of the offsets every commit fails.
        let is_reset = || client.committer.reset_topic().is_some();
        while Instant::now() < deadline && !is_reset() {
            match committed.try_recv() {
                Ok(true) => return,
                // A group rejects commits for a moment during a rebalance.
                Ok(false) | Err(TryRecvError::Disconnected) => {
                    match client.commit_thread.request_final_commit() {
                        Some(next) => committed = next,
                        None => return self.commit_without_committer(client),
                    }
                }
                Err(TryRecvError::Empty) => {}
            }
            // Lets a rebalance continue. A record that this returns is read again by the next
            // owner.
            _ = client.consumer.poll(Duration::from_millis(10));
        }
        tracing::warn!("final commit was not confirmed, some records may be processed again");
    }

    /// Makes the final commit on this thread, because the committer has ended unexpectedly.
    fn commit_without_committer(&self, client: &Client) {
        let committed = client.committer.commit(&client.consumer, || self.workers.final_offsets());
        if let Err((_, error)) = committed {
            tracing::warn!(error = %error, "final commit failed, some records may be processed again");
        }
    }

    /// Leaves the group by dropping the client. If Kafka is unavailable, the drop waits for replies
    /// that do not arrive. It then runs in its own thread, which ends with the process.
    fn leave_group(&self, client: Client) {
        if self.is_kafka_available() {
            return client.close();
        }
        let leaving = std::thread::Builder::new().name("leaver".into()).spawn(move || client.close());
        if let Err(error) = leaving {
            tracing::warn!(error = %error, "thread to leave the group could not be created");
        }
    }

    fn is_kafka_available(&self) -> bool {
        *self.kafka.borrow() == KafkaReadiness::Ready
    }
}

/// A group member and its threads. Fields are dropped in this order.
struct Client {
    /// Announces the end of the threads, which end with the client.
    planned_end: DropGuard,
    consumer: Arc<BaseConsumer<GroupMember>>,
    committer: Arc<OffsetCommitter>,
    commit_thread: CommitThread,
    lag_monitor: LagMonitor,
}

impl Client {
    fn start(reader: &Reader) -> Result<Self, String> {
        let client_error = |error: KafkaError| error.to_string();
        let committer = Arc::new(OffsetCommitter::new(&reader.client).map_err(client_error)?);
        let mut config = reader.client.clone();
        let member = GroupMember {
            workers: Arc::clone(&reader.workers),
            committer: Arc::clone(&committer),
            rebootstrap: Rebootstrap::enable(&mut config),
        };
        let consumer: BaseConsumer<GroupMember> = config.create_with_context(member).map_err(client_error)?;
        let topics: Vec<&str> = reader.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(client_error)?;
        let consumer = Arc::new(consumer);
        let thread_error = |error: std::io::Error| format!("thread could not be created: {error}");
        let planned_end = CancellationToken::new();
        let tasks = reader.tasks.until(planned_end.clone());
        let commit_thread = CommitThread::start(
            &tasks,
            Arc::clone(&consumer),
            Arc::clone(&committer),
            Arc::clone(&reader.workers),
        )
        .map_err(thread_error)?;
        // Declared after the commit thread, so dropped before it if the next thread cannot be
        // created.
        let planned_end = planned_end.drop_guard();
        let lag_monitor = LagMonitor::start(&tasks, Arc::clone(&consumer), Arc::clone(&reader.workers))
            .map_err(thread_error)?;
        Ok(Self { planned_end, consumer, committer, commit_thread, lag_monitor })
    }

    /// Stops the threads, then leaves the group.
    fn close(self) {
        drop(self.planned_end);
        self.commit_thread.stop();
        self.lag_monitor.stop();
        drop(self.consumer);
    }
}

/// How long a worker may finish its current batch before its partition is released. This is below
/// the group's session timeout of 10 s; librdkafka sends heartbeats meanwhile.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(8);

/// The librdkafka context of the group member.
pub struct GroupMember {
    pub workers: Arc<Workers>,
    pub committer: Arc<OffsetCommitter>,
    pub rebootstrap: Arc<Rebootstrap>,
}

impl GroupMember {
    fn revoke(&self, consumer: &BaseConsumer<Self>, revoked: &[TopicPartition]) {
        if consumer.assignment_lost() {
            tracing::warn!(partitions = revoked.len(), "partitions lost");
            return self.workers.abort(revoked);
        }
        let finished = self.workers.stop(revoked, REVOKE_TIMEOUT);
        if let Err((_, error)) = self.committer.commit(consumer, || finished) {
            tracing::warn!(error = %error, "commit of revoked partitions failed");
        }
        tracing::info!(partitions = revoked.len(), "partitions revoked");
    }
}

impl ClientContext for GroupMember {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        ::kafka::log_line(facility, message);
        if let Some((topic, partition, position)) = parse_offset_reset(facility, message) {
            self.workers.set_position_reset(topic, partition, position);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", error = %error, reason, "client error");
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.rebootstrap.on_statistics(statistics);
    }
}

impl ConsumerContext for GroupMember {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => {
                tracing::info!(partitions = list.count(), "partitions assigned");
                self.workers.start(topic_partitions(list));
            }
            Rebalance::Revoke(list) => self.revoke(consumer, &topic_partitions(list)),
            Rebalance::Error(error) => {
                tracing::warn!(error = %error, "rebalance failed");
                self.workers.abort(&self.workers.assigned());
            }
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        // A partition that was paused when it was revoked would otherwise return paused.
        if let Rebalance::Assign(list) = rebalance
            && let Err(error) = consumer.resume(list)
        {
            tracing::warn!(error = %error, "assigned partitions could not be resumed");
        }
    }
}

/// The partition and position of an `Offset out of range` reset. librdkafka reports it only in its
/// log: `[thrd:main]: t [0]: offset reset (at offset 5 (leader epoch 0), broker 1) to …:
/// Broker: Offset out of range`.
fn parse_offset_reset<'a>(facility: &str, message: &'a str) -> Option<(&'a str, i32, i64)> {
    if facility != "OFFSET" {
        return None;
    }
    let (topic_partition, rest) = message.split_once(": offset reset (at offset ")?;
    let (topic, partition) = topic_partition.rsplit_once(' ')?;
    let topic = topic.rsplit_once(' ').map_or(topic, |(_thread, topic)| topic);
    let partition = partition.strip_prefix('[')?.strip_suffix(']')?.parse().ok()?;
    let position = rest.split([' ', ',', ')']).next()?.parse().ok()?;
    rest.contains("out of range").then_some((topic, partition, position))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_out_of_range_position_counts_as_a_reset() {
        let line = "[thrd:main]: a.b-c [12]: offset reset (at offset 5 (leader epoch 0), broker 1) \
                to cached BEGINNING offset offset 9 (leader epoch -1): fetch failed due to requested offset \
                not available on the broker: Broker: Offset out of range";
        assert_eq!(parse_offset_reset("OFFSET", line), Some(("a.b-c", 12, 5)));
        assert_eq!(parse_offset_reset("FETCH", line), None);
        let other = "[thrd:main]: t [0]: offset reset (at offset INVALID (leader epoch -1), broker -1) to \
                 offset BEGINNING (leader epoch -1): no previously committed offset: Local: No offset stored";
        assert_eq!(parse_offset_reset("OFFSET", other), None);
    }
}
