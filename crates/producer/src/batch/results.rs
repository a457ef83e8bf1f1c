//! The results of a batch request, in input order, and its response: one status for the batch and
//! one result for each event. The response is written in chunks while it is sent.
//!
//! The results of all batches of the process together use at most [`MAX_BYTES`].

use std::any::Any;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::iter::Enumerate;
use std::sync::Arc;
use std::vec::IntoIter;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use events::EventId;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ApiError;
use crate::kafka::delivery::DeliveryError;
use crate::kafka::delivery_tracker::DeliveryState;

/// Maximum memory of all results and of their delivery states. It holds sixty default batches whose
/// events are all sent, or twenty whose events are all rejected with a usual text.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// Permits are acquired in steps. A step is small enough for thousands of small batches, and large
/// batches acquire few of them.
const PERMIT_STEP_BYTES: usize = 4 * 1024;
/// Size of a chunk of the response, without its last result.
const CHUNK_BYTES: usize = 16 * 1024;

/// Creates the memory limit of all results of a process. One permit is one byte.
pub fn memory_permits() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_BYTES))
}

/// The result of one event before the deliveries end.
#[derive(Debug)]
enum EventResult {
    /// The event was sent. `label` is the index of its source's metric label.
    Sent { id: EventId, label: usize },
    /// The event was rejected. The value is its result as JSON.
    Rejected(Vec<u8>),
}

/// The results of one batch request.
#[derive(Debug)]
pub struct Results {
    results: Vec<EventResult>,
    /// The statuses of the results that are not 202.
    statuses: BTreeSet<StatusCode>,
    /// Whether the body was truncated. The client can send the missing events in a new request.
    truncated: bool,
    /// Set for a fetch: the number of its records that were sent before and have not changed.
    unchanged: Option<u64>,
    /// Whether the API has more pages than the fetch read.
    has_more: bool,
    /// Why a fetch is incomplete, if it is.
    incomplete: Option<String>,
    permits: Arc<Semaphore>,
    acquired: Option<OwnedSemaphorePermit>,
    /// Acquired bytes that are not used yet.
    unused_bytes: usize,
}

impl Results {
    /// No results. Their memory is limited by `permits`.
    pub fn new(permits: Arc<Semaphore>) -> Self {
        Self {
            results: Vec::new(),
            statuses: BTreeSet::new(),
            truncated: false,
            unchanged: None,
            has_more: false,
            incomplete: None,
            permits,
            acquired: None,
            unused_bytes: 0,
        }
    }

    /// Marks the results as those of a fetch. Rejected records are then no error of the request.
    pub fn set_unchanged(&mut self, count: u64) {
        self.unchanged = Some(count);
    }

    /// Marks the results as a part: the API has more pages.
    pub fn set_has_more(&mut self) {
        self.has_more = true;
    }

    /// Marks the results as those of a fetch that is incomplete. The next fetch continues it.
    pub fn set_incomplete(&mut self, reason: &str) {
        self.incomplete = Some(reason.to_owned());
    }

    pub fn len(&self) -> usize {
        self.results.len()
    }

    /// Reserves the memory for the result of an event that is sent.
    ///
    /// # Errors
    /// 503: there is no memory.
    pub fn reserve(&mut self, id: &EventId) -> Result<(), ApiError> {
        self.acquire(id.as_str().len() + size_of::<DeliveryState>())
    }

    /// Adds the result of an event that was sent. Its memory was reserved.
    pub fn push_sent(&mut self, id: EventId, label: usize) {
        self.results.push(EventResult::Sent { id, label });
    }

    /// Adds a rejection.
    ///
    /// # Errors
    /// 503: there is no memory for it, and nothing was added.
    pub fn reject(&mut self, error: &ApiError) -> Result<(), ApiError> {
        let json = rejection_json(self.len(), error);
        self.acquire(json.len())?;
        self.push_rejection(json, error);
        Ok(())
    }

    /// Adds the last result: the error that ended the batch. It needs no permit.
    pub fn reject_rest(&mut self, error: &ApiError) {
        self.push_rejection(rejection_json(self.len(), error), error);
    }

    fn push_rejection(&mut self, json: Vec<u8>, error: &ApiError) {
        self.results.push(EventResult::Rejected(json));
        self.add_status(error);
    }

    /// Adds the status of results that were sent and not stored.
    pub fn add_status(&mut self, error: &ApiError) {
        self.statuses.insert(error.status());
        self.truncated |= matches!(error, ApiError::TruncatedBody);
    }

