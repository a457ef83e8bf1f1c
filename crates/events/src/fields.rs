//! The fields of an event: the split of a JSON object into raw fields, and the type of each field
//! with its validation.

use std::{borrow::Cow, fmt, time::Duration};

use bson::oid::ObjectId;
use jiff::{SignedDuration, civil};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    json::{Cursor, unescape},
    validation::BrokenRule,
};

/// The value of `op` in the envelope of a delete.
pub(crate) const DELETE: &str = "delete";

/// The raw values of an event's fields. A `null` is kept.
#[derive(Default)]
pub(crate) struct Envelope<'t> {
    pub(crate) id: Option<&'t str>,
    pub(crate) timestamp: Option<&'t str>,
    pub(crate) source: Option<&'t str>,
    pub(crate) payload: Option<&'t str>,
    pub(crate) ingested_at: Option<&'t str>,
    pub(crate) api_version: Option<&'t str>,
    /// Other fields in their order: raw key and raw value.
    pub(crate) extra: Vec<(&'t str, &'t str)>,
    /// Names of the six fields above that occur more than once. The last value is kept.
    pub(crate) repeated: Vec<Cow<'t, str>>,
}

impl<'t> Envelope<'t> {
    /// Splits a JSON object into its fields. `None` if `text` is another JSON value.
    pub(crate) fn split(text: &'t str) -> Option<Self> {
        let mut cursor = Cursor::new(text);
        if cursor.peek() != b'{' {
            return None;
        }
        let mut envelope = Self::default();
        cursor.enter();
        while let Some(key) = cursor.next_key() {
            envelope.add(key, cursor.value());
        }
        Some(envelope)
    }

    /// Whether the envelope is that of a delete. The field `op` is one of `extra`, because any other
    /// value of it belongs to another producer.
    pub(crate) fn is_delete(&self) -> bool {
        let is_op = |key: &str| unescape(key).is_some_and(|key| key == "op");
        self.extra.iter().any(|(key, value)| is_op(key) && text(value).is_ok_and(|op| op == DELETE))
    }

    fn add(&mut self, key: &'t str, value: &'t str) {
        let name = unescape(key).unwrap_or_default();
        let field = match name.as_ref() {
            "id" => &mut self.id,
            "timestamp" => &mut self.timestamp,
            "source" => &mut self.source,
            "payload" => &mut self.payload,
            "ingested_at" => &mut self.ingested_at,
            "api_version" => &mut self.api_version,
            _ => return self.extra.push((key, value)),
        };
        if field.replace(value).is_some() && !self.repeated.contains(&name) {
            self.repeated.push(name);
        }
    }
}

/// The value of a field, `None` if it is absent or `null`.
pub(crate) fn non_null(field: Option<&str>) -> Option<&str> {
    field.filter(|raw| *raw != "null")
}

/// An id: a string, or an integer as its decimal text.
pub(crate) fn id(raw: &str) -> Result<EventId, BrokenRule> {
    if is_string(raw) {
        return EventId::validate(text(raw)?.into_owned());
    }
    if !is_number(raw) || raw.contains(['.', 'e', 'E']) {
        return Err(BrokenRule::new("string_type", "Input should be a valid string or an integer"));
    }
    EventId::validate(if raw == "-0" { "0".to_owned() } else { raw.to_owned() })
}

pub(crate) fn source(raw: &str) -> Result<Source, BrokenRule> {
    Source::validate(text(raw)?.into_owned())
}

/// A timestamp: RFC 3339 text, or a number that `number` converts.
pub(crate) fn timestamp(
    raw: &str,
    number: impl Fn(&str) -> Result<Millis, BrokenRule>,
) -> Result<Millis, BrokenRule> {
    if is_number(raw) {
        number(raw)
    } else if is_string(raw) {
        timestamp_of_text(&text(raw)?)
    } else {
        Err(BrokenRule::new("datetime_type", "Input should be a number or RFC 3339 text"))
    }
}

/// The timestamp in a JSON value by the rules of an HTTP request. The error is the reason.
///
/// # Errors
/// The value is neither a number nor RFC 3339 text, or its time is out of range.
pub fn timestamp_from_json(raw: &str) -> Result<Millis, String> {
    timestamp(raw, timestamp_of_number).map_err(|broken_rule| broken_rule.msg)
}

/// A string.
pub(crate) fn text(raw: &str) -> Result<Cow<'_, str>, BrokenRule> {
    if !is_string(raw) {
        return Err(BrokenRule::new("string_type", "Input should be a valid string"));
    }
    unescape(raw).ok_or_else(BrokenRule::not_unicode)
}

fn is_string(raw: &str) -> bool {
    raw.starts_with('"')
}

fn is_number(raw: &str) -> bool {
    raw.starts_with(|first: char| first == '-' || first.is_ascii_digit())
}

const MAX_ID_CHARS: usize = 256;

