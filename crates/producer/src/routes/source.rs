//! `/ingest/{source}`: the records of a source of the file. A client sends them, or the producer
//! fetches them.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use sources::{Context, Pull, Source, Upstream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::batch::ingest_all;
use crate::error::ApiError;
use crate::extraction::{Extraction, extract};
use crate::http::headers::{ContentCoding, IDEMPOTENCY_KEY, format_hint, idempotency_key};
use crate::http::middleware::{HadBody, discard_body, reject};
use crate::poll_jobs::{CallResult, Job, JobReport, Schedule};
use crate::pull::fetch::Outcome;
use crate::routes::adsbdb::{self, JobList, fetch_and_ingest};
use crate::routes::ingest::{publish, read_body};
use crate::state::{Admission, AppState, Parts, Permit};
use crate::traces::traceparent;

/// The source that the path of a request names.
pub(super) fn source_of<'s>(state: &'s Parts, request: &Request) -> Result<&'s Source, ApiError> {
    let name = request.uri().path().split('/').nth(2).unwrap_or_default();
    state.sources.get(name).ok_or(ApiError::SourceNotFound)
}

/// The handler of `POST /ingest/{source}` in the router. [`handle`] serves the requests.
pub async fn ingest() -> ApiError {
    ApiError::SourceNotFound
}

/// Handles `POST /ingest/{source}`: the body is a record, or the source is fetched now.
pub async fn handle(
    state: &AppState,
    admission: Admission,
    permit: Option<Permit>,
    request: Request,
) -> Result<Response, ApiError> {
    let source = match source_of(state, &request) {
        Ok(source) => source,
        Err(error) => return Ok(reject(error, request).await),
    };
    if let Some(pull) = &source.pull {
        return Box::pin(fetch(state, (source, &pull.upstream), (admission, permit), request)).await;
    }
    if !source.push {
        return Ok(reject(other_endpoint(source), request).await);
    }
    let (parts, body) = request.into_parts();
    let Extraction { event, id, .. } = read_record(state, source, &parts.headers, body).await?;
    if !admission.granted() {
        return Err(ApiError::shutting_down(Some(id)));
    }
    let accepted = publish(state, event, id, traceparent(&parts.headers)).await?;
    Ok(accepted.into_response())
}

