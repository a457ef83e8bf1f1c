//! A dead letter, as far as it can be told without its value, and the record that it was. What dead-lettering added are the
//! `__connect.errors.*` headers from the last `topic` on: without them, and without the count of replays, key, value, headers
//! and timestamp are those of the record byte for byte.

use events::{Decoded, RecordView, decode};
use kafka::headers::{RawHeader, RawHeaders, with_header};
use rdkafka::Message;
use rdkafka::message::OwnedHeaders;

use crate::scan::Place;

/// How often a record was replayed, in decimal. The consumer copies a record's headers into its dead letter, so that the
/// count goes with the record however often it is dead-lettered again.
pub const REPLAYS: &str = "slipstream.replays";

const ADDED: &str = "__connect.errors.";

/// A dead letter without its value.
#[derive(Debug, Clone)]
pub struct Letter {
    /// Where it is.
    pub place: Place,
    /// The record's own timestamp, in milliseconds, also where the dead-letter topic refused it.
    pub record_ms: Option<i64>,
    /// The record's key.
    pub key: Option<Box<[u8]>>,
    /// How long its value is; nothing if it is null.
    pub value_bytes: Option<usize>,
    /// The source that its value names, where that can be read.
    pub source: Option<String>,
    /// Where the record was.
    pub origin: Option<Place>,
    /// Where it failed: `decode`, `document` or `store`.
    pub stage: Option<String>,
    /// The short name of the fault.
    pub class: Option<String>,
    /// The fault in words.
    pub reason: Option<String>,
    /// How often it was replayed.
    pub replays: u32,
}

impl Letter {
    /// What `message` tells.
    pub fn of(message: &impl Message<Headers: RawHeaders>) -> Self {
        Self {
            place: Place::of(message),
            record_ms: record_ms(message),
            key: message.key().map(Box::from),
            value_bytes: message.payload().map(<[u8]>::len),
            source: source(message),
            origin: origin(message),
            stage: added(message, "stage"),
            class: added(message, "exception.class.name"),
            reason: added(message, "exception.message"),
            replays: replays(message),
        }
    }

    /// Why the record could not be stored, in one line: class and message.
    pub fn why(&self) -> String {
        match (&self.class, &self.reason) {
            (Some(class), Some(reason)) => format!("{class}: {reason}"),
            (Some(text), None) | (None, Some(text)) => text.clone(),
            (None, None) => "the dead letter does not say why".to_owned(),
        }
    }
}

