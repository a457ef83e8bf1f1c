//! `/ingest/adsbdb/poll`: jobs in the background that call what `POST /ingest/adsbdb` calls, again and again.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use crate::app::Producer;
use crate::error::ApiError;
use crate::http::middleware::HadBody;
use crate::poll_jobs::job::{self, Report};
use crate::poll_jobs::schedule::Schedule;
use crate::shutdown::Admission;

/// `POST`: starts a job.
pub async fn start(
    State(producer): State<Producer>,
    Extension(admission): Extension<Admission>,
    request: Request,
) -> Result<Response, ApiError> {
    if request.extensions().get::<HadBody>().is_some() {
        return Err(ApiError::JobInput("the request has a body".into()));
    }
    let schedule = Schedule::parse(request.uri().query().unwrap_or_default())?;
    if !admission.granted() {
        return Err(ApiError::stopping(None));
    }
    let job = producer.jobs.start(schedule, &producer.stopping, Instant::now())?;
    let location = format!("/ingest/adsbdb/poll/{}", job.id());
    let body = json!({
        "status": "started",
        "job_id": job.id(),
        "interval_sec": schedule.interval_sec,
        "duration_sec": schedule.duration_sec,
    });
    // It counts as unfinished work until it ends; stopping cancels it.
    tokio::spawn(job::run(job, producer, admission));
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(body)).into_response())
}

/// The id in the path; one that is not UTF-8 names no job.
type JobId = Result<Path<String>, PathRejection>;

/// What `GET` lists.
#[derive(Debug, Serialize)]
pub struct List {
    jobs: Vec<Report>,
}

/// `GET`: all jobs that run or have ended within the last hour, the newest first.
pub async fn list(State(producer): State<Producer>) -> Json<List> {
    let jobs = producer.jobs.all(Instant::now());
    Json(List { jobs: jobs.iter().map(|job| job.report()).collect() })
}

/// `GET …/{job_id}`.
pub async fn show(State(producer): State<Producer>, id: JobId) -> Result<Json<Report>, ApiError> {
    let Path(id) = id.map_err(|_| ApiError::NoSuchJob)?;
    producer.jobs.find(&id, Instant::now()).map(|job| Json(job.report())).ok_or(ApiError::NoSuchJob)
}

/// `DELETE …/{job_id}`: no call begins any more; one that is under way ends.
pub async fn cancel(State(producer): State<Producer>, id: JobId) -> Result<Json<Report>, ApiError> {
    let Path(id) = id.map_err(|_| ApiError::NoSuchJob)?;
    let job = producer.jobs.find(&id, Instant::now()).ok_or(ApiError::NoSuchJob)?;
    job.cancel(Instant::now());
    Ok(Json(job.report()))
}
