//! The phases of a shutdown, as requests see them.
//!
//! 1. `begin`: requests that were admitted before are finished; later ones are rejected.
//! 2. `abandon`: requests that are still unfinished return at once with the outcome known so far.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The phase of the shutdown, and the number of unfinished requests. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    begun: CancellationToken,
    abandoned: CancellationToken,
    requests: TaskTracker,
}

/// States whether a request arrived before the shutdown began. The request counts as unfinished
/// until its last admission is dropped.
#[derive(Debug, Clone)]
pub struct Admission(Option<TaskTrackerToken>);

impl Admission {
    /// Whether the request may produce records.
    pub fn granted(&self) -> bool {
        self.0.is_some()
    }
}

impl Shutdown {
    /// Admits a request, unless the shutdown has begun.
    pub fn admit(&self) -> Admission {
        // The token is taken before the check. So a request that is admitted is always waited for.
        let token = self.requests.token();
        Admission((!self.has_begun()).then_some(token))
    }

    pub fn has_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Starts the first phase: no request is admitted any more.
    pub fn begin(&self) {
        self.begun.cancel();
        self.requests.close();
    }

    /// Waits until every admitted request is finished.
    pub async fn requests_finished(&self) {
        self.requests.wait().await;
    }

    /// Starts the second phase: unfinished requests return at once.
    pub fn abandon(&self) {
        self.abandoned.cancel();
    }

    pub fn is_abandoned(&self) -> bool {
        self.abandoned.is_cancelled()
    }

    /// A token that [`Shutdown::abandon`] cancels.
    pub fn abandon_token(&self) -> CancellationToken {
        self.abandoned.clone()
    }

    /// Waits for [`Shutdown::abandon`].
    pub async fn abandoned(&self) {
        self.abandoned.cancelled().await;
    }

    /// A token that [`Shutdown::begin`] cancels.
    pub fn begun_token(&self) -> CancellationToken {
        self.begun.clone()
    }
}
