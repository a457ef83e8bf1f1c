//! A run over one dead-letter topic: reads, sends, and commits acknowledged records, every second
//! and at the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::Message;
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::decision::{Decision, ReplayRules};
use super::membership::Membership;
use super::partition_progress::PartitionProgress;
use super::report::{EndReason, Report};
use super::sender::{SendOutcome, Sender};
use crate::dead_letters::dead_letter::DeadLetter;
use kafka::BoxError;
use kafka::requests::REQUEST_TIMEOUT;
use kafka::topic_reader::{RecordPosition, is_transient};

/// Maximum number and size of the records in flight, to bound memory.
const MAX_IN_FLIGHT: usize = 500;
const MAX_IN_FLIGHT_BYTES: usize = 16 << 20;
/// Period of commits.
const COMMIT_PERIOD: Duration = Duration::from_secs(1);

/// A sent record and its outcome.
struct SentRecord {
    position: RecordPosition,
    bytes: usize,
    outcome: SendOutcome,
}

/// The state of a run over a topic.
pub struct Run<'a> {
    /// The rules of the replay.
    pub rules: &'a ReplayRules,
    /// Sends the records.
    pub sender: &'a Sender,
    /// The report.
    pub report: &'a mut Report,
    /// Number of records that may still be sent.
    pub left: &'a mut u64,
    partitions: BTreeMap<i32, PartitionProgress>,
    in_flight: JoinSet<SentRecord>,
    bytes: usize,
    last_progress: Instant,
    failure: Option<BoxError>,
}

impl<'a> Run<'a> {
    /// A run over these partitions.
    pub fn new(
        rules: &'a ReplayRules,
        sender: &'a Sender,
        (report, left): (&'a mut Report, &'a mut u64),
        partitions: BTreeMap<i32, PartitionProgress>,
    ) -> Self {
        Self {
            rules,
            sender,
            report,
            left,
            partitions,
            in_flight: JoinSet::new(),
            bytes: 0,
            last_progress: Instant::now(),
            failure: None,
        }
    }

    /// Runs to the end that the topic had at the start, to the limit, or until `stop`. Acknowledged
    /// records are committed at the end.
    ///
    /// # Errors
    /// Kafka is unavailable, or another member joined the group.
    pub async fn run(
        &mut self,
        membership: &mut Membership,
        stop: &CancellationToken,
    ) -> Result<(), BoxError> {
        let consumer = Arc::clone(&membership.consumer);
        let broker = membership.broker.clone();
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        let mut last_commit = Instant::now();
        while self.is_reading() || !self.in_flight.is_empty() {
            tokio::select! {
                biased;
                () = stop.cancelled(), if self.is_reading() => self.close(EndReason::Signal),
                why = membership.ended(), if self.failure.is_none() => self.fail(why),
                Some(sent) = self.in_flight.join_next() => self.apply_outcome(sent),
                record = consumer.recv(), if self.is_reading() && self.has_room() => self.handle_read(record),
                _ = tick.tick() => self.check_timeout(&broker),
            }
            if last_commit.elapsed() > COMMIT_PERIOD {
                if let Err(why) = self.commit(membership).await {
                    self.fail(why);
                }
                last_commit = Instant::now();
            }
        }
        let committed = self.commit(membership).await;
        match self.failure.take() {
            Some(why) => Err(why),
            None => committed,
        }
    }

    fn is_reading(&self) -> bool {
        self.partitions.values().any(PartitionProgress::is_open)
    }

    fn has_room(&self) -> bool {
        self.in_flight.len() < MAX_IN_FLIGHT && self.bytes < MAX_IN_FLIGHT_BYTES
    }

    /// Ends the read; records in flight are waited for.
    fn close(&mut self, end: EndReason) {
        self.partitions.values_mut().for_each(PartitionProgress::close);
        self.report.end = end;
    }

    fn fail(&mut self, why: BoxError) {
        self.close(EndReason::Failure);
        self.failure.get_or_insert(why);
    }

    fn handle_read(&mut self, record: Result<BorrowedMessage<'_>, KafkaError>) {
        match record {
            Ok(message) => {
                self.last_progress = Instant::now();
                self.handle_dead_letter(&message);
            }
            Err(KafkaError::PartitionEOF(partition)) => {
                self.last_progress = Instant::now();
                self.partitions.get_mut(&partition).into_iter().for_each(PartitionProgress::reach_end);
            }
            Err(error) if is_transient(&error) => {}
            Err(error) => self.fail(error.into()),
        }
    }

    fn handle_dead_letter(&mut self, message: &BorrowedMessage<'_>) {
        let Some(partition) = self.partitions.get_mut(&message.partition()) else { return };
        if !partition.advance(message.offset()) {
            return;
        }
        let dead_letter = DeadLetter::of(message);
        let target = match self.rules.decide(&dead_letter) {
            Decision::Send(target) => target,
            decision => return self.report.leave_out(&dead_letter, &decision),
        };
        if !partition.has_room_for(message.offset()) {
            partition.close();
            return self.report.full(&dead_letter.position);
        }
        partition.mark_sent(message.offset());
        let bytes = message.key_len() + message.payload_len();
        let (send, position) = (self.sender.send(message, target), dead_letter.position);
        self.in_flight.spawn(async move { SentRecord { position, bytes, outcome: send.await } });
        self.bytes += bytes;
        *self.left -= 1;
        if *self.left == 0 {
            self.close(EndReason::Limit);
        }
    }

    fn apply_outcome(&mut self, sent: Result<SentRecord, JoinError>) {
        self.last_progress = Instant::now();
        let SentRecord { position, bytes, outcome } = match sent {
            Ok(sent) => sent,
            Err(error) => return self.fail(error.into()),
        };
        self.bytes -= bytes;
        match outcome {
            SendOutcome::Acknowledged => {
                self.report.replayed += 1;
                if let Some(partition) = self.partitions.get_mut(&position.partition) {
                    partition.mark_acknowledged(position.offset);
                }
            }
            SendOutcome::Rejected(why) => self.report.reject(&position, &why),
            SendOutcome::Unknown(error) => {
                self.fail(format!("the replay of {position} was not acknowledged: {error}").into());
            }
        }
    }

    fn check_timeout(&mut self, broker: &str) {
        if self.is_reading() && self.in_flight.is_empty() && self.last_progress.elapsed() > REQUEST_TIMEOUT {
            let why = format!("kafka does not answer at {broker} (KAFKA_BROKER)");
            self.fail(format!("the dead letters cannot be read to their end: {why}").into());
        }
    }

    async fn commit(&mut self, membership: &Membership) -> Result<(), BoxError> {
        let changed = self.partitions.iter_mut();
        let changed: Vec<_> =
            changed.filter_map(|(id, partition)| Some((*id, partition.take_changed()?))).collect();
        if changed.is_empty() { Ok(()) } else { membership.commit(changed).await }
    }
}
