//! Who sends which events when. With a rate, event `n` is due at `n / rate`, whatever became of the others; without, as
//! soon as somebody has time for it.

use std::time::Duration;

use tokio::time::Instant;

use super::event::{Event, Events, Mix};
use super::options::LoadOptions;

/// The events of one request.
#[derive(Debug)]
pub struct Ticket {
    /// The events.
    pub events: Vec<Event>,
    /// When to send them.
    pub due: Option<Instant>,
}

/// Hands out tickets.
#[derive(Debug)]
pub struct Tickets {
    events: Events,
    handed_out: u64,
    planned: Option<u64>,
    rate: Option<f64>,
    batch: u64,
    started: Instant,
}

impl Tickets {
    /// The schedule counts from `started`.
    pub fn new(mix: Mix, options: &LoadOptions, started: Instant) -> Self {
        Self {
            events: Events::new(mix),
            handed_out: 0,
            planned: planned(options),
            rate: options.rate,
            batch: u64::from(options.batch),
            started,
        }
    }

    /// How many events there will be, if that is known.
    pub fn planned(&self) -> Option<u64> {
        self.planned
    }

    /// The next ones; `None` after the last.
    pub fn next(&mut self) -> Option<Ticket> {
        let left = self.planned.map_or(u64::MAX, |planned| planned - self.handed_out);
        let count = self.batch.min(left);
        if count == 0 {
            return None;
        }
        let due = self.rate.map(|rate| self.started + Duration::from_secs_f64(self.handed_out as f64 / rate));
        self.handed_out += count;
        Some(Ticket { events: (0..count).map(|_| self.events.next()).collect(), due })
    }
}

/// A schedule has as many events as are due before its end.
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
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: LoadOptions,
    }

    fn tickets(arguments: &[&str], started: Instant) -> Tickets {
        let line = Line::parse_from([&["load"], arguments].concat());
        let mix = Mix { seed: 1, keys: 3, stale_ppm: 0, hostile_ppm: 0 };
        Tickets::new(mix, &line.options, started)
    }

    #[test]
    fn a_schedule_has_a_time_for_each_request_and_ends() {
        let started = Instant::now();
        let mut tickets = tickets(&["--rate", "100", "--for", "250ms", "--batch", "10"], started);
        let mut next = || tickets.next().map(|ticket| (ticket.events.len(), ticket.due));
        for (events, ms) in [(10, 0), (10, 100), (5, 200)] {
            assert_eq!(next(), Some((events, Some(started + Duration::from_millis(ms)))));
        }
        assert_eq!(next(), None);
    }

    #[test]
    fn the_number_of_events_is_what_is_asked_for_and_fits_the_time() {
        let now = Instant::now();
        for (arguments, planned) in [
            (&["--events", "7"][..], Some(7)),
            (&["--rate", "10", "--for", "1s", "--events", "7"], Some(7)),
            (&["--rate", "10", "--for", "1s", "--events", "70"], Some(10)),
            (&["--for", "1s"], None),
            (&["--rate", "10"], None),
        ] {
            assert_eq!(tickets(arguments, now).planned(), planned, "{arguments:?}");
        }
    }
}
