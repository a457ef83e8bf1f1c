//! One poll job: its state, its counts and the loop that makes its calls. The calls follow a fixed
//! schedule and never overlap. A call longer than the interval skips ticks. `Retry-After` delays the
//! next call.

use std::sync::Mutex;
use std::time::Duration;

use events::Millis;
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::schedule::{Schedule, Seconds, Tick, next_tick};
use crate::clock::wall_ms;
use service::lock::lock;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Running,
    /// The job ended at its time, and at least one call succeeded.
    Done,
    /// The job was cancelled, by a request or by the shutdown.
    Cancelled,
    /// The job ended at its time, and no call succeeded.
    Failed,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }
}

/// The job as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobReport {
    job_id: String,
    state: State,
    interval_sec: Seconds,
    duration_sec: Seconds,
    started_at: Option<String>,
    ended_at: Option<String>,
    next_tick_at: Option<String>,
    sent: u64,
    failed: u64,
    skipped_ticks: u64,
    last_error: Option<String>,
}

/// The result of one call.
#[derive(Debug)]
pub enum CallResult {
    /// An aircraft was ingested.
    Sent,
    /// The call was cancelled before Kafka received an event.
    Cancelled,
    Failed {
        error: String,
        /// Minimum time to the next call.
        retry_after: Duration,
    },
}

#[derive(Debug)]
struct Progress {
    state: State,
    /// The end, on both clocks.
    ended: Option<(Instant, Option<Millis>)>,
    next_tick_at: Option<Millis>,
    sent: u64,
    failed: u64,
    skipped_ticks: u64,
    last_error: Option<String>,
}

/// A job. Its task and the requests for it share it.
#[derive(Debug)]
pub struct Job {
    id: String,
    schedule: Schedule,
    started: Instant,
    started_at: Option<Millis>,
    cancelled: CancellationToken,
    progress: Mutex<Progress>,
}

impl Job {
    /// Creates a job that starts now. `shutdown` cancels it too.
    pub fn new(schedule: Schedule, shutdown: &CancellationToken, now: Instant) -> Self {
        Self {
            id: Uuid::now_v7().to_string(),
            schedule,
            started: now,
            started_at: Millis::new(wall_ms()),
            cancelled: shutdown.child_token(),
            progress: Mutex::new(Progress {
                state: State::Running,
                ended: None,
                next_tick_at: Millis::new(wall_ms()),
                sent: 0,
                failed: 0,
                skipped_ticks: 0,
                last_error: None,
            }),
        }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Cancelled when the job is cancelled.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancelled
    }

    /// Time to the end of a running job. `None` if it has ended.
    pub fn remaining(&self, now: Instant) -> Option<Duration> {
        let running = lock(&self.progress).state == State::Running;
        running.then(|| self.end().saturating_duration_since(now))
    }

    /// Time since the end of the job. `None` if it runs.
    pub fn time_since_end(&self, now: Instant) -> Option<Duration> {
        lock(&self.progress).ended.map(|(ended, _)| now.saturating_duration_since(ended))
    }

    /// Cancels the job. No further call starts.
    pub fn cancel(&self, now: Instant) {
        self.cancelled.cancel();
        self.finish(State::Cancelled, now);
    }

    fn end(&self) -> Instant {
        self.started + self.schedule.duration_sec.duration()
    }

    /// Sets the final state, unless the job has one.
    fn finish(&self, state: State, now: Instant) {
        let mut progress = lock(&self.progress);
        if progress.state == State::Running {
            progress.state = state;
            progress.ended = Some((now, Millis::new(wall_ms())));
            progress.next_tick_at = None;
        }
    }

    pub fn report(&self) -> JobReport {
        let progress = lock(&self.progress);
        JobReport {
            job_id: self.id.clone(),
            state: progress.state,
            interval_sec: self.schedule.interval_sec,
            duration_sec: self.schedule.duration_sec,
            started_at: self.started_at.map(Millis::iso),
            ended_at: progress.ended.and_then(|(_, at)| at).map(Millis::iso),
            next_tick_at: progress.next_tick_at.map(Millis::iso),
            sent: progress.sent,
            failed: progress.failed,
            skipped_ticks: progress.skipped_ticks,
            last_error: progress.last_error.clone(),
        }
    }

    fn record_tick(&self, tick: Tick) {
        let wait = tick.at.saturating_duration_since(Instant::now()).as_millis();
        let at = wall_ms().saturating_add(i64::try_from(wait).unwrap_or(i64::MAX));
        let mut progress = lock(&self.progress);
        progress.skipped_ticks += tick.skipped;
        progress.next_tick_at =
            (progress.state == State::Running && tick.at < self.end()).then(|| Millis::new(at)).flatten();
    }

    /// Records the result of a call. Returns the minimum time to the next call.
    fn record_call(&self, result: CallResult) -> Duration {
        let mut progress = lock(&self.progress);
        match result {
            CallResult::Sent => {
                progress.sent += 1;
                Duration::ZERO
            }
            CallResult::Cancelled => Duration::ZERO,
            CallResult::Failed { error, retry_after } => {
                progress.failed += 1;
                progress.last_error = Some(error);
                retry_after
            }
        }
    }
}

/// Ends the job when its task ends, also if the task panics.
struct EndGuard<'j>(&'j Job);

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        self.0.finish(State::Failed, Instant::now());
    }
}

/// Runs a job to its end. `call` makes one call.
pub async fn run<F>(job: &Job, call: impl Fn() -> F)
where
    F: Future<Output = CallResult>,
{
    let guard = EndGuard(job);
    let interval = job.schedule.interval_sec.duration();
    let mut tick = Tick { at: job.started, skipped: 0 };
    while tick.at < job.end() {
        if job.cancelled.run_until_cancelled(tokio::time::sleep_until(tick.at)).await.is_none() {
            break;
        }
        let pause = job.record_call(call().await);
        tick = next_tick(tick.at, interval, Instant::now() + pause, job.end());
        job.record_tick(tick);
    }
    job.cancelled.run_until_cancelled(tokio::time::sleep_until(job.end())).await;
    let none_sent = lock(&job.progress).sent == 0;
    job.finish(
        match (job.cancelled.is_cancelled(), none_sent) {
            (true, _) => State::Cancelled,
            (false, true) => State::Failed,
            (false, false) => State::Done,
        },
        Instant::now(),
    );
    drop(guard);
    let report = job.report();
    tracing::info!(
        job_id = report.job_id,
        state = report.state.name(),
        sent = report.sent,
        failed = report.failed,
        skipped_ticks = report.skipped_ticks,
        "poll job ended"
    );
}
