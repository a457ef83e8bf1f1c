//! `slipstream dead-letters replay`: sends the records of dead letters to their original topics
//! again, one dead-letter topic after another. A run reads a topic to the end that it had at the
//! start, sends, and commits acknowledged records, every second and at the end.
//!
//! A dead letter counts as replayed after Kafka acknowledged its record on every in-sync replica,
//! and only then its offset is committed. An interrupted run continues where it ended. At worst it
//! sends uncommitted records again, which changes no stored document. No offset is committed past a
//! record that was left out: a later run processes it again.

mod membership;
mod partition_progress;
mod report;
mod sender;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka::BoxError;
use kafka::cluster::Cluster;
use kafka::requests::REQUEST_TIMEOUT;
use kafka::topic_reader::{CONTINUE, RecordPosition, TopicReader, is_transient};
use membership::{Membership, wait_until_empty};
pub use partition_progress::PartitionProgress;
use rdkafka::Message;
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use report::{Decision, EndReason, ReplayRules, Report};
use sender::{SendOutcome, Sender};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::dead_letter::{DeadLetter, Filter};
use super::options::ReplayOptions;
use super::{Deployment, now_ms};
use crate::output;

/// Replays the selected dead letters as `group`. The exit code is 0 unless Kafka rejected a record,
/// or the commit metadata of a partition is full.
pub async fn replay(
    options: ReplayOptions,
    group: String,
    deployment: Deployment,
) -> Result<ExitCode, BoxError> {
    let stop = service::signals::stop_token()?;
    let Deployment { config, dead_letter_topics, topics } = deployment;
    let rules = ReplayRules {
        filter: Filter::new(options.filters, now_ms()?),
        max_replays: options.max_replays,
        topics: config.topics.clone(),
        existing: topics,
    };
    let report = Report::new(options.dry_run, options.json, &group);
    // The group of the replays, not that of the consumer.
    let config = consumer::Config { group_id: group, ..config };
    let group = &config.group_id;
    let cluster = Cluster::new(&config.kafka_broker, &config.properties, "slipstream-check", group)?;
    let left = options.limit.unwrap_or(u64::MAX);
    let replay = Replay { config, cluster, rules, report, left };
    let (report, outcome) = match options.dry_run {
        true => replay.dry_run(dead_letter_topics).await,
        false => replay.send(dead_letter_topics, &stop).await,
    };
    let text = if report.json { report.to_json().to_string() } else { report.to_string() };
    output::write_line(text)?;
    outcome?;
    Ok(if report.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Replay {
    config: consumer::Config,
    cluster: Cluster,
    rules: ReplayRules,
    report: Report,
    /// Number of records that may still be sent.
    left: u64,
}

type Outcome = (Report, Result<(), BoxError>);

impl Replay {
    async fn send(mut self, topics: BTreeMap<String, Vec<i32>>, stop: &CancellationToken) -> Outcome {
        let mut outcome = Ok(());
        // One topic after another: librdkafka's EOF events contain the partition, but not the
        // topic.
        for (topic, partitions) in topics {
            if outcome.is_ok() && self.report.end == EndReason::Everything {
                outcome = self.replay_topic(&topic, partitions, stop).await;
            }
        }
        if outcome.is_err() {
            self.report.end = EndReason::Failure;
        }
        (self.report, outcome)
    }

    async fn replay_topic(
        &mut self,
        topic: &str,
        partitions: Vec<i32>,
        stop: &CancellationToken,
    ) -> Result<(), BoxError> {
        let group = self.config.group_id.clone();
        let join = async {
            wait_until_empty(&self.cluster, &group).await?;
            Membership::join(&self.config, &group, topic, partitions.len()).await
        };
        let mut membership = tokio::select! {
            membership = join => membership?,
            () = stop.cancelled() => {
                self.report.end = EndReason::Signal;
                return Ok(());
            }
        };
        let outcome = match self.progress(topic, partitions).await {
            Ok(progress) => {
                let sender = Sender::new(&self.config)?;
                let counts = (&mut self.report, &mut self.left);
                Run::new(&self.rules, &sender, counts, progress).run(&mut membership, stop).await
            }
            Err(error) => Err(error),
        };
        membership.leave().await;
        outcome
    }

    async fn progress(
        &self,
        topic: &str,
        partitions: Vec<i32>,
    ) -> Result<BTreeMap<i32, PartitionProgress>, BoxError> {
        let positions = self.cluster.positions(topic, partitions).await?;
        let progress = |position| PartitionProgress::new(position);
        Ok(positions.iter().map(|position| (position.partition, progress(position))).collect())
    }

    /// Joins no group, sends nothing and commits nothing.
    async fn dry_run(mut self, topics: BTreeMap<String, Vec<i32>>) -> Outcome {
        for (topic, partitions) in topics {
            if self.report.end != EndReason::Everything {
                break;
            }
            let progress = match self.progress(&topic, partitions).await {
                Ok(progress) => progress,
                Err(error) => return self.failed(error),
            };
            let properties = &self.config.properties;
            let reader = TopicReader::new(&self.config.kafka_broker, properties, "slipstream-replay");
            let read = move || {
                let read = self.dry_run_topic(&reader, &topic, progress);
                (self, read)
            };
            let read = match tokio::task::spawn_blocking(read).await {
                Ok(read) => read,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            };
            self = read.0;
            if let Err(error) = read.1 {
                return self.failed(error);
            }
        }
        (self.report, Ok(()))
    }

    fn failed(mut self, error: BoxError) -> Outcome {
        self.report.end = EndReason::Failure;
        (self.report, Err(error))
    }

    fn dry_run_topic(
        &mut self,
        reader: &TopicReader,
        topic: &str,
        mut progress: BTreeMap<i32, PartitionProgress>,
    ) -> Result<(), BoxError> {
        let open = progress.iter().filter(|(_, partition)| partition.is_open());
        let starts: Vec<(i32, i64)> = open.map(|(id, partition)| (*id, partition.next())).collect();
        reader.read_from(topic, starts, |message| {
            let Some(partition) = progress.get_mut(&message.partition()) else { return CONTINUE };
            if !partition.advance(message.offset()) {
                return CONTINUE;
            }
            let dead_letter = DeadLetter::of(message);
            match self.rules.decide(&dead_letter) {
                Decision::Send(_) if !partition.has_room_for(message.offset()) => {
                    partition.close();
                    self.report.full(&dead_letter.position);
                }
                Decision::Send(target) => {
                    partition.mark_sent(message.offset());
                    self.report.would_send(&dead_letter, &target)?;
                    self.left -= 1;
                }
                decision => self.report.leave_out(&dead_letter, &decision),
            }
            if self.left > 0 {
                return CONTINUE;
            }
            self.report.end = EndReason::Limit;
            Ok(ControlFlow::Break(()))
        })
    }
}

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
