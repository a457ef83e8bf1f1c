//! The collections that were written to. Each is ready once the server confirmed that its unique index is built. Lanes
//! that need the same collection wait for one preparation; others are not held up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use events::Source;
use service::backoff::Backoff;
use service::lock::lock;

use super::error::Fault;
use super::outcome::Trouble;
use super::write_strategy::Habit;

/// Indexes can be dropped while we run, by one who starts over; then they are made again before more is written.
const CHECKED_FOR: Duration = Duration::from_secs(5);

/// An unanswered build is reported after this time. A build of an empty collection is answered sooner.
const BUILD_REPORTED_AFTER: Duration = Duration::from_secs(1);

/// What keeps records waiting is reported for this time after a lane last asked. A lane that waits asks every second.
const REPORTED_FOR: Duration = Duration::from_secs(5);

/// Building an index reads the whole collection: not more often than this while it cannot be built.
const BUILD_BACKOFF_MAX: Duration = Duration::from_secs(30);

/// An attempt that runs out of time gets twice as much the next time, up to this.
const BUILD_DEADLINE_MAX: Duration = Duration::from_secs(3600);

/// The server does not take the name of the database or of the collection.
const INVALID_NAMESPACE: i32 = 73;
/// A database of this name in another case exists.
const DATABASE_DIFFER_CASE: i32 = 13297;
const NOT_SUPPORTED_ON_VIEW: i32 = 166;

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
        let collection = Arc::new(Collection { name: source.to_string(), ..Collection::default() });
        by_source.insert(source.clone(), Arc::clone(&collection));
        collection
    }

    /// Why collections take no writes at all.
    pub(super) fn blocked(&self) -> Vec<String> {
        let now = Instant::now();
        lock(&self.by_source).values().filter_map(|collection| collection.obstacle(now)).collect()
    }
}

/// What is known of one collection.
#[derive(Debug, Default)]
pub(super) struct Collection {
    name: String,
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
    /// When the indexes were last confirmed.
    at: Option<Instant>,
    /// Why they cannot be made.
    blocked: Option<String>,
    /// Why writes are rejected, although the indexes were confirmed.
    writes_rejected: Option<String>,
    /// The index whose build has no answer yet, and since when.
    building: Option<(Instant, String)>,
    /// Lanes that wait for the indexes now.
    waiting: usize,
    /// When a lane last asked for them.
    asked: Option<Instant>,
}

/// Counts a lane as waiting until it is dropped.
struct Waiting<'a>(&'a Collection);

impl<'a> Waiting<'a> {
    fn new(collection: &'a Collection) -> Self {
        collection.checked().waiting += 1;
        Self(collection)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut checked = self.0.checked();
        checked.waiting -= 1;
        checked.asked = Some(Instant::now());
    }
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
    /// An index is being built: its records wait.
    Building(String),
    /// An operator has to put the collection right: what is wrong, and how to see it.
    Blocked(String),
}

impl From<Unprepared> for Trouble {
    fn from(unprepared: Unprepared) -> Self {
        match unprepared {
            Unprepared::Trouble(trouble) => trouble,
            Unprepared::Building(reason) | Unprepared::Blocked(reason) => Self::new(reason),
        }
    }
}

