//! `slipstream dead-letters replay`: sends the records of dead letters to their original topics
//! again.
//!
//! A dead letter counts as replayed after Kafka acknowledged its record on every in-sync replica,
//! and only then its offset is committed. An interrupted run continues where it ended. At worst it
//! sends uncommitted records again, which changes no stored document. No offset is committed past a
//! record that was left out: a later run processes it again.

mod decision;
mod membership;
mod partition_progress;
mod replayed_offsets;
mod report;
mod run;
mod sender;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::process::ExitCode;

use kafka::BoxError;
use kafka::cluster::Cluster;
use kafka::topic_reader::{CONTINUE, TopicReader};
use rdkafka::Message;
use tokio_util::sync::CancellationToken;

use super::dead_letter::DeadLetter;
use super::deployment::{Deployment, now_ms};
use super::filter::Filter;
use super::options::ReplayOptions;
use crate::output;
use decision::{Decision, ReplayRules};
use membership::{Membership, wait_until_empty};
pub use partition_progress::PartitionProgress;
use report::{EndReason, Report};
use run::Run;
use sender::Sender;

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
