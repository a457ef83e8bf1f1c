//! The producer's parts, wired, and its life: build, run, stop within 10 s.

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use events::{Rules, Source};
use service::health::Listener;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use crate::adsbdb::client::AdsbdbClient;
use crate::batch::results;
use crate::clock::Clock;
use crate::config::Config;
use crate::http::body;
use crate::http::permits::Places;
use crate::http::server::{self as serving, Shared};
use crate::http::timeouts::Limits;
use crate::kafka::publisher::Publisher;
use crate::metrics::{Counters, Metrics};
use crate::poll_jobs::registry::JobRegistry;
use crate::routes::Front;
use crate::shutdown::Stopping;
use crate::traces::Traces;
use service::lock::lock;

/// How long requests in flight may take when stopping.
const FINISH_LIMIT: Duration = Duration::from_secs(8);
/// How long those that were given up may take to answer.
const GIVE_UP_LIMIT: Duration = Duration::from_millis(500);
/// How long connections may take to close.
const CLOSE_LIMIT: Duration = Duration::from_millis(300);

/// How long the last traces may take to be exported.
const EXPORT_LIMIT: Duration = Duration::from_millis(500);

/// Why the producer cannot start.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The address is in use or not this machine's.
    #[error(transparent)]
    Listen(#[from] std::io::Error),
    /// librdkafka refuses its configuration.
    #[error("the kafka client cannot be made: {0}")]
    Kafka(String),
    /// The HTTP client cannot be made.
    #[error("the client of ADSBDB cannot be made: {0}")]
    Adsbdb(String),
    /// The exporter of traces cannot be made.
    #[error("the exporter of traces cannot be made: {0}")]
    Traces(String),
}

/// Why the producer ended by itself.
#[derive(Debug, Error)]
pub enum RunError {
    /// The listener ended; it does not, unless there is a fault in it.
    #[error("the listener ended: {0}")]
    Listener(String),
}

/// What every request needs: a handle, cheap to clone.
#[derive(Debug, Clone)]
pub struct Producer(Arc<Parts>);

/// The parts.
#[derive(Debug)]
pub struct Parts {
    /// The configuration.
    pub config: Config,
    /// What bodies are judged by.
    pub rules: Rules,
    /// The connection to the cluster.
    pub kafka: Publisher,
    /// Stamps events.
    pub clock: Clock,
    /// The client of ADSBDB.
    pub adsbdb: AdsbdbClient,
    /// The source of its events.
    pub adsbdb_source: Source,
    /// Poll jobs.
    pub jobs: JobRegistry,
    /// Places of requests that bring events.
    pub in_flight: Places,
    /// What the results of batches may take.
    pub journals: Arc<Semaphore>,
    /// What decompressing zstd bodies may take.
    pub zstd_room: Arc<Semaphore>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// A span for each request.
    pub traces: Traces,
    /// Whether the end is near.
    pub stopping: Stopping,
    last_failure: Mutex<Option<String>>,
}

impl Deref for Producer {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Parts {
    /// Keeps the last failure that was not the client's fault, for `/health`.
    pub fn note_failure(&self, failure: &str) {
        *lock(&self.last_failure) = Some(failure.to_owned());
    }

