//! One poll job: its state and counts, and the task that makes its calls. They follow a fixed schedule and never
//! overlap: a call that takes longer than the interval skips what it missed, and a rate limit is waited for.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use events::Millis;
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::schedule::{Schedule, Seconds};
use super::tick::{Tick, next_tick};
use crate::app::Producer;
use crate::clock::wall_ms;
use crate::error::ApiError;
use crate::routes::aircraft;
use crate::shutdown::Admission;
use service::lock::lock;

/// What a job is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It calls, or waits for its next call.
    Running,
    /// Its time is over, and at least one call succeeded.
    Done,
    /// It was cancelled, or the process stops.
    Cancelled,
    /// Its time is over, and not one call succeeded.
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

/// What a job has done so far.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
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

#[derive(Debug)]
struct Progress {
    state: State,
    ended: Option<(Instant, Option<Millis>)>,
    next_tick_at: Option<Millis>,
    sent: u64,
    failed: u64,
    skipped_ticks: u64,
    last_error: Option<String>,
}

/// A job, shared by its task and those who ask for it.
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
    /// A job that begins now; `stop` cancels it too.
    pub fn new(schedule: Schedule, stop: &CancellationToken, now: Instant) -> Self {
        Self {
            id: Uuid::now_v7().to_string(),
            schedule,
            started: now,
            started_at: Millis::new(wall_ms()),
            cancelled: stop.child_token(),
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

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How long it will still run; `None` if it does not run any more.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        let running = lock(&self.progress).state == State::Running;
        running.then(|| self.end().saturating_duration_since(now))
    }

    /// How long ago it ended; `None` if it still runs.
    pub fn ended_for(&self, now: Instant) -> Option<Duration> {
        lock(&self.progress).ended.map(|(ended, _)| now.saturating_duration_since(ended))
    }

    /// No call begins any more.
    pub fn cancel(&self, now: Instant) {
        self.cancelled.cancel();
        self.finish(State::Cancelled, now);
    }

    fn end(&self) -> Instant {
        self.started + self.schedule.duration_sec.duration()
    }

    /// The first end counts.
    fn finish(&self, state: State, now: Instant) {
        let mut progress = lock(&self.progress);
        if progress.state == State::Running {
            progress.state = state;
            progress.ended = Some((now, Millis::new(wall_ms())));
            progress.next_tick_at = None;
        }
    }

    /// What it has done so far.
    pub fn report(&self) -> Report {
        let progress = lock(&self.progress);
        Report {
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

    fn note(&self, tick: Tick) {
        let wait = tick.at.saturating_duration_since(Instant::now()).as_millis();
        let at = wall_ms().saturating_add(i64::try_from(wait).unwrap_or(i64::MAX));
        let mut progress = lock(&self.progress);
        progress.skipped_ticks += tick.skipped;
        progress.next_tick_at =
            (progress.state == State::Running && tick.at < self.end()).then(|| Millis::new(at)).flatten();
    }
}

/// A job whose task is gone has ended, whatever became of the task.
struct Ending(Arc<Job>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.finish(State::Failed, Instant::now());
    }
}

/// Runs a job to its end.
pub async fn run(job: Arc<Job>, producer: Producer, _unfinished: Admission) {
    let ending = Ending(Arc::clone(&job));
    let interval = job.schedule.interval_sec.duration();
    let mut tick = Tick { at: job.started, skipped: 0 };
    while tick.at < job.end() {
        if job.cancelled.run_until_cancelled(tokio::time::sleep_until(tick.at)).await.is_none() {
            break;
        }
        let pause = call(&job, &producer).await;
        tick = next_tick(tick.at, interval, Instant::now() + pause, job.end());
        job.note(tick);
    }
    job.cancelled.run_until_cancelled(tokio::time::sleep_until(job.end())).await;
    let in_vain = lock(&job.progress).sent == 0;
    job.finish(
        match (job.cancelled.is_cancelled(), in_vain) {
            (true, _) => State::Cancelled,
            (false, true) => State::Failed,
            (false, false) => State::Done,
        },
        Instant::now(),
    );
    drop(ending);
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

/// One call; how long the next one should wait at least.
async fn call(job: &Job, producer: &Producer) -> Duration {
    let outcome = aircraft::take_one(producer, None, &job.cancelled).await;
    let mut progress = lock(&job.progress);
    match outcome {
        Ok(_) => {
            progress.sent += 1;
            Duration::ZERO
        }
        // Given up before anything was asked of Kafka: no failure, just the end.
        Err(ApiError::NotStored { reason: "stopping", .. }) if job.cancelled.is_cancelled() => Duration::ZERO,
        Err(error) => {
            let problem = error.problem();
            tracing::debug!(job_id = job.id, reason = problem.detail, "poll call failed");
            producer.metrics.rejected(error.reason(), 1);
            producer.note_failure(&problem.detail);
            progress.failed += 1;
            progress.last_error = Some(problem.detail);
            problem.retry_after.unwrap_or_default()
        }
    }
}
