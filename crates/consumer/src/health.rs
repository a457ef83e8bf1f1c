//! What the consumer says of itself: whether it can work now, and in words what it waits for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka::topics::KafkaReadiness;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use service::health::HealthSource;
use tokio::sync::watch;

use crate::metrics::Counters;
use crate::mongo::StoreState;
use crate::partition::progress::Waits;
use crate::partition::view::View;
use crate::partition::worker::Work;
use crate::partition::workers::Lanes;

/// What health is told from.
pub struct Health {
    /// Metrics of this application.
    pub registry: Registry,
    /// The lanes' tools.
    pub work: Arc<Work>,
    /// The lanes.
    pub lanes: Arc<Lanes>,
    /// Counters.
    pub counters: Counters,
    /// Whether Kafka answers.
    pub kafka: watch::Receiver<KafkaReadiness>,
    /// Members of the group that are no Slipstream consumers, in words.
    pub strangers: watch::Receiver<Option<String>>,
    /// Whether MongoDB answers.
    pub store: watch::Receiver<StoreState>,
    /// Topics, group and database, for people.
    pub names: Value,
    /// When it started.
    pub started: Instant,
    /// A lane that finishes nothing for this long, while records wait, needs a person.
    pub stuck_after: Duration,
}

impl Health {
    /// Everything that keeps records from being finished, in words.
    fn obstacles(&self) -> Vec<String> {
        let mut obstacles = Vec::new();
        obstacles.extend(self.kafka.borrow().ready().err());
        obstacles.extend(store_ready(&self.store.borrow()).err());
        obstacles.extend(self.work.store.blocked());
        for lane in self.lanes.list() {
            if let Some(Waits::ForDeadLetter(reason)) = lane.progress.waits() {
                obstacles.push(reason);
            }
            obstacles.extend(stuck(&lane, Instant::now(), self.stuck_after));
        }
        obstacles
    }

    /// Strangers in the group do not end the readiness: no restart of this process makes them leave.
    fn is_well(&self) -> bool {
        self.obstacles().is_empty() && self.strangers.borrow().is_none()
    }

    /// The same, and what is no obstacle by itself.
    fn waiting_for(&self) -> Vec<String> {
        let mut waiting = self.obstacles();
        waiting.extend(self.strangers.borrow().clone());
        let lanes = self.lanes.list();
        if waiting.is_empty() && lanes.is_empty() {
            waiting.push("the group has not assigned a partition to this member".into());
        }
        for lane in lanes {
            if let Some(Waits::ForStore(reason)) = lane.progress.waits() {
                waiting.push(format!("{}/{}: {reason}", lane.progress.topic, lane.progress.partition));
            }
        }
        waiting
    }
}

impl HealthSource for Health {
    fn alive(&self) -> Result<(), String> {
        self.lanes.broken().map_or(Ok(()), |why| Err(why.to_owned()))
    }

    fn ready(&self) -> Result<(), String> {
        let obstacles = self.obstacles();
        if obstacles.is_empty() { Ok(()) } else { Err(obstacles.join("; ")) }
    }

    fn health(&self) -> Value {
        let mut lanes: Vec<View> = self.lanes.list();
        lanes.sort_by_key(|lane| (Arc::clone(&lane.progress.topic), lane.progress.partition));
        let counters = self.counters.snapshot();
        let error = self.lanes.last_error();
        let mut body = json!({
            "status": if self.is_well() { "ok" } else { "degraded" },
            "waiting_for": self.waiting_for(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "counters": counters,
            "lag": counters.lag,
            "assignment": lanes.iter().map(lane_body).collect::<Vec<_>>(),
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
        self.work.metrics.look(&self.lanes, store_up, kafka_up);
        &self.registry
    }
}

fn store_ready(state: &StoreState) -> Result<(), String> {
    match state {
        StoreState::Ready => Ok(()),
        StoreState::Unknown => Err("mongodb has not been asked yet".into()),
        StoreState::Unavailable(why) => Err(format!("mongodb does not answer: {why}")),
        StoreState::Unusable(why) => Err(format!("mongodb refuses: {why}")),
    }
}

/// That the lane needs a person, and why, if it does.
fn stuck(lane: &View, now: Instant, stuck_after: Duration) -> Option<String> {
    let still = lane.still_for(now).filter(|&still| still >= stuck_after)?;
    let waits = lane.progress.waits();
    let why = waits.as_ref().map_or("the reason is not known", Waits::reason);
    Some(format!(
        "{}/{} has finished nothing for {} s while records wait: {why}",
        lane.progress.topic,
        lane.progress.partition,
        still.as_secs()
    ))
}

fn lane_body(lane: &View) -> Value {
    let progress = &lane.progress;
    json!({
        "topic": &*progress.topic,
        "partition": progress.partition,
        "position": progress.position(),
        "lag": progress.lag(),
        "committed_lag": progress.committed_lag(),
        "in_hand": progress.in_hand(),
        "queued": lane.inbox.len(),
        "waits_for": progress.waits().map(|waits| waits.reason().to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;
    use crate::partition::offsets::Finished;
    use crate::partition::progress::Progress;

    const STUCK: Duration = Duration::from_secs(300);

    #[test]
    fn a_lane_that_stands_still_for_five_minutes_while_records_wait_is_told_with_its_reason() {
        let progress = Arc::new(Progress::new("t".into(), 3, Finished::default(), Counter::default()));
        let lane = View { progress, inbox: Arc::default() };
        let later = Instant::now() + STUCK + Duration::from_secs(1);
        assert_eq!(stuck(&lane, later, STUCK), None, "an idle lane is not stuck");
        let first = lane.progress.begin([7].into_iter());
        lane.progress.waits_for(Some(Waits::ForStore("no primary".into())));
        assert_eq!(stuck(&lane, Instant::now(), STUCK), None);
        let told = stuck(&lane, later, STUCK).unwrap();
        assert!(told.starts_with("t/3 ") && told.ends_with("no primary"), "{told}");
        lane.progress.finish([first].into_iter());
        assert_eq!(stuck(&lane, later, STUCK), None);
    }
}
