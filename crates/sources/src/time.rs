//! The timestamp of an event from a record.

use std::borrow::Cow;

use events::{Millis, Unit, timestamp_from_json, timestamp_from_number, timestamp_from_text, unescape};
use jiff::civil;
use jiff::fmt::strtime::BrokenDownTime;

use crate::filter::Input;
use crate::kind::kind;
use crate::place::{Answer, Found, Place};

/// How the timestamp of an event is made.
#[derive(Debug, PartialEq)]
pub struct TimeRule {
    /// The first that is there is the timestamp.
    pub places: Vec<Place>,
    /// How the value is read.
    pub form: TimeForm,
    /// Whether a record without any of them gets the current time. If not, it is faulty.
    pub else_now: bool,
}

/// How a value is read as a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimeForm {
    /// By the rules of an HTTP request: the size of a number tells its unit, a text is RFC 3339.
    Contract,
    /// An epoch number of a unit, as a number or in a string.
    Epoch(Unit),
    /// ISO 8601 with its usual oddities: no seconds, a date alone, an offset without a colon, an
    /// offset and a `Z`, no offset if there is a zone.
    Iso8601 {
        /// The offset of a text that has none, such as `Z` or `+02:00`.
        zone: Option<String>,
    },
    /// A pattern of `strptime`, such as `%d.%m.%Y %H:%M`.
    Pattern {
        /// The pattern.
        pattern: String,
        /// The offset of a text that has none, such as `Z` or `+02:00`.
        zone: Option<String>,
    },
}

impl TimeRule {
    /// The rule of a source whose events have the time of their acceptance.
    pub(crate) fn now() -> Self {
        Self { places: Vec::new(), form: TimeForm::Contract, else_now: true }
    }

    pub(crate) fn apply(
        &self,
        input: &Input<'_>,
        answer: Option<&Answer<'_>>,
        now: Millis,
    ) -> Result<Millis, String> {
        for place in &self.places {
            if let Some(found) = place.find(input, answer)? {
                return self.form.read(&found).map_err(|reason| format!("{}: {reason}", place.name()));
            }
        }
        if self.else_now {
            return Ok(now);
        }
        let names: Vec<String> = self.places.iter().map(Place::name).collect();
        Err(format!("the record has no timestamp: {} is absent or null", names.join(" and ")))
    }
}

impl TimeForm {
    fn read(&self, found: &Found<'_>) -> Result<Millis, String> {
        let json = match found {
            Found::Json(json) => json,
            Found::Text(text) => return self.read_text(text),
        };
        match (self, kind(json)) {
            (Self::Contract, _) => timestamp_from_json(json),
            (Self::Epoch(unit), "number") => timestamp_from_number(json, *unit),
            (_, "string") => self.read_text(&unescape(json).ok_or("the string has an unpaired surrogate")?),
            (Self::Epoch(_), kind) => Err(format!("the value should be a number and is {kind}")),
            (_, kind) => Err(format!("the value should be a string and is {kind}")),
        }
    }

    fn read_text(&self, text: &str) -> Result<Millis, String> {
        match self {
            Self::Contract => timestamp_from_text(text),
            Self::Epoch(unit) if is_number(text) => timestamp_from_number(text, *unit),
            Self::Epoch(_) => Err("the string should be a number".into()),
            Self::Iso8601 { zone } => timestamp_from_text(&complete(text, zone.as_deref())?),
            Self::Pattern { pattern, zone } => by_pattern(text, pattern, zone.as_deref()),
        }
    }
}

/// Whether a text is a JSON number.
fn is_number(text: &str) -> bool {
    let raw: Result<&serde_json::value::RawValue, _> = serde_json::from_str(text);
    raw.is_ok_and(|raw| raw.get().len() == text.len() && kind(text) == "number")
}

