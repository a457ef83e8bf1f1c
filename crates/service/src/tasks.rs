//! Supervision of long-lived tasks and threads: no task of a process ends unnoticed.
//!
//! A task fails if it ends before the stop signal, or before a planned end of its own
//! ([`Supervisor::until`]). It also fails if it panics or returns an error, at any time.
//! The [`Supervisor`] then
//! - logs one line at error with the name of the task,
//! - makes `/livez` 503 ([`Supervisor::alive`]),
//! - cancels its stop token, so that the rest of the process shuts down gracefully,
//! - makes the exit code 1 ([`Supervisor::exit_code`]).
//!
//! A task that the supervisor does not start is a task with an end of its own: a connection, a
//! request, a poll job.

use std::any::Any;
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The result of a supervised task.
pub trait TaskResult: Send + 'static {
    /// The error text, if the task failed.
    fn error(&self) -> Option<String>;
}

impl TaskResult for () {
    fn error(&self) -> Option<String> {
        None
    }
}

impl<E: fmt::Display + Send + 'static> TaskResult for Result<(), E> {
    fn error(&self) -> Option<String> {
        self.as_ref().err().map(ToString::to_string)
    }
}

/// Starts the long-lived tasks and threads of one process and watches them. Clones share one state.
#[derive(Debug, Clone)]
pub struct Supervisor {
    stop: CancellationToken,
    /// Tasks may end once this is cancelled. Equal to `stop`, except after [`Supervisor::until`].
    planned_end: CancellationToken,
    /// The first failure: the name of the task and the reason.
    failure: Arc<OnceLock<String>>,
}

impl Supervisor {
    /// Supervises the tasks of a process that `stop` ends.
    ///
    /// A failure cancels a child of `stop`. The caller's own token stays as it is.
    pub fn new(stop: &CancellationToken) -> Self {
        let stop = stop.child_token();
        Self { planned_end: stop.clone(), stop, failure: Arc::default() }
    }

    /// The token that the stop signal or a failed task cancels. A process that ends by plan cancels
    /// it itself before its tasks end.
    pub fn stop_token(&self) -> &CancellationToken {
        &self.stop
    }

    /// A supervisor for tasks that may end once `planned_end` is cancelled, while the process
    /// continues. It shares the failure and the stop token with this one.
    #[must_use]
    pub fn until(&self, planned_end: CancellationToken) -> Self {
        Self { planned_end, ..self.clone() }
    }

