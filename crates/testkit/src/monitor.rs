//! Polls the health of processes four times per second and keeps what they reported. Memory is read
//! from `/proc`, also of a process that does not respond.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::{Process, http};

const INTERVAL: Duration = Duration::from_millis(250);
/// A process that is paused must not delay the polls of the others.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);

/// The monitor. It ends when it is dropped.
#[derive(Debug)]
pub struct Monitor {
    observed: Arc<Mutex<Observed>>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Observed {
    processes: Vec<MonitoredProcess>,
    max_memory_bytes: u64,
    /// Each cause and wait reason that a process reported in `/health`, with the name of the
    /// binary.
    reasons: BTreeSet<(&'static str, String)>,
    /// Events with an unknown outcome.
    unknown: Vec<UnknownOutcomes>,
}

#[derive(Debug, Clone)]
struct MonitoredProcess {
    name: &'static str,
    pid: u32,
    health: String,
    last: Option<(Instant, u64)>,
}

/// Events with a 504 response, between two polls.
#[derive(Debug, Clone, Copy)]
pub struct UnknownOutcomes {
    /// The last poll that did not count them.
    pub after: Instant,
    /// The first poll that counted them.
    pub before: Instant,
    /// The number of events.
    pub events: u64,
}

impl Monitor {
    /// Starts a monitor without processes.
    pub fn start() -> Self {
        let observed = Arc::new(Mutex::new(Observed::default()));
        let polled = Arc::clone(&observed);
        let task = tokio::spawn(async move {
            let mut tick = tokio::time::interval(INTERVAL);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                let processes = lock(&polled).processes.clone();
                join_all(processes.iter().map(|process| poll(&polled, process))).await;
            }
        });
        Self { observed, task }
    }

    /// Polls this process too, until it ends.
    pub fn add(&self, name: &'static str, process: &Process) {
        let monitored =
            MonitoredProcess { name, pid: process.pid(), health: process.url("/health"), last: None };
        lock(&self.observed).processes.push(monitored);
    }

    /// The largest resident memory of any process.
    pub fn max_memory_bytes(&self) -> u64 {
        lock(&self.observed).max_memory_bytes
    }

    /// Each cause and wait reason that a process reported, with the name of the binary.
    pub fn reasons(&self) -> BTreeSet<(&'static str, String)> {
        lock(&self.observed).reasons.clone()
    }

    /// Forgets the reasons reported so far.
    pub fn clear_reasons(&self) {
        lock(&self.observed).reasons.clear();
    }

    /// Panics if a process reported that a server is unavailable or rejects it.
    pub fn assert_no_server_reported(&self) {
        for (name, reason) in self.reasons() {
            let blamed = ["does not answer", "refuses"].iter().any(|text| reason.contains(text));
            assert!(!blamed, "{name} reported {reason:?}");
        }
    }

    /// The events with an unknown outcome.
    pub fn unknown_outcomes(&self) -> Vec<UnknownOutcomes> {
        lock(&self.observed).unknown.clone()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn poll(observed: &Mutex<Observed>, monitored: &MonitoredProcess) {
    let resident = devservers::resident_bytes(monitored.pid);
    let response = tokio::time::timeout(HEALTH_TIMEOUT, http::get(&monitored.health)).await;
    let mut observed = lock(observed);
    let Ok(resident) = resident else {
        return observed.processes.retain(|other| other.pid != monitored.pid);
    };
    observed.max_memory_bytes = observed.max_memory_bytes.max(resident);
    let Ok(Ok(response)) = response else { return };
    observed.reasons.extend(reasons(&response.body).map(|reason| (monitored.name, reason)));
    // Only a producer has this counter.
    let Some(unconfirmed) = response.body["counters"]["unconfirmed"].as_u64() else { return };
    let now = Instant::now();
    let process = observed.processes.iter_mut().find(|other| other.pid == monitored.pid);
    let last = process.and_then(|process| process.last.replace((now, unconfirmed)));
    let (after, known) = last.unwrap_or((now, 0));
    if unconfirmed > known {
        observed.unknown.push(UnknownOutcomes { after, before: now, events: unconfirmed - known });
    }
}

/// The cause that a producer reports and the wait reasons of a consumer.
fn reasons(health: &Value) -> impl Iterator<Item = String> {
    let waiting = health["waiting_for"].as_array().into_iter().flatten();
    health["cause"].as_str().into_iter().chain(waiting.filter_map(Value::as_str)).map(str::to_owned)
}

fn lock(observed: &Mutex<Observed>) -> MutexGuard<'_, Observed> {
    observed.lock().unwrap_or_else(PoisonError::into_inner)
}
