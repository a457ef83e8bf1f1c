//! Judging what ADSBDB answered, without I/O: an aircraft, or which fault it was.

use std::time::Duration;

use events::Payload;
use serde::Deserialize;
use serde_json::error::Category;
use serde_json::value::RawValue;
use service::json::object;
use thiserror::Error;

/// For a 429 whose text names no time.
const USUAL_LIMIT: Duration = Duration::from_secs(60);
/// No limit is believed to hold longer.
const LONGEST_LIMIT: Duration = Duration::from_secs(3600);
/// So much of ADSBDB's own words is passed on.
const MOST_CHARS: usize = 200;

/// Why there is no aircraft.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UpstreamFault {
    /// No connection.
    #[error("ADSBDB cannot be reached: {0}")]
    Unreachable(String),
    /// No answer in time.
    #[error("ADSBDB did not answer within {} ms", .0.as_millis())]
    Slow(Duration),
    /// It was not asked: within this time no place came free among the questions that may be asked together.
    #[error("within {} ms no place came free to ask ADSBDB (ADSBDB_MAX_CONCURRENCY)", .0.as_millis())]
    NoPlace(Duration),
    /// Its rate limit holds for so long.
    #[error("ADSBDB limits the rate of requests, for another {} s", .0.as_secs().max(1))]
    Limited(Duration),
    /// Another status.
    #[error("ADSBDB answered {status}{}", said(.words))]
    Status {
        /// The status.
        status: u16,
        /// Its text.
        words: Option<String>,
        /// Its Retry-After.
        retry_after: Option<Duration>,
    },
    /// More than an aircraft needs.
    #[error("ADSBDB answered more than {0} bytes")]
    TooLong(usize),
    /// Not what it is documented to answer.
    #[error("ADSBDB's answer makes no sense: {0}")]
    Nonsense(String),
    /// An aircraft that breaks a rule of the event.
    #[error("ADSBDB's aircraft cannot be stored: {0}")]
    Unstorable(String),
}

fn said(words: &Option<String>) -> String {
    words.as_ref().map(|words| format!(": {words}")).unwrap_or_default()
}

impl UpstreamFault {
    /// When to try again, where it is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Limited(time) => Some(*time),
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether asking again at once may help.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Slow(_) | Self::Status { status: 500.., .. })
    }

    /// Of a question that was sent, for metrics.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Slow(_) | Self::NoPlace(_) => "slow",
            Self::Limited(_) => "limited",
            Self::Status { .. } => "status",
            Self::TooLong(_) | Self::Nonsense(_) | Self::Unstorable(_) => "nonsense",
        }
    }
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer<'a> {
    /// Its status.
    pub status: u16,
    /// Its Retry-After.
    pub retry_after: Option<Duration>,
    /// Its body.
    pub body: &'a [u8],
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    response: &'a RawValue,
}

#[derive(Deserialize)]
struct Found<'a> {
    #[serde(borrow)]
    aircraft: &'a RawValue,
}

impl Answer<'_> {
    /// The aircraft in it.
    ///
    /// # Errors
    /// There is none; why.
    pub fn aircraft(&self) -> Result<Payload, UpstreamFault> {
        match self.status {
            200 => found(self.body),
            429 => {
                let named = self.words().as_deref().and_then(seconds_in).or(self.retry_after);
                Err(UpstreamFault::Limited(named.unwrap_or(USUAL_LIMIT).min(LONGEST_LIMIT)))
            }
            status => {
                let retry_after = self.retry_after.map(|time| time.min(LONGEST_LIMIT));
                Err(UpstreamFault::Status { status, words: self.words(), retry_after })
            }
        }
    }

    /// The text of an error body, `{"response": "<text>"}`.
    fn words(&self) -> Option<String> {
        let envelope: Envelope<'_> = object(self.body).ok()?;
        let words: String = serde_json::from_str(envelope.response.get()).ok()?;
        Some(words.chars().filter(|c| !c.is_control()).take(MOST_CHARS).collect())
    }
}

fn found(body: &[u8]) -> Result<Payload, UpstreamFault> {
    let nonsense = |what: &str| UpstreamFault::Nonsense(what.into());
    let envelope: Envelope<'_> = object(body).map_err(|error| {
        let page = body.trim_ascii_start().starts_with(b"<");
        nonsense(match error.classify() {
            _ if page => "it is a web page, as from a proxy in between",
            Category::Eof if body.is_empty() => "it is empty",
            Category::Eof => "its JSON ends in the middle",
            Category::Syntax | Category::Io => "it is not JSON",
            Category::Data => "it is not an object with `response`",
        })
    })?;
    let response = envelope.response.get();
    let found: Found<'_> = object(response.as_bytes()).map_err(|_| {
        nonsense(if response.starts_with('"') {
            "its `response` is a text and not an object with `aircraft`"
        } else {
            "there is no `aircraft` in its `response`"
        })
    })?;
    let Some(members) = found.aircraft.get().strip_prefix('{') else {
        return Err(nonsense("its `aircraft` is not an object"));
    };
    if members.trim_start().starts_with('}') {
        return Err(nonsense("its `aircraft` has no fields"));
    }
    Payload::parse(found.aircraft.get()).map_err(|faults| {
        let faults: Vec<String> = faults.iter().take(5).map(ToString::to_string).collect();
        UpstreamFault::Unstorable(faults.join("; "))
    })
}