impl Collection {
    /// Has `attempt` make the indexes unless they were confirmed lately. It gets the deadline of a build, and whether
    /// the attempt before succeeded.
    pub(super) async fn prepare<F>(
        &self,
        deadline: Duration,
        attempt: impl FnOnce(Duration, bool) -> F,
    ) -> Result<(), Trouble>
    where
        F: Future<Output = Result<(), Unprepared>>,
    {
        let asked = Instant::now();
        if self.is_checked(asked) {
            return Ok(());
        }
        let _waiting = Waiting::new(self);
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
        let confirmed = {
            let mut checked = self.checked();
            if gate.doublings == 0 {
                // An attempt that was aborted leaves its build behind.
                checked.building = None;
            }
            checked.at.is_some()
        };
        match attempt(build_deadline.max(deadline), confirmed).await {
            Ok(()) => {
                if gate.doublings > 0 {
                    tracing::info!(collection = self.name, "indexes are built");
                }
                *gate = Gate::default();
                let mut checked = self.checked();
                checked.at = Some(Instant::now());
                (checked.blocked, checked.building) = (None, None);
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
        gate.not_before = None;
        let mut checked = self.checked();
        match why {
            Unprepared::Building(reason) => {
                if gate.doublings == 0 {
                    tracing::warn!(reason, "records wait for an index build");
                }
                gate.doublings += 1;
                (checked.at, checked.blocked) = (None, None);
            }
            Unprepared::Trouble(_) => checked.building = None,
            Unprepared::Blocked(reason) => {
                gate.not_before = Some(Instant::now() + gate.backoff.next_delay());
                (checked.at, checked.building) = (None, None);
                if checked.blocked.replace(reason.clone()).is_none() {
                    tracing::error!(reason, "a collection takes no writes");
                }
            }
        }
    }

    /// The build of this index is asked for.
    pub(super) fn builds(&self, index: &str) {
        let mut checked = self.checked();
        if checked.building.as_ref().is_none_or(|(_, building)| building != index) {
            checked.building = Some((Instant::now(), index.to_owned()));
        }
    }

    /// Keeps a rejection by which the server says that it takes no writes to this namespace.
    pub(super) fn heed(&self, code: i32, message: &str) {
        let Some(reason) = namespace_rejection(&self.name, code, message) else { return };
        let mut checked = self.checked();
        (checked.at, checked.asked) = (None, Some(Instant::now()));
        if checked.writes_rejected.replace(reason.clone()).is_none() {
            tracing::error!(reason, "a collection takes no writes");
        }
    }

    /// As [`Collection::heed`], for a call that failed.
    pub(super) fn heed_fault(&self, fault: &Fault) {
        if let Fault::Refused(refusal) = fault {
            self.heed(refusal.code, &refusal.message);
        }
    }

    /// What keeps the records of lanes waiting.
    fn obstacle(&self, now: Instant) -> Option<String> {
        let checked = self.checked();
        let asked_lately =
            checked.asked.is_some_and(|asked| now.saturating_duration_since(asked) < REPORTED_FOR);
        if checked.waiting == 0 && !asked_lately {
            return None;
        }
        let blocked = checked.blocked.as_ref().or(checked.writes_rejected.as_ref()).cloned();
        blocked.or_else(|| {
            let (since, index) = checked.building.as_ref()?;
            let unanswered = now.saturating_duration_since(*since);
            (unanswered >= BUILD_REPORTED_AFTER).then(|| is_being_built(&self.name, index, unanswered))
        })
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
        if events > 0 {
            self.checked().writes_rejected = None;
        }
        self.written.fetch_add(events, Ordering::Relaxed) + events
    }
}

/// That records wait for a build, in words.
pub(super) fn is_being_built(collection: &str, index: &str, unanswered: Duration) -> String {
    format!(
        "collection {collection}: its index {index} is being built, createIndexes is unanswered for {} s; \
         its records wait",
        unanswered.as_secs()
    )
}

/// The reason and the remedy where `code` says that the server takes no writes to this namespace, whatever the record.
pub(super) fn namespace_rejection(collection: &str, code: i32, message: &str) -> Option<String> {
    let cause = match code {
        INVALID_NAMESPACE | DATABASE_DIFFER_CASE => "the server rejects its name",
        NOT_SUPPORTED_ON_VIEW => "it is a view",
        _ => return None,
    };
    Some(cannot_be_written(collection, &format!("{cause} ({message})")))
}

/// The words for a collection that takes no writes because of what it is.
pub(super) fn cannot_be_written(collection: &str, cause: &str) -> String {
    format!(
        "collection {collection}: {cause}; its records wait. Rename or drop it, set another MONGODB_DB, or leave \
         the source out of EXPECTED_SOURCE, which skips its records"
    )
}
