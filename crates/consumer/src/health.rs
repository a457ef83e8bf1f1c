//! Source of the health, readiness and metrics responses.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::kafka::topics::KafkaReadiness;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use service::health::HealthSource;
use service::tasks::Supervisor;
use tokio::sync::watch;

use crate::mongo::StoreState;
use crate::partition::progress::{PartitionView, WaitReason};
use crate::partition::workers::Workers;

/// Maximum number of partitions that a message names.
const MAX_HELD_PARTITIONS: usize = 20;

/// The state from which the responses are made.
pub struct Health {
    pub registry: Registry,
    /// The long-lived tasks.
    pub tasks: Supervisor,
    pub workers: Arc<Workers>,
    pub kafka: watch::Receiver<KafkaReadiness>,
    /// A message about group members that are not Slipstream consumers.
    pub foreign_members: watch::Receiver<Option<String>>,
    pub store: watch::Receiver<StoreState>,
    /// Topics, group and database, for operators.
    pub names: Value,
    /// Whether the message about a blocked collection names the partitions that wait for it.
    pub names_held_partitions: bool,
    pub started: Instant,
    /// A worker that finishes nothing for this long, while records wait, needs an operator.
    pub stuck_after: Duration,
}

impl Health {
    /// Everything that prevents records from being finished.
    fn obstacles(&self) -> Vec<String> {
        let mut obstacles = Vec::new();
        obstacles.extend(self.kafka.borrow().ready().err());
        obstacles.extend(store_ready(&self.store.borrow()).err());
        let blocked = self.workers.context.store.blocked();
        match self.names_held_partitions {
            true => obstacles.extend(blocked.into_iter().map(|reason| self.with_held_partitions(reason))),
            false => obstacles.extend(blocked),
        }
        for partition in self.workers.views() {
            if let Some(WaitReason::DeadLetter(reason)) = partition.progress.wait_reason() {
                obstacles.push(reason);
            }
            obstacles.extend(stuck(&partition, Instant::now(), self.stuck_after));
        }
        obstacles
    }

    /// The reason why a collection is blocked, with the partitions that wait for it. Other sources in
    /// these partitions wait too.
    fn with_held_partitions(&self, reason: String) -> String {
        let is_held = |partition: &PartitionView| matches!(partition.progress.wait_reason(), Some(WaitReason::MongoDb(waits_for)) if waits_for == reason);
        let mut held: Vec<_> = self.workers.views().into_iter().filter(is_held).collect();
        held.sort_by_key(|partition| partition.progress.topic_partition());
        let held: Vec<String> = held
            .iter()
            .map(|PartitionView { progress, .. }| format!("{}/{}", progress.topic, progress.partition))
            .collect();
        match held.len() {
            0 => reason,
            1..=MAX_HELD_PARTITIONS => format!("{reason}; partitions that wait for it: {}", held.join(", ")),
            more => format!(
                "{reason}; partitions that wait for it: {} and {} more",
                held[..MAX_HELD_PARTITIONS].join(", "),
                more - MAX_HELD_PARTITIONS
            ),
        }
    }

    /// Whether `/health` has the status `ok`. Foreign group members degrade it, but do not affect
    /// readiness: a restart of this process does not remove them.
    fn is_ok(&self) -> bool {
        self.obstacles().is_empty() && self.foreign_members.borrow().is_none()
    }

    /// All obstacles, and waits that are normal for a while.
    fn waiting_for(&self) -> Vec<String> {
        let mut waiting = self.obstacles();
        waiting.extend(self.foreign_members.borrow().clone());
        let partitions = self.workers.views();
        if waiting.is_empty() && partitions.is_empty() {
            waiting.push("the group has not assigned a partition to this member".into());
        }
        for PartitionView { progress, .. } in partitions {
            if let Some(WaitReason::MongoDb(reason)) = progress.wait_reason() {
                waiting.push(format!("{}/{}: {reason}", progress.topic, progress.partition));
            }
        }
        waiting
    }
}

