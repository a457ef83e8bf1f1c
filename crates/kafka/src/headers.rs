//! Reads record headers, including those whose names are not UTF-8. Defines the headers of dead
//! letters and of replayed records.

use std::ffi::CStr;
use std::ptr;

use rdkafka::Message;
use rdkafka::bindings::{
    rd_kafka_header_add, rd_kafka_header_get_all, rd_kafka_headers_t, rd_kafka_resp_err_t,
};
use rdkafka::message::{BorrowedHeaders, OwnedHeaders};

use crate::topic_reader::RecordPosition;

const NO_ERROR: rd_kafka_resp_err_t = rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;

/// A header with its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawHeader<'m> {
    /// Name, without NUL.
    pub name: &'m [u8],
    /// Value. `None` is a null value, which differs from an empty one.
    pub value: Option<&'m [u8]>,
}

/// Access to headers with any name.
///
/// In Kafka a name is bytes. rdkafka panics when it reads a name that is not UTF-8, and cannot
/// write one. Any client may have written such a header.
pub trait RawHeaders {
    /// All headers in order.
    fn raw_headers(&self) -> impl Iterator<Item = RawHeader<'_>>;
}

impl RawHeaders for BorrowedHeaders {
    fn raw_headers(&self) -> impl Iterator<Item = RawHeader<'_>> {
        (0..).map_while(|index| get(self, index))
    }
}

impl RawHeaders for OwnedHeaders {
    fn raw_headers(&self) -> impl Iterator<Item = RawHeader<'_>> {
        self.as_borrowed().raw_headers()
    }
}

/// Appends `header`. Its name ends at the first NUL.
#[must_use]
#[expect(unsafe_code, reason = "rdkafka accepts only a UTF-8 name")]
pub fn with_header(headers: OwnedHeaders, header: RawHeader<'_>) -> OwnedHeaders {
    let list = ptr::from_ref(headers.as_borrowed()).cast::<rd_kafka_headers_t>().cast_mut();
    let (value, length) = header.value.map_or((ptr::null(), 0), |value| (value.as_ptr(), value.len()));
    // Kafka has no longer names and values.
    let size = |length: usize| isize::try_from(length).unwrap_or(isize::MAX);
    // SAFETY: a reference to `BorrowedHeaders` is a pointer to librdkafka's list, and `headers` is
    // its only owner. The call copies name and value.
    let _ = unsafe {
        rd_kafka_header_add(
            list,
            header.name.as_ptr().cast(),
            size(header.name.len()),
            value.cast(),
            size(length),
        )
    };
    headers
}

#[expect(unsafe_code, reason = "rdkafka's own functions expect a UTF-8 name")]
fn get(headers: &BorrowedHeaders, index: usize) -> Option<RawHeader<'_>> {
    let list = ptr::from_ref(headers).cast::<rd_kafka_headers_t>();
    let (mut name, mut value, mut length) = (ptr::null(), ptr::null(), 0);
    // SAFETY: the pointer is valid as above. The call reads the list and writes the three variables
    // only on success.
    let code =
        unsafe { rd_kafka_header_get_all(list, index, &raw mut name, &raw mut value, &raw mut length) };
    if code != NO_ERROR {
        return None;
    }
    // SAFETY: after success the name ends with NUL, and the value is null or has `length` bytes.
    // Both live as long as the list.
    let (name, value) = unsafe {
        let value = (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), length));
        (CStr::from_ptr(name).to_bytes(), value)
    };
    Some(RawHeader { name, value })
}

// A dead letter: the consumer appends the headers `__connect.errors.*` to the headers of the record,
// beginning with `__connect.errors.topic`. All other headers, the key, the value and the timestamp
// equal those of the record, except the replay count.

/// Header with the number of replays of a record, in decimal. The consumer copies the headers of a
/// record into its dead letter, so that the count survives further dead-lettering.
pub const REPLAYS: &str = "slipstream.replays";

const ERROR_PREFIX: &str = "__connect.errors.";

