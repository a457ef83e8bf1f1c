//! Tells how far the consumer is while `verify` waits for it: on a terminal a live line, elsewhere a plain line every 5 s.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::Failure;
use crate::out::{self, counted};

/// How often a plain line is printed.
const PLAIN_PERIOD: Duration = Duration::from_secs(5);
/// The rate is that of so long before now.
const WINDOW: Duration = Duration::from_secs(10);

/// How quickly waiting records are finished.
#[derive(Debug, Default)]
pub struct Pace(VecDeque<(Instant, u64)>);

impl Pace {
    /// So many wait at `now`.
    pub fn note(&mut self, now: Instant, waiting: u64) {
        self.0.push_back((now, waiting));
        while self.0.len() > 2 && self.0.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            self.0.pop_front();
        }
    }

    /// Records that are finished in a second; nothing where none was finished.
    pub fn per_second(&self) -> Option<f64> {
        let ((began, before), (ended, now)) = (self.0.front()?, self.0.back()?);
        let seconds = ended.duration_since(*began).as_secs_f64();
        let finished = before.checked_sub(*now).filter(|finished| *finished > 0)?;
        (seconds > 0.0).then(|| finished as f64 / seconds)
    }
}

/// How long `records` take at `per_second`, in seconds.
pub fn seconds_left(records: u64, per_second: Option<f64>) -> Option<f64> {
    per_second.map(|rate| records as f64 / rate)
}

/// How long waiting records will take, in words.
pub fn outlook(records: u64, per_second: Option<f64>) -> String {
    match (seconds_left(records, per_second), per_second) {
        (Some(seconds), Some(rate)) => {
            format!("about {} at the present rate of {rate:.0} a second", time(seconds))
        }
        _ => "none was finished while verify waited".to_owned(),
    }
}

fn time(seconds: f64) -> String {
    let seconds = seconds.ceil().max(1.0) as u64;
    match (seconds / 3600, seconds / 60 % 60) {
        (0, 0) => format!("{seconds} s"),
        (0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (hours, minutes) => format!("{hours} h {minutes} min"),
    }
}

/// The line.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    json: bool,
    started: Instant,
    printed: Instant,
}

impl Progress {
    /// Starts it; with `json`, stdout is kept for the object.
    pub fn start(json: bool) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let now = Instant::now();
        Self { bar, json, started: now, printed: now }
    }

    /// So many records wait.
    pub fn show(&mut self, records: u64, per_second: Option<f64>) {
        let waiting = counted(records, "record");
        self.line(&format!("waiting for {waiting}: {}", outlook(records, per_second)));
    }

    /// Kafka does not tell.
    pub fn unanswered(&mut self, why: &Failure) {
        self.line(&format!("waiting: {why}"));
    }

    fn line(&mut self, line: &str) {
        if let Some(bar) = &self.bar {
            return bar.set_message(line.to_owned());
        }
        if self.printed.elapsed() < PLAIN_PERIOD {
            return;
        }
        let line = format!("{:>4}s  {line}", self.started.elapsed().as_secs());
        if self.json {
            _ = writeln!(std::io::stderr(), "{line}");
        } else {
            _ = out::line(line);
        }
        self.printed = Instant::now();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        assert_eq!(pace.per_second(), None);
        let mut note = |pace: &mut Pace, waiting| {
            pace.note(now, waiting);
            now += Duration::from_secs(1);
        };
        for waiting in [1_000, 1_000, 900, 800, 700] {
            note(&mut pace, waiting);
        }
        assert_eq!(pace.per_second(), Some(75.0));
        for _ in 0..20 {
            note(&mut pace, 700);
        }
        assert_eq!(pace.per_second(), None, "the consumer stands still");
    }

    #[test]
    fn the_outlook_has_the_time_and_the_rate_or_says_that_nothing_moves() {
        let rate = Some(2_500.0);
        assert_eq!(outlook(450_000, rate), "about 3 min 0 s at the present rate of 2500 a second");
        assert_eq!(outlook(1, rate), "about 1 s at the present rate of 2500 a second");
        assert_eq!(outlook(10_000_000, rate), "about 1 h 6 min at the present rate of 2500 a second");
        assert_eq!(outlook(7, None), "none was finished while verify waited");
    }
}