/// The N of "rate limited for N seconds".
fn seconds_in(text: &str) -> Option<Duration> {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.windows(2).find_map(|pair| match pair {
        [number, unit] if unit.to_ascii_lowercase().starts_with("second") => {
            number.parse().ok().map(Duration::from_secs)
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(status: u16, body: &str) -> Result<String, UpstreamFault> {
        let answer = Answer { status, retry_after: None, body: body.as_bytes() };
        answer.aircraft().map(|payload| payload.as_str().to_owned())
    }

    #[test]
    fn an_aircraft_passes_through_byte_for_byte() {
        let aircraft = r#"{"mode_s":"A1",  "new_upstream": [1.0, 2.50e0]}"#;
        let body = format!(r#"{{"response": {{"other": 1, "aircraft": {aircraft}}} }}"#);
        assert_eq!(judge(200, &body).unwrap(), aircraft);
    }

    #[test]
    fn each_nonsense_is_told_apart() {
        for (body, part) in [
            ("", "it is empty"),
            (" <html>", "a web page"),
            ("aircraft", "not JSON"),
            (r#"{"response":{"aircraft":{"mode_s":"#, "ends in the middle"),
            (r#"{"answer":1}"#, "not an object with `response`"),
            ("[]", "not an object with `response`"),
            // A reader that takes an array's items for fields would find an aircraft in these.
            (r#"[{"aircraft":{"mode_s":"A1"}}]"#, "not an object with `response`"),
            (r#"[[{"mode_s":"A1"}]]"#, "not an object with `response`"),
            (r#"{"response":[{"mode_s":"A1"}]}"#, "no `aircraft`"),
            (r#"{"response":[{"aircraft":{"mode_s":"A1"}}]}"#, "no `aircraft`"),
            (r#"{"response":{"aircraft":[{"mode_s":"A1"}]}}"#, "`aircraft` is not an object"),
            (r#"{"response":{"aircraft":{}}}"#, "`aircraft` has no fields"),
            (r#"{"response":{"aircraft": { } }}"#, "`aircraft` has no fields"),
            (r#"{"response":{"aircraft":null}}"#, "`aircraft` is not an object"),
            (r#"{"response":"text"}"#, "is a text"),
            (r#"{"response":{}}"#, "no `aircraft`"),
            (r#"{"response":{"aircraft":[]}}"#, "not an object"),
            (r#"{"response":{"aircraft":{"mode_s":["a"],"registration":["b"]}}}"#, "cannot be stored"),
        ] {
            let fault = judge(200, body).unwrap_err().to_string();
            assert!(fault.contains(part), "{body}: {fault}");
        }
    }

    #[test]
    fn a_rate_limit_names_its_seconds_in_the_text_only() {
        let limited = |body| judge(429, body).unwrap_err().retry_after().unwrap().as_secs();
        assert_eq!(limited(r#"{"response":"rate limited for 17 seconds"}"#), 17);
        assert_eq!(limited(r#"{"response":"rate limited for 1 second."}"#), 1);
        assert_eq!(limited(r#"{"response":"too many"}"#), 60);
        assert_eq!(limited("nonsense"), 60);
        assert_eq!(limited(r#"["rate limited for 17 seconds"]"#), 60);
        assert_eq!(limited(r#"{"response":"rate limited for 999999999 seconds"}"#), 3600);
    }

    #[test]
    fn other_statuses_are_named_with_their_text() {
        let fault = judge(404, r#"{"response":"unknown aircraft"}"#).unwrap_err();
        assert_eq!(fault.to_string(), "ADSBDB answered 404: unknown aircraft");
        assert!(!fault.is_passing());
        let fault = judge(503, "down").unwrap_err();
        assert_eq!(fault.to_string(), "ADSBDB answered 503");
        assert!(fault.is_passing());
        assert_eq!(fault.retry_after(), None);
    }

    #[test]
    fn a_retry_after_is_honoured_within_reason() {
        let after = |status, body: &str, seconds| {
            let retry_after = Some(Duration::from_secs(seconds));
            let answer = Answer { status, retry_after, body: body.as_bytes() };
            answer.aircraft().unwrap_err().retry_after().map(|time| time.as_secs())
        };
        assert_eq!(after(503, "down", 7), Some(7));
        assert_eq!(after(503, "down", 1_000_000), Some(3600));
        assert_eq!(after(429, "too many", 7), Some(7));
        assert_eq!(
            after(429, r#"{"response":"rate limited for 9 seconds"}"#, 7),
            Some(9),
            "the text is meant"
        );
    }
}
