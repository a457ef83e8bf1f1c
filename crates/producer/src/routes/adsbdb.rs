//! `/ingest/adsbdb`: fetches one aircraft from ADSBDB and publishes it as an event of the source
//! `adsbdb`. The payload is the JSON text of the aircraft, unchanged. `/ingest/adsbdb/poll`: jobs
//! that repeat it in the background.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use events::{NewEvent, Source};
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::ADSBDB;
use crate::error::ApiError;
use crate::http::headers::new_id;
use crate::http::middleware::HadBody;
use crate::poll_jobs::{self, CallResult, Job, JobReport, Schedule};
use crate::routes::ingest::{Accepted, publish};
use crate::state::{Admission, AppState};
use crate::traces::traceparent;

/// The handler of `POST /ingest/adsbdb`. It ignores the body.
pub async fn ingest_aircraft(
    State(state): State<AppState>,
    Extension(admission): Extension<Admission>,
    request: Request,
) -> Result<Accepted, ApiError> {
    if !admission.granted() {
        return Err(ApiError::shutting_down(None));
    }
    let source = state.adsbdb_source.clone();
    fetch_and_ingest(&state, &source, traceparent(request.headers()), &CancellationToken::new()).await
}

/// Fetches an aircraft and ingests it as an event of `source`. `cancelled` ends the request to
/// ADSBDB. It does not end the delivery of an event that Kafka received.
///
/// # Errors
/// 502, and the errors of [`publish`].
pub async fn fetch_and_ingest(
    state: &AppState,
    source: &Source,
    traceparent: Option<&str>,
    cancelled: &CancellationToken,
) -> Result<Accepted, ApiError> {
    // The event could not be stored, so ADSBDB gets no request.
    if let Err(detail) = state.kafka.ready_for(state.sources.topic_of(source)) {
        return Err(ApiError::NotStored { reason: "kafka_away", detail, id: None });
    }
    let in_file = state.sources.get(source.as_str()).map(|source| &source.name);
    let payload = tokio::select! {
        payload = state.adsbdb.random_aircraft(in_file) => payload?,
        () = cancelled.cancelled() => return Err(ApiError::shutting_down(None)),
        () = state.shutdown.abandoned.cancelled() => return Err(ApiError::shutting_down(None)),
    };
    let id = events::aircraft_id(&payload).unwrap_or_else(new_id);
    let draft = NewEvent { id: None, timestamp: None, source: source.clone(), payload: payload.clone() };
    publish(state, draft, id, traceparent).await.map(|accepted| accepted.with_payload(&payload))
}

/// `POST`: starts a job.
pub async fn start(
    State(state): State<AppState>,
    Extension(admission): Extension<Admission>,
    request: Request,
) -> Result<Response, ApiError> {
    if request.extensions().get::<HadBody>().is_some() {
        return Err(ApiError::InvalidJobRequest("the request has a body".into()));
    }
    let schedule = Schedule::parse(request.uri().query().unwrap_or_default())?;
    let caller = Arc::clone(&state);
    start_job(&state, (ADSBDB, schedule), admission, move |job| {
        let caller = Arc::clone(&caller);
        async move { call(&job, &caller).await }
    })
}

/// Starts a job of a source. `call` makes one call of it.
///
/// # Errors
/// 429: too many jobs run. 503: the shutdown has begun.
pub fn start_job<C, F>(
    state: &AppState,
    (source, schedule): (&str, Schedule),
    admission: Admission,
    call: C,
) -> Result<Response, ApiError>
where
    C: Fn(Arc<Job>) -> F + Send + Sync + 'static,
    F: Future<Output = CallResult> + Send,
{
    if !admission.granted() {
        return Err(ApiError::shutting_down(None));
    }
    let job = state.jobs.start(source, schedule, &state.shutdown.begun, Instant::now())?;
    let location = format!("/ingest/{source}/poll/{}", job.id);
    let body = json!({
        "status": "started",
        "job_id": job.id,
        "interval_sec": schedule.interval_sec,
        "duration_sec": schedule.duration_sec,
    });
    tokio::spawn(async move {
        poll_jobs::run(&job, || call(Arc::clone(&job))).await;
        // The job counts as unfinished work until here. The shutdown cancels it.
        drop(admission);
    });
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(body)).into_response())
}

/// One call of a job.
async fn call(job: &Job, state: &AppState) -> CallResult {
    let fetched = fetch_and_ingest(state, &state.adsbdb_source, None, &job.cancelled).await;
    call_result(job, state, fetched.map(drop))
}

/// The result of a call of a job.
pub fn call_result(job: &Job, state: &AppState, outcome: Result<(), ApiError>) -> CallResult {
    match outcome {
        Ok(()) => CallResult::Sent,
        Err(ApiError::NotStored { reason: "stopping", .. }) if job.cancelled.is_cancelled() => {
            CallResult::Cancelled
        }
        Err(error) => {
            let problem = error.problem();
            tracing::debug!(job_id = job.id, reason = problem.detail, "poll call failed");
            state.metrics.events_rejected(error.reason(), 1);
            state.set_last_error(&problem.detail);
            let retry_after: Duration = problem.retry_after.unwrap_or_default();
            CallResult::Failed { error: problem.detail, retry_after }
        }
    }
}

/// The job id in the path. An id that is not UTF-8 is an unknown job.
type JobId = Result<Path<String>, PathRejection>;

/// The response of `GET` without a job id.
#[derive(Debug, Serialize)]
pub struct JobList {
    pub jobs: Vec<JobReport>,
}

/// `GET`: lists all running jobs and those that ended within the last hour, the newest first.
pub async fn list(State(state): State<AppState>) -> Json<JobList> {
    let jobs = state.jobs.list(ADSBDB, Instant::now());
    Json(JobList { jobs: jobs.iter().map(|job| job.report()).collect() })
}

/// `GET …/{job_id}`: shows a job.
pub async fn show(State(state): State<AppState>, id: JobId) -> Result<Json<JobReport>, ApiError> {
    let Path(id) = id.map_err(|_| ApiError::JobNotFound)?;
    state.jobs.find(ADSBDB, &id, Instant::now()).map(|job| Json(job.report())).ok_or(ApiError::JobNotFound)
}

/// `DELETE …/{job_id}`: cancels a job. No further call starts, and a running request to ADSBDB
/// ends.
pub async fn cancel(State(state): State<AppState>, id: JobId) -> Result<Json<JobReport>, ApiError> {
    let Path(id) = id.map_err(|_| ApiError::JobNotFound)?;
    let job = state.jobs.find(ADSBDB, &id, Instant::now()).ok_or(ApiError::JobNotFound)?;
    job.cancel(Instant::now());
    Ok(Json(job.report()))
}
