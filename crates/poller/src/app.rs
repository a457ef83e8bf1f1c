//! The poller as an application: [`App::build`] binds and wires, [`App::run_until`] runs.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use serde_json::json;
use service::health::{self, HealthSource, Listener};
use service::tasks::Supervisor;
use tokio_util::sync::CancellationToken;

use crate::client::{ClientError, ProducerClient};
use crate::config::Config;
use crate::metrics::{CallCounts, Metrics};
use crate::poll_loop::{PollLoop, Schedule};

/// Time that the listener has at shutdown to respond to its current requests.
const LISTENER_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// A reason why the poller cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be bound.
    #[error(transparent)]
    Listener(#[from] std::io::Error),
    /// The HTTP client cannot be created.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// A poller that is ready to run.
#[derive(Debug)]
pub struct App {
    listener: Listener,
    producer: ProducerClient,
    metrics: Metrics,
    /// One for each source.
    schedules: Vec<(String, Schedule)>,
}

impl App {
    /// Binds the listener. Sends nothing yet.
    ///
    /// # Errors
    /// The address is in use, or the producer's URL is https and the system has no certificates.
    pub async fn build(config: Config) -> Result<Self, Error> {
        if config.is_adsbdb_unlisted {
            tracing::warn!(
                "adsbdb is polled and is not in SOURCES_FILE: its events are dead letters unless \
                 EXPECTED_SOURCE of the consumer names it; set POLL_SOURCES"
            );
        }
        Ok(Self {
            producer: ProducerClient::new(&config)?,
            listener: Listener::bind(config.listen_addr).await?,
            metrics: Metrics::new(config.sources.iter().map(|source| source.name.clone())),
            schedules: config
                .sources
                .into_iter()
                .map(|source| (source.name, Schedule::new(source.interval, config.duration)))
                .collect(),
        })
    }

    /// The bound address, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// The metrics. The clone stays current during and after the run.
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// Polls until all schedules end or `stop` is cancelled. Returns within 10 s of `stop`.
    ///
    /// The exit code is 1 if calls failed and none succeeded, or if a task failed. A stop before
    /// the first response is a clean end.
    pub async fn run_until(self, stop: CancellationToken) -> ExitCode {
        self.run_with(stop, |_| ()).await
    }

    /// As [`App::run_until`], with the tasks that `start_tasks` starts. Tests use it to end a task
    /// on purpose.
    pub async fn run_with(self, stop: CancellationToken, start_tasks: impl FnOnce(&Supervisor)) -> ExitCode {
        let Self { listener, producer, metrics, schedules } = self;
        tracing::info!(address = %listener.address(), "listening");
        let supervisor = Supervisor::new(&stop);
        let health = Health { metrics: metrics.clone(), supervisor: supervisor.clone() };
        // The listener runs until the last call has ended, so it has a token of its own.
        let stop_listener = CancellationToken::new();
        let serve = listener.serve(health::routes(Arc::new(health)), stop_listener.clone());
        let listener = supervisor.spawn("health listener", serve);
        let planned_end = supervisor.stop_token().clone();
        let poll_loop = PollLoop { producer, metrics: metrics.clone(), stop: planned_end.clone() };
        let polling = supervisor.spawn("poll loop", async move {
            if schedules.is_empty() {
                tracing::warn!("no source to poll: SOURCES_FILE has no pull source");
                planned_end.cancelled().await;
            }
            poll_loop.run(schedules).await;
            planned_end.cancel();
        });
        start_tasks(&supervisor);
        _ = polling.await;
        let stopped = stop.is_cancelled();
        for (source, counts, _) in metrics.sources() {
            let CallCounts { sent, failed, abandoned, skipped } = counts;
            tracing::info!(source, sent, failed, abandoned, skipped, stopped, "polling ended");
        }
        let CallCounts { sent, failed, .. } = metrics.counts();
        stop_listener.cancel();
        _ = tokio::time::timeout(LISTENER_SHUTDOWN_TIMEOUT, listener).await;
        let none_succeeded = failed > 0 && sent == 0;
        supervisor.exit_code(if none_succeeded { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// State that the health listener reads.
#[derive(Debug)]
struct Health {
    metrics: Metrics,
    supervisor: Supervisor,
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
        let source = |(name, counts, failure)| {
            let CallCounts { sent, failed, abandoned, skipped } = counts;
            let counters =
                json!({"sent": sent, "failed": failed, "abandoned": abandoned, "skipped": skipped});
            let failure: Option<String> = failure;
            (name, json!({"counters": counters, "cause": failure}))
        };
        let sources: serde_json::Map<String, serde_json::Value> =
            self.metrics.sources().into_iter().map(source).collect();
        json!({
            "status": if failure.is_none() { "ok" } else { "degraded" },
            "cause": failure,
            "uptime_seconds": self.metrics.uptime().as_secs(),
            "counters": {"sent": sent, "failed": failed, "abandoned": abandoned, "skipped": skipped},
            "last_error": self.metrics.last_error(),
            "sources": sources,
        })
    }

    fn registry(&self) -> &Registry {
        self.metrics.registry()
    }
}
