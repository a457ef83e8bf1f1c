//! The client of a source, and what is kept of its fetches.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use events::Source as SourceName;
use sources::HttpApi;
use tokio::sync::Semaphore;

use crate::metrics::Metrics;
use crate::pull::client::PullClient;
use crate::pull::kept::Kept;

/// The client of a source, and what is kept of its fetches.
#[derive(Debug)]
pub struct Puller {
    pub client: PullClient,
    /// One permit: the fetch that runs.
    pub turn: Semaphore,
    pub kept: Mutex<Kept>,
}

impl Puller {
    /// Creates the client.
    ///
    /// # Errors
    /// See [`PullClient::new`].
    pub fn new(
        source: &SourceName,
        api: &HttpApi,
        memory: Arc<Semaphore>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, String> {
        let client = PullClient::new(source.as_str(), api, memory, metrics)?;
        Ok(Self { client, turn: Semaphore::new(1), kept: Mutex::default() })
    }

    /// How long the API allows no request.
    pub fn waits(&self) -> Option<Duration> {
        self.client.waits()
    }
}
