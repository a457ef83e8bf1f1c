//! Builds the producer from its configuration and runs it. The shutdown takes at most 10 s.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use events::{Rules, Source};
use service::health::Listener;
use thiserror::Error;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use crate::adsbdb::client::AdsbdbClient;
use crate::batch::results;
use crate::clock::Clock;
use crate::config::Config;
use crate::http::connection::Shared;
use crate::http::content_coding;
use crate::http::permits::Permits;
use crate::http::server;
use crate::http::timeouts::Timeouts;
use crate::kafka::publisher::Publisher;
use crate::metrics::{Counters, Metrics};
use crate::poll_jobs::registry::JobRegistry;
use crate::routes::Dispatcher;
use crate::shutdown::Shutdown;
use crate::state::{AppState, Parts};
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
    /// The exporter of traces cannot be created.
    #[error("the exporter of traces cannot be created: {0}")]
    Traces(String),
}

/// The producer ended without a stop signal.
#[derive(Debug, Error)]
pub enum RunError {
    /// The task of the listener ended, which is a bug.
    #[error("the listener ended: {0}")]
    Listener(String),
}

/// A producer that is bound to its address.
#[derive(Debug)]
pub struct App {
    listener: Listener,
    state: AppState,
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
        let background = CancellationToken::new();
        let metrics = Arc::new(Metrics::new());
        let state = AppState::new(Parts {
            rules: Rules { accept_sources: config.accept_sources.clone() },
            kafka: Publisher::connect(&config, &background).map_err(BuildError::Kafka)?,
            clock: Clock::default(),
            adsbdb: AdsbdbClient::new(&config, Arc::clone(&metrics)).map_err(BuildError::Adsbdb)?,
            adsbdb_source: Source::new("adsbdb").map_err(BuildError::Adsbdb)?,
            jobs: JobRegistry::new(config.max_poll_jobs),
            in_flight: Permits::new(config.http.max_in_flight, metrics.connections.in_flight.clone()),
            batch_memory: results::memory_permits(),
            zstd_memory: content_coding::zstd_memory(),
            metrics,
            traces: Traces::new(config.traces.as_ref()).map_err(BuildError::Traces)?,
            shutdown: Shutdown::default(),
            last_error: Mutex::default(),
            config,
        });
        Ok(Self { listener, state, _background: background.drop_guard() })
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
    pub(crate) fn dispatcher(&self) -> Dispatcher {
        Dispatcher::new(self.state.clone())
    }

    /// The totals, which stay readable after the end.
    pub fn counters(&self) -> Counters {
        self.state.metrics.counters.clone()
    }

    /// Runs until `stop`. Then it rejects new requests, finishes those in flight and ends within
    /// 10 s.
    ///
    /// # Errors
    /// The listener ended without a stop signal.
    pub async fn run_until(self, stop: CancellationToken) -> Result<(), RunError> {
        let (state, close) = (self.state, CancellationToken::new());
        tracing::info!(address = %self.listener.address(), topic = state.config.topic.name, "listening");
        let serving = serve(self.listener, &state, close.clone());
        let mut server = AbortOnDropHandle::new(tokio::spawn(serving));
        let tls = state.config.http.tls.clone();
        let _reload = tls.map(|tls| AbortOnDropHandle::new(tokio::spawn(tls.reload_on_change())));
        tokio::select! {
            ended = &mut server => {
                let reason = ended.err().map_or_else(|| "without an error".into(), |error| error.to_string());
                return Err(RunError::Listener(reason));
            }
            () = stop.cancelled() => {}
        }
        finish_requests(&state).await;
        close.cancel();
        if tokio::time::timeout(CLOSE_TIMEOUT, &mut server).await.is_err() {
            tracing::debug!("connections aborted at shutdown");
        }
        let closing = tokio::time::timeout(CLOSE_TIMEOUT, state.kafka.close());
        _ = tokio::join!(closing, state.traces.close(EXPORT_TIMEOUT));
        Ok(())
    }
}

/// Serves `listener` until `close`.
fn serve(listener: Listener, state: &AppState, close: CancellationToken) -> impl Future<Output = ()> + use<> {
    let config = &state.config;
    let shared = Shared {
        handler: Dispatcher::new(state.clone()),
        timeouts: Timeouts { request: config.request_timeout, idle: config.http.idle_timeout },
        tls: config.http.tls.clone(),
        shutdown: state.shutdown.clone(),
        close,
        metrics: state.metrics.connections.clone(),
    };
    server::serve(listener.into_socket(), config.http.max_connections, shared)
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
    shutdown.abandon();
    let abandon = async {
        state.kafka.purge().await;
        shutdown.requests_finished().await;
    };
    _ = tokio::time::timeout(ABANDON_TIMEOUT, abandon).await;
}
