//! Poll jobs: the registry of all jobs of the process, and the loop that makes the calls of a job.
//! The calls follow a fixed schedule and never overlap. A call longer than the interval skips
//! ticks. `Retry-After` delays the next call.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use events::{Loc, Millis, Violation};
use serde::Serialize;
use serde_json::Number;
use service::tasks::lock;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::form_urlencoded;
use uuid::Uuid;

use crate::clock::wall_ms;
use crate::error::ApiError;

/// Time for which an ended job is listed.
const RETENTION: Duration = Duration::from_secs(3600);
/// Maximum number of ended jobs in the list. The oldest are removed first.
const MAX_ENDED_JOBS: usize = 1000;

/// All jobs, the newest first.
#[derive(Debug)]
pub struct JobRegistry {
    max_running: usize,
    jobs: Mutex<VecDeque<Arc<Job>>>,
}

impl JobRegistry {
    /// Creates an empty registry that allows `max_running` running jobs.
    pub fn new(max_running: usize) -> Self {
        Self { max_running, jobs: Mutex::default() }
    }

    /// Adds a job of a source that starts now, unless too many jobs run. `shutdown` cancels it.
    ///
    /// # Errors
    /// 429 with the time until the first running job ends.
    pub fn start(
        &self,
        source: &str,
        schedule: Schedule,
        shutdown: &CancellationToken,
        now: Instant,
    ) -> Result<Arc<Job>, ApiError> {
        let mut jobs = lock(&self.jobs);
        let remaining: Vec<Duration> = jobs.iter().filter_map(|job| job.remaining(now)).collect();
        if remaining.len() >= self.max_running {
            let first_end = remaining.into_iter().min().unwrap_or_default();
            return Err(ApiError::TooManyJobs(self.max_running, first_end));
        }
        let job = Arc::new(Job::new(source, schedule, shutdown, now));
        jobs.push_front(Arc::clone(&job));
        remove_expired(&mut jobs, now);
        Ok(job)
    }

    /// All jobs of a source, the newest first.
    pub fn list(&self, source: &str, now: Instant) -> Vec<Arc<Job>> {
        let mut jobs = lock(&self.jobs);
        remove_expired(&mut jobs, now);
        jobs.iter().filter(|job| job.source == source).cloned().collect()
    }

    /// The job of a source with this id.
    pub fn find(&self, source: &str, id: &str, now: Instant) -> Option<Arc<Job>> {
        self.list(source, now).into_iter().find(|job| job.id == id)
    }

    /// Number of running jobs.
    pub fn running_count(&self) -> usize {
        lock(&self.jobs).iter().filter(|job| job.time_since_end(Instant::now()).is_none()).count()
    }
}

fn remove_expired(jobs: &mut VecDeque<Arc<Job>>, now: Instant) {
    let mut ended = 0;
    jobs.retain(|job| match job.time_since_end(now) {
        None => true,
        Some(time) => {
            ended += 1;
            time < RETENTION && ended <= MAX_ENDED_JOBS
        }
    });
}

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
    /// No call was made: the API allows none for this time.
    Waiting(Duration),
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
    pub id: String,
    /// The name of the source that it fetches.
    source: String,
    schedule: Schedule,
    started: Instant,
    started_at: Option<Millis>,
    /// Cancelled when the job is cancelled.
    pub cancelled: CancellationToken,
    progress: Mutex<Progress>,
}

impl Job {
    /// Creates a job that starts now. `shutdown` cancels it too.
    pub fn new(source: &str, schedule: Schedule, shutdown: &CancellationToken, now: Instant) -> Self {
        Self {
            id: Uuid::now_v7().to_string(),
            source: source.to_owned(),
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

    /// Time to the end of a running job. `None` if it has ended.
    pub fn remaining(&self, now: Instant) -> Option<Duration> {
        let running = lock(&self.progress).state == State::Running;
        running.then(|| self.end().saturating_duration_since(now))
    }

    /// Time since the end of the job. `None` if it runs.
    fn time_since_end(&self, now: Instant) -> Option<Duration> {
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
            CallResult::Waiting(time) => time,
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
        source = job.source,
        state = report.state.name(),
        sent = report.sent,
        failed = report.failed,
        skipped_ticks = report.skipped_ticks,
        "poll job ended"
    );
}

/// Maximum of both parameters: one year.
const MAX_SEC: f64 = 31_536_000.0;
const INTERVAL: &str = "interval_sec";
const DURATION: &str = "duration_sec";
/// Maximum length of an unknown parameter's name in an error.
const MAX_NAME_CHARS: usize = 64;

/// The schedule of a job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Time from one call to the next.
    pub interval_sec: Seconds,
    /// Time in which calls start.
    pub duration_sec: Seconds,
}

/// A positive number of seconds. A whole number is serialized without a fraction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seconds(f64);

impl Seconds {
    /// The number as a duration of at least one millisecond.
    pub fn duration(self) -> Duration {
        Duration::from_secs_f64(self.0).max(Duration::from_millis(1))
    }
}

impl Serialize for Seconds {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[expect(clippy::cast_possible_truncation, reason = "the number is whole and at most a year")]
        let number =
            if self.0.fract() == 0.0 { Some((self.0 as i64).into()) } else { Number::from_f64(self.0) };
        number.serialize(serializer)
    }
}

