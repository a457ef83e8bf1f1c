//! The schedule of a poll job: its parameters `interval_sec` and `duration_sec`, and its ticks.

use std::time::Duration;

use events::{Fault, Loc};
use serde_json::Number;
use tokio::time::Instant;
use url::form_urlencoded;

use crate::error::ApiError;

/// Maximum of both parameters: one year.
const MAX_SEC: f64 = 31_536_000.0;
const INTERVAL: &str = "interval_sec";
const DURATION: &str = "duration_sec";
/// Maximum length of an unknown parameter's name in an error.
const MAX_NAME_CHARS: usize = 64;

/// The schedule of a job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Time from one call to the next.
    pub interval_sec: Seconds,
    /// Time in which calls start.
    pub duration_sec: Seconds,
}

/// A positive number of seconds. A whole number is serialized without a fraction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seconds(f64);

impl Seconds {
    /// The number as a duration of at least one millisecond.
    pub fn duration(self) -> Duration {
        Duration::from_secs_f64(self.0).max(Duration::from_millis(1))
    }
}

impl serde::Serialize for Seconds {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[expect(clippy::cast_possible_truncation, reason = "the number is whole and at most a year")]
        let number =
            if self.0.fract() == 0.0 { Some((self.0 as i64).into()) } else { Number::from_f64(self.0) };
        number.serialize(serializer)
    }
}

impl Schedule {
    /// Parses a query string. Missing parameters have the defaults of the Python system.
    ///
    /// # Errors
    /// 400 for an unknown parameter or a number that is not positive. 422 for a value that is no
    /// number, is above one year or occurs twice.
    pub fn parse(query: &str) -> Result<Self, ApiError> {
        let mut faults = Vec::new();
        let mut known = Vec::new();
        for (name, _) in form_urlencoded::parse(query.as_bytes()) {
            let Some(name) = [INTERVAL, DURATION].into_iter().find(|known| *known == name) else {
                let name: String = name.chars().take(MAX_NAME_CHARS).collect();
                return Err(ApiError::InvalidJobRequest(format!(
                    "the query has the unknown parameter {name:?}"
                )));
            };
            if known.contains(&name) {
                faults.push(fault(name, "Field should be given only once", "duplicate_field"));
            }
            known.push(name);
        }
        let mut parse = |name: &'static str, default: f64| {
            let given = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name);
            match given.map(|(_, text)| text.trim().parse::<f64>()) {
                None => Ok(Seconds(default)),
                Some(Ok(number)) if number <= 0.0 => Err(ApiError::NotPositive(name)),
                Some(Ok(number)) if number <= MAX_SEC => Ok(Seconds(number)),
                Some(Ok(_)) => {
                    faults.push(fault(
                        name,
                        "Input should be a number of seconds up to a year",
                        "less_than_equal",
                    ));
                    Ok(Seconds(default))
                }
                Some(Err(_)) => {
                    faults.push(fault(name, "Input should be a valid number", "float_parsing"));
                    Ok(Seconds(default))
                }
            }
        };
        let schedule = Self { interval_sec: parse(INTERVAL, 3.0)?, duration_sec: parse(DURATION, 120.0)? };
        if faults.is_empty() { Ok(schedule) } else { Err(ApiError::Violations(faults)) }
    }
}

fn fault(name: &str, msg: &str, kind: &'static str) -> Fault {
    Fault { loc: vec![Loc::Name("query".into()), Loc::Name(name.into())], msg: msg.into(), kind }
}

/// The tick of the next call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick {
    pub at: Instant,
    /// Number of skipped ticks before it.
    pub skipped: u64,
}

/// The first tick of the schedule that is after `last` and not before `earliest`. Ticks at or after
/// `end` do not count as skipped.
pub fn next_tick(last: Instant, interval: Duration, earliest: Instant, end: Instant) -> Tick {
    let ticks_until = |instant: Instant| {
        let behind = instant.saturating_duration_since(last);
        (behind.as_secs_f64() / interval.as_secs_f64()).ceil().max(1.0)
    };
    let ticks = ticks_until(earliest);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a year has fewer milliseconds, and the number is not negative"
    )]
    let skipped = (ticks.min(ticks_until(end)) - 1.0) as u64;
    Tick { at: last + interval.mul_f64(ticks), skipped }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_parameters_have_the_defaults_of_the_python_system() {
        let schedule = Schedule::parse("").unwrap();
        assert_eq!((schedule.interval_sec.0, schedule.duration_sec.0), (3.0, 120.0));
        let schedule = Schedule::parse("duration_sec=0.5&&interval_sec=2").unwrap();
        assert_eq!(serde_json::to_string(&schedule.interval_sec).unwrap(), "2");
        assert_eq!(serde_json::to_string(&schedule.duration_sec).unwrap(), "0.5");
    }

    #[test]
    fn a_number_that_is_not_positive_is_rejected_with_its_name() {
        for (query, name) in [("interval_sec=0", "interval_sec"), ("duration_sec=-1e9", "duration_sec")] {
            assert!(matches!(Schedule::parse(query), Err(ApiError::NotPositive(given)) if given == name));
        }
    }

    #[test]
    fn an_unknown_parameter_is_rejected_with_the_known_names() {
        for query in [
            "x=y",
            "interval=2",
            "interval_sec=2&intervalSec=3",
            "Interval_sec=2",
            "duration_sec=5&interval_sec%20=2",
            "_=1",
            "=1",
            "interval_sec=0&x",
        ] {
            let Err(error @ ApiError::InvalidJobRequest(_)) = Schedule::parse(query) else {
                panic!("{query}")
            };
            let problem = error.problem();
            assert_eq!((problem.status.as_u16(), problem.retryable), (400, false));
            assert!(problem.detail.contains("unknown parameter"), "{}", problem.detail);
            assert!(problem.detail.contains("interval_sec and duration_sec"), "{}", problem.detail);
        }
        let Err(error) = Schedule::parse(&"x".repeat(5000)) else { panic!("accepted") };
        assert!(error.problem().detail.len() < 300);
    }

    #[test]
    fn a_duplicate_parameter_is_a_violation() {
        let Err(ApiError::Violations(faults)) = Schedule::parse("interval_sec=1&interval_sec=2") else {
            panic!("accepted")
        };
        assert_eq!((faults.len(), faults[0].kind), (1, "duplicate_field"));
    }

    #[test]
    fn each_value_that_is_no_number_of_seconds_is_a_violation() {
        let Err(ApiError::Violations(faults)) = Schedule::parse("interval_sec=soon&duration_sec=inf") else {
            panic!("accepted")
        };
        let kinds: Vec<&str> = faults.iter().map(|fault| fault.kind).collect();
        assert_eq!(kinds, ["float_parsing", "less_than_equal"]);
        assert!(matches!(Schedule::parse("interval_sec=NaN"), Err(ApiError::Violations(_))));
    }

    #[test]
    fn a_slow_call_skips_ticks_and_keeps_the_schedule() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let end = start + second * 3600;
        for (earliest, at, skipped) in [(1, 3, 0), (7, 9, 2), (0, 3, 0), (3, 3, 0), (6, 6, 1)] {
            let tick = next_tick(start, second * 3, start + second * earliest, end);
            assert_eq!(tick, Tick { at: start + second * at, skipped }, "{earliest}");
        }
    }

    #[test]
    fn ticks_after_the_end_do_not_count_as_skipped() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        for (end, skipped) in [(1, 0), (2, 1), (3, 2), (60, 59)] {
            let tick = next_tick(start, second, start + second * 60, start + second * end);
            assert_eq!(tick.skipped, skipped, "{end}");
        }
    }
}
