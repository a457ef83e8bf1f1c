//! Converts timestamps from text and numbers to [`Millis`] by decimal arithmetic. No digit is lost
//! to a float. Digits below a millisecond are truncated, never rounded.

use jiff::civil;

use crate::{
    millis::{EPOCH, Millis},
    validation::BrokenRule,
};

/// A number with at least this many integer digits (10^12 and up) is in milliseconds, a smaller one
/// in seconds.
const MILLISECOND_DIGITS: i64 = 13;
/// A number with more integer digits is after the year 9999 in both units.
const MAX_DIGITS: i64 = 16;
const SECOND_MS: i64 = 1000;
const MINUTE_MS: i64 = 60 * SECOND_MS;
const DAY_MS: i64 = 24 * 60 * MINUTE_MS;

/// The unit of an epoch timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Millis,
    /// Microseconds.
    Micros,
    /// Nanoseconds.
    Nanos,
}

impl Unit {
    /// The power of ten that makes milliseconds of the unit, and the unit's name.
    fn shift(self) -> (i64, &'static str) {
        match self {
            Self::Seconds => (3, "seconds"),
            Self::Millis => (0, "milliseconds"),
            Self::Micros => (-3, "microseconds"),
            Self::Nanos => (-6, "nanoseconds"),
        }
    }
}

/// The timestamp in a JSON number of a known unit. The error is the reason.
///
/// # Errors
/// The time is before 1970 or after the year 9999.
pub fn timestamp_from_number(number: &str, unit: Unit) -> Result<Millis, String> {
    of_number_in(number, Some(unit)).map_err(|broken_rule| broken_rule.msg)
}

/// The timestamp in RFC 3339 text with an offset. The error is the reason.
///
/// # Errors
/// The text is no such time, or the time is before 1970 or after the year 9999.
pub fn timestamp_from_text(text: &str) -> Result<Millis, String> {
    of_text(text).map_err(|broken_rule| broken_rule.msg)
}

/// A JSON number: epoch milliseconds from 10^12 on, epoch seconds below.
pub(crate) fn of_number(text: &str) -> Result<Millis, BrokenRule> {
    of_number_in(text, None)
}

/// A JSON number of a known unit. Without one, its size decides.
fn of_number_in(text: &str, unit: Option<Unit>) -> Result<Millis, BrokenRule> {
    let (negative, number) = text.strip_prefix('-').map_or((false, text), |number| (true, number));
    let (mantissa, exponent) = match number.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, saturating_exponent(exponent)),
        None => (number, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let padded = [whole, fraction].concat();
    let digits = padded.trim_start_matches('0');
    if digits.is_empty() {
        return Millis::new(0).ok_or_else(too_late);
    }
    if negative {
        return Err(too_early());
    }
    let zeros = signed(padded.len() - digits.len());
    let integer_digits = signed(whole.len()).saturating_sub(zeros).saturating_add(exponent);
    // The message names the assumed unit for a client that meant another one.
    let by_size = if integer_digits >= MILLISECOND_DIGITS { Unit::Millis } else { Unit::Seconds };
    let (shift, unit) = unit.unwrap_or(by_size).shift();
    let too_late = || {
        let msg = format!("Time should not be past the year 9999: the number was taken as {unit}");
        BrokenRule::new("less_than_equal", msg)
    };
    if integer_digits.saturating_add(shift) > MAX_DIGITS {
        return Err(too_late());
    }
    let wanted = usize::try_from(integer_digits.saturating_add(shift)).unwrap_or(0);
    let digits = digits.bytes().chain(std::iter::repeat(b'0')).take(wanted);
    let ms = digits.fold(0_i64, |ms, digit| ms.saturating_mul(10).saturating_add(i64::from(digit - b'0')));
    Millis::new(ms).ok_or_else(too_late)
}

/// A JSON number in a Kafka record: an integer of milliseconds of any size.
pub(crate) fn of_record_number(text: &str) -> Result<Millis, BrokenRule> {
    if text.contains(['.', 'e', 'E']) {
        return Err(BrokenRule::new("int_type", "A number here should be an integer of milliseconds"));
    }
    match text.parse::<i64>() {
        Ok(ms) if ms < 0 => Err(too_early()),
        Ok(ms) => Millis::new(ms).ok_or_else(too_late),
        Err(_) if text.starts_with('-') => Err(too_early()),
        Err(_) => Err(too_late()),
    }
}