    /// The labels of the events that were sent.
    pub fn sent_labels(&self) -> impl Iterator<Item = usize> {
        self.results.iter().filter_map(|result| match result {
            EventResult::Sent { label, .. } => Some(*label),
            EventResult::Rejected(_) => None,
        })
    }

    /// Acquires the permits of one result, which has `bytes` beside its entry in the list.
    fn acquire(&mut self, bytes: usize) -> Result<(), ApiError> {
        let bytes = size_of::<EventResult>() + bytes;
        if self.unused_bytes < bytes {
            let step = bytes.max(PERMIT_STEP_BYTES);
            let permits = Arc::clone(&self.permits);
            let permit = permits.try_acquire_many_owned(u32::try_from(step).unwrap_or(u32::MAX));
            let permit = permit.map_err(|_| {
                let detail =
                    "the results of batch requests use all their memory: send the rest in another batch";
                ApiError::overloaded(detail)
            })?;
            self.unused_bytes += step;
            match &mut self.acquired {
                Some(acquired) => acquired.merge(permit),
                None => self.acquired = Some(permit),
            }
        }
        self.unused_bytes -= bytes;
        Ok(())
    }

    /// 202 if every event was accepted, 207 if some were accepted. Otherwise the status that all
    /// results share, or 207 if they differ.
    fn status(&self, accepted: usize) -> StatusCode {
        let mut statuses = self.statuses.iter();
        match (statuses.next(), statuses.next()) {
            (None, _) => StatusCode::ACCEPTED,
            (Some(shared), None) if shared.is_client_error() && self.unchanged.is_some() => {
                StatusCode::MULTI_STATUS
            }
            (Some(shared), None) if accepted == 0 => *shared,
            _ => StatusCode::MULTI_STATUS,
        }
    }

    /// Creates the response. `states` and `errors` are the outcome of the events that were sent;
    /// `accepted` of them are stored. `held` is dropped after the last byte: until then the request
    /// counts as unfinished and keeps its permit.
    pub fn into_response(
        self,
        accepted: usize,
        (states, errors): (Vec<DeliveryState>, Vec<DeliveryError>),
        held: impl Send + 'static,
    ) -> Response {
        let status = self.status(accepted);
        let is_problem = status.is_client_error() || status.is_server_error();
        let problem = ApiError::whole_batch(status, self.truncated);
        let mut head = if is_problem { to_json(&problem) } else { b"{}".to_vec() };
        // The counts and the results continue the JSON object.
        head.pop();
        let comma = if is_problem { "," } else { "" };
        let rejected = self.len() - accepted;
        head.extend_from_slice(format!("{comma}\"accepted\":{accepted},\"rejected\":{rejected},").as_bytes());
        if let Some(unchanged) = self.unchanged {
            head.extend_from_slice(format!("\"unchanged\":{unchanged},").as_bytes());
        }
        if self.has_more {
            head.extend_from_slice(b"\"has_more\":true,");
        }
        if let Some(reason) = &self.incomplete {
            let reason = serde_json::Value::from(reason.as_str());
            head.extend_from_slice(format!("\"incomplete\":{reason},").as_bytes());
        }
        head.extend_from_slice(b"\"results\":[");
        let body = ResponseBody {
            head: Some(head),
            results: Some(self.results.into_iter().enumerate()),
            states: states.into_iter(),
            errors,
            _held: (Box::new(held), self.acquired),
        };
        let mut response = Body::from_stream(futures::stream::iter(body)).into_response();
        *response.status_mut() = status;
        let media_type = if is_problem { "application/problem+json" } else { "application/json" };
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        if let Some(retry_after) = problem.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after.as_secs()));
        }
        response
    }
}

/// The body of the response, in chunks.
struct ResponseBody {
    head: Option<Vec<u8>>,
    /// `None` after the last chunk.
    results: Option<Enumerate<IntoIter<EventResult>>>,
    states: IntoIter<DeliveryState>,
    errors: Vec<DeliveryError>,
    _held: (Box<dyn Any + Send>, Option<OwnedSemaphorePermit>),
}

impl Iterator for ResponseBody {
    type Item = Result<Bytes, Infallible>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut results = self.results.take()?;
        let mut chunk = self.head.take().unwrap_or_default();
        while chunk.len() < CHUNK_BYTES {
            let Some((index, result)) = results.next() else {
                chunk.extend_from_slice(b"]}");
                return Some(Ok(chunk.into()));
            };
            if index > 0 {
                chunk.push(b',');
            }
            match result {
                EventResult::Sent { id, .. } => self.write_sent(index, id, &mut chunk),
                EventResult::Rejected(json) => chunk.extend_from_slice(&json),
            }
        }
        self.results = Some(results);
        Some(Ok(chunk.into()))
    }
}

