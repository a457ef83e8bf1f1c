//! Looks at processes four times a second, and tells afterwards what was seen. A process that does not answer is
//! looked at by the kernel only.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::{Process, http};

const EVERY: Duration = Duration::from_millis(250);
/// A process that stands still must not hold up the looks at the others.
const PATIENCE: Duration = Duration::from_secs(1);

/// The watch. It ends when it is dropped.
#[derive(Debug)]
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Seen {
    processes: Vec<Watched>,
    most_bytes: u64,
    /// What each kind of process ever named as its trouble.
    troubles: BTreeSet<(&'static str, String)>,
    /// Between which two looks the outcome of events became unknown, and of how many.
    unknown: Vec<Unknown>,
}

#[derive(Debug, Clone)]
struct Watched {
    kind: &'static str,
    pid: u32,
    health: String,
    last: Option<(Instant, u64)>,
}

/// Events answered with 504.
#[derive(Debug, Clone, Copy)]
pub struct Unknown {
    /// The last look before.
    pub after: Instant,
    /// The first look that counted them.
    pub before: Instant,
    /// How many.
    pub events: u64,
}

impl Watch {
    /// Looks at nothing yet.
    pub fn start() -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let looks = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut tick = tokio::time::interval(EVERY);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                let processes = lock(&looks).processes.clone();
                join_all(processes.iter().map(|watched| look(&looks, watched))).await;
            }
        });
        Self { seen, task }
    }

    /// Looks at this one too, until it is gone.
    pub fn add(&self, kind: &'static str, process: &Process) {
        let watched = Watched { kind, pid: process.pid(), health: process.url("/health"), last: None };
        lock(&self.seen).processes.push(watched);
    }

    /// The most memory that any of them had.
    pub fn most_bytes(&self) -> u64 {
        lock(&self.seen).most_bytes
    }

    /// What each kind of process ever named as its trouble.
    pub fn troubles(&self) -> BTreeSet<(&'static str, String)> {
        lock(&self.seen).troubles.clone()
    }

    /// Forgets what was named so far.
    pub fn forget_troubles(&self) {
        lock(&self.seen).troubles.clear();
    }

    /// Fails if a process ever said of a server that it is away, or that it lets nobody in.
    pub fn blames_no_server(&self) {
        for (kind, trouble) in self.troubles() {
            let blames = ["does not answer", "refuses"].iter().any(|words| trouble.contains(words));
            assert!(!blames, "{kind} said {trouble:?}");
        }
    }

    /// Each time that events were answered with 504.
    pub fn unknown(&self) -> Vec<Unknown> {
        lock(&self.seen).unknown.clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn look(seen: &Mutex<Seen>, watched: &Watched) {
    let resident = devservers::usage::resident_bytes(watched.pid);
    let answer = tokio::time::timeout(PATIENCE, http::get(&watched.health)).await;
    let mut seen = lock(seen);
    let Ok(resident) = resident else {
        return seen.processes.retain(|other| other.pid != watched.pid);
    };
    seen.most_bytes = seen.most_bytes.max(resident);
    let Ok(Ok(answer)) = answer else { return };
    seen.troubles.extend(troubles(&answer.body).map(|trouble| (watched.kind, trouble)));
    // Only a producer has it.
    let Some(unconfirmed) = answer.body["counters"]["unconfirmed"].as_u64() else { return };
    let now = Instant::now();
    let place = seen.processes.iter_mut().find(|other| other.pid == watched.pid);
    let last = place.and_then(|place| place.last.replace((now, unconfirmed)));
    let (after, known) = last.unwrap_or((now, 0));
    if unconfirmed > known {
        seen.unknown.push(Unknown { after, before: now, events: unconfirmed - known });
    }
}

/// What a producer and a consumer name.
fn troubles(health: &Value) -> impl Iterator<Item = String> {
    let waiting = health["waiting_for"].as_array().into_iter().flatten();
    health["cause"].as_str().into_iter().chain(waiting.filter_map(Value::as_str)).map(str::to_owned)
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
