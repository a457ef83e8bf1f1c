//! The state of the producer for `/readyz`, `/health` and `/metrics`.

use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use service::health::HealthSource;

use crate::state::AppState;

impl HealthSource for AppState {
    fn alive(&self) -> Result<(), String> {
        self.tasks.alive()
    }

    fn ready(&self) -> Result<(), String> {
        if self.shutdown.has_begun() {
            return Err("the producer is shutting down".into());
        }
        self.kafka.ready()
    }

    /// The fields are those of the original system. `cause` is present while the status is
    /// `degraded`.
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
            "last_error": self.last_error(),
        });
        if let (Some(cause), Some(health)) = (cause, health.as_object_mut()) {
            health.insert("cause".into(), cause.into());
        }
        health
    }

    /// Updates the gauges that are read on request, and returns all metrics.
    fn registry(&self) -> &Registry {
        let metrics = &self.metrics;
        metrics.kafka_up.set(i64::from(self.kafka.ready().is_ok()));
        metrics.kafka_queue_records.set(self.kafka.queued_records());
        metrics.poll_jobs.set(i64::try_from(self.jobs.running_count()).unwrap_or(i64::MAX));
        &metrics.registry
    }
}
