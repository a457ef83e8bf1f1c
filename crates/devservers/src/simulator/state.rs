//! The state of the simulator, which its endpoints and its owner share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::fault::{Fault, Plan};
use super::sample::Sample;

#[derive(Debug)]
pub(super) struct State {
    pub sample: Sample,
    plan: Mutex<Plan>,
    pub requests: AtomicU64,
    pub stop: CancellationToken,
}

impl State {
    pub(super) fn new(sample: Sample) -> State {
        let (requests, stop) = (AtomicU64::new(0), CancellationToken::new());
        State { sample, plan: Mutex::default(), requests, stop }
    }

    pub(super) fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the request and waits for its latency, unless the simulator stops.
    pub(super) async fn next_fault(&self) -> Option<Fault> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let (fault, mut latency) = {
            let mut plan = self.plan();
            (plan.next(), plan.latency)
        };
        if let Some(Fault::Slow(more)) = fault {
            latency += more;
        }
        if !latency.is_zero() {
            self.stop.run_until_cancelled(tokio::time::sleep(latency)).await;
        }
        fault
    }
}
