//! Validates and sends the events of one batch request. No event waits for the delivery report of
//! another. Of each event only its id or its rejection is kept.

use std::sync::Arc;

use events::{Draft, Event, EventId, RequestError, Source};
use uuid::Uuid;

use crate::batch::results::{Entry, OutOfMemory, ResultLog, Summary, rejection_json};
use crate::error::ApiError;
use crate::http::headers::id_of;
use crate::kafka::batch_publisher::{BatchOutcome, BatchPublisher};
use crate::kafka::delivery::Record;
use crate::state::AppState;

/// The events of one batch request.
pub struct BatchIngest<'p> {
    producer: &'p AppState,
    publisher: BatchPublisher<'p>,
    traceparent: Option<&'p str>,
    results: ResultLog,
    summary: Summary,
    /// Metric labels of the sources so far.
    labels: Vec<String>,
    /// The source of the last event. Most batches have one source.
    last_source: Option<(Source, u32)>,
}

impl<'p> BatchIngest<'p> {
    pub fn new(producer: &'p AppState, traceparent: Option<&'p str>) -> Self {
        let delivery_seconds = producer.metrics.delivery_seconds();
        let abandoned = producer.shutdown.abandon_token();
        Self {
            producer,
            publisher: BatchPublisher::new(&producer.kafka, traceparent, delivery_seconds, abandoned),
            traceparent,
            results: ResultLog::new(Arc::clone(&producer.batch_memory)),
            summary: Summary::default(),
            labels: Vec::new(),
            last_source: None,
        }
    }

    /// Number of events so far, rejected events included.
    pub fn event_count(&self) -> usize {
        self.summary.results
    }

    /// Validates the event in `text` and sends or rejects it.
    ///
    /// # Errors
    /// 503: there is no memory for its result.
    pub async fn ingest(&mut self, text: &[u8]) -> Result<(), ApiError> {
        match parse_event(self.producer, text) {
            Ok(draft) => self.send(draft).await,
            Err(error) => self.reject(&error, Some(text)),
        }
    }

    /// Adds a rejection as the next result. If `text` is given, parsing it returns `error` again.
    ///
    /// # Errors
    /// 503: there is no memory for the result.
    pub fn reject(&mut self, error: &ApiError, text: Option<&[u8]>) -> Result<(), ApiError> {
        let json = rejection_json(self.summary.results, error);
        let entry = match text {
            Some(text) if text.len() < json.len() => Entry::Unparsed(text),
            _ => Entry::Rejected(&json),
        };
        self.results.push(entry).map_err(out_of_memory)?;
        self.count_rejection(error);
        Ok(())
    }

    /// Adds the last result: the error that ended the batch.
    pub fn reject_rest(&mut self, error: &ApiError) {
        let json = rejection_json(self.summary.results, error);
        self.results.push_last(Entry::Rejected(&json));
        self.count_rejection(error);
    }

    fn count_rejection(&mut self, error: &ApiError) {
        self.summary.add_rejection(error);
        self.producer.metrics.events_rejected(error.reason(), 1);
    }

    async fn send(&mut self, draft: Draft) -> Result<(), ApiError> {
        let id = match &draft.id {
            Some(id) => {
                self.results.push(Entry::Sent(id.as_str())).map_err(out_of_memory)?;
                id.clone()
            }
            None => {
                let id = Uuid::now_v7();
                self.results.push(Entry::SentWithUuid(id)).map_err(out_of_memory)?;
                id_of(id)
            }
        };
        self.summary.results += 1;
        let label = self.label(&draft.source);
        let ingested_at = self.producer.clock.stamp(&id).await;
        let event = Event::new(draft, id, ingested_at, &self.producer.config.api_version);
        let value = event.to_json();
        let record = Record {
            key: event.id.as_str(),
            value: &value,
            timestamp_ms: ingested_at.get(),
            traceparent: self.traceparent,
        };
        self.publisher.send(record, label).await;
        Ok(())
    }

    /// Index of the source's metric label in `labels`.
    fn label(&mut self, source: &Source) -> u32 {
        if let Some((last, label)) = &self.last_source
            && last == source
        {
            return *label;
        }
        let text = self.producer.metrics.label(source);
        let known = self.labels.iter().position(|known| *known == text);
        let label = known.unwrap_or_else(|| {
            self.labels.push(text);
            self.labels.len() - 1
        });
        let label = u32::try_from(label).unwrap_or_default();
        self.last_source = Some((source.clone(), label));
        label
    }

    /// Waits for the outcome of each sent event and counts it in the metrics.
    pub async fn finish(self) -> (Summary, ResultLog, BatchOutcome) {
        let mut summary = self.summary;
        let outcome = self.publisher.finish().await;
        let metrics = &self.producer.metrics;
        for (label, count) in self.labels.iter().zip(&outcome.states.stored_by_label) {
            metrics.events_accepted(label, *count);
            summary.accepted += usize::try_from(*count).unwrap_or(usize::MAX);
        }
        for (error, count) in outcome.error_counts() {
            let error = error.clone().into_api_error(placeholder_id());
            metrics.events_rejected(error.reason(), count);
            summary.add_status(&error);
            self.producer.set_last_error(&error.problem().detail);
        }
        (summary, self.results, outcome)
    }
}

/// The error for an event whose result finds no memory. It and the following events are not stored.
fn out_of_memory(OutOfMemory: OutOfMemory) -> ApiError {
    ApiError::overloaded("the results of batch requests use all their memory: send the rest in another batch")
}

/// An id for errors of which only the status, the reason and the detail are used.
fn placeholder_id() -> EventId {
    id_of(Uuid::nil())
}

/// Parses an event of a batch.
///
/// # Errors
/// 400 or 422. The same text always returns the same error.
pub fn parse_event(producer: &AppState, text: &[u8]) -> Result<Draft, ApiError> {
    let draft = events::parse_request(text, &producer.rules).map_err(|error| match error {
        RequestError::Empty => ApiError::missing_event(),
        error => ApiError::from_parser(error, "event", None),
    })?;
    if draft.id.is_none() && producer.config.require_id { Err(ApiError::MissingId) } else { Ok(draft) }
}
