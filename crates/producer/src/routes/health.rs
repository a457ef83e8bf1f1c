//! What the producer says of itself.

use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use service::health::HealthSource;

use crate::app::Producer;

impl HealthSource for Producer {
    fn ready(&self) -> Result<(), String> {
        if self.stopping.has_begun() {
            return Err("the producer is stopping".into());
        }
        self.kafka.ready()
    }

    /// The original's shape; `cause` is there while the status is `degraded`.
    fn health(&self) -> Value {
        let cause = self.ready().err();
        let counters = &self.metrics.counters;
        let mut health = json!({
            "status": if cause.is_none() { "ok" } else { "degraded" },
            "topic": self.config.topic.name,
            "api_version": self.config.api_version,
            "uptime_seconds": self.metrics.uptime().as_secs(),
            "accepted_last_min": self.metrics.accepted_last_minute(),
            "counters": {
                "accepted": counters.accepted(),
                "rejected": counters.rejected(),
                "unconfirmed": counters.unconfirmed(),
                "poll_jobs": self.jobs.running_count(),
                "kafka_queue_records": self.kafka.queued_records(),
            },
            "last_error": self.last_failure(),
        });
        if let (Some(cause), Some(health)) = (cause, health.as_object_mut()) {
            health.insert("cause".into(), cause.into());
        }
        health
    }

    fn registry(&self) -> &Registry {
        let metrics = &self.metrics;
        metrics.kafka_up.set(i64::from(self.kafka.ready().is_ok()));
        metrics.kafka_queue_records.set(self.kafka.queued_records());
        metrics.poll_jobs.set(i64::try_from(self.jobs.running_count()).unwrap_or(i64::MAX));
        &metrics.registry
    }
}