/// The text of the header `__connect.errors.NAME`.
pub fn error_header(message: &impl Message<Headers: RawHeaders>, name: &str) -> Option<String> {
    let headers = message.headers()?;
    let name = format!("{ERROR_PREFIX}{name}");
    // A record that was a dead letter of another system has two of each; ours are the last ones.
    let value = headers.raw_headers().filter(|header| header.name == name.as_bytes()).last()?.value?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// The timestamp of the record. The timestamp of the dead letter differs if the dead-letter topic
/// rejected that of the record; the record's timestamp is then in a header.
pub fn record_timestamp_ms(message: &impl Message<Headers: RawHeaders>) -> Option<i64> {
    let from_header = || {
        let headers = message.headers()?;
        let (first_added, name) = (first_added(headers), format!("{ERROR_PREFIX}timestamp"));
        // The record can have such a header itself, if it was a dead letter of another system.
        let added = headers.raw_headers().enumerate().filter(|(n, _)| *n >= first_added);
        let value = added.map(|(_, header)| header).find(|header| header.name == name.as_bytes())?.value?;
        std::str::from_utf8(value).ok()?.parse().ok()
    };
    from_header().or_else(|| message.timestamp().to_millis())
}

/// The original position of the record.
pub fn origin(message: &impl Message<Headers: RawHeaders>) -> Option<RecordPosition> {
    Some(RecordPosition {
        topic: error_header(message, "topic")?,
        partition: error_header(message, "partition")?.parse().ok()?,
        offset: error_header(message, "offset")?.parse().ok()?,
    })
}

/// The record's own headers and its replay count, increased by one.
pub fn replay_headers(message: &impl Message<Headers: RawHeaders>) -> OwnedHeaders {
    let mut kept = OwnedHeaders::new();
    if let Some(headers) = message.headers() {
        let first_added = first_added(headers);
        let is_of_the_record = |(n, header): &(usize, RawHeader<'_>)| {
            (*n < first_added || !header.name.starts_with(ERROR_PREFIX.as_bytes()))
                && header.name != REPLAYS.as_bytes()
        };
        for (_, header) in headers.raw_headers().enumerate().filter(is_of_the_record) {
            kept = with_header(kept, header);
        }
    }
    let count = (replays(message) + 1).to_string();
    with_header(kept, RawHeader { name: REPLAYS.as_bytes(), value: Some(count.as_bytes()) })
}

/// The number of replays of the record.
pub fn replays(message: &impl Message<Headers: RawHeaders>) -> u32 {
    let count = || {
        let headers = message.headers()?;
        let value = headers.raw_headers().filter(|header| header.name == REPLAYS.as_bytes()).last()?.value?;
        std::str::from_utf8(value).ok()?.parse::<u32>().ok()
    };
    // Clients can send any value under this name; a value that is not a number counts as 0.
    count().unwrap_or(0).min(u32::MAX - 1)
}

/// The index of the first header that the last dead-lettering added.
fn first_added(headers: &impl RawHeaders) -> usize {
    let topic = format!("{ERROR_PREFIX}topic");
    let is_topic = |(_, header): &(usize, RawHeader<'_>)| header.name == topic.as_bytes();
    headers.raw_headers().enumerate().filter(is_topic).last().map_or(usize::MAX, |(n, _)| n)
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp;
    use rdkafka::message::{Header, Headers, OwnedMessage};

    use super::*;

    #[test]
    fn a_header_with_any_name_and_value_is_read_as_written() {
        let headers =
            [(&b"\xffname"[..], Some(&b"\x00\xff"[..])), (b"", Some(b"")), (b"null", None), (b"null", None)];
        let headers = headers.map(|(name, value)| RawHeader { name, value });
        let list = headers.into_iter().fold(OwnedHeaders::new(), with_header);
        assert_eq!(list.raw_headers().collect::<Vec<_>>(), headers);
        assert_eq!(OwnedHeaders::new().raw_headers().count(), 0);
    }

    const ADDED: [(&str, &str); 3] = [
        ("__connect.errors.topic", "t"),
        ("__connect.errors.partition", "3"),
        ("__connect.errors.offset", "9"),
    ];

    fn message(headers: OwnedHeaders) -> OwnedMessage {
        let timestamp = Timestamp::CreateTime(5);
        OwnedMessage::new(None, None, "t.dlq".into(), timestamp, 1, 7, Some(headers))
    }

    fn dead_letter(own: &[(&str, &str)], added: &[(&str, &str)]) -> OwnedMessage {
        let headers = own.iter().chain(added).fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(value.as_bytes()) })
        });
        message(headers)
    }

    fn replayed(message: &OwnedMessage) -> Vec<(String, String)> {
        let text = |value: Option<&[u8]>| String::from_utf8(value.unwrap().to_vec()).unwrap();
        replay_headers(message).iter().map(|header| (header.key.to_owned(), text(header.value))).collect()
    }

    fn owned((key, value): (&str, &str)) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn a_timestamp_in_a_header_is_that_of_the_record() {
        assert_eq!(record_timestamp_ms(&dead_letter(&[], &ADDED)), Some(5));
        let timestamp = ("__connect.errors.timestamp", "9999999999999");
        let with_timestamp = dead_letter(&[], &[&ADDED[..], &[timestamp]].concat());
        assert_eq!(record_timestamp_ms(&with_timestamp), Some(9_999_999_999_999));
        assert_eq!(replayed(&with_timestamp), [owned((REPLAYS, "1"))], "the record has no such header");
        let own = dead_letter(&[("__connect.errors.timestamp", "7")], &ADDED);
        assert_eq!(record_timestamp_ms(&own), Some(5), "a header of the record itself");
    }

    #[test]
    fn a_replay_has_the_record_s_own_headers_and_the_next_count() {
        let own = [("a", "1"), ("a", "2"), ("traceparent", "x")];
        let first = replayed(&dead_letter(&own, &ADDED));
        assert_eq!(first, [("a", "1"), ("a", "2"), ("traceparent", "x"), (REPLAYS, "1")].map(owned));
        let again: Vec<(&str, &str)> =
            first.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(replayed(&dead_letter(&again, &ADDED)).last().unwrap(), &owned((REPLAYS, "2")));
        assert_eq!(replays(&dead_letter(&again, &ADDED)), 1);
    }

    #[test]
    fn a_header_name_that_is_not_utf8_is_replayed_byte_for_byte() {
        let not_utf8 = RawHeader { name: b"\xff", value: None };
        let headers = with_header(OwnedHeaders::new(), not_utf8)
            .insert(Header { key: "__connect.errors.topic", value: Some("t") });
        let message = message(headers);
        assert_eq!(replays(&message), 0);
        let replay = replay_headers(&message);
        assert_eq!(replay.raw_headers().next(), Some(not_utf8));
        assert_eq!(replay.raw_headers().count(), 2);
    }

    #[test]
    fn headers_of_another_system_s_dead_lettering_stay_with_the_record() {
        let own =
            [("__connect.errors.topic", "far"), ("__connect.errors.exception.stacktrace", "at"), ("b", "1")];
        let message = dead_letter(&own, &ADDED);
        assert_eq!(origin(&message).unwrap().topic, "t");
        assert_eq!(replayed(&message)[..3], own.map(owned));
        assert_eq!(replayed(&message).len(), 4);
    }
}
