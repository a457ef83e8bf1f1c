//! The command line of `load`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, value_parser};
use events::Source;

use crate::cli::duration;

/// Options of `load`.
#[derive(Debug, Clone, Args)]
pub struct LoadOptions {
    /// Events a second, on a fixed schedule that waits for no answer while a connection is free. Without it, as fast as
    /// the connections take them.
    #[arg(long, value_name = "N", value_parser = rate)]
    pub rate: Option<f64>,
    /// Send new events for this long: 60s, 5m. Without it and without --events, until a signal.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub run_for: Option<Duration>,
    /// Send this many events.
    #[arg(long, value_name = "N")]
    pub events: Option<u64>,
    /// Requests at a time.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = value_parser!(u16).range(1..=4096))]
    pub connections: u16,
    /// Events in a request: 1 goes to /ingest, more as NDJSON to /ingest/batch.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = value_parser!(u32).range(1..=10_000))]
    pub batch: u32,
    /// How many ids there are; they take turns, so that each comes again and again.
    #[arg(long, default_value_t = 5_000, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub keys: u32,
    /// Share of the events that are older than the newest of their id.
    #[arg(long, default_value = "10%", value_name = "PERCENT", value_parser = percent)]
    pub stale: u32,
    /// Share of the events whose payload is accepted but awkward: dots, `$`, Decimal128, names of metadata, 60 KB, 80 levels.
    #[arg(long, default_value = "1%", value_name = "PERCENT", value_parser = percent)]
    pub hostile: u32,
    /// Source of the events; the default is the first of EXPECTED_SOURCE.
    #[arg(long, value_name = "SOURCE", value_parser = |text: &str| Source::new(text))]
    pub source: Option<Source>,
    /// Write what was sent and how it was answered to this file, for `verify`; it must not exist yet.
    #[arg(long, value_name = "FILE")]
    pub ledger: Option<PathBuf>,
    /// The same seed gives the same events, ids apart; the default is a random one, which the summary names.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// How long events that were not answered for good are sent again: after the last new one, and, where only --events
    /// ends the run, while none at all is answered.
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = duration)]
    pub grace: Duration,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// A number of events a second.
fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 10_000_000.0 => Ok(rate),
        _ => Err("a rate is a number of events a second above 0: 2000".into()),
    }
}

/// A percentage, as millionths.
fn percent(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').and_then(|number| number.trim_end().parse::<f64>().ok());
    match number {
        Some(number) if (0.0..=100.0).contains(&number) => Ok((number * 10_000.0).round() as u32),
        _ => Err("a share is a number from 0 to 100 with a percent sign: 10%, 0.5%".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_carry_a_percent_sign() {
        let right = [("0%", 0), ("10%", 100_000), ("0.5 %", 5_000), ("100%", 1_000_000), ("0.0001%", 1)];
        for (text, ppm) in right {
            assert_eq!(percent(text), Ok(ppm), "{text}");
        }
        for wrong in ["10", "%", "-1%", "101%", "NaN%", "inf%", "ten%"] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates_are_above_0() {
        assert_eq!(rate("2000"), Ok(2_000.0));
        assert_eq!(rate("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "", "inf", "NaN", "2000/s", "1e99"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}