impl HealthSource for Health {
    fn alive(&self) -> Result<(), String> {
        self.tasks.alive()
    }

    fn ready(&self) -> Result<(), String> {
        let obstacles = self.obstacles();
        if obstacles.is_empty() { Ok(()) } else { Err(obstacles.join("; ")) }
    }

    fn health(&self) -> Value {
        let mut partitions = self.workers.views();
        partitions.sort_by_key(|partition| partition.progress.topic_partition());
        let counters = self.workers.snapshot();
        let error = self.workers.client_error();
        let mut body = json!({
            "status": if self.is_ok() { "ok" } else { "degraded" },
            "waiting_for": self.waiting_for(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "counters": counters,
            "lag": counters.lag,
            "assignment": partitions.iter().map(partition_body).collect::<Vec<_>>(),
            "last_error": error.map(|(text, age)| json!({"text": text, "seconds_ago": age.as_secs()})),
        });
        if let (Some(body), Some(names)) = (body.as_object_mut(), self.names.as_object()) {
            body.extend(names.clone());
        }
        body
    }

    fn registry(&self) -> &Registry {
        let store_up = *self.store.borrow() == StoreState::Ready;
        let kafka_up = *self.kafka.borrow() == KafkaReadiness::Ready;
        self.workers.context.metrics.update_gauges(&self.workers.views(), store_up, kafka_up);
        &self.registry
    }
}

fn store_ready(state: &StoreState) -> Result<(), String> {
    match state {
        StoreState::Ready => Ok(()),
        StoreState::Unknown => Err("mongodb was not checked yet".into()),
        StoreState::Unavailable(why) => Err(format!("mongodb is unavailable: {why}")),
        StoreState::Unusable(why) => Err(format!("mongodb cannot be used: {why}")),
    }
}

/// The message about a worker that needs an operator, if it has finished nothing for too long.
fn stuck(partition: &PartitionView, now: Instant, stuck_after: Duration) -> Option<String> {
    let stalled = partition.stalled_for(now).filter(|&stalled| stalled >= stuck_after)?;
    let PartitionView { progress, .. } = partition;
    let reason = progress.wait_reason();
    let reason = reason.as_ref().map_or("the reason is unknown", WaitReason::text);
    Some(format!(
        "{}/{} has finished nothing for {} s while records wait: {reason}",
        progress.topic,
        progress.partition,
        stalled.as_secs()
    ))
}

fn partition_body(partition: &PartitionView) -> Value {
    let progress = &partition.progress;
    json!({
        "topic": &*progress.topic,
        "partition": progress.partition,
        "position": progress.position(),
        "lag": progress.lag(),
        "committed_lag": progress.committed_lag(),
        "in_hand": progress.in_batch(),
        "queued": partition.queue.len(),
        "waits_for": progress.wait_reason().map(|reason| reason.text().to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::partition::offsets::FinishedOffsets;
    use crate::partition::progress::Progress;

    const STUCK_AFTER: Duration = Duration::from_secs(300);

    #[test]
    fn worker_without_progress_for_five_minutes_is_reported_with_its_reason() {
        let progress = Progress::new("t".into(), 3, FinishedOffsets::default(), Counter::default());
        let partition = PartitionView {
            progress: Arc::new(progress),
            queue: Arc::default(),
            set_aside: unbounded_channel().0,
        };
        let later = Instant::now() + STUCK_AFTER + Duration::from_secs(1);
        assert_eq!(stuck(&partition, later, STUCK_AFTER), None, "an idle worker is not stuck");
        let first = partition.progress.begin([7].into_iter());
        partition.progress.set_wait_reason(Some(WaitReason::MongoDb("no primary".into())));
        assert_eq!(stuck(&partition, Instant::now(), STUCK_AFTER), None);
        let message = stuck(&partition, later, STUCK_AFTER).unwrap();
        assert!(message.starts_with("t/3 ") && message.ends_with("no primary"), "{message}");
        partition.progress.finish([first].into_iter());
        assert_eq!(stuck(&partition, later, STUCK_AFTER), None);
    }
}
