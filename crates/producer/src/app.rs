//! Builds the producer from its configuration and runs it. The shutdown takes at most 10 s.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use events::{Rules, Source};
use service::health::Listener;
use service::tasks::Supervisor;
use thiserror::Error;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use crate::adsbdb::AdsbdbClient;
use crate::batch::results;
use crate::clock::Clock;
use crate::config::Config;
use crate::http::{body, server};
use crate::kafka::publisher::Publisher;
use crate::metrics::{Counters, Metrics};
use crate::poll_jobs::JobRegistry;
use crate::source_set::SourceSet;
use crate::state::{AppState, Parts, Permits, Shutdown};
use crate::traces::Traces;

/// Time for requests in flight to finish at shutdown.
const FINISH_TIMEOUT: Duration = Duration::from_secs(8);
/// Time for abandoned requests to respond.
const ABANDON_TIMEOUT: Duration = Duration::from_millis(500);
/// Time for connections to close.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(300);
/// Time for the last traces to be exported.
const EXPORT_TIMEOUT: Duration = Duration::from_millis(500);

/// The producer cannot start.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The address is in use, or does not belong to this machine.
    #[error(transparent)]
    Listen(#[from] std::io::Error),
    /// librdkafka rejected its configuration.
    #[error("the kafka client cannot be created: {0}")]
    Kafka(String),
    /// The HTTP client cannot be created.
    #[error("the adsbdb client cannot be created: {0}")]
    Adsbdb(String),
    /// The client of a source of the file cannot be created.
    #[error("a client of the sources file cannot be created: {0}")]
    Sources(String),
    /// The exporter of traces cannot be created.
    #[error("the exporter of traces cannot be created: {0}")]
    Traces(String),
}

/// The producer did not end by plan.
#[derive(Debug, Error)]
pub enum RunError {
    /// A long-lived task ended or panicked, which is a bug. The text names the task.
    #[error("{0}")]
    Task(String),
}

/// A producer that is bound to its address.
#[derive(Debug)]
pub struct App {
    listener: Listener,
    state: AppState,
    /// Announces the end of the background tasks. Fields are dropped in this order.
    _planned_end: DropGuard,
    /// Stops the background tasks of the Kafka clients.
    _background: DropGuard,
}

impl App {
    /// Binds the address and builds the state. No server needs to be available.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub async fn build(config: Config) -> Result<Self, BuildError> {
        let listener = Listener::bind(config.listen_addr).await?;
        // The background tasks outlive the stop, because requests in flight need them.
        let background = CancellationToken::new();
        let tasks = Supervisor::new(&CancellationToken::new());
        let planned_end = tasks.stop_token().clone();
        let metrics = Arc::new(Metrics::new());
        let sources = SourceSet::new(&config, &metrics).map_err(BuildError::Sources)?;
        let state = Arc::new(Parts {
            rules: Rules { accept_sources: config.accept_sources.clone() },
            kafka: Publisher::connect(&config, &tasks, &background).map_err(BuildError::Kafka)?,
            clock: Clock::default(),
            adsbdb: AdsbdbClient::new(&config, Arc::clone(&metrics)).map_err(BuildError::Adsbdb)?,
            adsbdb_source: Source::new("adsbdb").map_err(BuildError::Adsbdb)?,
            jobs: JobRegistry::new(config.max_poll_jobs),
            in_flight: Permits::new(config.http.max_in_flight, metrics.connections.in_flight.clone()),
            batch_memory: results::memory_permits(),
            zstd_memory: body::zstd_memory(),
            traces: Traces::new(config.traces.as_ref()).map_err(BuildError::Traces)?,
            shutdown: Shutdown::default(),
            sources,
            metrics,
            tasks,
            last_error: Mutex::default(),
            config,
        });
        let (_planned_end, _background) = (planned_end.drop_guard(), background.drop_guard());
        Ok(Self { listener, state, _planned_end, _background })
    }

    /// The address of the HTTP server, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    #[cfg(test)]
    pub(crate) fn state(&self) -> &AppState {
        &self.state
    }

    #[cfg(test)]
    pub(crate) fn dispatcher(&self) -> crate::routes::Dispatcher {
        crate::routes::Dispatcher::new(self.state.clone())
    }

    /// The totals, which stay readable after the end.
    pub fn counters(&self) -> Counters {
        self.state.metrics.counters.clone()
    }

    /// Runs until `stop`, or until a task fails. Then it rejects new requests, finishes those in
    /// flight and ends within 10 s.
    ///
    /// # Errors
    /// A task failed.
    pub async fn run_until(self, stop: CancellationToken) -> Result<(), RunError> {
        let (state, close) = (self.state, CancellationToken::new());
        tracing::info!(address = %self.listener.address(), topic = state.config.topic.name, "listening");
        let serving = server::serve(self.listener.into_socket(), state.clone(), close.clone());
        let (tasks, stop_tasks) = (state.tasks.clone(), state.tasks.stop_token());
        let mut server = AbortOnDropHandle::new(tasks.spawn("http listener", serving));
        let tls = state.config.http.tls.clone();
        let _reload =
            tls.map(|tls| AbortOnDropHandle::new(tasks.spawn("certificate reload", tls.reload_on_change())));
        tokio::select! { () = stop.cancelled() => stop_tasks.cancel(), () = stop_tasks.cancelled() => {} }
        finish_requests(&state).await;
        close.cancel();
        if tokio::time::timeout(CLOSE_TIMEOUT, &mut server).await.is_err() {
            tracing::debug!("connections aborted at shutdown");
        }
        let closing = tokio::time::timeout(CLOSE_TIMEOUT, state.kafka.close());
        _ = tokio::join!(closing, state.traces.close(EXPORT_TIMEOUT));
        tasks.alive().map_err(RunError::Task)
    }
}

