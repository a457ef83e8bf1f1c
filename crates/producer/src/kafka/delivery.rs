//! A record to deliver and the report about its delivery.

use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode as Code;

/// A record to deliver.
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

/// The position of a stored record in its topic.
#[derive(Debug, Clone, Copy)]
pub struct Position {
    pub partition: i32,
    pub offset: i64,
}

/// librdkafka's report about one record.
pub type DeliveryReport = Result<Position, DeliveryFailure>;

/// The reason of a failed delivery, as librdkafka reports it.
#[derive(Debug, Clone, Copy)]
pub struct DeliveryFailure {
    pub code: Code,
    /// librdkafka is certain that no attempt stored the record.
    pub never_stored: bool,
}

/// The state of the client just before a record was sent. It is needed to classify a failure.
#[derive(Debug, Clone, Copy, Default)]
pub struct SendMark {
    /// Time on the clock of the client's health.
    pub at: Duration,
    /// How often the client had been replaced.
    pub replacements: u64,
}
