//! Stopping, as requests see it: those that were there before it began are finished, later ones are refused, and
//! what is still unfinished at the end is told to give up.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The state of stopping.
#[derive(Debug, Clone, Default)]
pub struct Stopping {
    begun: CancellationToken,
    given_up: CancellationToken,
    work: TaskTracker,
}

/// Whether a request came before stopping began. It counts as unfinished while this lives.
#[derive(Debug, Clone)]
pub struct Admission(Option<TaskTrackerToken>);

impl Admission {
    /// Whether the request may put something into the topic.
    pub fn granted(&self) -> bool {
        self.0.is_some()
    }
}

impl Stopping {
    /// Admits a request unless stopping has begun.
    pub fn admit(&self) -> Admission {
        // The token comes first: whoever sees no stop yet is certainly waited for.
        let token = self.work.token();
        Admission((!self.has_begun()).then_some(token))
    }

    /// Whether stopping has begun.
    pub fn has_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// From now on nothing is admitted.
    pub fn begin(&self) {
        self.begun.cancel();
        self.work.close();
    }

    /// Waits until everything that was admitted is finished.
    pub async fn finished(&self) {
        self.work.wait().await;
    }

    /// Tells what is unfinished to give up.
    pub fn give_up(&self) {
        self.given_up.cancel();
    }

    /// Whether [`Stopping::give_up`] was called.
    pub fn has_given_up(&self) -> bool {
        self.given_up.is_cancelled()
    }

    /// A token that [`Stopping::give_up`] cancels.
    pub fn give_up_token(&self) -> CancellationToken {
        self.given_up.clone()
    }

    /// Waits for [`Stopping::give_up`].
    pub async fn given_up(&self) {
        self.given_up.cancelled().await;
    }

    /// A token that is cancelled when stopping begins.
    pub fn begun(&self) -> CancellationToken {
        self.begun.clone()
    }
}
