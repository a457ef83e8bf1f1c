//! The response header `Retry-After` in both forms of RFC 9110: seconds and a date.

use std::time::{Duration, SystemTime};

use axum::http::{HeaderMap, HeaderName, header};

/// Cap of the delay, so that one response cannot stop a client for long.
const MAX_DELAY: Duration = Duration::from_secs(3600);

/// The delay that a response demands, at most one hour. `None` if the header is absent or invalid.
///
/// A date counts from the response's `Date`, so that a difference between the clocks has no effect.
/// Without `Date` it counts from the local clock.
#[must_use]
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = text(headers, &header::RETRY_AFTER)?;
    let delay = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        let until = httpdate::parse_http_date(text).ok()?;
        let now = self::text(headers, &header::DATE).and_then(|date| httpdate::parse_http_date(date).ok());
        until.duration_since(now.unwrap_or_else(SystemTime::now)).unwrap_or_default()
    };
    Some(delay.min(MAX_DELAY))
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(pairs: &[(HeaderName, &str)]) -> Option<u64> {
        let headers = pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        retry_after(&headers).map(|delay| delay.as_secs())
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_at_most_an_hour() {
        for (value, delay) in [
            ("17", Some(17)),
            (" 0 ", Some(0)),
            ("18446744073709551615", Some(3600)),
            ("99999999999999999999999", Some(3600)),
            // The three date formats of HTTP.
            ("Tue, 24 Nov 2026 06:30:39 GMT", Some(39)),
            ("Tuesday, 24-Nov-26 06:31:00 GMT", Some(60)),
            ("Tue Nov 24 06:30:05 2026", Some(5)),
            ("Tue, 24 Nov 2026 06:29:00 GMT", Some(0)),
            ("Thu, 24 Dec 2026 06:29:00 GMT", Some(3600)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("2026-11-24T06:30:39Z", None),
        ] {
            let now = (header::DATE, "Tue, 24 Nov 2026 06:30:00 GMT");
            assert_eq!(seconds(&[(header::RETRY_AFTER, value), now]), delay, "{value}");
        }
        assert_eq!(seconds(&[]), None);
    }

    #[test]
    fn a_date_counts_from_the_local_clock_without_a_date_header() {
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        let delay = seconds(&[(header::RETRY_AFTER, &soon)]).unwrap();
        assert!((90..=100).contains(&delay), "{delay}");
    }
}
