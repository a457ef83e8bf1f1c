//! The HTTP client of the producer: sends one request and returns the result for each of its
//! events. An outcome that a response leaves open is unknown, never rejected. An event keeps its id
//! and its body for all attempts; the outcomes of its attempts are recorded in it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kafka::BoxError;
use poller::tls::ConnectionDiagnostics;
use reqwest::Url;
use reqwest::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::Value;
use service::http::{Object, object};

use crate::ledger::{Header, Line, Outcome, hash, id_of};
use crate::workload::Event;

/// Maximum time for the producer's health response.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// The client.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    producer: Url,
    ingest: Url,
    health: Url,
    is_batch: bool,
    timeout: Duration,
    peer: ConnectionDiagnostics,
}

/// The result of an attempt for one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptResult {
    /// Status of the event, if the producer responded.
    pub status: Option<u16>,
    /// Outcome of the event.
    pub outcome: AttemptOutcome,
    /// Cause, if the connection failed before anything was sent.
    pub unreachable: Option<Arc<str>>,
}

impl AttemptResult {
    /// A request that ended without a readable response.
    pub const INTERRUPTED: Self = Self { status: None, outcome: AttemptOutcome::Unknown, unreachable: None };

    fn response(status: u16, outcome: AttemptOutcome) -> Self {
        Self { status: Some(status), outcome, unreachable: None }
    }
}

impl Client {
    /// Creates the client of the endpoint `path`.
    pub fn new(config: &poller::Config, path: &str, is_batch: bool) -> Result<Self, BoxError> {
        let agent = concat!("slipstream-load/", env!("CARGO_PKG_VERSION"));
        Ok(Self {
            http: poller::client::http_client(config, agent)?,
            producer: config.producer.clone(),
            ingest: poller::client::endpoint(&config.producer, path),
            health: poller::client::endpoint(&config.producer, "health"),
            is_batch,
            timeout: config.call_timeout,
            peer: ConnectionDiagnostics::new(config),
        })
    }

    /// API_VERSION of the producer, if its `/health` answers.
    pub async fn api_version(&self) -> Option<String> {
        let response = self.http.get(self.health.clone()).timeout(HEALTH_TIMEOUT).send().await.ok()?;
        let health: Value = response.json().await.ok()?;
        health["api_version"].as_str().map(str::to_owned)
    }

    /// Sends `events` in one request, and each delete in a request of its own. Returns the result
    /// for each of them and the longest `Retry-After`.
    pub async fn send(&self, events: &[PendingEvent]) -> (Vec<AttemptResult>, Option<Duration>) {
        let (deletes, others): (Vec<&PendingEvent>, Vec<&PendingEvent>) =
            events.iter().partition(|event| event.event.deletes);
        let mut requests: Vec<Vec<&PendingEvent>> = deletes.into_iter().map(|delete| vec![delete]).collect();
        requests.extend((!others.is_empty()).then_some(others));
        let (mut results, mut longest) = (HashMap::new(), None);
        for request in requests {
            let (of_request, retry_after) = self.send_one(&request).await;
            results.extend(request.iter().map(|event| event.event.n).zip(of_request));
            longest = longest.max(retry_after);
        }
        let result =
            |event: &PendingEvent| results.remove(&event.event.n).unwrap_or(AttemptResult::INTERRUPTED);
        (events.iter().map(result).collect(), longest)
    }

    /// Sends one request: a delete, or any number of other events.
    async fn send_one(&self, events: &[&PendingEvent]) -> (Vec<AttemptResult>, Option<Duration>) {
        let (is_single, request) = match events {
            [event] if event.event.deletes => {
                let mut url = poller::client::endpoint(&self.producer, &event.body);
                url.set_query(Some(&format!("timestamp={}", event.event.timestamp)));
                (true, self.http.delete(url))
            }
            events => {
                let media_type = if self.is_batch { "application/x-ndjson" } else { "application/json" };
                let bodies: Vec<&str> = events.iter().map(|event| event.body.as_str()).collect();
                let request = self.http.post(self.ingest.clone()).header(CONTENT_TYPE, media_type);
                (!self.is_batch, request.body(bodies.join("\n")))
            }
        };
        let (status, retry_after, body) = match self.response(request).await {
            Ok(response) => response,
            Err(error) if error.is_connect() => {
                let unreachable = Some(self.peer.describe(&error).into());
                let outcome = AttemptOutcome::Retryable;
                return (vec![AttemptResult { status: None, outcome, unreachable }; events.len()], None);
            }
            Err(_) => return (vec![AttemptResult::INTERRUPTED; events.len()], None),
        };
        let results = match events {
            [event] if is_single => vec![parse_single(&event.id, status, &body)],
            events => {
                let ids: Vec<&str> = events.iter().map(|event| event.id.as_str()).collect();
                parse_batch(&ids, status, &body)
            }
        };
        (results, retry_after)
    }

