//! The state that handlers and middleware receive: handles to the parts of the producer. `app`
//! builds it.

use std::ops::Deref;
use std::sync::{Arc, Mutex};

use events::{Rules, Source};
use service::lock::lock;
use service::tasks::Supervisor;
use tokio::sync::Semaphore;

use crate::adsbdb::client::AdsbdbClient;
use crate::clock::Clock;
use crate::config::Config;
use crate::http::permits::Permits;
use crate::kafka::publisher::Publisher;
use crate::metrics::Metrics;
use crate::poll_jobs::registry::JobRegistry;
use crate::shutdown::Shutdown;
use crate::traces::Traces;

/// The state of one producer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AppState(Arc<Parts>);

/// The parts of the producer.
#[derive(Debug)]
pub struct Parts {
    pub config: Config,
    /// The rules that events must follow beside the general ones.
    pub rules: Rules,
    pub kafka: Publisher,
    /// Assigns `ingested_at`.
    pub clock: Clock,
    pub adsbdb: AdsbdbClient,
    /// The source of ADSBDB events.
    pub adsbdb_source: Source,
    pub jobs: JobRegistry,
    /// Permits of MAX_IN_FLIGHT.
    pub in_flight: Permits,
    /// Bytes that the results of all batch requests may use.
    pub batch_memory: Arc<Semaphore>,
    /// Bytes that all zstd decoders may use.
    pub zstd_memory: Arc<Semaphore>,
    pub metrics: Arc<Metrics>,
    pub traces: Traces,
    pub shutdown: Shutdown,
    /// The long-lived tasks, for `/livez`.
    pub tasks: Supervisor,
    /// The last error that no client caused, for `/health`.
    pub last_error: Mutex<Option<String>>,
}

impl AppState {
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl Deref for AppState {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Parts {
    /// Sets the last error that no client caused.
    pub fn set_last_error(&self, detail: &str) {
        *lock(&self.last_error) = Some(detail.to_owned());
    }

    /// The last error that no client caused.
    pub fn last_error(&self) -> Option<String> {
        lock(&self.last_error).clone()
    }
}
