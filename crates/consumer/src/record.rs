//! One record, copied out of librdkafka's buffers so that these can be given back: everything that a dead letter
//! must repeat byte for byte. One allocation holds it all: it is freed by another thread than the one that made it.

use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Header, Message, OwnedHeaders};
use service::headers::{RawHeader, raw_headers};

/// What a record costs in memory beside its bytes.
const OVERHEAD_BYTES: usize = 256;
/// What tells the lengths of a header's name and value: two numbers.
const LENGTHS_BYTES: usize = 8;
/// The length of a value that is null.
const NULL: u32 = u32::MAX;

/// A record as it came.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its place in the partition.
    pub offset: i64,
    /// Kafka's timestamp, in milliseconds.
    pub timestamp: Option<i64>,
    /// The key, the value, and of each header the two lengths, the name and the value.
    bytes: Box<[u8]>,
    key: Option<usize>,
    value: Option<usize>,
    /// All headers once more, if the name of one is not UTF-8: rdkafka makes headers of no such name.
    strange: Option<OwnedHeaders>,
}

impl Record {
    /// Copies `message`.
    pub fn copy_of(message: &BorrowedMessage<'_>) -> Self {
        let is_strange = |header: RawHeader<'_>| std::str::from_utf8(header.name).is_err();
        let strange = message.headers().filter(|_| raw_headers(message).any(is_strange));
        let (key, value) = (message.key(), message.payload());
        let headers = || raw_headers(message).map(|header| (header.name, header.value));
        let record = Self::new(message.offset(), message.timestamp().to_millis(), key, value, headers);
        Self { strange: strange.map(BorrowedHeaders::detach), ..record }
    }

    /// A record of these parts. An empty key is not an absent one, an empty value not a null one.
    pub fn new<'h, H>(
        offset: i64,
        timestamp: Option<i64>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl Fn() -> H,
    ) -> Self
    where
        H: Iterator<Item = (&'h [u8], Option<&'h [u8]>)>,
    {
        let of_headers =
            |(name, value): (&[u8], Option<&[u8]>)| LENGTHS_BYTES + name.len() + value.map_or(0, <[u8]>::len);
        let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
        let mut bytes =
            Vec::with_capacity(length(key) + length(value) + headers().map(of_headers).sum::<usize>());
        bytes.extend_from_slice(key.unwrap_or_default());
        bytes.extend_from_slice(value.unwrap_or_default());
        for (name, value) in headers() {
            // Kafka has no longer ones.
            let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(NULL);
            bytes.extend_from_slice(&length(name).to_le_bytes());
            bytes.extend_from_slice(&value.map_or(NULL, length).to_le_bytes());
            bytes.extend_from_slice(name);
            bytes.extend_from_slice(value.unwrap_or_default());
        }
        let (key, value) = (key.map(<[u8]>::len), value.map(<[u8]>::len));
        Self { offset, timestamp, bytes: bytes.into(), key, value, strange: None }
    }

    /// The key.
    pub fn key(&self) -> Option<&[u8]> {
        self.bytes.get(..self.key?)
    }

    /// The value.
    pub fn value(&self) -> Option<&[u8]> {
        let start = self.key.unwrap_or(0);
        self.bytes.get(start..start + self.value?)
    }

    /// The headers, in order.
    pub fn headers(&self) -> OwnedHeaders {
        if let Some(headers) = &self.strange {
            return headers.clone();
        }
        let mut headers = OwnedHeaders::new();
        let start = self.key.unwrap_or(0) + self.value.unwrap_or(0);
        let mut rest = self.bytes.get(start..).unwrap_or_default();
        while let Some((header, behind)) = unpack(rest) {
            headers = headers.insert(header);
            rest = behind;
        }
        headers
    }

    /// What it occupies in memory, about.
    pub fn cost_bytes(&self) -> usize {
        let copies = if self.strange.is_some() { 2 } else { 1 };
        OVERHEAD_BYTES + copies * self.bytes.len()
    }
}

/// The first header of `bytes`, and what is behind it.
fn unpack(bytes: &[u8]) -> Option<(Header<'_, &[u8]>, &[u8])> {
    let (name_length, rest) = bytes.split_first_chunk()?;
    let (value_length, rest) = rest.split_first_chunk()?;
    let (name, rest) = rest.split_at_checked(u32::from_le_bytes(*name_length) as usize)?;
    let (value, rest) = match u32::from_le_bytes(*value_length) {
        NULL => (None, rest),
        length => rest.split_at_checked(length as usize).map(|(value, rest)| (Some(value), rest))?,
    };
    Some((Header { key: std::str::from_utf8(name).ok()?, value }, rest))
}

#[cfg(test)]
mod tests {
    use rdkafka::message::Headers as _;

    use super::*;

    #[test]
    fn what_is_empty_absent_or_null_comes_out_as_it_went_in() {
        let headers: [(&[u8], Option<&[u8]>); 3] =
            [(b"a", Some(b"1")), ("é".as_bytes(), None), (b"", Some(b""))];
        for key in [None, Some(&b""[..]), Some(b"key")] {
            for value in [None, Some(&b""[..]), Some(b"value")] {
                for count in 0..=headers.len() {
                    let record = Record::new(7, Some(5), key, value, || headers[..count].iter().copied());
                    assert_eq!((record.key(), record.value()), (key, value));
                    let read = record.headers();
                    let read: Vec<_> =
                        read.iter().map(|header| (header.key.as_bytes(), header.value)).collect();
                    assert_eq!(read, headers[..count]);
                }
            }
        }
    }
}