/// RFC 3339 text from ISO 8601 text with oddities.
fn complete(text: &str, zone: Option<&str>) -> Result<String, String> {
    const SHAPE: &str = "the string should be an ISO 8601 time such as 2026-11-28T20:15Z";
    let text = text.trim();
    let (date, rest) = text.split_at_checked(10).ok_or(SHAPE)?;
    let is_date = rest.is_empty();
    let rest = rest.strip_prefix(['T', 't', ' ']).unwrap_or(rest);
    let split = rest.find(['Z', 'z', '+', '-']).unwrap_or(rest.len());
    let (time, offset) = rest.split_at_checked(split).ok_or(SHAPE)?;
    let time = match time.trim_end() {
        "" if is_date => Cow::Borrowed("00:00:00"),
        time if time.len() == 5 => Cow::Owned(format!("{time}:00")),
        time => Cow::Owned(time.replacen(',', ".", 1)),
    };
    // Some APIs write an offset and a Z.
    let offset = if offset.len() > 1 { offset.trim_end_matches(['Z', 'z']) } else { offset };
    let offset = match (offset.len(), offset.as_bytes()) {
        (0, _) => Cow::Borrowed(zone.ok_or("the time has no offset, and the source has no `zone`")?),
        (3, _) => Cow::Owned(format!("{offset}:00")),
        (5, [_, digits @ ..]) if digits.iter().all(u8::is_ascii_digit) => {
            let (hours, minutes) = offset.split_at_checked(3).ok_or(SHAPE)?;
            Cow::Owned(format!("{hours}:{minutes}"))
        }
        _ => Cow::Borrowed(offset),
    };
    Ok(format!("{date}T{time}{offset}"))
}