    /// Starts `task` on the tokio runtime. The handle ends with the task, failed or not. Aborting
    /// the handle is no failure.
    ///
    /// # Panics
    /// The caller is not inside a tokio runtime.
    pub fn spawn<F>(&self, name: &'static str, task: F) -> tokio::task::JoinHandle<()>
    where
        F: Future<Output: TaskResult> + Send + 'static,
    {
        let supervisor = self.clone();
        tokio::spawn(async move {
            let mut task = pin!(task);
            // Unwind safety: a task that panicked is not polled again.
            let ended =
                poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(context))) {
                    Ok(poll) => poll.map(Ok),
                    Err(panic) => std::task::Poll::Ready(Err(panic)),
                });
            supervisor.on_end(name, ended.await);
        })
    }

    /// Starts `task` on a thread of its own, whose name is `name`.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub fn spawn_thread<T: TaskResult>(
        &self,
        name: &'static str,
        task: impl FnOnce() -> T + Send + 'static,
    ) -> std::io::Result<thread::JoinHandle<()>> {
        let supervisor = self.clone();
        thread::Builder::new()
            .name(name.into())
            .spawn(move || supervisor.on_end(name, catch_unwind(AssertUnwindSafe(task))))
    }

    /// Liveness of the process, for [`crate::health::HealthSource::alive`].
    ///
    /// # Errors
    /// The first failure of a task.
    pub fn alive(&self) -> Result<(), String> {
        self.failure.get().map_or(Ok(()), |failure| Err(failure.clone()))
    }

    /// The exit code of the process: `planned`, or 1 after a failure.
    #[must_use]
    pub fn exit_code(&self, planned: ExitCode) -> ExitCode {
        if self.failure.get().is_some() { ExitCode::FAILURE } else { planned }
    }

    fn on_end<T: TaskResult>(&self, name: &'static str, ended: Result<T, Box<dyn Any + Send>>) {
        let reason = match ended {
            Err(panic) => format!("panicked: {}", panic_message(&*panic)),
            Ok(result) => match result.error() {
                Some(error) => format!("failed: {error}"),
                None if self.stop.is_cancelled() || self.planned_end.is_cancelled() => return,
                None => "ended before the stop signal".into(),
            },
        };
        tracing::error!(task = name, reason, "task failed, shutting down");
        // An earlier failure keeps its place.
        _ = self.failure.set(format!("task {name:?} {reason}"));
        self.stop.cancel();
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Time in which a further signal counts as the same one. Terminals, shells and container runtimes
/// may send a stop signal twice.
const REPEAT_WINDOW: Duration = Duration::from_millis(500);

/// Returns a token that SIGTERM or SIGINT cancels.
///
/// A further signal within 500 ms is ignored. A later one ends the process at once with code 130.
///
/// # Errors
/// The handlers cannot be installed.
pub fn stop_token() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let cancelled = stop.clone();
    tokio::spawn(async move {
        let name = either(&mut terminate, &mut interrupt).await;
        let first = Instant::now();
        tracing::info!(signal = name, "stop signal received");
        cancelled.cancel();
        loop {
            either(&mut terminate, &mut interrupt).await;
            if first.elapsed() >= REPEAT_WINDOW {
                break;
            }
        }
        tracing::warn!("second stop signal received, exiting at once");
        #[expect(clippy::disallowed_methods, reason = "a second signal must end the process at once")]
        std::process::exit(130);
    });
    Ok(stop)
}

/// Also cancels `stop` on SIGHUP, which a closed terminal sends to a foreground command.
///
/// Does nothing if the process ignores SIGHUP, as after `nohup`.
///
/// # Errors
/// The handler cannot be installed.
pub fn stop_on_hangup(stop: &CancellationToken) -> std::io::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if ignores_hangup(&status) {
        return Ok(());
    }
    let (mut hangup, stop) = (signal(SignalKind::hangup())?, stop.clone());
    tokio::spawn(async move {
        if hangup.recv().await.is_some() {
            tracing::info!(signal = "SIGHUP", "stop signal received");
            stop.cancel();
        }
    });
    Ok(())
}

