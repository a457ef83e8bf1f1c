//! The live status line: a spinner on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::stdout;

/// How often a plain line is printed.
const PLAIN_PERIOD: Duration = Duration::from_secs(5);

/// The numbers of the line.
#[derive(Debug, Clone, Copy, Default)]
pub struct Numbers {
    /// Events answered with 202.
    pub accepted: u64,
    /// Records that are in the database: inserted, updated or unchanged.
    pub stored: u64,
    /// Records that wait.
    pub lag: u64,
    /// Records that can never be stored.
    pub dead_letters: u64,
}

/// The line.
#[derive(Debug)]
pub struct StatusLine {
    bar: Option<ProgressBar>,
    started: Instant,
    printed: Option<Instant>,
}

impl StatusLine {
    /// Starts the line; the time shown counts from here.
    pub fn start() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar, started: Instant::now(), printed: None }
    }

    /// Shows the numbers; as plain lines not more often than every 5 s.
    pub fn show(&mut self, numbers: Numbers) {
        let Numbers { accepted, stored, lag, dead_letters } = numbers;
        let line = format!("accepted {accepted}  stored {stored}  lag {lag}  dead letters {dead_letters}");
        if let Some(bar) = &self.bar {
            bar.set_message(line);
        } else if self.printed.is_none_or(|printed| printed.elapsed() >= PLAIN_PERIOD) {
            _ = stdout::write_line(format_args!("{:>4}s  {line}", self.started.elapsed().as_secs()));
            self.printed = Some(Instant::now());
        }
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