impl ResponseBody {
    fn write_sent(&mut self, index: usize, id: EventId, chunk: &mut Vec<u8>) {
        let error = match self.states.next() {
            Some(DeliveryState::Stored { partition, offset }) => {
                let accepted = Accepted { index, status: 202, id: id.as_str(), partition, offset };
                _ = serde_json::to_writer(chunk, &accepted);
                return;
            }
            Some(DeliveryState::Failed(error)) => self.errors.get(error).cloned(),
            _ => None,
        };
        let error = error.unwrap_or_else(|| DeliveryError::Unknown("its outcome was lost".into()));
        chunk.extend_from_slice(&rejection_json(index, &error.into_api_error(id)));
    }
}

#[derive(Serialize)]
struct Accepted<'a> {
    index: usize,
    status: u16,
    id: &'a str,
    partition: i32,
    offset: i64,
}

#[derive(Serialize)]
struct Rejected<'a> {
    index: usize,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    detail: &'a str,
    retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<&'a serde_json::Value>,
}

/// The result of a rejected event as JSON.
pub fn rejection_json(index: usize, error: &ApiError) -> Vec<u8> {
    let problem = error.problem();
    to_json(&Rejected {
        index,
        status: problem.status.as_u16(),
        id: problem.id.as_deref(),
        detail: &problem.detail,
        retryable: problem.retryable,
        errors: problem.errors.as_ref(),
    })
}

/// Serializes texts and numbers. This never fails in memory.
fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::gauge::Gauge;
    use serde_json::Value;

    use super::*;
    use crate::state::{Permits, Shutdown};

    fn id(text: &str) -> EventId {
        EventId::new(text).unwrap()
    }

    #[tokio::test]
    async fn results_are_written_in_the_order_of_the_events_and_in_small_chunks() {
        let name = "é".repeat(128);
        let (mut results, mut states) = (Results::new(memory_permits()), Vec::new());
        for number in 0..5_000_i64 {
            match number % 3 {
                0 => results.reject(&ApiError::MissingId).unwrap(),
                other => {
                    results.reserve(&id(&name)).unwrap();
                    results.push_sent(id(&name), 0);
                    states.push(match other {
                        1 => DeliveryState::Stored { partition: 3, offset: number },
                        _ => DeliveryState::Failed(0),
                    });
                }
            }
        }
        let held = (Shutdown::default().admit(), Arc::new(Permits::new(1, Gauge::default()).take().unwrap()));
        let outcome = (states, vec![DeliveryError::TooLarge]);
        let response = results.into_response(1667, outcome, held);
        assert_eq!(response.status(), StatusCode::MULTI_STATUS);
        let chunks: Vec<Bytes> =
            futures::TryStreamExt::try_collect(response.into_body().into_data_stream()).await.unwrap();
        assert!(chunks.iter().all(|chunk| chunk.len() < CHUNK_BYTES + 1024), "one more result at most");
        let body: Value = serde_json::from_slice(&chunks.concat()).unwrap();
        assert_eq!((&body["accepted"], &body["rejected"]), (&1667.into(), &3333.into()));
        for (index, result) in body["results"].as_array().unwrap().iter().enumerate() {
            assert_eq!(result["index"], index);
            assert_eq!(result["status"], [400, 202, 413][index % 3]);
            assert!(index % 3 != 1 || result["offset"] == index && result["id"] == name, "{result}");
        }
    }

    #[test]
    fn all_results_together_stay_within_the_limit_and_release_their_permits() {
        let permits = Arc::new(Semaphore::new(3 * PERMIT_STEP_BYTES));
        let mut all: Vec<Results> = (0..3).map(|_| Results::new(Arc::clone(&permits))).collect();
        let half = PERMIT_STEP_BYTES / 2 - size_of::<EventResult>();
        for results in &mut all {
            assert!(results.acquire(half).is_ok());
        }
        assert!(all[0].acquire(half).is_ok(), "the rest of its step");
        let error = all[0].acquire(0).unwrap_err();
        assert_eq!((error.status().as_u16(), error.reason()), (503, "overloaded"));
        drop(all.remove(0));
        assert_eq!(permits.available_permits(), PERMIT_STEP_BYTES);
        assert!(all[0].acquire(PERMIT_STEP_BYTES).is_err(), "more than is left");
        assert!(all[0].acquire(half).is_ok());
        assert!(all[0].acquire(0).is_ok());
        drop(all);
        assert_eq!(permits.available_permits(), 3 * PERMIT_STEP_BYTES);
    }
}