impl Schedule {
    /// Parses a query string. Missing parameters have the defaults of the Python system.
    ///
    /// # Errors
    /// 400 for an unknown parameter or a number that is not positive. 422 for a value that is no
    /// number, is above one year or occurs twice.
    pub fn parse(query: &str) -> Result<Self, ApiError> {
        Self::parse_with(query, Duration::from_secs(3))
    }

    /// As [`Schedule::parse`], with another default of the interval.
    ///
    /// # Errors
    /// See there.
    pub fn parse_with(query: &str, interval: Duration) -> Result<Self, ApiError> {
        let mut violations = Vec::new();
        let mut known = Vec::new();
        for (name, _) in form_urlencoded::parse(query.as_bytes()) {
            let Some(name) = [INTERVAL, DURATION].into_iter().find(|known| *known == name) else {
                let name: String = name.chars().take(MAX_NAME_CHARS).collect();
                return Err(ApiError::InvalidJobRequest(format!(
                    "the query has the unknown parameter {name:?}"
                )));
            };
            if known.contains(&name) {
                violations.push(violation(name, "Field should be given only once", "duplicate_field"));
            }
            known.push(name);
        }
        let mut parse = |name: &'static str, default: f64| {
            let given = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name);
            match given.map(|(_, text)| text.trim().parse::<f64>()) {
                None => Ok(Seconds(default)),
                Some(Ok(number)) if number <= 0.0 => Err(ApiError::NotPositive(name)),
                Some(Ok(number)) if number <= MAX_SEC => Ok(Seconds(number)),
                Some(Ok(_)) => {
                    violations.push(violation(
                        name,
                        "Input should be a number of seconds up to a year",
                        "less_than_equal",
                    ));
                    Ok(Seconds(default))
                }
                Some(Err(_)) => {
                    violations.push(violation(name, "Input should be a valid number", "float_parsing"));
                    Ok(Seconds(default))
                }
            }
        };
        let schedule = Self {
            interval_sec: parse(INTERVAL, interval.as_secs_f64())?,
            duration_sec: parse(DURATION, 120.0)?,
        };
        if violations.is_empty() { Ok(schedule) } else { Err(ApiError::Violations(violations)) }
    }
}

fn violation(name: &str, msg: &str, kind: &'static str) -> Violation {
    Violation { loc: vec![Loc::Name("query".into()), Loc::Name(name.into())], msg: msg.into(), kind }
}

/// The tick of the next call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tick {
    pub at: Instant,
    /// Number of skipped ticks before it.
    pub skipped: u64,
}

