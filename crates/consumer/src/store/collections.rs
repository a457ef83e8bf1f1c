//! The collections that were written to: each is ready once its indexes are there. Lanes that need the same collection
//! wait for one creation; others are not held up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use events::Source;
use service::backoff::Backoff;
use service::lock::lock;

use super::habit::Habit;
use super::outcome::Trouble;

/// Indexes can be dropped while we run, by one who starts over; then they are made again before more is written.
const CHECKED_FOR: Duration = Duration::from_secs(5);

/// Building an index reads the whole collection: not more often than this while it cannot be built.
const BUILD_BACKOFF_MAX: Duration = Duration::from_secs(30);

/// An attempt that runs out of time gets twice as much the next time, up to this.
const BUILD_DEADLINE_MAX: Duration = Duration::from_secs(3600);

/// Every collection, by its source.
#[derive(Debug, Default)]
pub(super) struct Collections {
    by_source: Mutex<BTreeMap<Source, Arc<Collection>>>,
}

impl Collections {
    pub(super) fn of(&self, source: &Source) -> Arc<Collection> {
        let mut by_source = lock(&self.by_source);
        if let Some(collection) = by_source.get(source) {
            return Arc::clone(collection);
        }
        Arc::clone(by_source.entry(source.clone()).or_default())
    }

    /// Why collections take no writes at all.
    pub(super) fn blocked(&self) -> Vec<String> {
        let by_source = lock(&self.by_source);
        by_source.values().filter_map(|collection| collection.checked().blocked.clone()).collect()
    }
}

/// What is known of one collection.
#[derive(Debug, Default)]
pub(super) struct Collection {
    checked: Mutex<Checked>,
    gate: tokio::sync::Mutex<Gate>,
    lookups_given_up: AtomicBool,
    collapses: AtomicBool,
    written: AtomicU64,
    /// Which command goes first.
    pub(super) habit: Habit,
}

#[derive(Debug, Default)]
struct Checked {
    at: Option<Instant>,
    blocked: Option<String>,
}

/// Held by the one attempt that is under way.
#[derive(Debug)]
struct Gate {
    backoff: Backoff,
    doublings: u32,
    failed: Option<(Instant, Unprepared)>,
    not_before: Option<Instant>,
}

impl Default for Gate {
    fn default() -> Self {
        let backoff = Backoff::new(Duration::from_secs(1), BUILD_BACKOFF_MAX);
        Self { backoff, doublings: 0, failed: None, not_before: None }
    }
}

/// Why a collection is not ready.
#[derive(Debug, Clone)]
pub(super) enum Unprepared {
    /// The server was in trouble: try again with the batch.
    Trouble(Trouble),
    /// An operator has to put the collection right: what is wrong, and how to see it.
    Blocked(String),
}

impl From<Unprepared> for Trouble {
    fn from(unprepared: Unprepared) -> Self {
        match unprepared {
            Unprepared::Trouble(trouble) => trouble,
            Unprepared::Blocked(reason) => Self::new(reason),
        }
    }
}

impl Collection {
    /// Has `attempt`, which gets its deadline, make the indexes unless they were seen lately.
    pub(super) async fn prepare<F>(
        &self,
        deadline: Duration,
        attempt: impl FnOnce(Duration) -> F,
    ) -> Result<(), Trouble>
    where
        F: Future<Output = Result<(), Unprepared>>,
    {
        let asked = Instant::now();
        if self.is_checked(asked) {
            return Ok(());
        }
        let mut gate = self.gate.lock().await;
        let now = Instant::now();
        if self.is_checked(now) {
            return Ok(());
        }
        if let Some((at, why)) = &gate.failed
            && (*at > asked || gate.not_before.is_some_and(|not_before| now < not_before))
        {
            return Err(why.clone().into());
        }
        let build_deadline = deadline.saturating_mul(1 << gate.doublings.min(16)).min(BUILD_DEADLINE_MAX);
        match attempt(build_deadline.max(deadline)).await {
            Ok(()) => {
                *gate = Gate::default();
                *self.checked() = Checked { at: Some(Instant::now()), blocked: None };
                Ok(())
            }
            Err(why) => {
                self.keep(&mut gate, &why);
                Err(why.into())
            }
        }
    }

    fn keep(&self, gate: &mut Gate, why: &Unprepared) {
        gate.failed = Some((Instant::now(), why.clone()));
        match why {
            Unprepared::Trouble(trouble) => {
                gate.not_before = None;
                gate.doublings = if trouble.timed_out { gate.doublings + 1 } else { 0 };
            }
            Unprepared::Blocked(reason) => {
                if self.checked().blocked.replace(reason.clone()).is_none() {
                    tracing::error!(reason, "a collection takes no writes");
                }
                gate.not_before = Some(Instant::now() + gate.backoff.next_delay());
            }
        }
    }

    fn is_checked(&self, now: Instant) -> bool {
        self.checked().at.is_some_and(|at| now.saturating_duration_since(at) < CHECKED_FOR)
    }

    fn checked(&self) -> std::sync::MutexGuard<'_, Checked> {
        lock(&self.checked)
    }

    /// A look-up index that cannot be built is tried once, as each attempt reads the whole collection.
    pub(super) fn wants_lookups(&self) -> bool {
        !self.lookups_given_up.load(Ordering::Relaxed)
    }

    pub(super) fn give_lookups_up(&self) {
        self.lookups_given_up.store(true, Ordering::Relaxed);
    }

    /// Whether one statement may stand for several events of a key: the server has no rule of its own by which it
    /// would refuse one of them and take another.
    pub(super) fn collapses(&self) -> bool {
        self.collapses.load(Ordering::Relaxed)
    }

    pub(super) fn has_rules(&self, rules: bool) {
        self.collapses.store(!rules, Ordering::Relaxed);
    }

    /// Adds to the events that were written, and tells how many that makes.
    pub(super) fn wrote(&self, events: u64) -> u64 {
        self.written.fetch_add(events, Ordering::Relaxed) + events
    }
}
