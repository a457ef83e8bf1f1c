//! What a failed delivery says about its record. The policy is written down here, once.

use rdkafka::error::RDKafkaErrorCode as Code;

use super::delivery::{SendError, not_stored};

/// Why one attempt failed.
#[derive(Debug)]
pub enum Refusal {
    /// The broker refused the batch for its size, which says nothing about one record in it.
    Batch,
    /// That is all there is to say.
    Final(SendError),
}

impl From<SendError> for Refusal {
    fn from(error: SendError) -> Self {
        Self::Final(error)
    }
}

/// The verdict on a record whose delivery ended with `code`. `never_stored` is what librdkafka remembers of all
/// attempts; `broke` tells whether a connection may have broken meanwhile. Then librdkafka may have sent the record
/// twice, and the code is the fate of the second attempt only.
pub fn judge(code: Code, never_stored: bool, broke: bool) -> Refusal {
    let why = format!("kafka did not take the event: {code}");
    match code {
        Code::MessageSizeTooLarge => Refusal::Batch,
        Code::DuplicateSequenceNumber => {
            let why = "kafka took the event for one that it has, and did not say where: it may not be stored";
            SendError::Unknown(why.into()).into()
        }
        // It was in the queue. If it ever left that, librdkafka remembers it, whatever broke since.
        Code::PurgeQueue if never_stored => not_stored("kafka_refused", why).into(),
        // Refused before anything was stored; a batch is stored whole or not at all.
        Code::UnknownTopic
        | Code::UnknownPartition
        | Code::UnknownTopicOrPartition
        | Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::InvalidRecord
        | Code::InvalidDifferentRecord
        | Code::InvalidTimestamp
        | Code::PolicyViolation
            if never_stored && !broke =>
        {
            not_stored("kafka_refused", why).into()
        }
        _ => SendError::Unknown(why).into(),
    }
}

/// Whether the broker refuses the client itself, and not the record.
pub fn is_disowned(code: Code) -> bool {
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
    fn not_stored_is_said_only_where_it_is_certain() {
        let certain = |code, never_stored, broke| {
            matches!(judge(code, never_stored, broke), Refusal::Final(SendError::NotStored { .. }))
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
        assert!(certain(Code::PurgeQueue, true, true), "it never left the queue");
        assert!(!certain(Code::PurgeQueue, false, false), "it was back in the queue");
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
