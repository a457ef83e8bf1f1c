//! Parses the producer's responses into an outcome for each sent event. Pure. An outcome that the
//! response leaves open is unknown, never rejected.

use serde::Deserialize;
use service::json::{Object, object};

/// The outcome of an attempt for one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// The event is stored in Kafka (202).
    Accepted(Receipt),
    /// The event is not stored, and a retry does not help.
    Rejected,
    /// The event is not stored, and a retry may help.
    Retryable,
    /// The event may or may not be stored.
    Unknown,
}

/// The fields of a 202 about one event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Receipt {
    /// Checked against the id of the event.
    id: String,
    /// Time at which the producer received the event.
    pub ingested_at: Option<i64>,
    /// Topic.
    pub topic: Option<String>,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: Option<i64>,
}

/// The part of a response that is about one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventResponse {
    /// Status of the event.
    pub status: u16,
    /// Outcome of the event.
    pub outcome: AttemptOutcome,
}

/// The fields of an error body that matter here.
#[derive(Debug, Default, Deserialize)]
struct Problem {
    retryable: Option<bool>,
}

/// Parses the response to `POST /ingest` with the event `id`.
pub fn parse_single(id: &str, status: u16, body: &[u8]) -> EventResponse {
    let outcome = if status == 202 {
        accepted(id, object(body).ok())
    } else {
        not_accepted(status, object::<Problem>(body).unwrap_or_default().retryable)
    };
    EventResponse { status, outcome }
}

/// One result of a batch response.
#[derive(Debug, Deserialize)]
struct BatchResult {
    status: u16,
    id: Option<String>,
    partition: Option<i32>,
    offset: Option<i64>,
    retryable: Option<bool>,
}

/// Parses the response to `POST /ingest/batch` with the events `ids`: one for each, in their order.
pub fn parse_batch(ids: &[&str], status: u16, body: &[u8]) -> Vec<EventResponse> {
    #[derive(Default, Deserialize)]
    struct Body {
        results: Option<Vec<Object<BatchResult>>>,
        retryable: Option<bool>,
    }
    let body: Body = object(body).unwrap_or_default();
    let Some(results) = body.results.filter(|results| !results.is_empty()) else {
        let outcome = not_accepted(status, body.retryable);
        return ids.iter().map(|_| EventResponse { status, outcome: outcome.clone() }).collect();
    };
    // With fewer results than events, the last result is an error of the body: the events from
    // there on were not read.
    let read = if results.len() < ids.len() { results.len() - 1 } else { ids.len() };
    let rest = results.get(read).map(|Object(error)| {
        let outcome = match read {
            0 => not_accepted(error.status, error.retryable),
            _ => AttemptOutcome::Retryable,
        };
        EventResponse { status: error.status, outcome }
    });
    let own = results.into_iter().zip(ids).take(read).map(|(Object(result), id)| of_result(result, id));
    own.chain(rest.into_iter().cycle()).take(ids.len()).collect()
}

fn of_result(result: BatchResult, id: &str) -> EventResponse {
    let BatchResult { status, retryable, .. } = result;
    let receipt = || {
        let (id, partition) = (result.id?, result.partition?);
        Some(Receipt { id, partition, offset: result.offset, ..Receipt::default() })
    };
    let outcome = if status == 202 { accepted(id, receipt()) } else { not_accepted(status, retryable) };
    EventResponse { status, outcome }
}

fn accepted(id: &str, receipt: Option<Receipt>) -> AttemptOutcome {
    let receipt = receipt.filter(|receipt| receipt.id == id);
    receipt.map_or(AttemptOutcome::Unknown, AttemptOutcome::Accepted)
}

