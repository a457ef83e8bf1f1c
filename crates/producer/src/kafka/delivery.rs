//! A record to deliver, the report about its delivery, and the classification of a failed delivery:
//! whether the record is certainly not stored.

use std::time::Duration;

use events::EventId;
use rdkafka::error::RDKafkaErrorCode as Code;

use crate::error::ApiError;

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

/// Why a record is not known to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeliveryError {
    /// The record is larger than the broker's limit.
    TooLarge,
    /// The record is certainly not stored.
    NotStored {
        /// Value of the metric label `reason`.
        reason: &'static str,
        /// Text for the client.
        detail: String,
    },
    /// The record may or may not be stored. The text is for the client.
    Unknown(String),
}

impl DeliveryError {
    /// The error response for the event with this id.
    pub fn into_api_error(self, id: EventId) -> ApiError {
        match self {
            Self::TooLarge => ApiError::RecordTooLarge,
            Self::NotStored { reason, detail } => ApiError::NotStored { reason, detail, id: Some(id) },
            Self::Unknown(detail) => ApiError::UnknownOutcome { detail, id },
        }
    }

    pub fn not_stored(reason: &'static str, detail: impl Into<String>) -> Self {
        Self::NotStored { reason, detail: detail.into() }
    }

    /// The queue stayed full.
    pub fn queue_full() -> Self {
        Self::not_stored("queue_full", "too many events are waiting for kafka")
    }

    /// The producer no longer sends records.
    pub fn shutting_down() -> Self {
        Self::not_stored("stopping", "the producer is shutting down")
    }

    /// There was no delivery report before the deadline.
    pub fn no_report() -> Self {
        Self::Unknown("kafka did not acknowledge the event in time".into())
    }
}

/// Why one attempt to deliver a record failed.
#[derive(Debug)]
pub enum AttemptError {
    /// The broker rejected librdkafka's whole batch for its size. One record in it may be small.
    BatchTooLarge,
    /// The result for the record.
    Final(DeliveryError),
}

impl From<DeliveryError> for AttemptError {
    fn from(error: DeliveryError) -> Self {
        Self::Final(error)
    }
}

/// Classifies a failed delivery.
///
/// `disconnected` is true if a connection may have broken after the record was sent. librdkafka may
/// then have sent the record twice, and the code describes only the second attempt.
pub fn classify(failure: DeliveryFailure, disconnected: bool) -> AttemptError {
    let DeliveryFailure { code, never_stored } = failure;
    let detail = format!("delivery to kafka failed: {code}");
    match code {
        Code::MessageSizeTooLarge => AttemptError::BatchTooLarge,
        Code::DuplicateSequenceNumber => DeliveryError::Unknown(
            "kafka reported a duplicate sequence without an offset; the event may not be stored".into(),
        )
        .into(),
        // The record was in the local queue. librdkafka remembers whether it ever left that queue,
        // so a broken connection does not matter.
        Code::PurgeQueue if never_stored => DeliveryError::not_stored("kafka_refused", detail).into(),
        // The broker reports these before it stores anything. It stores a whole batch or nothing.
        Code::UnknownTopic
        | Code::UnknownPartition
        | Code::UnknownTopicOrPartition
        | Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::InvalidRecord
        | Code::InvalidDifferentRecord
        | Code::InvalidTimestamp
        | Code::PolicyViolation
            if never_stored && !disconnected =>
        {
            DeliveryError::not_stored("kafka_refused", detail).into()
        }
        _ => DeliveryError::Unknown(detail).into(),
    }
}

/// Whether the broker rejects the client's producer id or epoch, and not the record.
pub fn is_producer_rejected(code: Code) -> bool {
    matches!(
        code,
        Code::ProducerFenced
            | Code::Fenced
            | Code::InvalidProducerEpoch
            | Code::InvalidProducerIdMapping
            | Code::UnknownProducerId
            | Code::OutOfOrderSequenceNumber
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_not_stored_only_where_that_is_certain() {
        let certain = |code, never_stored, disconnected| {
            let failure = DeliveryFailure { code, never_stored };
            matches!(classify(failure, disconnected), AttemptError::Final(DeliveryError::NotStored { .. }))
        };
        for code in [
            Code::UnknownTopic,
            Code::TopicAuthorizationFailed,
            Code::InvalidRecord,
            Code::InvalidDifferentRecord,
        ] {
            assert!(certain(code, true, false), "{code}");
            assert!(!certain(code, true, true), "{code}: an earlier attempt may have been stored");
            assert!(!certain(code, false, false), "{code}: an earlier attempt may have been stored");
        }
        assert!(certain(Code::PurgeQueue, true, true), "the record never left the queue");
        assert!(!certain(Code::PurgeQueue, false, false), "the record was back in the queue");
        for code in [
            Code::PurgeInflight,
            Code::MessageTimedOut,
            Code::RequestTimedOut,
            Code::BrokerTransportFailure,
            Code::NotEnoughReplicasAfterAppend,
            Code::OutOfOrderSequenceNumber,
            Code::ProducerFenced,
            Code::Unknown,
        ] {
            assert!(!certain(code, true, false), "{code}");
        }
    }
}
