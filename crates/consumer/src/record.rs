//! One record, copied out of librdkafka's buffers so that these can be given back: everything that a dead letter
//! must repeat byte for byte.

use rdkafka::message::{BorrowedMessage, Headers as _, Message, OwnedHeaders};

/// What a record costs in memory beside its bytes.
const OVERHEAD_BYTES: usize = 256;

/// A record as it came.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its place in the partition.
    pub offset: i64,
    /// Kafka's timestamp, in milliseconds.
    pub timestamp: Option<i64>,
    /// The key; an empty one is not an absent one.
    pub key: Option<Box<[u8]>>,
    /// The value; an empty one is not a null one.
    pub value: Option<Box<[u8]>>,
    /// The headers, in order.
    pub headers: Option<OwnedHeaders>,
}

impl Record {
    /// Copies `message`.
    pub fn copy_of(message: &BorrowedMessage<'_>) -> Self {
        Self {
            offset: message.offset(),
            timestamp: message.timestamp().to_millis(),
            key: message.key().map(Box::from),
            value: message.payload().map(Box::from),
            headers: message.headers().filter(|headers| headers.count() > 0).map(|headers| headers.detach()),
        }
    }

    /// What it occupies in memory, about.
    pub fn cost_bytes(&self) -> usize {
        let headers = self.headers.as_ref().map_or(0, |headers| {
            headers.iter().map(|header| header.key.len() + header.value.map_or(0, <[u8]>::len) + 64).sum()
        });
        let length = |bytes: &Option<Box<[u8]>>| bytes.as_ref().map_or(0, |bytes| bytes.len());
        OVERHEAD_BYTES + length(&self.key) + length(&self.value) + headers
    }
}
