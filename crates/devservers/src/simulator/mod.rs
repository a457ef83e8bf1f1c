//! A simulator of ADSBDB: its two aircraft endpoints in the real format, with a sample of 1,000
//! real aircraft, and each fault of the real service on demand.

mod connection;
mod fault;
mod routes;
mod sample;
mod state;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub use fault::Fault;
use tokio::net::TcpListener;

use self::connection::{Connections, Cut};
use self::sample::Sample;
use self::state::State;
use crate::ServerError;

/// A running simulator. It stops when it is dropped.
#[derive(Debug)]
pub struct Simulator {
    address: SocketAddr,
    state: Arc<State>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Simulator {
    /// Listens on the address. Port 0 is a free port.
    pub async fn start(address: SocketAddr) -> Result<Simulator, ServerError> {
        let listening = |error| ServerError::io("listening on", Path::new(&address.to_string()))(error);
        let listener = TcpListener::bind(address).await.map_err(listening)?;
        let address = listener.local_addr().map_err(listening)?;
        let sample =
            Sample::load().map_err(ServerError::io("reading the sample of", Path::new("aircraft")))?;
        let state = Arc::new(State::new(sample));
        let service = routes::router(Arc::clone(&state)).into_make_service_with_connect_info::<Cut>();
        let stopped = state.stop.clone().cancelled_owned();
        let serve = axum::serve(Connections::from(listener), service).with_graceful_shutdown(stopped);
        Ok(Simulator { address, state, task: tokio::spawn(async move { serve.await }) })
    }

    /// The value for ADSBDB_BASE_URL.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The number of requests for an aircraft.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::Relaxed)
    }

    /// Sets the fault of all following responses; `None` ends it.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.state.plan().set(fault, None);
    }

    /// Sets the fault of the next `requests` responses.
    pub fn set_fault_for(&self, requests: u64, fault: Fault) {
        self.state.plan().set(Some(fault), Some(requests));
    }

    /// Sets the latency of all following responses.
    pub fn set_latency(&self, latency: Duration) {
        self.state.plan().latency = latency;
    }

    /// Sends the pending responses at once and stops listening.
    pub async fn stop(mut self) {
        self.state.stop.cancel();
        match (&mut self.task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "simulator failed"),
            Err(error) => tracing::warn!(%error, "simulator failed"),
        }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.state.stop.cancel();
    }
}