/// Fetches a source now.
async fn fetch(
    state: &AppState,
    (source, upstream): (&Source, &Upstream),
    (admission, permit): (Admission, Option<Permit>),
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let (had_body, ended) = discard_body(&parts.headers, body).await;
    let checked = match upstream {
        _ if parts.headers.contains_key(IDEMPOTENCY_KEY) => Err(ApiError::UnexpectedIdempotencyKey),
        Upstream::Http(_) if had_body => Err(ApiError::unexpected_body(source.name.as_str())),
        _ if !admission.granted() => Err(ApiError::shutting_down(None)),
        _ => Ok(()),
    };
    let never = CancellationToken::new();
    let fetched = match (checked, upstream) {
        (Err(error), _) => Err(error),
        (Ok(()), Upstream::Adsbdb) => {
            let fetched = fetch_and_ingest(state, &source.name, traceparent(&parts.headers), &never).await;
            fetched.map(IntoResponse::into_response)
        }
        (Ok(()), Upstream::Http(api)) => match state.sources.puller(&source.name) {
            Some(puller) => {
                let fetched = puller.fetch(state, (source, api), traceparent(&parts.headers), &never).await;
                fetched.map(|outcome| match outcome {
                    Outcome::NotModified => not_modified(),
                    Outcome::One(accepted) => accepted.into_response(),
                    Outcome::Many { settled, .. } => settled.into_response((admission, permit.map(Arc::new))),
                })
            }
            None => Err(ApiError::SourceNotFound),
        },
    };
    let mut response = fetched.unwrap_or_else(IntoResponse::into_response);
    if !ended {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// The response to a fetch that returned nothing new.
fn not_modified() -> Response {
    let body = json!({"accepted": 0, "rejected": 0, "results": [], "not_modified": true});
    Json(body).into_response()
}

/// Reads the record of a request and makes its event.
async fn read_record(
    state: &AppState,
    source: &Source,
    headers: &HeaderMap,
    body: Body,
) -> Result<Extraction, ApiError> {
    let body = read_body(state, headers, body).await?;
    let record = match events::parse_json(&body) {
        Ok(record) => record,
        Err(error) => {
            let hint = format_hint(&body, ContentCoding::of(headers)?);
            return Err(ApiError::from_parser(error, "body", hint));
        }
    };
    match (extract(source, record, Context::default(), state.now()), idempotency_key(headers)) {
        (Ok(extraction), Ok(key)) => {
            extraction.with_key(key).map_err(|violation| ApiError::Violations(vec![violation]))
        }
        (Ok(_), Err(violation)) => Err(ApiError::Violations(vec![violation])),
        (Err(fault), key) => {
            let mut violations = fault.violations;
            violations.extend(key.err());
            Err(ApiError::Violations(violations))
        }
    }
}

/// The handler of `POST /ingest/{source}/batch`.
pub async fn ingest_batch(
    State(state): State<AppState>,
    Extension(admission): Extension<Admission>,
    Extension(permit): Extension<Arc<Permit>>,
    request: Request,
) -> Result<Response, ApiError> {
    let source = match source_of(&state, &request) {
        Ok(source) if source.push => source,
        Ok(source) => return Ok(reject(other_endpoint(source), request).await),
        Err(error) => return Ok(reject(error, request).await),
    };
    ingest_all(Arc::clone(&state), Some(source), admission, permit, request).await
}

/// The source that the path of a request names, which is fetched.
fn pull_of<'s>(state: &'s Parts, request: &Request) -> Result<(&'s Source, &'s Pull), ApiError> {
    let source = source_of(state, request)?;
    source.pull.as_ref().map(|pull| (source, pull)).ok_or_else(|| other_endpoint(source))
}

/// The job that the path of a request names.
fn job_of(state: &Parts, request: &Request) -> Result<Arc<Job>, ApiError> {
    let (source, _) = pull_of(state, request)?;
    let id = request.uri().path().split('/').nth(4).unwrap_or_default();
    state.jobs.find(source.name.as_str(), id, Instant::now()).ok_or(ApiError::JobNotFound)
}

/// `POST /ingest/{source}/poll`: starts a job.
pub async fn start_job(
    State(state): State<AppState>,
    Extension(admission): Extension<Admission>,
    request: Request,
) -> Result<Response, ApiError> {
    let (source, pull) = pull_of(&state, &request)?;
    if request.extensions().get::<HadBody>().is_some() {
        return Err(ApiError::InvalidJobRequest("the request has a body".into()));
    }
    let schedule = Schedule::parse_with(request.uri().query().unwrap_or_default(), pull.every)?;
    let (caller, name) = (Arc::clone(&state), source.name.clone());
    adsbdb::start_job(&state, (source.name.as_str(), schedule), admission, move |job| {
        let (state, name) = (Arc::clone(&caller), name.clone());
        async move { call(&job, &state, name.as_str()).await }
    })
}

/// One call of a job.
async fn call(job: &Job, state: &AppState, name: &str) -> CallResult {
    let Some(source) = state.sources.get(name) else { return CallResult::Cancelled };
    let upstream = source.pull.as_ref().map(|pull| &pull.upstream);
    let puller = state.sources.puller(&source.name);
    let outcome = match (upstream, puller) {
        (Some(Upstream::Http(api)), Some(puller)) => {
            if let Some(time) = puller.waits() {
                return CallResult::Waiting(time);
            }
            match puller.fetch(state, (source, api), None, &job.cancelled).await {
                Ok(Outcome::Many { failure: Some(error), .. }) => {
                    return CallResult::Failed { error, retry_after: puller.waits().unwrap_or_default() };
                }
                outcome => outcome.map(drop),
            }
        }
        _ => fetch_and_ingest(state, &source.name, None, &job.cancelled).await.map(drop),
    };
    adsbdb::call_result(job, state, outcome)
}

/// `GET /ingest/{source}/poll`: lists the jobs of the source, the newest first.
pub async fn list_jobs(State(state): State<AppState>, request: Request) -> Result<Json<JobList>, ApiError> {
    let (source, _) = pull_of(&state, &request)?;
    let jobs = state.jobs.list(source.name.as_str(), Instant::now()).iter().map(|job| job.report()).collect();
    Ok(Json(JobList { jobs }))
}

/// `GET /ingest/{source}/poll/{job_id}`: shows a job.
pub async fn show_job(State(state): State<AppState>, request: Request) -> Result<Json<JobReport>, ApiError> {
    Ok(Json(job_of(&state, &request)?.report()))
}

/// `DELETE /ingest/{source}/poll/{job_id}`: cancels a job.
pub async fn cancel_job(
    State(state): State<AppState>,
    request: Request,
) -> Result<Json<JobReport>, ApiError> {
    let job = job_of(&state, &request)?;
    job.cancel(Instant::now());
    Ok(Json(job.report()))
}

/// The error of an endpoint that the source does not have.
fn other_endpoint(source: &Source) -> ApiError {
    let name = &source.name;
    ApiError::OtherEndpoint(match source.pull {
        Some(_) => format!("the source {name} is fetched: send POST /ingest/{name} without a body"),
        None if source.push => {
            format!("the source {name} is not fetched: send its records to POST /ingest/{name}")
        }
        None => format!("events of the source {name} are sent in an envelope to POST /ingest"),
    })
}
