//! `slipstream dead-letters replay`: sends what could not be stored to the topic that it came from, once more.
//!
//! A dead letter counts as replayed once Kafka acknowledged its record on every in-sync replica, and only then is that
//! committed; a run that ends at any moment goes on where it was, and at worst sends again what it could not commit, which
//! changes nothing that is stored. What is left out for whatever reason is not committed past: a later run meets it again.

mod judge;
mod member;
mod partition;
mod replayed;
mod report;
mod run;
mod sender;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::process::ExitCode;

use rdkafka::Message;
use tokio_util::sync::CancellationToken;

use super::filter::Filter;
use super::options::ReplayOptions;
use super::{Deployment, now_ms};
use crate::dead_letter::DeadLetter;
use crate::stdout;
use judge::{Judge, Verdict};
use kafka::BoxError;
use kafka::cluster::Cluster;
use kafka::topic_reader::{CONTINUE, TopicReader};
use member::Member;
pub use partition::Partition;
use report::{End, Report};
use run::Run;
use sender::Sender;

/// Replays what `options` mean, as `group`. The exit code is 0 unless Kafka refused one, or no more could be kept.
pub async fn replay(
    options: ReplayOptions,
    group: String,
    deployment: Deployment,
) -> Result<ExitCode, BoxError> {
    let stop = service::signals::stop_token()?;
    let Deployment { config, letters, topics, .. } = deployment;
    let judge = Judge {
        filter: Filter::new(options.filters, now_ms()?),
        max_replays: options.max_replays,
        topics: config.topics.clone(),
        existing: topics,
    };
    let report = Report::new(options.dry_run, options.json, &group);
    // The group is that of the replays: the cluster is asked about it.
    let config = consumer::Config { group_id: group, ..config };
    let replay = Replay {
        cluster: Cluster::new(
            &config.kafka_broker,
            &config.properties,
            "slipstream-check",
            &config.group_id,
        )?,
        config,
        judge,
        left: options.limit.unwrap_or(u64::MAX),
        report,
    };
    let (report, outcome) =
        if options.dry_run { replay.dry(letters).await } else { replay.send(letters, &stop).await };
    let text = if report.json { report.to_json().to_string() } else { report.to_string() };
    stdout::write_line(text)?;
    outcome?;
    Ok(if report.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Replay {
    config: consumer::Config,
    cluster: Cluster,
    judge: Judge,
    report: Report,
    left: u64,
}

type Outcome = (Report, Result<(), BoxError>);

impl Replay {
    async fn send(mut self, letters: BTreeMap<String, Vec<i32>>, stop: &CancellationToken) -> Outcome {
        let mut outcome = Ok(());
        // A topic after the other: where one ends, the client library tells by the partition alone.
        for (topic, ids) in letters {
            if outcome.is_ok() && self.report.end == End::Everything {
                outcome = self.topic(&topic, ids, stop).await;
            }
        }
        if outcome.is_err() {
            self.report.end = End::Failure;
        }
        (self.report, outcome)
    }

    async fn topic(&mut self, topic: &str, ids: Vec<i32>, stop: &CancellationToken) -> Result<(), BoxError> {
        let group = self.config.group_id.clone();
        let join = async {
            member::alone(&self.cluster, &group).await?;
            Member::join(&self.config, &group, topic, ids.len()).await
        };
        let mut member = tokio::select! {
            member = join => member?,
            () = stop.cancelled() => {
                self.report.end = End::Signal;
                return Ok(());
            }
        };
        let outcome = match self.partitions(topic, ids).await {
            Ok(partitions) => {
                let sender = Sender::new(&self.config)?;
                let counts = (&mut self.report, &mut self.left);
                Run::new(&self.judge, &sender, counts, partitions).run(&mut member, stop).await
            }
            Err(why) => Err(why),
        };
        member.leave().await;
        outcome
    }

    async fn partitions(&self, topic: &str, ids: Vec<i32>) -> Result<BTreeMap<i32, Partition>, BoxError> {
        let positions = self.cluster.positions(topic, ids).await?;
        Ok(positions.iter().map(|position| (position.partition, Partition::new(position))).collect())
    }

    /// Joins no group, sends nothing, commits nothing.
    async fn dry(mut self, letters: BTreeMap<String, Vec<i32>>) -> Outcome {
        for (topic, ids) in letters {
            if self.report.end != End::Everything {
                break;
            }
            let partitions = match self.partitions(&topic, ids).await {
                Ok(partitions) => partitions,
                Err(why) => return self.failed(why),
            };
            let scan =
                TopicReader::new(&self.config.kafka_broker, &self.config.properties, "slipstream-replay");
            let read = move || {
                let read = self.look(&scan, &topic, partitions);
                (self, read)
            };
            let read = match tokio::task::spawn_blocking(read).await {
                Ok(read) => read,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            };
            self = read.0;
            if let Err(why) = read.1 {
                return self.failed(why);
            }
        }
        (self.report, Ok(()))
    }

    fn failed(mut self, why: BoxError) -> Outcome {
        self.report.end = End::Failure;
        (self.report, Err(why))
    }

    fn look(
        &mut self,
        scan: &TopicReader,
        topic: &str,
        mut partitions: BTreeMap<i32, Partition>,
    ) -> Result<(), BoxError> {
        let open = partitions.iter().filter(|(_, partition)| partition.reads());
        let starts: Vec<(i32, i64)> = open.map(|(id, partition)| (*id, partition.next())).collect();
        scan.read_from(topic, starts, |message| {
            let Some(partition) = partitions.get_mut(&message.partition()) else { return CONTINUE };
            if !partition.meets(message.offset()) {
                return CONTINUE;
            }
            let letter = DeadLetter::of(message);
            match self.judge.judge(&letter) {
                Verdict::Send(_) if !partition.has_room_for(message.offset()) => {
                    partition.close();
                    self.report.full(&letter.position);
                }
                Verdict::Send(target) => {
                    partition.sent(message.offset());
                    self.report.would_send(&letter, &target)?;
                    self.left -= 1;
                }
                verdict => self.report.leave(&letter, &verdict),
            }
            if self.left > 0 {
                return CONTINUE;
            }
            self.report.end = End::Limit;
            Ok(ControlFlow::Break(()))
        })
    }
}
