//! A record copied out of librdkafka's buffers, with everything that a dead letter must repeat.
//!
//! The copy releases the buffers. It is one allocation, because the thread that frees it is not the
//! thread that allocated it.

use std::sync::Arc;

use ::kafka::headers::{RawHeader, RawHeaders, with_header};
use rdkafka::message::{BorrowedMessage, Message, OwnedHeaders};
use rdkafka::topic_partition_list::TopicPartitionList;

/// A topic and one of its partitions.
pub type TopicPartition = (Arc<str>, i32);

/// The partitions of `list`.
pub fn topic_partitions(list: &TopicPartitionList) -> Vec<TopicPartition> {
    list.elements().iter().map(|element| (Arc::from(element.topic()), element.partition())).collect()
}

/// Memory that a record uses beside its bytes.
const OVERHEAD_BYTES: usize = 256;
/// Size of the two numbers that store the lengths of a header's name and value.
const LENGTHS_BYTES: usize = 8;
/// The length that stands for a null value.
const NULL: u32 = u32::MAX;

/// A record of one partition.
#[derive(Debug, Clone)]
pub struct Record {
    /// Offset in the partition.
    pub offset: i64,
    /// Kafka's timestamp, in milliseconds.
    pub timestamp: Option<i64>,
    /// The key, the value, and for each header the two lengths, the name and the value.
    bytes: Box<[u8]>,
    key: Option<usize>,
    value: Option<usize>,
}

impl Record {
    /// Copies `message`.
    pub fn copy_of(message: &BorrowedMessage<'_>) -> Self {
        let headers = || message.headers().into_iter().flat_map(RawHeaders::raw_headers);
        let (key, value) = (message.key(), message.payload());
        Self::new(message.offset(), message.timestamp().to_millis(), key, value, headers)
    }

    /// Creates a record. An empty key differs from an absent key, and an empty value from a null
    /// value.
    pub fn new<'h, H>(
        offset: i64,
        timestamp: Option<i64>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl Fn() -> H,
    ) -> Self
    where
        H: Iterator<Item = RawHeader<'h>>,
    {
        let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
        let of_header = |header: RawHeader<'_>| LENGTHS_BYTES + header.name.len() + length(header.value);
        let of_headers: usize = headers().map(of_header).sum();
        let mut bytes = Vec::with_capacity(length(key) + length(value) + of_headers);
        bytes.extend_from_slice(key.unwrap_or_default());
        bytes.extend_from_slice(value.unwrap_or_default());
        for RawHeader { name, value } in headers() {
            // Kafka limits both lengths to an i32.
            let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(NULL);
            bytes.extend_from_slice(&length(name).to_le_bytes());
            bytes.extend_from_slice(&value.map_or(NULL, length).to_le_bytes());
            bytes.extend_from_slice(name);
            bytes.extend_from_slice(value.unwrap_or_default());
        }
        let (key, value) = (key.map(<[u8]>::len), value.map(<[u8]>::len));
        Self { offset, timestamp, bytes: bytes.into(), key, value }
    }

    pub fn key(&self) -> Option<&[u8]> {
        self.bytes.get(..self.key?)
    }

    pub fn value(&self) -> Option<&[u8]> {
        let start = self.key.unwrap_or(0);
        self.bytes.get(start..start + self.value?)
    }

    /// The headers in their original order.
    pub fn headers(&self) -> OwnedHeaders {
        let mut headers = OwnedHeaders::new();
        let start = self.key.unwrap_or(0) + self.value.unwrap_or(0);
        let mut rest = self.bytes.get(start..).unwrap_or_default();
        while let Some((header, remaining)) = unpack(rest) {
            headers = with_header(headers, header);
            rest = remaining;
        }
        headers
    }

    /// Approximate memory use.
    pub fn memory_bytes(&self) -> usize {
        OVERHEAD_BYTES + self.bytes.len()
    }
}

/// The first header of `bytes`, and the bytes after it.
fn unpack(bytes: &[u8]) -> Option<(RawHeader<'_>, &[u8])> {
    let (name_length, rest) = bytes.split_first_chunk()?;
    let (value_length, rest) = rest.split_first_chunk()?;
    let (name, rest) = rest.split_at_checked(u32::from_le_bytes(*name_length) as usize)?;
    let (value, rest) = match u32::from_le_bytes(*value_length) {
        NULL => (None, rest),
        length => rest.split_at_checked(length as usize).map(|(value, rest)| (Some(value), rest))?,
    };
    Some((RawHeader { name, value }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_absent_and_null_parts_are_preserved() {
        let header = |name, value| RawHeader { name, value };
        let headers = [header(&b"a"[..], Some(&b"1"[..])), header(b"\xff", None), header(b"", Some(b""))];
        for key in [None, Some(&b""[..]), Some(b"key")] {
            for value in [None, Some(&b""[..]), Some(b"value")] {
                for count in 0..=headers.len() {
                    let record = Record::new(7, Some(5), key, value, || headers[..count].iter().copied());
                    assert_eq!((record.key(), record.value()), (key, value));
                    assert_eq!(record.headers().raw_headers().collect::<Vec<_>>(), headers[..count]);
                }
            }
        }
    }
}
