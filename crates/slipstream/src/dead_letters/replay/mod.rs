//! `slipstream dead-letters replay`: sends the records of dead letters to their original topics
//! again, one dead-letter topic after another. A run reads a topic from the group's offset to the
//! end that it had at the start, sends, and commits, every second and at the end.
//!
//! A dead letter counts as replayed after Kafka acknowledged its record on every in-sync replica.
//! No offset is committed past a record that is not acknowledged, that the filters exclude, or that
//! Kafka rejects. The next run starts there and sends later records once more, which changes no
//! stored document.

mod membership;
mod progress;
mod rules;
mod sender;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka::cluster::Cluster;
use kafka::requests::REQUEST_TIMEOUT;
use kafka::topic_reader::{RecordPosition, is_transient};
use kafka::{BoxError, QuietContext};
use rdkafka::Message;
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::producer::FutureProducer;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::dead_letter::{DeadLetter, Deployment, Filter};
use super::options::ReplayOptions;
use crate::output;
use membership::Membership;
pub use progress::PartitionProgress;
use rules::{Decision, EndReason, ReplayRules, Report};
use sender::SendOutcome;

/// Maximum number and size of the records in flight, to bound memory.
const MAX_IN_FLIGHT: usize = 500;
const MAX_IN_FLIGHT_BYTES: usize = 16 << 20;
/// Period of commits.
const COMMIT_PERIOD: Duration = Duration::from_secs(1);

