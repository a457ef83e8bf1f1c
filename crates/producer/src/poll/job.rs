//! One poll job. Its calls follow a fixed schedule and never overlap: a call that takes longer than the interval
//! skips what it missed, and a rate limit is waited for.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use events::Millis;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::query::Schedule;
use crate::adsbdb;
use crate::app::Producer;
use crate::clock::wall_ms;
use crate::error::ApiError;
use crate::stopping::Admission;
use service::lock::lock;

/// Whether a job still calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Running,
    Finished,
    Cancelled,
}

#[derive(Debug)]
struct Progress {
    status: Status,
    calls: u64,
    accepted: u64,
    failed: u64,
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
    pub fn new(schedule: Schedule, stop: &CancellationToken) -> Self {
        Self {
            id: Uuid::now_v7().to_string(),
            schedule,
            started: Instant::now(),
            started_at: Millis::new(wall_ms()),
            cancelled: stop.child_token(),
            progress: Mutex::new(Progress {
                status: Status::Running,
                calls: 0,
                accepted: 0,
                failed: 0,
                last_error: None,
            }),
        }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How long it will still run; `None` if it does not run any more.
    pub fn left(&self) -> Option<Duration> {
        let running = lock(&self.progress).status == Status::Running;
        running.then(|| self.schedule.duration_sec.duration().saturating_sub(self.started.elapsed()))
    }

    /// No call begins any more.
    pub fn cancel(&self) {
        self.cancelled.cancel();
        let mut progress = lock(&self.progress);
        if progress.status == Status::Running {
            progress.status = Status::Cancelled;
        }
    }

    /// What it has done so far.
    pub fn report(&self) -> Value {
        let progress = lock(&self.progress);
        json!({
            "job_id": self.id,
            "status": progress.status,
            "interval_sec": self.schedule.interval_sec,
            "duration_sec": self.schedule.duration_sec,
            "started_at": self.started_at.map(Millis::iso),
            "calls": progress.calls,
            "accepted": progress.accepted,
            "failed": progress.failed,
            "last_error": progress.last_error,
        })
    }
}

/// Runs a job to its end.
pub async fn run(job: Arc<Job>, producer: Producer, _unfinished: Admission) {
    let end = job.started + job.schedule.duration_sec.duration();
    let interval = job.schedule.interval_sec.duration();
    let mut next = job.started;
    while next < end {
        if job.cancelled.run_until_cancelled(tokio::time::sleep_until(next)).await.is_none() {
            break;
        }
        let pause = call(&job, &producer).await;
        next = next_tick(next, interval, Instant::now() + pause);
    }
    job.cancelled.run_until_cancelled(tokio::time::sleep_until(end)).await;
    let mut progress = lock(&job.progress);
    progress.status = if job.cancelled.is_cancelled() { Status::Cancelled } else { Status::Finished };
    tracing::info!(
        job_id = job.id,
        calls = progress.calls,
        accepted = progress.accepted,
        failed = progress.failed,
        "poll job ended"
    );
}

/// One call; how long the next one should wait at least.
async fn call(job: &Job, producer: &Producer) -> Duration {
    lock(&job.progress).calls += 1;
    let outcome = adsbdb::take_one(producer, None, &job.cancelled).await;
    let mut progress = lock(&job.progress);
    match outcome {
        Ok(_) => {
            progress.accepted += 1;
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

/// The first tick of the schedule that is neither `last` nor before `earliest`.
fn next_tick(last: Instant, interval: Duration, earliest: Instant) -> Instant {
    let behind = earliest.saturating_duration_since(last);
    let ticks = (behind.as_secs_f64() / interval.as_secs_f64()).ceil().max(1.0);
    last + interval.mul_f64(ticks)
}

#[cfg(test)]
mod tests {
    use super::next_tick;
    use std::time::Duration;
    use tokio::time::Instant;

    #[test]
    fn a_slow_call_skips_ticks_and_the_schedule_stays_fixed() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        assert_eq!(next_tick(start, second * 3, start + second), start + second * 3);
        assert_eq!(next_tick(start, second * 3, start + second * 7), start + second * 9);
        assert_eq!(next_tick(start, second * 3, start), start + second * 3);
    }
}