/// Only the producer sends `retryable`; a proxy in between does not.
fn not_accepted(status: u16, retryable: Option<bool>) -> AttemptOutcome {
    match (status, retryable) {
        (504, _) | (200..=299, _) => AttemptOutcome::Unknown,
        (_, Some(true)) => AttemptOutcome::Retryable,
        (_, Some(false)) => AttemptOutcome::Rejected,
        (408 | 425 | 429, None) => AttemptOutcome::Retryable,
        (500.., None) => AttemptOutcome::Unknown,
        (_, None) => AttemptOutcome::Rejected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn single(status: u16, body: &str) -> AttemptOutcome {
        parse_single("a", status, body.as_bytes()).outcome
    }

    #[test]
    fn only_a_202_with_the_id_of_the_event_is_an_acceptance() {
        let body = r#"{"id":"a","topic":"t","partition":3,"offset":7,"status":"enqueued","timestamp":1,"ingested_at":2}"#;
        let AttemptOutcome::Accepted(receipt) = single(202, body) else { panic!("accepted") };
        let right = (Some(2), Some("t".to_owned()), 3, Some(7));
        assert_eq!((receipt.ingested_at, receipt.topic, receipt.partition, receipt.offset), right);
        for (status, body) in [
            (202, r#"{"id":"b","partition":3}"#),
            (202, "<html>"),
            (202, ""),
            (200, body),
            (202, r#"["a",2,"t",3,7]"#),
        ] {
            assert_eq!(single(status, body), AttemptOutcome::Unknown, "{status} {body}");
        }
    }

    #[test]
    fn an_error_is_final_only_if_nothing_can_have_been_stored() {
        let (yes, no) = (r#"{"retryable":true}"#, r#"{"retryable":false}"#);
        for (status, body, outcome) in [
            (503, yes, AttemptOutcome::Retryable),
            (408, yes, AttemptOutcome::Retryable),
            (504, yes, AttemptOutcome::Unknown),
            (422, no, AttemptOutcome::Rejected),
            (401, no, AttemptOutcome::Rejected),
            // From a proxy in between.
            (502, "<html>", AttemptOutcome::Unknown),
            (503, "", AttemptOutcome::Unknown),
            (504, "", AttemptOutcome::Unknown),
            (429, "", AttemptOutcome::Retryable),
            (404, "", AttemptOutcome::Rejected),
            (301, "", AttemptOutcome::Rejected),
            (503, "[false]", AttemptOutcome::Unknown),
        ] {
            assert_eq!(single(status, body), outcome, "{status} {body}");
        }
    }

    fn batch(events: usize, status: u16, body: &str) -> Vec<(u16, AttemptOutcome)> {
        let ids = ["a", "b", "c", "d"];
        let responses = parse_batch(&ids[..events], status, body.as_bytes());
        responses.into_iter().map(|response| (response.status, response.outcome)).collect()
    }

    #[test]
    fn each_event_of_a_batch_has_its_own_result() {
        let body = r#"{"accepted":1,"rejected":2,"results":[{"index":0,"status":202,"id":"a","partition":1,"offset":5},
            {"index":1,"status":422,"detail":"x","retryable":false},{"index":2,"status":504,"id":"c","detail":"x","retryable":true}]}"#;
        let found = batch(3, 207, body);
        assert!(
            matches!(&found[0], (202, AttemptOutcome::Accepted(receipt)) if receipt.offset == Some(5)),
            "{found:?}"
        );
        assert_eq!(found[1..], [(422, AttemptOutcome::Rejected), (504, AttemptOutcome::Unknown)]);
    }

    #[test]
    fn an_error_of_the_body_is_the_result_of_all_events_from_there_on() {
        let body = r#"{"results":[{"index":0,"status":202,"id":"a","partition":1},{"index":1,"status":413,"detail":"x","retryable":false}]}"#;
        let found = batch(4, 207, body);
        assert_eq!(found.len(), 4);
        let retry = || (413, AttemptOutcome::Retryable);
        assert_eq!(found[1..], [retry(), retry(), retry()]);
        let nothing =
            r#"{"retryable":false,"results":[{"index":0,"status":413,"detail":"x","retryable":false}]}"#;
        let rejected = || (413, AttemptOutcome::Rejected);
        assert_eq!(batch(2, 413, nothing), [rejected(), rejected()]);
    }

    #[test]
    fn a_batch_response_without_results_applies_to_every_event() {
        let retry = || (503, AttemptOutcome::Retryable);
        assert_eq!(batch(2, 503, r#"{"retryable":true}"#), [retry(), retry()]);
        let unknown = || (202, AttemptOutcome::Unknown);
        assert_eq!(batch(2, 202, "{}"), [unknown(), unknown()]);
        assert_eq!(batch(1, 401, r#"{"retryable":false}"#), [(401, AttemptOutcome::Rejected)]);
        for array in
            [r#"{"results":[[202,"a",1,5,null]]}"#, r#"[[{"status":202,"id":"a","partition":1}],null]"#]
        {
            assert_eq!(batch(1, 202, array), [unknown()], "{array}");
        }
    }
}