/// The text of a header that dead-lettering added.
pub fn added(message: &impl Message<Headers: RawHeaders>, name: &str) -> Option<String> {
    let headers = message.headers()?;
    let name = format!("{ADDED}{name}");
    // A record that was a dead letter elsewhere has two of each; ours come last.
    let value = headers.raw_headers().filter(|header| header.name == name.as_bytes()).last()?.value?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// The timestamp of the record that a dead letter was. The dead letter has another one where its topic refused that.
pub fn record_ms(message: &impl Message<Headers: RawHeaders>) -> Option<i64> {
    let own = || {
        let headers = message.headers()?;
        let (first_added, name) = (first_added(headers), format!("{ADDED}timestamp"));
        // The record may bring such a header, if it was a dead letter elsewhere.
        let ours = headers.raw_headers().enumerate().filter(|(n, _)| *n >= first_added);
        let value = ours.map(|(_, header)| header).find(|header| header.name == name.as_bytes())?.value?;
        std::str::from_utf8(value).ok()?.parse().ok()
    };
    own().or_else(|| message.timestamp().to_millis())
}

/// Where the record of a dead letter was.
pub fn origin(message: &impl Message<Headers: RawHeaders>) -> Option<Place> {
    Some(Place {
        topic: added(message, "topic")?,
        partition: added(message, "partition")?.parse().ok()?,
        offset: added(message, "offset")?.parse().ok()?,
    })
}

/// The headers of the record that a dead letter was, and one that says how often it has been replayed with this time.
pub fn headers_of_replay(message: &impl Message<Headers: RawHeaders>) -> OwnedHeaders {
    let mut kept = OwnedHeaders::new();
    if let Some(headers) = message.headers() {
        let first_added = first_added(headers);
        let of_the_record = |(n, header): &(usize, RawHeader<'_>)| {
            (*n < first_added || !header.name.starts_with(ADDED.as_bytes()))
                && header.name != REPLAYS.as_bytes()
        };
        for (_, header) in headers.raw_headers().enumerate().filter(of_the_record) {
            kept = with_header(kept, header);
        }
    }
    let count = (replays(message) + 1).to_string();
    with_header(kept, RawHeader { name: REPLAYS.as_bytes(), value: Some(count.as_bytes()) })
}

/// Where the headers begin that the last dead-lettering added: it adds the topic first.
fn first_added(headers: &impl RawHeaders) -> usize {
    let topic = format!("{ADDED}topic");
    let is_topic = |(_, header): &(usize, RawHeader<'_>)| header.name == topic.as_bytes();
    headers.raw_headers().enumerate().filter(is_topic).last().map_or(usize::MAX, |(n, _)| n)
}

fn replays(message: &impl Message<Headers: RawHeaders>) -> u32 {
    let count = || {
        let value = message
            .headers()?
            .raw_headers()
            .filter(|header| header.name == REPLAYS.as_bytes())
            .last()?
            .value?;
        std::str::from_utf8(value).ok()?.parse::<u32>().ok()
    };
    // A record may bring anything under that name: what is no count counts for nothing.
    count().unwrap_or(0).min(u32::MAX - 1)
}

fn source(message: &impl Message<Headers: RawHeaders>) -> Option<String> {
    let view = RecordView { key: message.key(), value: message.payload()?, timestamp: record_ms(message) };
    match decode(&view, |_| false) {
        Ok(Decoded::OtherSource(source)) => Some(source),
        _ => None,
    }
}

/// A time in milliseconds as RFC 3339.
pub fn time(epoch_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(epoch_ms)
        .map_or_else(|_| epoch_ms.to_string(), |time| format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::Timestamp;
    use rdkafka::message::{Header, Headers, OwnedMessage};

    fn letter(headers: &[(&str, &str)], value: Option<&[u8]>) -> OwnedMessage {
        let headers = headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(value.as_bytes()) })
        });
        let (key, topic) = (Some(b"k".to_vec()), "t.dlq".to_owned());
        OwnedMessage::new(
            value.map(<[u8]>::to_vec),
            key,
            topic,
            Timestamp::CreateTime(5),
            1,
            7,
            Some(headers),
        )
    }

    const ADDED_HERE: [(&str, &str); 5] = [
        ("__connect.errors.topic", "t"),
        ("__connect.errors.partition", "3"),
        ("__connect.errors.offset", "9"),
        ("__connect.errors.exception.class.name", "InvalidJson"),
        ("__connect.errors.exception.message", "no JSON"),
    ];

    fn of(own: &[(&str, &str)]) -> OwnedMessage {
        letter(&[own, &ADDED_HERE].concat(), Some(br#"{"source":"s","payload":7}"#))
    }

    fn replayed(message: &OwnedMessage) -> Vec<(String, String)> {
        let text = |value: Option<&[u8]>| String::from_utf8(value.unwrap().to_vec()).unwrap();
        headers_of_replay(message).iter().map(|header| (header.key.to_owned(), text(header.value))).collect()
    }

    #[test]
    fn a_dead_letter_tells_its_origin_its_reason_and_its_source() {
        let told = Letter::of(&of(&[("content-type", "application/json")]));
        assert_eq!(told.place.to_string(), "t.dlq/1@7");
        assert_eq!(told.origin.as_ref().unwrap().to_string(), "t/3@9");
        assert_eq!((told.why().as_str(), told.source.as_deref()), ("InvalidJson: no JSON", Some("s")));
        assert_eq!((told.record_ms, told.replays, told.value_bytes), (Some(5), 0, Some(26)));
    }

    #[test]
    fn a_timestamp_that_the_dead_letter_topic_refused_is_that_of_the_record() {
        let message = of(&[]);
        assert_eq!((record_ms(&message), Letter::of(&message).record_ms), (Some(5), Some(5)));
        let headers = [&ADDED_HERE[..], &[("__connect.errors.timestamp", "9999999999999")]].concat();
        let message = letter(&headers, None);
        assert_eq!(record_ms(&message), Some(9_999_999_999_999));
        assert_eq!(Letter::of(&message).record_ms, record_ms(&message));
        assert_eq!(replayed(&message), [owned((REPLAYS, "1"))], "the record does not have the header");
        assert_eq!(
            record_ms(&of(&[("__connect.errors.timestamp", "7")])),
            Some(5),
            "a header of the record's own"
        );
    }

    #[test]
    fn what_is_no_dead_letter_of_ours_is_told_as_far_as_it_goes() {
        let headers =
            [("__connect.errors.topic", "t"), ("__connect.errors.partition", "x"), (REPLAYS, "many")];
        let told = Letter::of(&letter(&headers, None));
        assert!(told.origin.is_none() && told.source.is_none() && told.value_bytes.is_none(), "{told:?}");
        assert_eq!((told.why().as_str(), told.replays), ("the dead letter does not say why", 0));
        let told =
            Letter::of(&OwnedMessage::new(None, None, "t".into(), Timestamp::NotAvailable, 0, 0, None));
        assert!(told.key.is_none() && told.record_ms.is_none(), "{told:?}");
    }

    #[test]
    fn a_replay_carries_the_headers_as_they_came_and_counts() {
        let own = [("a", "1"), ("a", "2"), ("traceparent", "x")];
        let first = replayed(&of(&own));
        assert_eq!(first, [("a", "1"), ("a", "2"), ("traceparent", "x"), (REPLAYS, "1")].map(owned));
        let again: Vec<(&str, &str)> =
            first.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(replayed(&of(&again)).last().unwrap(), &owned((REPLAYS, "2")));
        assert_eq!(Letter::of(&of(&again)).replays, 1);
    }

    #[test]
    fn a_header_whose_name_is_not_utf_8_is_replayed_as_it_came() {
        let strange = RawHeader { name: b"\xff", value: None };
        let headers = with_header(OwnedHeaders::new(), strange)
            .insert(Header { key: "__connect.errors.topic", value: Some("t") });
        let message =
            OwnedMessage::new(None, None, "t.dlq".into(), Timestamp::NotAvailable, 0, 0, Some(headers));
        assert_eq!(Letter::of(&message).replays, 0);
        let replay = headers_of_replay(&message);
        assert_eq!(replay.raw_headers().next(), Some(strange));
        assert_eq!(replay.raw_headers().count(), 2);
    }

    #[test]
    fn what_another_system_added_before_stays_with_the_record() {
        let own =
            [("__connect.errors.topic", "far"), ("__connect.errors.exception.stacktrace", "at"), ("b", "1")];
        let message = of(&own);
        assert_eq!(Letter::of(&message).origin.unwrap().topic, "t");
        assert_eq!(replayed(&message)[..3], own.map(owned));
        assert_eq!(replayed(&message).len(), 4);
    }

    fn owned((key, value): (&str, &str)) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }
}
