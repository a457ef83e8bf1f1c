//! The progress bar: on a terminal a live line, elsewhere a plain line on stderr every 5 s.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::tally::{Tally, latencies};

/// How often a plain line is printed.
const PLAIN_PERIOD: Duration = Duration::from_secs(5);

/// The bar.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    plain: bool,
    started: Instant,
    printed: Instant,
    /// When the rate was last told, and how many events were accepted then.
    before: (Instant, u64),
    rate: f64,
}

impl Progress {
    /// Starts it; `planned` is how many events there will be. With `silent` there are no plain lines.
    pub fn start(planned: Option<u64>, silent: bool) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| bar(planned));
        let now = Instant::now();
        Self { plain: bar.is_none() && !silent, bar, started: now, printed: now, before: (now, 0), rate: 0.0 }
    }

    /// Shows the numbers as they are now.
    pub fn show(&mut self, tally: &Tally) {
        let (at, accepted) = self.before;
        if at.elapsed() >= Duration::from_secs(1) {
            self.rate = (tally.accepted - accepted) as f64 / at.elapsed().as_secs_f64();
            self.before = (Instant::now(), tally.accepted);
        }
        if let Some(bar) = &self.bar {
            bar.set_position(tally.finished());
            bar.set_message(line(tally, self.rate));
        } else if self.plain && self.printed.elapsed() >= PLAIN_PERIOD {
            let seconds = self.started.elapsed().as_secs();
            _ = writeln!(std::io::stderr(), "{seconds:>4}s  {}", line(tally, self.rate));
            self.printed = Instant::now();
        }
    }
}

fn bar(planned: Option<u64>) -> ProgressBar {
    let (bar, template) = match planned {
        Some(planned) => (ProgressBar::new(planned), "{elapsed} {bar:20} {pos}/{len} {msg}"),
        None => (ProgressBar::new_spinner(), "{spinner} {elapsed} {msg}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn line(tally: &Tally, rate: f64) -> String {
    let answers: String =
        tally.answers.iter().map(|(status, count)| format!("  {status}: {count}")).collect();
    let lost = tally.cut + tally.unreachable;
    let lost = if lost > 0 { format!("  no answer: {lost}") } else { String::new() };
    format!("{rate:.0}/s{answers}{lost}  {}", latencies(&tally.latencies))
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
    fn the_line_has_the_rate_each_answer_and_the_latencies() {
        let mut tally = Tally { answers: [(202, 7), (503, 2)].into(), cut: 1, ..Tally::default() };
        tally.latencies.add(Duration::from_millis(3));
        let line = line(&tally, 12.4);
        assert!(line.starts_with("12/s  202: 7  503: 2  no answer: 1  p50 3.0 ms, p99 3.0 ms"), "{line}");
    }
}
