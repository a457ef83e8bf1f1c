//! The poll jobs of the process: a limited number of running jobs, and the jobs that ended within
//! the last hour. The caller passes the current time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::job::Job;
use super::schedule::Schedule;
use crate::error::ApiError;
use service::lock::lock;

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

    /// Adds a job that starts now, unless too many jobs run. `shutdown` cancels it.
    ///
    /// # Errors
    /// 429 with the time until the first running job ends.
    pub fn start(
        &self,
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
        let job = Arc::new(Job::new(schedule, shutdown, now));
        jobs.push_front(Arc::clone(&job));
        remove_expired(&mut jobs, now);
        Ok(job)
    }

    /// All jobs, the newest first.
    pub fn list(&self, now: Instant) -> Vec<Arc<Job>> {
        let mut jobs = lock(&self.jobs);
        remove_expired(&mut jobs, now);
        jobs.iter().cloned().collect()
    }

    /// The job with this id.
    pub fn find(&self, id: &str, now: Instant) -> Option<Arc<Job>> {
        self.list(now).into_iter().find(|job| job.id() == id)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn start(jobs: &JobRegistry, now: Instant) -> Result<Arc<Job>, ApiError> {
        jobs.start(Schedule::parse("duration_sec=60").unwrap(), &CancellationToken::new(), now)
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
        let listed = |seconds| jobs.list(now + Duration::from_secs(seconds)).len();
        assert_eq!(listed(3629), 2);
        assert_eq!(listed(3630), 1, "the first end counts");
        let later = now + Duration::from_secs(100_000);
        assert!(jobs.find(ended.id(), later).is_none());
        assert!(jobs.find(running.id(), later).is_some());
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
        assert_eq!(jobs.list(now).len(), MAX_ENDED_JOBS + 1);
        assert!(jobs.find(first.id(), now).is_none());
        assert!(jobs.find(last.id(), now).is_some());
    }
}
