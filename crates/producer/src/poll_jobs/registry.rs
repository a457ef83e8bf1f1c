//! The poll jobs of the process: so many at a time, and those that ended within the last hour, to be asked for. Time
//! comes in as a value.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::job::Job;
use super::schedule::Schedule;
use crate::error::ApiError;
use crate::shutdown::Stopping;
use service::lock::lock;

/// How long a job that ended is remembered.
const MEMORY: Duration = Duration::from_secs(3600);
/// No more jobs that ended are remembered; then the oldest go early.
const MOST_ENDED: usize = 1000;

/// All jobs, the newest first.
#[derive(Debug)]
pub struct Jobs {
    most: usize,
    list: Mutex<VecDeque<Arc<Job>>>,
}

impl Jobs {
    /// None yet, and `most` at a time.
    pub fn new(most: usize) -> Self {
        Self { most, list: Mutex::default() }
    }

    /// Adds a job, if there is room for it.
    ///
    /// # Errors
    /// 429, with the time when the first job ends.
    pub fn start(&self, schedule: Schedule, stopping: &Stopping, now: Instant) -> Result<Arc<Job>, ApiError> {
        let mut list = lock(&self.list);
        let left: Vec<Duration> = list.iter().filter_map(|job| job.left(now)).collect();
        if left.len() >= self.most {
            return Err(ApiError::JobsFull(self.most, left.into_iter().min().unwrap_or_default()));
        }
        let job = Arc::new(Job::new(schedule, &stopping.begun(), now));
        list.push_front(Arc::clone(&job));
        forget(&mut list, now);
        Ok(job)
    }

    /// All of them.
    pub fn all(&self, now: Instant) -> Vec<Arc<Job>> {
        let mut list = lock(&self.list);
        forget(&mut list, now);
        list.iter().cloned().collect()
    }

    /// The one with this id.
    pub fn find(&self, id: &str, now: Instant) -> Option<Arc<Job>> {
        self.all(now).into_iter().find(|job| job.id() == id)
    }

    /// How many run.
    pub fn running(&self) -> usize {
        lock(&self.list).iter().filter(|job| job.ended_for(Instant::now()).is_none()).count()
    }
}

fn forget(list: &mut VecDeque<Arc<Job>>, now: Instant) {
    let mut ended = 0;
    list.retain(|job| match job.ended_for(now) {
        None => true,
        Some(time) => {
            ended += 1;
            time < MEMORY && ended <= MOST_ENDED
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(jobs: &Jobs, now: Instant) -> Result<Arc<Job>, ApiError> {
        jobs.start(Schedule::parse("duration_sec=60").unwrap(), &Stopping::default(), now)
    }

    #[test]
    fn a_job_that_ended_makes_room_for_another() {
        let (jobs, now) = (Jobs::new(2), Instant::now());
        let first = start(&jobs, now).unwrap();
        start(&jobs, now + Duration::from_secs(9)).unwrap();
        let Err(ApiError::JobsFull(2, free_in)) = start(&jobs, now + Duration::from_secs(10)) else {
            panic!("a third job")
        };
        assert_eq!(free_in, Duration::from_secs(50));
        first.cancel(now);
        start(&jobs, now).unwrap();
        assert_eq!(jobs.running(), 2);
    }

    #[test]
    fn a_job_that_ended_is_listed_for_an_hour_and_one_that_runs_for_ever() {
        let (jobs, now) = (Jobs::new(2), Instant::now());
        let (ended, running) = (start(&jobs, now).unwrap(), start(&jobs, now).unwrap());
        ended.cancel(now + Duration::from_secs(30));
        ended.cancel(now + Duration::from_secs(3000));
        let listed = |seconds| jobs.all(now + Duration::from_secs(seconds)).len();
        assert_eq!(listed(3629), 2);
        assert_eq!(listed(3630), 1, "its first end counts");
        let later = now + Duration::from_secs(100_000);
        assert!(jobs.find(ended.id(), later).is_none());
        assert!(jobs.find(running.id(), later).is_some());
    }

    #[test]
    fn only_so_many_that_ended_are_remembered() {
        let (jobs, now) = (Jobs::new(1), Instant::now());
        let first = start(&jobs, now).unwrap();
        let mut last = Arc::clone(&first);
        for _ in 0..MOST_ENDED + 5 {
            last.cancel(now);
            last = start(&jobs, now).unwrap();
        }
        assert_eq!(jobs.all(now).len(), MOST_ENDED + 1);
        assert!(jobs.find(first.id(), now).is_none());
        assert!(jobs.find(last.id(), now).is_some());
    }
}
