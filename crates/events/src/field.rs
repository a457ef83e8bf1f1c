//! Validates the raw JSON value of a single envelope field.

use std::borrow::Cow;

use crate::{
    cursor::unescape, id::EventId, millis::Millis, source::Source, timestamp, validation::BrokenRule,
};

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
        timestamp::of_text(&text(raw)?)
    } else {
        Err(BrokenRule::new("datetime_type", "Input should be a number or RFC 3339 text"))
    }
}

/// The timestamp in a JSON value by the rules of an HTTP request. The error is the reason.
///
/// # Errors
/// The value is neither a number nor RFC 3339 text, or its time is out of range.
pub fn timestamp_from_json(raw: &str) -> Result<Millis, String> {
    timestamp(raw, timestamp::of_number).map_err(|broken_rule| broken_rule.msg)
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

#[cfg(test)]
mod tests {
    use super::{id, source, timestamp};
    use crate::timestamp::of_number;

    #[test]
    fn an_id_is_a_string_or_an_integer() {
        assert_eq!(id(r#""3F28BC""#).unwrap().as_str(), "3F28BC");
        assert_eq!(id(r#""\u0041 ""#).unwrap().as_str(), "A ");
        assert_eq!(id("123456789012345678901234567890").unwrap().as_str(), "123456789012345678901234567890");
        assert_eq!(id("-7").unwrap().as_str(), "-7");
        assert_eq!(id("-0").unwrap().as_str(), "0");
        for (raw, kind) in [
            ("1.0", "string_type"),
            ("1e3", "string_type"),
            ("true", "string_type"),
            ("{}", "string_type"),
            (r#""""#, "string_too_short"),
            (r#""\ud800""#, "string_unicode"),
            (r#""a\n""#, "string_pattern_mismatch"),
        ] {
            assert_eq!(id(raw).unwrap_err().kind, kind, "{raw}");
        }
        assert_eq!(id(&"9".repeat(257)).unwrap_err().kind, "string_too_long");
    }

    #[test]
    fn a_source_is_a_string() {
        assert_eq!(source(r#""adsbdb""#).unwrap().as_str(), "adsbdb");
        assert_eq!(source("1").unwrap_err().kind, "string_type");
        assert_eq!(source(r#""\udc00""#).unwrap_err().kind, "string_unicode");
        assert_eq!(source(r#""system.x""#).unwrap_err().kind, "string_pattern_mismatch");
    }

    #[test]
    fn a_timestamp_is_a_number_or_text() {
        let kind = |raw| timestamp(raw, of_number).unwrap_err().kind;
        assert_eq!(timestamp("1.5", of_number).unwrap().get(), 1500);
        assert_eq!(timestamp(r#""1970-01-01T00:00:01Z""#, of_number).unwrap().get(), 1000);
        assert_eq!(kind("true"), "datetime_type");
        assert_eq!(kind("[]"), "datetime_type");
        assert_eq!(kind(r#""soon""#), "datetime_parsing");
        assert_eq!(kind(r#""\ud800""#), "string_unicode");
    }
}