    /// Returns the status, the `Retry-After` and the body of the response.
    async fn response(
        &self,
        request: reqwest::RequestBuilder,
    ) -> reqwest::Result<(u16, Option<Duration>, Vec<u8>)> {
        let response = request.timeout(self.timeout).send().await?;
        let (status, retry_after) = (response.status().as_u16(), service::retry_after(response.headers()));
        Ok((status, retry_after, response.bytes().await?.to_vec()))
    }
}

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

/// The fields of an error body that matter here.
#[derive(Debug, Default, Deserialize)]
struct Problem {
    retryable: Option<bool>,
}

/// Parses the response to `POST /ingest` with the event `id`.
fn parse_single(id: &str, status: u16, body: &[u8]) -> AttemptResult {
    let outcome = if status == 202 {
        accepted(id, object(body).ok())
    } else {
        not_accepted(status, object::<Problem>(body).unwrap_or_default().retryable)
    };
    AttemptResult::response(status, outcome)
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
fn parse_batch(ids: &[&str], status: u16, body: &[u8]) -> Vec<AttemptResult> {
    #[derive(Default, Deserialize)]
    struct Body {
        results: Option<Vec<Object<BatchResult>>>,
        retryable: Option<bool>,
    }
    let body: Body = object(body).unwrap_or_default();
    let Some(results) = body.results.filter(|results| !results.is_empty()) else {
        let outcome = not_accepted(status, body.retryable);
        return ids.iter().map(|_| AttemptResult::response(status, outcome.clone())).collect();
    };
    // With fewer results than events, the last result is an error of the body: the events from
    // there on were not read.
    let read = if results.len() < ids.len() { results.len() - 1 } else { ids.len() };
    let rest = results.get(read).map(|Object(error)| {
        let outcome = match read {
            0 => not_accepted(error.status, error.retryable),
            _ => AttemptOutcome::Retryable,
        };
        AttemptResult::response(error.status, outcome)
    });
    let own = results.into_iter().zip(ids).take(read).map(|(Object(result), id)| of_result(result, id));
    own.chain(rest.into_iter().cycle()).take(ids.len()).collect()
}

fn of_result(result: BatchResult, id: &str) -> AttemptResult {
    let BatchResult { status, retryable, .. } = result;
    let receipt = || {
        let (id, partition) = (result.id?, result.partition?);
        Some(Receipt { id, partition, offset: result.offset, ..Receipt::default() })
    };
    let outcome = if status == 202 { accepted(id, receipt()) } else { not_accepted(status, retryable) };
    AttemptResult::response(status, outcome)
}

fn accepted(id: &str, receipt: Option<Receipt>) -> AttemptOutcome {
    let receipt = receipt.filter(|receipt| receipt.id == id);
    receipt.map_or(AttemptOutcome::Unknown, AttemptOutcome::Accepted)
}

/// Only the producer sends `retryable`; a proxy in between does not.
fn not_accepted(status: u16, retryable: Option<bool>) -> AttemptOutcome {
    match (status, retryable) {
        (504 | 200..=299, _) => AttemptOutcome::Unknown,
        (_, Some(true)) => AttemptOutcome::Retryable,
        (_, Some(false)) => AttemptOutcome::Rejected,
        (408 | 425 | 429, None) => AttemptOutcome::Retryable,
        (500.., None) => AttemptOutcome::Unknown,
        (_, None) => AttemptOutcome::Rejected,
    }
}

/// An event and its attempts so far.
#[derive(Debug, Clone)]
pub struct PendingEvent {
    /// The event.
    pub event: Event,
    /// Its id.
    pub id: String,
    /// The request body of each attempt. Of a delete it is the path.
    pub body: String,
    hash: String,
    attempts: u32,
    status: Option<u16>,
    unconfirmed: Vec<i64>,
    interrupted: Vec<i64>,
}

impl PendingEvent {
    /// Generates the body of an event; nothing is sent.
    pub fn new(header: &Header, event: Event) -> Self {
        let payload = header.workload.payload(event.n);
        let hash = hash(if event.deletes { "" } else { &payload.text });
        let id = id_of(&header.run, event.key);
        // Neither ids nor sources contain characters that JSON or a path escapes.
        let body = match &header.record {
            _ if event.deletes => format!("ingest/{}/{id}", header.source),
            Some(record) => record.record(payload, &id, event.timestamp).text,
            None => format!(
                r#"{{"id":"{id}","timestamp":{},"source":"{}","payload":{}}}"#,
                event.timestamp, header.source, payload.text
            ),
        };
        let (unconfirmed, interrupted) = (Vec::new(), Vec::new());
        Self { event, id, body, hash, attempts: 0, status: None, unconfirmed, interrupted }
    }

    /// Records an attempt that ended at `now_ms`.
    pub fn record_attempt(&mut self, status: Option<u16>, outcome: &AttemptOutcome, now_ms: i64) {
        self.attempts += 1;
        self.status = status;
        match (outcome, status) {
            (AttemptOutcome::Unknown, Some(504)) => self.unconfirmed.push(now_ms),
            (AttemptOutcome::Unknown, _) => self.interrupted.push(now_ms),
            _ => {}
        }
    }

    /// Makes the ledger line of an event in its final state. `receipt` is that of a 202.
    pub fn into_line(self, receipt: Option<Receipt>) -> Line {
        let may_be_stored = !(self.unconfirmed.is_empty() && self.interrupted.is_empty());
        let outcome = match (&receipt, may_be_stored) {
            (Some(_), _) => Outcome::Accepted,
            (None, true) => Outcome::Unknown,
            (None, false) => Outcome::Rejected,
        };
        let partition = receipt.as_ref().map(|receipt| receipt.partition);
        let Receipt { ingested_at, topic, offset, .. } = receipt.unwrap_or_default();
        Line {
            n: self.event.n,
            id: self.id,
            timestamp: self.event.timestamp,
            ingested_at,
            hash: self.hash,
            outcome,
            status: self.status,
            topic,
            partition,
            offset,
            attempts: self.attempts,
            unconfirmed: self.unconfirmed,
            interrupted: self.interrupted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{Events, Workload};

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
        responses.into_iter().map(|result| (result.status.unwrap(), result.outcome)).collect()
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

    fn pending() -> PendingEvent {
        let workload = Workload { seed: 1, keys: 3, superseded_ppm: 0, hostile_ppm: 0, deletes_ppm: 0 };
        let header = Header::of_test(workload);
        PendingEvent::new(&header, Events::new(workload).next().unwrap())
    }

    #[test]
    fn a_rejection_after_an_unknown_outcome_leaves_the_outcome_unknown() {
        let mut event = pending();
        event.record_attempt(Some(504), &AttemptOutcome::Unknown, 5);
        event.record_attempt(None, &AttemptOutcome::Unknown, 6);
        event.record_attempt(Some(413), &AttemptOutcome::Rejected, 7);
        let line = event.clone().into_line(None);
        assert_eq!((line.outcome, line.status, line.attempts), (Outcome::Unknown, Some(413), 3));
        assert_eq!((line.unconfirmed, line.interrupted), (vec![5], vec![6]));
        assert_eq!(event.into_line(Some(Receipt::default())).outcome, Outcome::Accepted);
    }

    #[test]
    fn an_event_that_no_attempt_can_have_stored_is_rejected() {
        let mut event = pending();
        event.record_attempt(Some(503), &AttemptOutcome::Retryable, 5);
        event.record_attempt(None, &AttemptOutcome::Retryable, 6);
        let line = event.into_line(None);
        assert_eq!((line.outcome, line.status, line.partition), (Outcome::Rejected, None, None));
        assert_eq!(line.hash.len(), 64);
    }
}
