//! The options of `slipstream load` and `slipstream verify`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, value_parser};
use events::Source;

/// Options of `load`.
#[derive(Debug, Clone, Args)]
pub struct LoadOptions {
    /// Events per second, on a fixed schedule that does not wait for responses while a connection
    /// is free. Without it, events are sent as fast as the connections allow.
    #[arg(long, value_name = "N", value_parser = rate)]
    pub rate: Option<f64>,
    /// Send new events for this time: 60s, 5m. Without it and without --events, until a signal.
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    pub run_for: Option<Duration>,
    /// Send this many events.
    #[arg(long, value_name = "N")]
    pub events: Option<u64>,
    /// Concurrent requests.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = value_parser!(u16).range(1..=4096))]
    pub connections: u16,
    /// Events per request: 1 goes to /ingest, more as NDJSON to /ingest/batch.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = value_parser!(u32).range(1..=10_000))]
    pub batch: u32,
    /// Number of ids. They take turns, so that each id occurs again and again.
    #[arg(long, default_value_t = 5_000, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub keys: u32,
    /// Share of the events that are older than the newest event of their id.
    #[arg(long, alias = "stale", default_value = "10%", value_name = "PERCENT", value_parser = percent)]
    pub superseded: u32,
    /// Share of the events with a valid but unusual payload: dots, `$`, Decimal128, reserved names,
    /// 60 KB, 80 levels.
    #[arg(long, default_value = "1%", value_name = "PERCENT", value_parser = percent)]
    pub hostile: u32,
    /// Share of the events that delete the document of their id, by DELETE. The source needs
    /// `delete:` in the sources file.
    #[arg(long, default_value = "0%", value_name = "PERCENT", value_parser = percent)]
    pub deletes: u32,
    /// Source of the events; the default is the first of EXPECTED_SOURCE.
    #[arg(long, value_name = "SOURCE", value_parser = |text: &str| Source::new(text))]
    pub source: Option<Source>,
    /// Write each event and its outcome to this file, for `verify`. The file must not exist yet.
    #[arg(long, value_name = "FILE")]
    pub ledger: Option<PathBuf>,
    /// Seed of the events, except their ids. The default is a random seed; the summary shows it.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// How long events without a final response are retried: after the last new event, and, where
    /// only --events ends the run, while no event gets a final response.
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = parse_duration)]
    pub grace: Duration,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Options of `verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyOptions {
    /// The ledger that `load` wrote.
    #[arg(long, value_name = "FILE")]
    pub ledger: PathBuf,
    /// How long to wait until the consumer has finished the records of the topic: 30s, 5m, or
    /// until-done.
    #[arg(long, default_value = "30s", value_name = "DURATION|until-done")]
    pub wait: Wait,
    /// Expected number of the run's events that are dead letters.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub expect_dead_letters: u64,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// How long to wait for the consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// At most this long.
    For(Duration),
    /// Without a limit.
    UntilDone,
}

impl Wait {
    /// `period`, limited to the whole wait.
    pub fn limit(self, period: Duration) -> Duration {
        match self {
            Self::For(timeout) => period.min(timeout),
            Self::UntilDone => period,
        }
    }
}

impl FromStr for Wait {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "until-done" {
            return Ok(Self::UntilDone);
        }
        parse_duration(text).map(Self::For).map_err(|why| format!("{why}; or until-done"))
    }
}

const DURATION_FORMAT: &str =
    "a duration is a number above 0 with a unit, else of seconds: 250ms, 20s, 20, 5m, 1h";

/// Parses a number with a unit: `250ms`, `20s`, `1.5m`, `1h`; without a unit, seconds.
///
/// # Errors
/// Any other text, 0, or more than a year.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "ms" => 0.001,
        // No unit means seconds, as in INTERVAL_SEC.
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(DURATION_FORMAT.into()),
    };
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 && number * factor <= 31_536_000.0 => {
            Ok(Duration::from_secs_f64(number * factor))
        }
        _ => Err(DURATION_FORMAT.into()),
    }
}

/// Parses a number of events per second.
fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 10_000_000.0 => Ok(rate),
        _ => Err("a rate is a number of events per second above 0: 2000".into()),
    }
}

/// Parses a percentage; the result is in millionths.
fn percent(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').and_then(|number| number.trim_end().parse::<f64>().ok());
    match number {
        Some(number) if (0.0..=100.0).contains(&number) => Ok((number * 10_000.0).round() as u32),
        _ => Err("a share is a number from 0 to 100 with a percent sign: 10%, 0.5%".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        options: LoadOptions,
    }

    #[test]
    fn stale_is_an_alias_of_superseded() {
        for name in ["--superseded", "--stale"] {
            assert_eq!(CommandLine::parse_from(["load", name, "20%"]).options.superseded, 200_000, "{name}");
        }
    }

    #[test]
    fn a_duration_has_a_unit_or_counts_seconds() {
        assert_eq!(parse_duration("3"), Ok(Duration::from_secs(3)));
        assert_eq!(parse_duration("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        for wrong in ["", "0", "-3", "s", "-1s", "0s", "1d", "infs", "1e300h", "NaNs", "inf", "NaN", "3 3"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_share_requires_a_percent_sign() {
        let right = [("0%", 0), ("10%", 100_000), ("0.5 %", 5_000), ("100%", 1_000_000), ("0.0001%", 1)];
        for (text, ppm) in right {
            assert_eq!(percent(text), Ok(ppm), "{text}");
        }
        for wrong in ["10", "%", "-1%", "101%", "NaN%", "inf%", "ten%"] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_rate_is_above_0() {
        assert_eq!(rate("2000"), Ok(2_000.0));
        assert_eq!(rate("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "", "inf", "NaN", "2000/s", "1e99"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_wait_is_a_duration_or_until_done() {
        assert_eq!("until-done".parse(), Ok(Wait::UntilDone));
        assert_eq!("90".parse(), Ok(Wait::For(Duration::from_secs(90))));
        assert_eq!("5m".parse(), Ok(Wait::For(Duration::from_secs(300))));
        for wrong in ["", "done", "until done", "0s"] {
            assert!(wrong.parse::<Wait>().unwrap_err().contains("until-done"), "{wrong}");
        }
    }
}
