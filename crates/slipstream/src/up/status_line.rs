//! The status line: a live line on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output;

/// Period of the plain lines.
const PLAIN_PERIOD: Duration = Duration::from_secs(5);

/// The numbers of the status line.
#[derive(Debug, Clone, Copy, Default)]
pub struct Numbers {
    /// Events with a 202.
    pub accepted: u64,
    /// Stored records: inserted, updated or unchanged.
    pub stored: u64,
    /// Unfinished records.
    pub lag: u64,
    /// Dead letters.
    pub dead_letters: u64,
}

/// The status line.
#[derive(Debug)]
pub struct StatusLine {
    bar: Option<ProgressBar>,
    started: Instant,
    printed: Option<Instant>,
}

impl StatusLine {
    /// Starts the line and its clock.
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

    /// Shows the numbers; plain lines appear at most every 5 s.
    pub fn show(&mut self, numbers: Numbers) {
        let Numbers { accepted, stored, lag, dead_letters } = numbers;
        let line = format!("accepted {accepted}  stored {stored}  lag {lag}  dead letters {dead_letters}");
        if let Some(bar) = &self.bar {
            bar.set_message(line);
        } else if self.printed.is_none_or(|printed| printed.elapsed() >= PLAIN_PERIOD) {
            output::write_progress(&format!("{:>4}s  {line}", self.started.elapsed().as_secs()));
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