fn by_pattern(text: &str, pattern: &str, zone: Option<&str>) -> Result<Millis, String> {
    let parsed = BrokenDownTime::parse(pattern, text.trim());
    let parsed = parsed.map_err(|_| format!("the string should have the format {pattern}"))?;
    let date = parsed.to_date().map_err(|_| "the string should be a date that exists")?;
    // A pattern without a time means midnight. A pattern with a part of a time is an error.
    let time = parsed.to_time().map_err(|_| "the string should have a complete time")?;
    let offset = match parsed.offset() {
        Some(offset) if offset.seconds() % 60 != 0 => {
            return Err("the offset should be in whole minutes".into());
        }
        Some(offset) => {
            let minutes = offset.seconds() / 60;
            let sign = if minutes < 0 { '-' } else { '+' };
            format!("{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60)
        }
        None => zone.ok_or("the time has no offset, and the source has no `zone`")?.to_owned(),
    };
    timestamp_from_text(&format!("{date}T{time:.3}{offset}"))
}

/// Checks a pattern of `strptime`. The error continues the sentence `path: …`.
pub(crate) fn check_pattern(pattern: &str) -> Result<(), String> {
    // The library has no check but the use of a pattern.
    let now = civil::DateTime::constant(2026, 11, 28, 20, 15, 3, 500_000_000);
    let zoned = BrokenDownTime::from(now).to_string(pattern).or_else(|_| {
        let mut time = BrokenDownTime::from(now);
        time.set_offset(Some(jiff::tz::Offset::UTC));
        time.to_string(pattern)
    });
    let text = zoned.map_err(|_| "is not a format such as %d.%m.%Y %H:%M".to_owned())?;
    let parsed = BrokenDownTime::parse(pattern, &text);
    let parsed = parsed.ok().filter(|parsed| parsed.to_date().is_ok());
    let parsed = parsed.ok_or("is not a format with a complete date, such as %d.%m.%Y %H:%M")?;
    // An hour of 12 without AM or PM is another one of the day.
    let is_complete = match (parsed.to_time(), parsed.hour()) {
        (Ok(time), Some(_)) => time.hour() == now.hour(),
        (time, None) => time.is_ok(),
        (Err(_), Some(_)) => false,
    };
    if is_complete {
        Ok(())
    } else {
        Err("has an incomplete time; it should be such as %H:%M or %I:%M %p".into())
    }
}

/// The offset that a zone means. The error continues the sentence `path: …`.
pub(crate) fn parse_zone(text: &str) -> Result<String, String> {
    let is_offset = timestamp_from_text(&format!("2026-11-28T20:15:00{text}")).is_ok();
    match text {
        "UTC" => Ok("Z".into()),
        _ if is_offset => Ok(text.to_owned()),
        _ => {
            Err("should be UTC or an offset such as +02:00, because only these are the same all year".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{TimeForm, TimeRule, check_pattern, parse_zone};
    use crate::place::{Answer, Place};
    use crate::{filter::Input, pointer::Pointer};
    use events::{Millis, Unit};
    use proptest::prelude::*;

    fn read(form: &TimeForm, json: &str) -> Result<String, String> {
        let rule = TimeRule {
            places: vec![Place::Record(Pointer::parse("/t").unwrap())],
            form: form.clone(),
            else_now: false,
        };
        let record = format!(r#"{{"t":{json}}}"#);
        rule.apply(&Input::new(&record, None), None, Millis::new(0).unwrap()).map(Millis::iso)
    }

    fn iso(zone: Option<&str>) -> TimeForm {
        TimeForm::Iso8601 { zone: zone.map(str::to_owned) }
    }

    #[test]
    fn without_a_form_the_rules_of_a_request_apply() {
        for (json, time) in [
            ("1730000000", "2024-10-27T03:33:20.000Z"),
            ("1730000000123", "2024-10-27T03:33:20.123Z"),
            (r#""2024-10-27T05:33:20.5+02:00""#, "2024-10-27T03:33:20.500Z"),
        ] {
            assert_eq!(read(&TimeForm::Contract, json).unwrap(), time);
        }
        for json in ["true", "{}", r#""1730000000""#, r#""2024-10-27T05:33:20""#, "-1", "1e99"] {
            assert!(read(&TimeForm::Contract, json).unwrap_err().starts_with("/t: "), "{json}");
        }
    }

    #[test]
    fn a_unit_reads_numbers_and_strings_of_digits() {
        let us = TimeForm::Epoch(Unit::Micros);
        assert_eq!(read(&us, "1730000000123456").unwrap(), "2024-10-27T03:33:20.123Z");
        assert_eq!(read(&us, r#""1730000000123456""#).unwrap(), "2024-10-27T03:33:20.123Z");
        assert_eq!(read(&TimeForm::Epoch(Unit::Millis), "5").unwrap(), "1970-01-01T00:00:00.005Z");
        for json in [r#""now""#, r#""""#, r#"" 5""#, "[]", r#""0x5""#, r#""-5""#] {
            assert!(read(&us, json).is_err(), "{json}");
        }
    }

    #[test]
    fn oddities_of_iso_8601_are_read() {
        for (text, time) in [
            ("2026-11-28T20:15:02.505032+00:00Z", "2026-11-28T20:15:02.505Z"),
            ("2026-11-28T20:15:02Z", "2026-11-28T20:15:02.000Z"),
            ("2026-11-28T20:15", "2026-11-28T18:15:00.000Z"),
            ("2026-11-28 20:15:02,5", "2026-11-28T18:15:02.500Z"),
            ("2026-11-28T20:15Z", "2026-11-28T20:15:00.000Z"),
            ("2026-11-28T20:15:02+0100", "2026-11-28T19:15:02.000Z"),
            ("2026-11-28T20:15:02-05", "2026-11-29T01:15:02.000Z"),
            (" 2026-11-28 ", "2026-11-27T22:00:00.000Z"),
        ] {
            assert_eq!(read(&iso(Some("+02:00")), &format!("{text:?}")).unwrap(), time, "{text}");
        }
        assert!(read(&iso(None), r#""2026-11-28T20:15""#).unwrap_err().contains("no offset"));
        for text in [
            "",
            "2026",
            "2026-11-28T",
            "2026-11-28TZ",
            "2026-11-28T20",
            "28.11.2026 20:15",
            "2026-02-30T20:15",
            "é".repeat(9).as_str(),
        ] {
            assert!(read(&iso(Some("Z")), &format!("{text:?}")).is_err(), "{text}");
        }
        assert!(read(&iso(Some("Z")), "1730000000").unwrap_err().contains("a string and is number"));
    }

    #[test]
    fn a_pattern_reads_other_forms() {
        let form = |pattern: &str| TimeForm::Pattern { pattern: pattern.into(), zone: Some("Z".into()) };
        assert_eq!(
            read(&form("%d.%m.%Y %H:%M"), r#""28.11.2026 20:15""#).unwrap(),
            "2026-11-28T20:15:00.000Z"
        );
        assert_eq!(read(&form("%m/%d/%Y"), r#""11/28/2026""#).unwrap(), "2026-11-28T00:00:00.000Z");
        let http = "%a, %d %b %Y %H:%M:%S %z";
        assert_eq!(
            read(&form(http), r#""Sat, 28 Nov 2026 20:15:03 -0500""#).unwrap(),
            "2026-11-29T01:15:03.000Z"
        );
        let fraction = "%Y-%m-%dT%H:%M:%S%.f";
        assert_eq!(
            read(&form(fraction), r#""2026-11-28T20:15:59.9999""#).unwrap(),
            "2026-11-28T20:15:59.999Z"
        );
        assert!(read(&form("%d.%m.%Y"), r#""2026-11-28""#).unwrap_err().contains("%d.%m.%Y"));
        for pattern in ["%d.%m.%Y %H:%M", http, "%Y-%m-%dT%H:%M:%S%.f"] {
            check_pattern(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
        }
        for pattern in
            ["", "dd.mm.yyyy", "%", "%H:%M", "%!", "%s", "%Y-%m-%d %M", "%Y-%m-%d %H %S", "%Y-%m-%d %I:%M"]
        {
            assert!(check_pattern(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn a_text_with_an_incomplete_time_is_a_fault() {
        let form = |pattern: &str| TimeForm::Pattern { pattern: pattern.into(), zone: Some("Z".into()) };
        for pattern in ["%Y-%m-%d", "%Y-%m-%d %H", "%Y-%m-%d %I:%M %p"] {
            check_pattern(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
        }
        assert_eq!(read(&form("%Y-%m-%d"), "\"2026-11-28\"").unwrap(), "2026-11-28T00:00:00.000Z");
        assert_eq!(
            read(&form("%Y-%m-%d %I:%M %p"), "\"2026-11-28 08:15 PM\"").unwrap(),
            "2026-11-28T20:15:00.000Z"
        );
        let error = read(&form("%Y-%m-%d %M"), "\"2026-11-28 15\"").unwrap_err();
        assert!(error.contains("complete time"), "{error}");
        let error = read(&form("%Y-%m-%d %H:%M %:z"), "\"2026-11-28 20:15 +01:00:30\"").unwrap_err();
        assert!(error.contains("whole minutes"), "{error}");
    }

    #[test]
    fn a_zone_is_utc_or_an_offset() {
        assert_eq!(parse_zone("UTC").unwrap(), "Z");
        assert_eq!(parse_zone("-05:30").unwrap(), "-05:30");
        for text in ["", "Europe/Berlin", "CET", "+2", "utc+1"] {
            assert!(parse_zone(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_record_without_time_is_faulty_or_gets_the_current_time() {
        let mut rule = TimeRule {
            places: vec![
                Place::Record(Pointer::parse("/a").unwrap()),
                Place::Answer(Pointer::parse("/t").unwrap()),
            ],
            form: TimeForm::Contract,
            else_now: false,
        };
        let now = Millis::new(7000).unwrap();
        let apply = |rule: &TimeRule, answer: Option<&str>| {
            let answer = answer.map(Answer::new);
            rule.apply(&Input::new(r#"{"a":null}"#, None), answer.as_ref(), now)
        };
        assert_eq!(apply(&rule, Some(r#"{"t":5}"#)).unwrap().get(), 5000);
        assert!(apply(&rule, None).unwrap_err().contains("/a and /t of the answer is absent or null"));
        rule.else_now = true;
        assert_eq!(apply(&rule, None).unwrap(), now);
        assert!(apply(&rule, Some(r#"{"t":{}}"#)).is_err(), "a value of the wrong kind is no absent value");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_a_fault(text in any::<String>(), digits in "[0-9:T+Z. -]{0,30}") {
            for text in [text, digits] {
                let json = serde_json::to_string(&text).unwrap();
                for form in [TimeForm::Contract, iso(Some("Z")), TimeForm::Epoch(Unit::Nanos)] {
                    _ = read(&form, &json);
                }
                _ = read(&TimeForm::Pattern { pattern: "%Y-%m-%d".into(), zone: None }, &json);
                _ = check_pattern(&text);
            }
        }
    }
}