/// RFC 3339 text with an offset.
pub(crate) fn of_text(text: &str) -> Result<Millis, BrokenRule> {
    let ms = rfc3339(text).map_err(|msg| BrokenRule::new("datetime_parsing", msg))?;
    if ms < 0 { Err(too_early()) } else { Millis::new(ms).ok_or_else(too_late) }
}

/// The grammar is checked here, because the library accepts more. The library checks the calendar.
fn rfc3339(text: &str) -> Result<i64, &'static str> {
    const GRAMMAR: &str = "Input should be an RFC 3339 time with an offset, such as 2025-10-26T20:16:03.123Z";
    const CALENDAR: &str = "Input should be a date and time that exist";
    const LEAP_SECOND: &str = "Second 60 should be 23:59:60 in UTC, where leap seconds are";
    let (moment, rest) = split_moment(text).ok_or(GRAMMAR)?;
    let (fraction_ms, offset) = split_fraction(rest).ok_or(GRAMMAR)?;
    let offset_ms = offset_minutes(offset).ok_or(GRAMMAR)? * MINUTE_MS;
    // The library reads second 60 as second 59.
    let leap_second = moment.ends_with(":60");
    let moment: civil::DateTime = moment.parse().map_err(|_| CALENDAR)?;
    let ms = i64::try_from(moment.duration_since(EPOCH).as_millis()).map_err(|_| CALENDAR)? - offset_ms;
    if leap_second && ms.rem_euclid(DAY_MS) != DAY_MS - SECOND_MS {
        return Err(LEAP_SECOND);
    }
    Ok(ms + fraction_ms)
}

/// Splits `2025-10-26T20:16:03` from the rest.
fn split_moment(text: &str) -> Option<(&str, &str)> {
    const SHAPE: &[u8; 19] = b"dddd-dd-ddTdd:dd:dd";
    let (moment, rest) = text.split_at_checked(SHAPE.len())?;
    let shaped = moment.bytes().zip(SHAPE).all(|(byte, shape)| match shape {
        b'd' => byte.is_ascii_digit(),
        b'T' => matches!(byte, b'T' | b't' | b' '),
        _ => byte == *shape,
    });
    shaped.then_some((moment, rest))
}

/// Splits `.123456Z` into 123 and `Z`.
fn split_fraction(text: &str) -> Option<(i64, &str)> {
    let Some(fraction) = text.strip_prefix('.') else { return Some((0, text)) };
    let end = fraction.bytes().position(|byte| !byte.is_ascii_digit())?;
    let (digits, offset) = fraction.split_at_checked(end)?;
    let kept = digits.get(..digits.len().min(3)).filter(|kept| !kept.is_empty())?;
    Some((format!("{kept:0<3}").parse().ok()?, offset))
}

fn offset_minutes(text: &str) -> Option<i64> {
    if matches!(text, "Z" | "z") {
        return Some(0);
    }
    let sign = match text.as_bytes() {
        [b'+', ..] => 1,
        [b'-', ..] => -1,
        _ => return None,
    };
    let (hours, minutes) = text.get(1..)?.split_once(':')?;
    let number = |part: &str, below: i64| {
        let shaped = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
        part.parse::<i64>().ok().filter(|number| shaped && *number < below)
    };
    Some(sign * (number(hours, 24)? * 60 + number(minutes, 60)?))
}

fn saturating_exponent(text: &str) -> i64 {
    let limit = if text.starts_with('-') { i64::MIN / 4 } else { i64::MAX / 4 };
    text.parse().map_or(limit, |exponent: i64| exponent.clamp(i64::MIN / 4, i64::MAX / 4))
}