/// The first tick of the schedule that is after `last` and not before `earliest`. Ticks at or after
/// `end` do not count as skipped.
fn next_tick(last: Instant, interval: Duration, earliest: Instant, end: Instant) -> Tick {
    let ticks_until = |instant: Instant| {
        let behind = instant.saturating_duration_since(last);
        (behind.as_secs_f64() / interval.as_secs_f64()).ceil().max(1.0)
    };
    let ticks = ticks_until(earliest);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a year has fewer milliseconds, and the number is not negative"
    )]
    let skipped = (ticks.min(ticks_until(end)) - 1.0) as u64;
    Tick { at: last + interval.mul_f64(ticks), skipped }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(jobs: &JobRegistry, now: Instant) -> Result<Arc<Job>, ApiError> {
        jobs.start("adsbdb", Schedule::parse("duration_sec=60").unwrap(), &CancellationToken::new(), now)
    }

    #[test]
    fn a_full_registry_accepts_a_job_after_one_ended() {
        let (jobs, now) = (JobRegistry::new(2), Instant::now());
        let first = start(&jobs, now).unwrap();
        start(&jobs, now + Duration::from_secs(9)).unwrap();
        let Err(ApiError::TooManyJobs(2, first_end)) = start(&jobs, now + Duration::from_secs(10)) else {
            panic!("a third job")
        };
        assert_eq!(first_end, Duration::from_secs(50));
        first.cancel(now);
        start(&jobs, now).unwrap();
        assert_eq!(jobs.running_count(), 2);
    }

    #[test]
    fn an_ended_job_is_listed_for_an_hour_and_a_running_one_always() {
        let (jobs, now) = (JobRegistry::new(2), Instant::now());
        let (ended, running) = (start(&jobs, now).unwrap(), start(&jobs, now).unwrap());
        ended.cancel(now + Duration::from_secs(30));
        ended.cancel(now + Duration::from_secs(3000));
        let listed = |seconds| jobs.list("adsbdb", now + Duration::from_secs(seconds)).len();
        assert_eq!(listed(3629), 2);
        assert_eq!(listed(3630), 1, "the first end counts");
        let later = now + Duration::from_secs(100_000);
        assert!(jobs.find("adsbdb", &ended.id, later).is_none());
        assert!(jobs.find("adsbdb", &running.id, later).is_some());
        assert!(jobs.find("quakes", &running.id, later).is_none(), "another source");
    }

    #[test]
    fn the_oldest_ended_jobs_above_the_maximum_are_removed() {
        let (jobs, now) = (JobRegistry::new(1), Instant::now());
        let first = start(&jobs, now).unwrap();
        let mut last = Arc::clone(&first);
        for _ in 0..MAX_ENDED_JOBS + 5 {
            last.cancel(now);
            last = start(&jobs, now).unwrap();
        }
        assert_eq!(jobs.list("adsbdb", now).len(), MAX_ENDED_JOBS + 1);
        assert!(jobs.find("adsbdb", &first.id, now).is_none());
        assert!(jobs.find("adsbdb", &last.id, now).is_some());
    }

    #[test]
    fn missing_parameters_have_the_defaults_of_the_python_system() {
        let schedule = Schedule::parse("").unwrap();
        assert_eq!((schedule.interval_sec.0, schedule.duration_sec.0), (3.0, 120.0));
        let schedule = Schedule::parse("duration_sec=0.5&&interval_sec=2").unwrap();
        assert_eq!(serde_json::to_string(&schedule.interval_sec).unwrap(), "2");
        assert_eq!(serde_json::to_string(&schedule.duration_sec).unwrap(), "0.5");
    }

    #[test]
    fn a_number_that_is_not_positive_is_rejected_with_its_name() {
        for (query, name) in [("interval_sec=0", "interval_sec"), ("duration_sec=-1e9", "duration_sec")] {
            assert!(matches!(Schedule::parse(query), Err(ApiError::NotPositive(given)) if given == name));
        }
    }

    #[test]
    fn an_unknown_parameter_is_rejected_with_the_known_names() {
        for query in [
            "x=y",
            "interval=2",
            "interval_sec=2&intervalSec=3",
            "Interval_sec=2",
            "duration_sec=5&interval_sec%20=2",
            "_=1",
            "=1",
            "interval_sec=0&x",
        ] {
            let Err(error @ ApiError::InvalidJobRequest(_)) = Schedule::parse(query) else {
                panic!("{query}")
            };
            let problem = error.problem();
            assert_eq!((problem.status.as_u16(), problem.retryable), (400, false));
            assert!(problem.detail.contains("unknown parameter"), "{}", problem.detail);
            assert!(problem.detail.contains("interval_sec and duration_sec"), "{}", problem.detail);
        }
        let Err(error) = Schedule::parse(&"x".repeat(5000)) else { panic!("accepted") };
        assert!(error.problem().detail.len() < 300);
    }

    #[test]
    fn a_duplicate_parameter_is_a_violation() {
        let Err(ApiError::Violations(violations)) = Schedule::parse("interval_sec=1&interval_sec=2") else {
            panic!("accepted")
        };
        assert_eq!((violations.len(), violations[0].kind), (1, "duplicate_field"));
    }

    #[test]
    fn each_value_that_is_no_number_of_seconds_is_a_violation() {
        let Err(ApiError::Violations(violations)) = Schedule::parse("interval_sec=soon&duration_sec=inf")
        else {
            panic!("accepted")
        };
        let kinds: Vec<&str> = violations.iter().map(|violation| violation.kind).collect();
        assert_eq!(kinds, ["float_parsing", "less_than_equal"]);
        assert!(matches!(Schedule::parse("interval_sec=NaN"), Err(ApiError::Violations(_))));
    }

    #[test]
    fn a_slow_call_skips_ticks_and_keeps_the_schedule() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let end = start + second * 3600;
        for (earliest, at, skipped) in [(1, 3, 0), (7, 9, 2), (0, 3, 0), (3, 3, 0), (6, 6, 1)] {
            let tick = next_tick(start, second * 3, start + second * earliest, end);
            assert_eq!(tick, Tick { at: start + second * at, skipped }, "{earliest}");
        }
    }

    #[test]
    fn ticks_after_the_end_do_not_count_as_skipped() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        for (end, skipped) in [(1, 0), (2, 1), (3, 2), (60, 59)] {
            let tick = next_tick(start, second, start + second * 60, start + second * end);
            assert_eq!(tick.skipped, skipped, "{end}");
        }
    }
}
