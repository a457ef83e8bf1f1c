//! The schedule of requests. With a rate, event `n` is due at `n / rate`, independent of other
//! responses. Without a rate, a request is due as soon as a worker is free.

use std::time::Duration;

use tokio::time::Instant;

use crate::options::LoadOptions;
use crate::workload::{Event, Events, Workload};

/// The events of one request.
#[derive(Debug)]
pub struct ScheduledRequest {
    /// The events.
    pub events: Vec<Event>,
    /// When to send them; `None` means at once.
    pub due: Option<Instant>,
}

/// Generates the requests of a run in order.
#[derive(Debug)]
pub struct Schedule {
    events: Events,
    scheduled: u64,
    planned: Option<u64>,
    rate: Option<f64>,
    batch: u64,
    started: Instant,
}

impl Schedule {
    /// Creates a schedule that begins at `started`.
    pub fn new(workload: Workload, options: &LoadOptions, started: Instant) -> Self {
        Self {
            events: Events::new(workload),
            scheduled: 0,
            planned: planned(options),
            rate: options.rate,
            batch: u64::from(options.batch),
            started,
        }
    }

    /// Number of events of the run, if it is limited.
    pub fn planned(&self) -> Option<u64> {
        self.planned
    }

    /// The next request; `None` after the last one.
    pub fn next_request(&mut self) -> Option<ScheduledRequest> {
        let left = self.planned.map_or(u64::MAX, |planned| planned - self.scheduled);
        let count = self.batch.min(left);
        if count == 0 {
            return None;
        }
        let due = self.rate.map(|rate| self.started + Duration::from_secs_f64(self.scheduled as f64 / rate));
        self.scheduled += count;
        Some(ScheduledRequest {
            events: self.events.by_ref().take(usize::try_from(count).unwrap_or(usize::MAX)).collect(),
            due,
        })
    }
}

/// With a rate and a duration, the events that are due before the end.
fn planned(options: &LoadOptions) -> Option<u64> {
    let scheduled = options.rate.zip(options.run_for);
    let scheduled = scheduled.map(|(rate, run_for)| (rate * run_for.as_secs_f64()).ceil() as u64);
    match (scheduled, options.events) {
        (Some(scheduled), Some(events)) => Some(scheduled.min(events)),
        (scheduled, events) => scheduled.or(events),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(options: &LoadOptions, started: Instant) -> Schedule {
        let workload = Workload { seed: 1, keys: 3, superseded_ppm: 0, hostile_ppm: 0 };
        Schedule::new(workload, options, started)
    }

    fn options(rate: Option<f64>, run_for_ms: Option<u64>, events: Option<u64>) -> LoadOptions {
        let run_for = run_for_ms.map(Duration::from_millis);
        LoadOptions { rate, run_for, events, ..LoadOptions::default() }
    }

    #[test]
    fn a_schedule_has_a_due_time_for_each_request_and_ends() {
        let started = Instant::now();
        let options = LoadOptions { batch: 10, ..options(Some(100.0), Some(250), None) };
        let mut schedule = schedule(&options, started);
        let mut next = || schedule.next_request().map(|request| (request.events.len(), request.due));
        for (events, ms) in [(10, 0), (10, 100), (5, 200)] {
            assert_eq!(next(), Some((events, Some(started + Duration::from_millis(ms)))));
        }
        assert_eq!(next(), None);
    }

    #[test]
    fn the_number_of_events_is_limited_by_the_options_and_the_duration() {
        let now = Instant::now();
        for (options, planned) in [
            (options(None, None, Some(7)), Some(7)),
            (options(Some(10.0), Some(1_000), Some(7)), Some(7)),
            (options(Some(10.0), Some(1_000), Some(70)), Some(10)),
            (options(None, Some(1_000), None), None),
            (options(Some(10.0), None, None), None),
        ] {
            assert_eq!(schedule(&options, now).planned(), planned, "{options:?}");
        }
    }
}