/// Whether `/proc/self/status` lists SIGHUP (signal 1) as ignored.
fn ignores_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// Locks `mutex`, even if it is poisoned. A mutex is held for a few instructions, and never across
/// an await.
///
/// A panic while the lock is held can leave the value half changed. In a supervised task it also
/// ends the process.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// A supervisor and the outer stop token.
    fn supervisor() -> (Supervisor, CancellationToken) {
        let stop = CancellationToken::new();
        (Supervisor::new(&stop), stop)
    }

    fn assert_failed(supervisor: &Supervisor, stop: &CancellationToken, reason: &str) {
        assert_eq!(supervisor.alive(), Err(format!("task \"lag monitor\" {reason}")));
        assert!(supervisor.stop_token().is_cancelled(), "the rest shuts down");
        assert!(!stop.is_cancelled(), "the caller's token stays as it is");
        assert_eq!(supervisor.exit_code(ExitCode::SUCCESS), ExitCode::FAILURE);
    }

    fn assert_well(supervisor: &Supervisor) {
        assert_eq!(supervisor.alive(), Ok(()));
        assert_eq!(supervisor.exit_code(ExitCode::SUCCESS), ExitCode::SUCCESS);
    }

    #[tokio::test]
    async fn a_task_that_returns_before_the_stop_signal_fails_the_process() {
        let (supervisor, stop) = supervisor();
        supervisor.spawn("lag monitor", async {}).await.unwrap();
        assert_failed(&supervisor, &stop, "ended before the stop signal");
    }

    #[tokio::test]
    async fn a_task_that_panics_fails_the_process_with_its_message() {
        let (supervisor, stop) = supervisor();
        let panics = async {
            let index = 7;
            tokio::task::yield_now().await;
            assert!(index < 7, "index {index} out of range");
        };
        supervisor.spawn("lag monitor", panics).await.unwrap();
        assert_failed(&supervisor, &stop, "panicked: index 7 out of range");
    }

    #[tokio::test]
    async fn a_task_that_returns_an_error_fails_the_process_even_after_the_stop() {
        let (supervisor, stop) = supervisor();
        supervisor.stop_token().cancel();
        let failing = async { Err(io::Error::other("socket closed")) };
        supervisor.spawn("lag monitor", failing).await.unwrap();
        assert_failed(&supervisor, &stop, "failed: socket closed");
    }

    /// Collects the log lines of the current thread.
    #[derive(Debug, Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn each_failure_is_logged_once_and_the_first_is_kept() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let (supervisor, stop) = supervisor();
        supervisor.spawn("lag monitor", async {}).await.unwrap();
        supervisor.spawn("committer", async { Err("no broker") }).await.unwrap();
        assert_failed(&supervisor, &stop, "ended before the stop signal");
        let text = String::from_utf8(lock(&lines.0).clone()).unwrap();
        assert_eq!(text.matches("\"ERROR\"").count(), 2, "{text}");
        for name in ["lag monitor", "committer"] {
            assert_eq!(text.matches(&format!("\"task\":\"{name}\"")).count(), 1, "{text}");
        }
    }

    #[tokio::test]
    async fn a_task_that_ends_after_the_stop_signal_is_no_failure() {
        let (supervisor, stop) = supervisor();
        let stopped = supervisor.stop_token().clone();
        let task = supervisor.spawn("lag monitor", stopped.cancelled_owned());
        stop.cancel();
        task.await.unwrap();
        assert_well(&supervisor);
    }

    #[tokio::test]
    async fn a_task_that_is_aborted_is_no_failure() {
        let (supervisor, _stop) = supervisor();
        let task = supervisor.spawn("lag monitor", std::future::pending::<()>());
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert_well(&supervisor);
    }

    #[test]
    fn a_thread_is_named_and_fails_the_process_if_it_returns_or_panics() {
        let (first, stop) = supervisor();
        let thread = first.spawn_thread("lag monitor", || {
            assert_eq!(thread::current().name(), Some("lag monitor"));
        });
        thread.unwrap().join().unwrap();
        assert_failed(&first, &stop, "ended before the stop signal");

        let (second, stop) = supervisor();
        let panics = || -> () { panic!("no offset") };
        second.spawn_thread("lag monitor", panics).unwrap().join().unwrap();
        assert_failed(&second, &stop, "panicked: no offset");
    }

    #[tokio::test]
    async fn a_task_that_ends_after_its_planned_end_is_no_failure() {
        let (supervisor, stop) = supervisor();
        let planned_end = CancellationToken::new();
        let session = supervisor.until(planned_end.clone());
        planned_end.cancel();
        session.spawn("lag monitor", async {}).await.unwrap();
        assert_well(&supervisor);
        assert!(!supervisor.stop_token().is_cancelled(), "the process continues");

        session.spawn("lag monitor", async { Err("no broker") }).await.unwrap();
        assert_failed(&supervisor, &stop, "failed: no broker");
    }

    #[tokio::test]
    async fn a_task_that_ends_before_its_planned_end_fails_the_process() {
        let (supervisor, stop) = supervisor();
        let session = supervisor.until(CancellationToken::new());
        session.spawn("lag monitor", async {}).await.unwrap();
        assert_failed(&supervisor, &stop, "ended before the stop signal");
    }

    #[test]
    fn a_thread_that_ends_after_the_stop_signal_is_no_failure() {
        let (supervisor, stop) = supervisor();
        stop.cancel();
        supervisor.spawn_thread("lag monitor", || {}).unwrap().join().unwrap();
        assert_well(&supervisor);
    }

    #[test]
    fn an_ignored_sighup_is_recognized_in_the_process_status() {
        assert!(ignores_hangup("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"));
        assert!(!ignores_hangup("Name:\tx\nSigIgn:\t0000000000001000\n"));
        assert!(!ignores_hangup(""));
    }
}