    /// The last one.
    pub fn last_failure(&self) -> Option<String> {
        lock(&self.last_failure).clone()
    }
}

/// The producer, bound to its address.
#[derive(Debug)]
pub struct App {
    listener: Listener,
    producer: Producer,
    _upkeep: DropGuard,
}

impl App {
    /// Binds the address and wires the parts. No server need be up.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub async fn build(config: Config) -> Result<Self, BuildError> {
        let listener = Listener::bind(config.listen_addr).await?;
        let upkeep = CancellationToken::new();
        let metrics = Arc::new(Metrics::new());
        let parts = Parts {
            rules: Rules { accept_sources: config.accept_sources.clone() },
            kafka: Publisher::connect(&config, &upkeep).map_err(BuildError::Kafka)?,
            clock: Clock::default(),
            adsbdb: AdsbdbClient::new(&config, Arc::clone(&metrics)).map_err(BuildError::Adsbdb)?,
            adsbdb_source: Source::new("adsbdb").map_err(BuildError::Adsbdb)?,
            jobs: JobRegistry::new(config.max_poll_jobs),
            in_flight: Places::new(config.entrance.max_in_flight, metrics.serving.in_flight.clone()),
            journals: results::memory_permits(),
            zstd_room: body::zstd_room(),
            metrics,
            traces: Traces::new(config.traces.as_ref()).map_err(BuildError::Traces)?,
            stopping: Stopping::default(),
            last_failure: Mutex::default(),
            config,
        };
        Ok(Self { listener, producer: Producer(Arc::new(parts)), _upkeep: upkeep.drop_guard() })
    }

    /// The address that HTTP is served on.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Its parts.
    #[cfg(test)]
    pub(crate) fn producer(&self) -> &Producer {
        &self.producer
    }

    /// What it serves.
    #[cfg(test)]
    pub(crate) fn front(&self) -> Front {
        Front::new(self.producer.clone())
    }

    /// What was counted; stays readable after the end.
    pub fn counters(&self) -> Counters {
        self.producer.metrics.counters.clone()
    }

    /// Runs until `stop`; then refuses what is new, finishes what is in flight, and ends within 10 s.
    ///
    /// # Errors
    /// The listener ended by itself.
    pub async fn run_until(self, stop: CancellationToken) -> Result<(), RunError> {
        let (producer, close) = (self.producer, CancellationToken::new());
        tracing::info!(address = %self.listener.address(), topic = producer.config.topic.name, "listening");
        let serving = serve(self.listener, &producer, close.clone());
        let mut server = AbortOnDropHandle::new(tokio::spawn(serving));
        let tls = producer.config.entrance.tls.clone();
        let _renewal = tls.map(|tls| AbortOnDropHandle::new(tokio::spawn(tls.follow_files())));
        tokio::select! {
            ended = &mut server => {
                let why = ended.err().map_or_else(|| "without an error".into(), |error| error.to_string());
                return Err(RunError::Listener(why));
            }
            () = stop.cancelled() => {}
        }
        finish(&producer).await;
        close.cancel();
        if tokio::time::timeout(CLOSE_LIMIT, &mut server).await.is_err() {
            tracing::debug!("connections were still open at the end");
        }
        let closing = tokio::time::timeout(CLOSE_LIMIT, producer.kafka.close());
        _ = tokio::join!(closing, producer.traces.close(EXPORT_LIMIT));
        Ok(())
    }
}

/// Answers on `listener` until `close`.
fn serve(
    listener: Listener,
    producer: &Producer,
    close: CancellationToken,
) -> impl Future<Output = ()> + use<> {
    let config = &producer.config;
    let shared = Shared {
        front: Front::new(producer.clone()),
        limits: Limits { request: config.request_timeout, idle: config.entrance.idle_timeout },
        tls: config.entrance.tls.clone(),
        stopping: producer.stopping.clone(),
        close,
        counts: producer.metrics.serving.clone(),
    };
    serving::serve(listener.into_socket(), config.entrance.max_connections, shared)
}

/// Lets requests in flight end; what is left at the limit is told to give up, and answers the truth about it.
async fn finish(producer: &Producer) {
    let stopping = &producer.stopping;
    stopping.begin();
    if tokio::time::timeout(FINISH_LIMIT, stopping.finished()).await.is_ok() {
        return;
    }
    tracing::warn!(records = producer.kafka.queued_records(), "giving up requests that are still unfinished");
    stopping.give_up();
    let give_up = async {
        producer.kafka.purge().await;
        stopping.finished().await;
    };
    _ = tokio::time::timeout(GIVE_UP_LIMIT, give_up).await;
}
