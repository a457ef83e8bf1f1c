//! Source of the health, readiness and metrics responses.

use prometheus_client::registry::Registry;
use serde_json::json;
use service::health::HealthSource;
use service::tasks::Supervisor;

use crate::metrics::{CallCounts, Metrics};

/// State that the health listener reads.
#[derive(Debug)]
pub struct Health {
    /// Counts, and the state of the producer.
    pub metrics: Metrics,
    /// State of the tasks.
    pub supervisor: Supervisor,
}

impl HealthSource for Health {
    fn alive(&self) -> Result<(), String> {
        self.supervisor.alive()
    }

    fn ready(&self) -> Result<(), String> {
        self.metrics.producer_failure().map_or(Ok(()), |failure| Err(format!("producer: {failure}")))
    }

    fn health(&self) -> serde_json::Value {
        let CallCounts { sent, failed, abandoned, skipped } = self.metrics.counts();
        let failure = self.metrics.producer_failure();
        json!({
            "status": if failure.is_none() { "ok" } else { "degraded" },
            "cause": failure,
            "uptime_seconds": self.metrics.uptime().as_secs(),
            "counters": {"sent": sent, "failed": failed, "abandoned": abandoned, "skipped": skipped},
            "last_error": self.metrics.last_error(),
        })
    }

    fn registry(&self) -> &Registry {
        self.metrics.registry()
    }
}
