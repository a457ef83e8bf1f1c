//! The poll jobs of the process: so many at a time, and the last ones that ended, to be asked for.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::job::Job;
use super::query::Schedule;
use crate::error::ApiError;
use crate::stopping::Stopping;
use service::lock::lock;

/// So many jobs that ended are remembered.
const MOST_ENDED: usize = 100;

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
    pub fn start(&self, schedule: Schedule, stopping: &Stopping) -> Result<Arc<Job>, ApiError> {
        let mut list = lock(&self.list);
        let left: Vec<Duration> = list.iter().filter_map(|job| job.left()).collect();
        if left.len() >= self.most {
            return Err(ApiError::JobsFull(self.most, left.into_iter().min().unwrap_or_default()));
        }
        let job = Arc::new(Job::new(schedule, &stopping.begun()));
        list.push_front(Arc::clone(&job));
        let mut ended = 0;
        list.retain(|job| {
            ended += usize::from(job.left().is_none());
            job.left().is_some() || ended <= MOST_ENDED
        });
        Ok(job)
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Job>> {
        lock(&self.list).iter().cloned().collect()
    }

    /// The one with this id.
    pub fn find(&self, id: &str) -> Option<Arc<Job>> {
        lock(&self.list).iter().find(|job| job.id() == id).cloned()
    }

    /// How many run.
    pub fn running(&self) -> usize {
        lock(&self.list).iter().filter(|job| job.left().is_some()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_that_ended_make_room_and_only_the_last_are_remembered() {
        let (jobs, stopping) = (Jobs::new(2), Stopping::default());
        let start = || jobs.start(Schedule::parse("duration_sec=60").unwrap(), &stopping);
        let first = start().unwrap();
        start().unwrap();
        let Err(ApiError::JobsFull(2, free_in)) = start() else { panic!("a third job") };
        assert!(free_in <= Duration::from_secs(60) && free_in > Duration::from_secs(50));
        first.cancel();
        let mut last = start().unwrap();
        for _ in 0..150 {
            last.cancel();
            last = start().unwrap();
        }
        assert_eq!(jobs.running(), 2);
        assert_eq!(jobs.all().len(), MOST_ENDED + 2);
        assert!(jobs.find(first.id()).is_none());
        assert!(jobs.find(last.id()).is_some());
    }
}