fn signed(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

pub(crate) fn too_early() -> BrokenRule {
    BrokenRule::new("greater_than_equal", "Time should not be before 1970-01-01T00:00:00Z")
}

pub(crate) fn too_late() -> BrokenRule {
    BrokenRule::new("less_than_equal", "Time should not be past the year 9999")
}

#[cfg(test)]
mod tests {
    use super::{Unit, of_number, of_record_number, of_text};
    use crate::millis::Millis;

    fn number(text: &str) -> Result<i64, &'static str> {
        of_number(text).map(|millis| millis.get()).map_err(|broken_rule| broken_rule.kind)
    }

    fn text(text: &str) -> Result<i64, &'static str> {
        of_text(text).map(|millis| millis.get()).map_err(|broken_rule| broken_rule.kind)
    }

    #[test]
    fn integers_from_ten_to_the_twelfth_are_milliseconds_and_below_seconds() {
        assert_eq!(number("1730000000000"), Ok(1_730_000_000_000));
        assert_eq!(number("1000000000000"), Ok(1_000_000_000_000));
        assert_eq!(number("999999999999"), Err("less_than_equal"));
        assert_eq!(number("1730000000"), Ok(1_730_000_000_000));
        assert_eq!(number("0"), Ok(0));
        assert_eq!(number("-0"), Ok(0));
    }

    #[test]
    fn fractions_are_truncated_to_milliseconds_without_floats() {
        assert_eq!(number("1730000000.123456"), Ok(1_730_000_000_123));
        assert_eq!(number("1730000000.9999999999"), Ok(1_730_000_000_999));
        assert_eq!(number("0.0019"), Ok(1));
        assert_eq!(number("0.0009"), Ok(0));
        assert_eq!(number("1730000000000.9"), Ok(1_730_000_000_000));
        // 1730000000.289 as a double is 1730000000.2889999…
        assert_eq!(number("1730000000.289"), Ok(1_730_000_000_289));
    }

    #[test]
    fn numbers_with_exponents_are_read() {
        assert_eq!(number("1.73e9"), Ok(1_730_000_000_000));
        assert_eq!(number("1.73E+12"), Ok(1_730_000_000_000));
        assert_eq!(number("1730000000123e-3"), Ok(1_730_000_000_123));
        assert_eq!(number("1e-99999999999999999999"), Ok(0));
        assert_eq!(number("0e99999999999999999999"), Ok(0));
        assert_eq!(number("1e99999999999999999999"), Err("less_than_equal"));
    }

    #[test]
    fn numbers_outside_the_years_1970_to_9999_are_rejected() {
        assert_eq!(number("-1"), Err("greater_than_equal"));
        assert_eq!(number("-0.0001"), Err("greater_than_equal"));
        assert_eq!(number("253402300799"), Ok(253_402_300_799_000));
        assert_eq!(number("253402300799.9999"), Ok(253_402_300_799_999));
        assert_eq!(number("253402300800"), Err("less_than_equal"));
        assert_eq!(number("253402300799999"), Ok(253_402_300_799_999));
        assert_eq!(number("253402300800000"), Err("less_than_equal"));
        assert_eq!(number("99999999999999999999999"), Err("less_than_equal"));
    }

    #[test]
    fn a_number_of_a_known_unit_is_not_judged_by_its_size() {
        let of = |text, unit| super::timestamp_from_number(text, unit).map(Millis::get);
        assert_eq!(of("1730000000123456", Unit::Micros), Ok(1_730_000_000_123));
        assert_eq!(of("1730000000123456789", Unit::Nanos), Ok(1_730_000_000_123));
        assert_eq!(of("5", Unit::Millis), Ok(5));
        assert_eq!(of("999", Unit::Micros), Ok(0));
        assert_eq!(of("1.7300000001239e9", Unit::Seconds), Ok(1_730_000_000_123));
        assert_eq!(of("253402300799999999", Unit::Micros), Ok(253_402_300_799_999));
        for (text, unit) in [
            ("1730000000000", Unit::Seconds),
            ("253402300800000", Unit::Millis),
            ("99999999999999999999999", Unit::Nanos),
            ("-1", Unit::Seconds),
        ] {
            assert!(of(text, unit).is_err(), "{text} {unit:?}");
        }
    }

    #[test]
    fn in_a_record_an_integer_of_any_size_is_milliseconds() {
        assert_eq!(of_record_number("1730000000").unwrap().get(), 1_730_000_000);
        assert_eq!(of_record_number("5").unwrap().get(), 5);
        for (text, kind) in [
            ("1.5", "int_type"),
            ("1e3", "int_type"),
            ("-1", "greater_than_equal"),
            ("-99999999999999999999", "greater_than_equal"),
            ("99999999999999999999", "less_than_equal"),
        ] {
            assert_eq!(of_record_number(text).unwrap_err().kind, kind, "{text}");
        }
    }

    #[test]
    fn rfc_3339_text_is_read() {
        assert_eq!(text("2024-10-27T03:33:20Z"), Ok(1_730_000_000_000));
        assert_eq!(text("2024-10-27t03:33:20.1z"), Ok(1_730_000_000_100));
        assert_eq!(text("2024-10-27 05:33:20.123999999999+02:00"), Ok(1_730_000_000_123));
        assert_eq!(text("2024-10-26T22:03:20-05:30"), Ok(1_730_000_000_000));
        assert_eq!(text("9999-12-31T23:59:59.999Z"), Ok(253_402_300_799_999));
    }

    #[test]
    fn second_60_is_read_only_at_23_59_60_in_utc() {
        for (right, same) in [
            ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59Z"),
            ("2016-12-31T23:59:60.5Z", "2016-12-31T23:59:59.5Z"),
            ("2017-01-01T01:59:60+02:00", "2016-12-31T23:59:59Z"),
            ("1990-12-31T15:59:60-08:00", "1990-12-31T23:59:59Z"),
            ("2017-01-01T05:29:60.999+05:30", "2016-12-31T23:59:59.999Z"),
            ("1972-06-30 23:59:60-00:00", "1972-06-30T23:59:59Z"),
        ] {
            assert_eq!(text(right), text(same), "{right}");
            assert!(text(right).is_ok(), "{right}");
        }
        for wrong in [
            "2016-12-31T23:58:60Z",
            "2016-12-31T00:00:60Z",
            "2024-10-27T03:33:60Z",
            "2016-12-31T23:59:60+02:00",
            "2016-12-31T23:59:60-00:01",
            "2017-01-01T05:30:60+05:30",
        ] {
            assert_eq!(text(wrong), Err("datetime_parsing"), "{wrong}");
            assert!(of_text(wrong).unwrap_err().msg.contains("Second 60"), "{wrong}");
        }
        for wrong in ["2016-12-31T23:59:61Z", "2016-12-31T23:60:60Z", "2016-12-31T24:59:60Z"] {
            assert_eq!(text(wrong), Err("datetime_parsing"), "{wrong}");
        }
    }

    #[test]
    fn a_violation_names_the_broken_rule() {
        for (wrong, rule) in [
            ("27.10.2024", "RFC 3339"),
            ("2024-10-27T03:33:20", "with an offset"),
            ("2024-02-30T00:00:00Z", "that exist"),
            ("2024-10-27T24:00:00Z", "that exist"),
        ] {
            let msg = of_text(wrong).unwrap_err().msg;
            assert!(msg.contains(rule), "{wrong}: {msg}");
        }
        for (wrong, unit) in
            [("999999999999", "taken as seconds"), ("1730000000000000", "taken as milliseconds")]
        {
            let msg = of_number(wrong).unwrap_err().msg;
            assert!(msg.contains(unit), "{wrong}: {msg}");
        }
    }

    #[test]
    fn text_outside_the_years_1970_to_9999_is_rejected() {
        assert_eq!(text("1969-12-31T23:59:59.999Z"), Err("greater_than_equal"));
        assert_eq!(text("9999-12-31T23:59:59-00:01"), Err("less_than_equal"));
        assert_eq!(text("0000-01-01T00:00:00Z"), Err("greater_than_equal"));
    }

    #[test]
    fn other_text_is_rejected() {
        for wrong in [
            "",
            "now",
            "1730000000000",
            "2024-10-27",
            "2024-10-27T03:33:20",
            "2024-10-27T03:33Z",
            "2024-02-30T00:00:00Z",
            "2024-10-27T24:00:00Z",
            "2024-10-27T03:33:20.Z",
            "2024-10-27T03:33:20,5Z",
            "2024-10-27T03:33:20+24:00",
            "2024-10-27T03:33:20+2:00",
            "2024-10-27T03:33:20+02:60",
            "2024-10-27T03:33:20+0200",
            "2024-10-27T03:33:20Z[UTC]",
            "+002024-10-27T03:33:20Z",
            "2024-10-27T03:33:20.5",
            "2024-10-27T03:33:20.5é",
            "2024-10-27T03:33:2é",
            "2024-10-27T03:33:20é",
        ] {
            assert_eq!(text(wrong), Err("datetime_parsing"), "{wrong}");
        }
    }
}
