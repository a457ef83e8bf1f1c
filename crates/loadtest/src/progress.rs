//! Progress of `load`, `verify` and `up`: a live line on a terminal, elsewhere a plain line every 5 s.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Period of the plain lines.
pub const PLAIN_PERIOD: Duration = Duration::from_secs(5);

/// Where plain lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlainLines {
    /// To stdout.
    Stdout,
    /// To stderr.
    Stderr,
    /// Nowhere.
    Off,
}

/// A progress line, removed from the terminal when it is dropped.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    plain: PlainLines,
    started: Instant,
    next: Instant,
}

impl Progress {
    /// Starts the line. With a `total` the terminal shows a bar, else a spinner. The first plain
    /// line is printed after `first_after`.
    pub fn start(total: Option<u64>, plain: PlainLines, first_after: Duration) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| bar(total));
        let now = Instant::now();
        Self { bar, plain, started: now, next: now + first_after }
    }

    /// Shows `message`; `position` is the length of the bar.
    pub fn show(&mut self, position: u64, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(position);
            return bar.set_message(message.to_owned());
        }
        let now = Instant::now();
        if now < self.next {
            return;
        }
        let line = format!("{:>4}s  {message}", self.started.elapsed().as_secs());
        // A closed pipe does not end the run.
        _ = match self.plain {
            PlainLines::Stdout => writeln!(std::io::stdout(), "{line}"),
            PlainLines::Stderr => writeln!(std::io::stderr(), "{line}"),
            PlainLines::Off => Ok(()),
        };
        self.next = now + PLAIN_PERIOD;
    }
}

fn bar(total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{elapsed} {bar:20} {pos}/{len} {msg}"),
        None => (ProgressBar::new_spinner(), "{spinner} {elapsed} {msg}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