/// An event's id: 1 to 256 characters without control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct EventId(String);

impl EventId {
    /// Validates `text` as an id. The error is the reason.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        Self::validate(text.into()).map_err(|broken_rule| broken_rule.msg)
    }

    pub(crate) fn validate(text: String) -> Result<Self, BrokenRule> {
        if text.is_empty() {
            return Err(BrokenRule::new("string_too_short", "Id should have at least 1 character"));
        }
        if text.chars().nth(MAX_ID_CHARS).is_some() {
            return Err(BrokenRule::new("string_too_long", "Id should have at most 256 characters"));
        }
        if text.chars().any(char::is_control) {
            return Err(BrokenRule::new("string_pattern_mismatch", "Id should have no control characters"));
        }
        Ok(Self(text))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The `_id` of a document without a usable upsert key: the first 12 bytes of the SHA-256 of its
/// event id. It is the same on every replay.
pub fn derived_object_id(id: &EventId) -> ObjectId {
    let digest = Sha256::digest(id.as_str().as_bytes());
    let mut bytes = [0; 12];
    bytes.iter_mut().zip(digest).for_each(|(byte, digest)| *byte = digest);
    ObjectId::from_bytes(bytes)
}

const MAX_SOURCE_BYTES: usize = 64;

/// A source: `^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`, except names that MongoDB or its drivers reject
/// for a collection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Source(String);

impl Source {
    /// Validates `text` as a source. The error is the reason.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        Self::validate(text.into()).map_err(|broken_rule| broken_rule.msg)
    }

    fn validate(text: String) -> Result<Self, BrokenRule> {
        let starts_well = text.starts_with(|first: char| first.is_ascii_alphanumeric());
        let goes_on_well = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        let violation = if !starts_well || !goes_on_well || text.len() > MAX_SOURCE_BYTES {
            "Source should match ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
        } else if text.starts_with("system.") || text.contains(".system.") {
            "Source should not start with system. or contain .system. (MongoDB reserves such collections)"
        } else if text.ends_with('.') || text.contains("..") {
            "Source should not end with a dot or contain two in a row (drivers cannot open such collections)"
        } else {
            return Ok(Self(text));
        };
        Err(BrokenRule::new("string_pattern_mismatch", violation))
    }

    /// The source as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Civil time and not [`jiff::Timestamp`], which ends a day before the end of the year 9999.
const EPOCH: civil::DateTime = civil::DateTime::constant(1970, 1, 1, 0, 0, 0, 0);

/// Milliseconds since 1970-01-01T00:00:00Z, from 0 to the end of the year 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Millis(i64);

impl Millis {
    /// The last millisecond of the year 9999.
    pub const MAX: Self = Self(253_402_300_799_999);

    /// `None` if `ms` is negative or after the year 9999.
    pub fn new(ms: i64) -> Option<Self> {
        (0..=Self::MAX.0).contains(&ms).then_some(Self(ms))
    }

    /// The number of milliseconds.
    pub fn get(self) -> i64 {
        self.0
    }

    /// The time `duration` later, at most [`Millis::MAX`].
    pub(crate) fn saturating_add(self, duration: Duration) -> Self {
        let ms = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        self.0.checked_add(ms).and_then(Self::new).unwrap_or(Self::MAX)
    }

    /// The time as text with three digits of a second: `2025-10-26T20:16:03.123Z`.
    pub fn iso(self) -> String {
        let time = EPOCH.saturating_add(SignedDuration::from_millis(self.0));
        format!("{time:.3}Z")
    }
}

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
    timestamp_of_number_in(number, Some(unit)).map_err(|broken_rule| broken_rule.msg)
}

/// The timestamp in RFC 3339 text with an offset. The error is the reason.
///
/// # Errors
/// The text is no such time, or the time is before 1970 or after the year 9999.
pub fn timestamp_from_text(text: &str) -> Result<Millis, String> {
    timestamp_of_text(text).map_err(|broken_rule| broken_rule.msg)
}

/// A JSON number: epoch milliseconds from 10^12 on, epoch seconds below.
pub(crate) fn timestamp_of_number(text: &str) -> Result<Millis, BrokenRule> {
    timestamp_of_number_in(text, None)
}

/// A JSON number of a known unit. Without one, its size decides.
fn timestamp_of_number_in(text: &str, unit: Option<Unit>) -> Result<Millis, BrokenRule> {
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
pub(crate) fn timestamp_of_record_number(text: &str) -> Result<Millis, BrokenRule> {
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
fn timestamp_of_text(text: &str) -> Result<Millis, BrokenRule> {
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

fn too_early() -> BrokenRule {
    BrokenRule::new("greater_than_equal", "Time should not be before 1970-01-01T00:00:00Z")
}

fn too_late() -> BrokenRule {
    BrokenRule::new("less_than_equal", "Time should not be past the year 9999")
}

#[cfg(test)]
mod tests;
