//! The parameters of a poll job: `interval_sec` and `duration_sec`, fractions allowed.

use std::time::Duration;

use events::{Fault, Loc};
use serde_json::Number;
use url::form_urlencoded;

use crate::error::ApiError;

/// A year.
const LONGEST_SEC: f64 = 31_536_000.0;
const INTERVAL: &str = "interval_sec";
const DURATION: &str = "duration_sec";
/// So much of an unknown name is repeated in a refusal.
const MOST_CHARS: usize = 64;

/// When a job calls.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Seconds from one call to the next.
    pub interval_sec: Seconds,
    /// Seconds in which calls begin.
    pub duration_sec: Seconds,
}

/// A number of seconds above 0. Serialises without a fraction where it has none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seconds(f64);

impl Seconds {
    /// As a duration: a millisecond at least.
    pub fn duration(self) -> Duration {
        Duration::from_secs_f64(self.0).max(Duration::from_millis(1))
    }
}

impl serde::Serialize for Seconds {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and at most a year")]
        let number =
            if self.0.fract() == 0.0 { Some((self.0 as i64).into()) } else { Number::from_f64(self.0) };
        number.serialize(serializer)
    }
}

impl Schedule {
    /// Reads a query string; what is missing is as in the original.
    ///
    /// # Errors
    /// 400 for another parameter or a number that is not above 0, 422 for what is no number, above a year or given twice.
    pub fn parse(query: &str) -> Result<Self, ApiError> {
        let mut faults = Vec::new();
        let mut known = Vec::new();
        for (name, _) in form_urlencoded::parse(query.as_bytes()) {
            let Some(name) = [INTERVAL, DURATION].into_iter().find(|known| *known == name) else {
                let name: String = name.chars().take(MOST_CHARS).collect();
                return Err(ApiError::JobInput(format!("the query has the unknown parameter {name:?}")));
            };
            if known.contains(&name) {
                faults.push(fault(name, "Field should be given only once", "duplicate_field"));
            }
            known.push(name);
        }
        let mut take = |name: &'static str, usual: f64| {
            let given = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name);
            match given.map(|(_, text)| text.trim().parse::<f64>()) {
                None => Ok(Seconds(usual)),
                Some(Ok(number)) if number <= 0.0 => Err(ApiError::NotPositive(name)),
                Some(Ok(number)) if number <= LONGEST_SEC => Ok(Seconds(number)),
                Some(Ok(_)) => {
                    faults.push(fault(
                        name,
                        "Input should be a number of seconds up to a year",
                        "less_than_equal",
                    ));
                    Ok(Seconds(usual))
                }
                Some(Err(_)) => {
                    faults.push(fault(name, "Input should be a valid number", "float_parsing"));
                    Ok(Seconds(usual))
                }
            }
        };
        let schedule = Self { interval_sec: take(INTERVAL, 3.0)?, duration_sec: take(DURATION, 120.0)? };
        if faults.is_empty() { Ok(schedule) } else { Err(ApiError::Invalid(faults)) }
    }
}

fn fault(name: &str, msg: &str, kind: &'static str) -> Fault {
    Fault { loc: vec![Loc::Name("query".into()), Loc::Name(name.into())], msg: msg.into(), kind }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_parameters_are_those_of_the_original() {
        let schedule = Schedule::parse("").unwrap();
        assert_eq!((schedule.interval_sec.0, schedule.duration_sec.0), (3.0, 120.0));
        let schedule = Schedule::parse("duration_sec=0.5&&interval_sec=2").unwrap();
        assert_eq!(serde_json::to_string(&schedule.interval_sec).unwrap(), "2");
        assert_eq!(serde_json::to_string(&schedule.duration_sec).unwrap(), "0.5");
    }

    #[test]
    fn what_is_not_above_0_is_refused_by_name() {
        for (query, name) in [("interval_sec=0", "interval_sec"), ("duration_sec=-1e9", "duration_sec")] {
            assert!(matches!(Schedule::parse(query), Err(ApiError::NotPositive(given)) if given == name));
        }
    }

    #[test]
    fn unknown_parameters_are_refused_and_the_known_ones_named() {
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
            let Err(error @ ApiError::JobInput(_)) = Schedule::parse(query) else { panic!("{query}") };
            let problem = error.problem();
            assert_eq!((problem.status.as_u16(), problem.retryable), (400, false));
            assert!(problem.detail.contains("unknown parameter"), "{}", problem.detail);
            assert!(problem.detail.contains("interval_sec and duration_sec"), "{}", problem.detail);
        }
        let Err(error) = Schedule::parse(&"x".repeat(5000)) else { panic!("accepted") };
        assert!(error.problem().detail.len() < 300);
    }

    #[test]
    fn a_parameter_given_twice_is_a_fault() {
        let Err(ApiError::Invalid(faults)) = Schedule::parse("interval_sec=1&interval_sec=2") else {
            panic!("accepted")
        };
        assert_eq!((faults.len(), faults[0].kind), (1, "duplicate_field"));
    }

    #[test]
    fn what_is_no_number_of_seconds_is_a_fault_of_the_parameter_and_all_are_told() {
        let Err(ApiError::Invalid(faults)) = Schedule::parse("interval_sec=soon&duration_sec=inf") else {
            panic!("accepted")
        };
        let kinds: Vec<&str> = faults.iter().map(|fault| fault.kind).collect();
        assert_eq!(kinds, ["float_parsing", "less_than_equal"]);
        assert!(matches!(Schedule::parse("interval_sec=NaN"), Err(ApiError::Invalid(_))));
    }
}