/// Replays the selected dead letters as `group`. The exit code is 0 unless Kafka rejected a record.
pub async fn replay(
    options: ReplayOptions,
    group: String,
    deployment: Deployment,
) -> Result<ExitCode, BoxError> {
    let stop = service::tasks::stop_token()?;
    let Deployment { config, dead_letter_topics, topics } = deployment;
    let rules = ReplayRules {
        filter: Filter::new(options.filters),
        max_replays: options.max_replays,
        topics: config.topics.clone(),
        existing: topics,
        remembered_since: remembered_since(&config),
    };
    let (dry_run, json) = (options.dry_run, options.json);
    let report = Report::new(dry_run, json, group.clone());
    // The group of the replays, not that of the consumer.
    let config = consumer::Config { group_id: group, ..config };
    let group = &config.group_id;
    let cluster = Cluster::new(&config.kafka_broker, &config.properties, "slipstream-check", group)?;
    let producer = if dry_run { None } else { Some(sender::producer(&config)?) };
    let left = options.limit.unwrap_or(u64::MAX);
    let mut replay = Replay { config, cluster, producer, rules, report, left };
    let mut outcome = Ok(());
    // One topic after another: librdkafka's EOF events contain the partition, but not the topic.
    for (topic, partitions) in dead_letter_topics {
        if outcome.is_ok() && replay.report.end == EndReason::Everything {
            outcome = replay.run_topic(&topic, partitions, &stop).await;
        }
    }
    let mut report = replay.report;
    if outcome.is_err() {
        report.end = EndReason::Failure;
    }
    let text = if json { report.to_json().to_string() } else { report.to_string() };
    output::write_line(text)?;
    outcome?;
    Ok(if report.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The sources with deletes, each with the time from which on they are remembered.
fn remembered_since(config: &consumer::Config) -> BTreeMap<String, i64> {
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let configured = config.expected.configured();
    let stored = configured.into_iter().flat_map(|sources| {
        sources.stored().filter_map(move |source| Some((source, sources.store(source.as_str())?.tombstones?)))
    });
    let since = |kept_for: Duration| now_ms.saturating_sub_unsigned(kept_for.as_millis() as u64);
    stored.map(|(source, kept_for)| (source.to_string(), since(kept_for))).collect()
}

struct Replay {
    config: consumer::Config,
    cluster: Cluster,
    /// Sends the records; a dry run has none.
    producer: Option<FutureProducer<QuietContext>>,
    rules: ReplayRules,
    report: Report,
    /// Number of records that may still be sent.
    left: u64,
}

impl Replay {
    async fn run_topic(
        &mut self,
        topic: &str,
        partitions: Vec<i32>,
        stop: &CancellationToken,
    ) -> Result<(), BoxError> {
        let mut membership = if self.report.dry_run {
            Membership::without_group(&self.config, topic)?
        } else {
            tokio::select! {
                joined = Membership::join(&self.cluster, &self.config, topic, partitions.len()) => joined?,
                () = stop.cancelled() => {
                    self.report.end = EndReason::Signal;
                    return Ok(());
                }
            }
        };
        let outcome = match self.cluster.positions(topic, partitions).await {
            Ok(positions) => {
                let progress = positions.iter().map(|at| (at.partition, PartitionProgress::new(at)));
                Run::new(self, progress.collect()).run(&mut membership, stop).await
            }
            Err(error) => Err(error.into()),
        };
        membership.leave().await;
        outcome
    }
}

/// A sent record and its outcome.
struct SentRecord {
    position: RecordPosition,
    bytes: usize,
    outcome: SendOutcome,
}

/// The state of a run over a topic.
struct Run<'a> {
    replay: &'a mut Replay,
    partitions: BTreeMap<i32, PartitionProgress>,
    in_flight: JoinSet<SentRecord>,
    bytes: usize,
    last_progress: Instant,
    failure: Option<BoxError>,
}

impl<'a> Run<'a> {
    fn new(replay: &'a mut Replay, partitions: BTreeMap<i32, PartitionProgress>) -> Self {
        let (in_flight, last_progress) = (JoinSet::new(), Instant::now());
        Self { replay, partitions, in_flight, bytes: 0, last_progress, failure: None }
    }

    /// Runs to the end that the topic had at the start, to the limit, or until `stop`. Acknowledged
    /// records are committed at the end. A dry run commits nothing.
    async fn run(&mut self, membership: &mut Membership, stop: &CancellationToken) -> Result<(), BoxError> {
        if self.replay.report.dry_run {
            let open = self.partitions.iter().filter(|(_, partition)| partition.is_open());
            membership.assign(open.map(|(id, partition)| (*id, partition.next())))?;
        }
        let consumer = Arc::clone(&membership.consumer);
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        let mut last_commit = Instant::now();
        while self.is_reading() || !self.in_flight.is_empty() {
            tokio::select! {
                biased;
                () = stop.cancelled(), if self.is_reading() => self.close(EndReason::Signal),
                why = membership.ended(), if self.failure.is_none() => self.fail(why),
                Some(sent) = self.in_flight.join_next() => self.apply_outcome(sent),
                record = consumer.recv(), if self.is_reading() && self.has_room() => self.handle_read(record),
                _ = tick.tick() => self.check_timeout(),
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
        self.replay.report.end = end;
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
        let target = match self.replay.rules.decide(&dead_letter) {
            Decision::Send(target) => target,
            decision => {
                if decision.keeps_offset() {
                    partition.keep(message.offset());
                }
                return self.replay.report.leave_out(&dead_letter, &decision);
            }
        };
        match &self.replay.producer {
            Some(producer) => {
                partition.mark_sent(message.offset());
                let bytes = message.key_len() + message.payload_len();
                let (send, position) = (sender::send(producer, message, target), dead_letter.position);
                self.in_flight.spawn(async move { SentRecord { position, bytes, outcome: send.await } });
                self.bytes += bytes;
            }
            None => {
                if let Err(error) = self.replay.report.would_send(&dead_letter, &target) {
                    return self.fail(error.into());
                }
            }
        }
        self.replay.left -= 1;
        if self.replay.left == 0 {
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
        let Some(partition) = self.partitions.get_mut(&position.partition) else { return };
        match outcome {
            SendOutcome::Acknowledged => {
                self.replay.report.replayed += 1;
                partition.mark_acknowledged(position.offset);
            }
            SendOutcome::Rejected(why) => {
                partition.keep(position.offset);
                self.replay.report.reject(&position, &why);
            }
            SendOutcome::Unknown(error) => {
                self.fail(format!("the replay of {position} was not acknowledged: {error}").into());
            }
        }
    }

    fn check_timeout(&mut self) {
        if self.is_reading() && self.in_flight.is_empty() && self.last_progress.elapsed() > REQUEST_TIMEOUT {
            let broker = &self.replay.config.kafka_broker;
            let why = format!("kafka does not answer at {broker} (KAFKA_BROKER)");
            self.fail(format!("the dead letters cannot be read to their end: {why}").into());
        }
    }

    async fn commit(&mut self, membership: &Membership) -> Result<(), BoxError> {
        let changed = self.partitions.iter_mut();
        let changed: Vec<_> =
            changed.filter_map(|(id, partition)| Some((*id, partition.take_changed()?))).collect();
        let is_needed = !self.replay.report.dry_run && !changed.is_empty();
        if is_needed { membership.commit(&changed).await } else { Ok(()) }
    }
}