/// Waits for the requests in flight. After the timeout the rest is abandoned: each request responds
/// with the outcome that is known so far.
async fn finish_requests(state: &AppState) {
    let shutdown = &state.shutdown;
    shutdown.begin();
    if tokio::time::timeout(FINISH_TIMEOUT, shutdown.requests_finished()).await.is_ok() {
        return;
    }
    tracing::warn!(records = state.kafka.queued_records(), "unfinished requests abandoned at shutdown");
    shutdown.abandoned.cancel();
    let abandon = async {
        state.kafka.purge().await;
        shutdown.requests_finished().await;
    };
    _ = tokio::time::timeout(ABANDON_TIMEOUT, abandon).await;
}

#[cfg(test)]
mod tests {
    use testkit::failed_task::{LogLines, failed_livez, livez};

    use super::*;

    async fn app() -> App {
        App::build(Config::without_kafka(&[])).await.unwrap()
    }

    async fn ended(run: impl Future<Output = Result<(), RunError>>) -> Result<(), RunError> {
        tokio::time::timeout(Duration::from_secs(10), run).await.expect("the app ends within 10 s")
    }

    #[tokio::test]
    async fn a_task_that_ends_early_shuts_the_producer_down_with_an_error() {
        let lines = LogLines::default();
        let _guard = lines.collect();
        let (app, stop) = (app().await, CancellationToken::new());
        let (address, state) = (app.address(), app.state().clone());
        let request = state.shutdown.admit();
        let run = tokio::spawn(app.run_until(stop.clone()));
        assert!(livez(address).await.starts_with("HTTP/1.1 200"));

        state.tasks.spawn("extra task", async {});
        // A request is in flight, so the listener still responds during the shutdown.
        let livez = failed_livez(address).await;
        assert!(livez.starts_with("HTTP/1.1 503"), "{livez}");
        assert!(livez.contains("extra task") && livez.contains("ended before the stop signal"), "{livez}");
        state.shutdown.begun.cancelled().await;
        assert!(!run.is_finished(), "the request in flight is finished first");

        drop(request);
        let error = ended(async { run.await.unwrap() }).await.unwrap_err();
        assert_eq!(error.to_string(), "task \"extra task\" ended before the stop signal");
        assert!(!stop.is_cancelled(), "the producer stops without the stop signal");
        let errors = lines.errors();
        assert!(errors.len() == 1 && errors[0].contains("\"task\":\"extra task\""), "{errors:?}");
    }

    #[tokio::test]
    async fn a_task_that_panics_shuts_the_producer_down_with_an_error() {
        let app = app().await;
        app.state().tasks.spawn("extra task", async {
            let healthy = false;
            assert!(healthy, "on purpose");
        });
        let error = ended(app.run_until(CancellationToken::new())).await.unwrap_err();
        assert_eq!(error.to_string(), "task \"extra task\" panicked: on purpose");
    }

    #[tokio::test]
    async fn the_end_of_a_kafka_task_shuts_the_producer_down_with_an_error() {
        let mut app = app().await;
        // Stops the background tasks although the producer is not stopping.
        app._background = CancellationToken::new().drop_guard();
        let error = ended(app.run_until(CancellationToken::new())).await.unwrap_err().to_string();
        let names = ["\"kafka client supervision\"", "\"topic maintenance\""];
        assert!(names.iter().any(|name| error.contains(name)), "{error}");
    }

    #[tokio::test]
    async fn a_stopped_producer_and_one_that_never_ran_log_no_failed_task() {
        let lines = LogLines::default();
        let _guard = lines.collect();
        let (app, never_run, stop) = (app().await, app().await, CancellationToken::new());
        let tasks = never_run.state().tasks.clone();
        drop(never_run);
        stop.cancel();
        ended(app.run_until(stop)).await.unwrap();
        // The topic check of the other producer ends after its current request.
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!((tasks.alive(), lines.errors()), (Ok(()), vec![]));
    }
}
