//! What goes to the topic, and what became of it.

/// What goes to the topic.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// The event's id.
    pub key: &'a str,
    /// The event as JSON.
    pub value: &'a [u8],
    /// `ingested_at`.
    pub timestamp_ms: i64,
    /// The request's trace context.
    pub traceparent: Option<&'a str>,
}

/// Where a record is.
#[derive(Debug, Clone, Copy)]
pub struct Stored {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
}

/// Why a record is not known to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendError {
    /// Kafka holds no record of this size.
    TooLarge,
    /// Nothing was stored.
    NotStored {
        /// For metrics.
        reason: &'static str,
        /// For people.
        why: String,
    },
    /// It may or may not be stored.
    Unknown(String),
}

/// The deadline passed.
pub const NO_ACKNOWLEDGEMENT: &str = "kafka did not acknowledge the event in time";

/// Nothing was stored.
pub fn not_stored(reason: &'static str, why: impl Into<String>) -> SendError {
    SendError::NotStored { reason, why: why.into() }
}
