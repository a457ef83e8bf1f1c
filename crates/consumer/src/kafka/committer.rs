//! The committer thread: commits the offsets of finished records twice a second.
//!
//! It runs beside the reader because only a synchronous commit reports its result (rdkafka reports
//! no result of an asynchronous one), and polling must not wait for a commit.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use service::tasks::Supervisor;

use crate::kafka::rebalance::GroupMember;
use crate::partition::workers::Workers;

const COMMIT_INTERVAL: Duration = Duration::from_millis(500);

/// A request for the final commit. The channel carries whether it succeeded.
type FinalCommit = SyncSender<bool>;

/// Handle of the committer thread.
pub struct Committer {
    requests: SyncSender<FinalCommit>,
    thread: JoinHandle<()>,
}

impl Committer {
    /// Starts the thread. `tasks` has to allow its end before [`Committer::stop`].
    ///
    /// # Errors
    /// The thread cannot be created.
    pub fn start(
        tasks: &Supervisor,
        consumer: Arc<BaseConsumer<GroupMember>>,
        workers: Arc<Workers>,
    ) -> std::io::Result<Self> {
        let (requests, received) = sync_channel(1);
        let thread = tasks.spawn_thread("committer", move || run(&consumer, &workers, &received))?;
        Ok(Self { requests, thread })
    }

    /// Requests a commit of what closed workers finished. The receiver gets whether it succeeded.
    /// `None` if the thread has ended, which is a bug.
    pub fn request_final_commit(&self) -> Option<Receiver<bool>> {
        let (result, receiver) = sync_channel(1);
        match self.requests.try_send(result) {
            Err(TrySendError::Disconnected(_)) => None,
            Ok(()) | Err(TrySendError::Full(_)) => Some(receiver),
        }
    }

    /// Stops the thread after its current commit.
    pub fn stop(self) {
        drop(self.requests);
        _ = self.thread.join();
    }
}

fn run(consumer: &BaseConsumer<GroupMember>, workers: &Workers, requests: &Receiver<FinalCommit>) {
    let guard = consumer.context().commit_guard();
    loop {
        match requests.recv_timeout(COMMIT_INTERVAL) {
            Err(RecvTimeoutError::Timeout) => match guard.commit(consumer, || workers.take_uncommitted()) {
                Ok(committed) => workers.set_committed(&committed),
                Err((offsets, error)) => {
                    tracing::debug!(error = %error, "commit failed, it will be retried");
                    workers.mark_uncommitted(&offsets);
                }
            },
            Ok(result) => {
                let committed = guard.commit(consumer, || workers.final_offsets());
                if let Err((_, error)) = &committed {
                    tracing::debug!(error = %error, "final commit failed");
                }
                _ = result.send(committed.is_ok());
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
