//! `POST /ingest/adsbdb` and the poll jobs that repeat it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::config::Config;
use crate::error::ApiError;
use crate::openapi::errors::{adsbdb_errors, delivery_errors};
use crate::openapi::operation::Operation;
use crate::openapi::schemas::{count, named, object};
use crate::poll_jobs::Schedule;

/// The id of the example job.
const JOB_ID: &str = "01a20c8a-2255-735d-86f2-aa985a5a4431";

/// Documents `POST /ingest/adsbdb`.
pub fn ingest_aircraft(operation: Operation, config: &Config) -> Operation {
    let example = json!({
        "id": "7823C4",
        "topic": config.topic.name,
        "partition": 0,
        "offset": 4,
        "status": "enqueued",
        "timestamp": 1_795_506_708_946_i64,
        "ingested_at": 1_795_506_708_946_i64,
        "payload": {"type": "737 MAX 8", "icao_type": "B38M", "mode_s": "7823C4", "registration": "B-228M"},
    });
    let content = json!({"schema": named("AcceptedAircraft"), "example": example});
    operation
        .named("adsbdb", "ingestAircraft")
        .error(ApiError::UnexpectedIdempotencyKey)
        .about(
            "Fetches a random aircraft from ADSBDB",
            "The id is its `mode_s`, else its `registration`. The body is ignored.",
        )
        .traced()
        .response(202, "The event is in the topic", "application/json", content)
        .errors(adsbdb_errors(config))
        .errors(delivery_errors())
}

/// Documents `POST /ingest/adsbdb/poll`.
pub fn start(operation: Operation, config: &Config) -> Operation {
    let seconds = |name, default, description| {
        let schema =
            json!({"type": "number", "exclusiveMinimum": 0, "maximum": 31_536_000, "default": default});
        json!({"name": name, "in": "query", "description": description, "schema": schema})
    };
    let example = json!({"status": "started", "job_id": JOB_ID, "interval_sec": 3, "duration_sec": 120});
    let content = json!({"schema": named("PollJobStarted"), "example": example});
    let location = json!({
        "description": "The path of the job.",
        "required": true,
        "schema": {"type": "string", "pattern": "^/ingest/adsbdb/poll/[0-9a-f-]{36}$"},
    });
    let link =
        |operation| json!({"operationId": operation, "parameters": {"job_id": "$response.body#/job_id"}});
    let invalid = ["interval_sec=0", "interval=5", "interval_sec=soon&duration_sec=inf"];
    operation
        .named("adsbdb", "startPollJob")
        .error(ApiError::UnexpectedIdempotencyKey)
        .about(
            "Starts a poll job",
            "The job fetches aircraft on a schedule, in the background. Its calls do not overlap. The request has no \
             other parameters and no body.",
        )
        .parameter(seconds("interval_sec", 3, "Seconds between two calls; fractions are allowed."))
        .parameter(seconds("duration_sec", 120, "Seconds until the last call; fractions are allowed."))
        .response(202, "The job is running", "application/json", content)
        .with(202, "headers", "Location", location)
        .with(202, "links", "show", link("showPollJob"))
        .with(202, "links", "cancel", link("cancelPollJob"))
        .errors(invalid.map(Schedule::parse).into_iter().filter_map(Result::err))
        .error(ApiError::TooManyJobs(config.max_poll_jobs, Duration::from_secs(42)))
        .error(ApiError::shutting_down(None))
}

/// Documents `GET /ingest/adsbdb/poll`.
pub fn list(operation: Operation, _: &Config) -> Operation {
    let schema = object(&json!({"jobs": {"type": "array", "items": named("PollJob")}}), &[]);
    let content = json!({"schema": schema, "example": {"jobs": [example()]}});
    operation
        .named("adsbdb", "listPollJobs")
        .error(ApiError::UnexpectedIdempotencyKey)
        .about(
            "Lists poll jobs",
            "Running jobs, and up to 1,000 that ended within the last hour, newest first.",
        )
        .response(200, "The jobs", "application/json", content)
}

/// Documents `GET /ingest/adsbdb/poll/{job_id}`.
pub fn show(operation: Operation, _: &Config) -> Operation {
    one_job(operation.named("adsbdb", "showPollJob").about("Shows a poll job", ""))
}

/// Documents `DELETE /ingest/adsbdb/poll/{job_id}`.
pub fn cancel(operation: Operation, _: &Config) -> Operation {
    let description = "No further call begins. The job stays in the list.";
    one_job(operation.named("adsbdb", "cancelPollJob").about("Cancels a poll job", description))
}

fn one_job(operation: Operation) -> Operation {
    let content = json!({"schema": named("PollJob"), "example": example()});
    operation
        .error(ApiError::UnexpectedIdempotencyKey)
        .parameter(json!({
            "name": "job_id",
            "in": "path",
            "required": true,
            "description": "The `job_id` of the response that started the job.",
            "schema": {"type": "string"},
            "example": JOB_ID,
        }))
        .response(200, "The job", "application/json", content)
        .error(ApiError::JobNotFound)
}

fn example() -> Value {
    json!({
        "job_id": JOB_ID,
        "state": "running",
        "interval_sec": 3,
        "duration_sec": 120,
        "started_at": "2026-11-24T08:00:05.405Z",
        "ended_at": null,
        "next_tick_at": "2026-11-24T08:00:26.405Z",
        "sent": 6,
        "failed": 1,
        "skipped_ticks": 0,
        "last_error": "ADSBDB limits the rate of requests, for another 60 s",
    })
}

fn seconds(description: &str) -> Value {
    json!({"type": "number", "exclusiveMinimum": 0, "maximum": 31_536_000, "description": description})
}

fn time(description: &str) -> Value {
    json!({"type": ["string", "null"], "format": "date-time", "description": description})
}

/// The schema of a job.
pub fn job() -> Value {
    let properties = json!({
        "job_id": {"type": "string", "format": "uuid"},
        "state": {"enum": ["running", "done", "cancelled", "failed"]},
        "interval_sec": seconds("Seconds between two calls."),
        "duration_sec": seconds("Seconds until the last call."),
        "started_at": time("Start of the job."),
        "ended_at": time("End of the job, if it has ended."),
        "next_tick_at": time("Time of the next call, if there is one."),
        "sent": count("Calls whose event is in the topic."),
        "failed": count("Calls that failed."),
        "skipped_ticks": count("Calls that were skipped because the previous call was still running."),
        "last_error": {"type": ["string", "null"], "description": "Error of the last failed call."},
    });
    object(&properties, &[])
}

/// The schema of the response that starts a job.
pub fn started() -> Value {
    let properties = json!({
        "status": {"const": "started"},
        "job_id": {"type": "string", "format": "uuid"},
        "interval_sec": seconds("Seconds between two calls."),
        "duration_sec": seconds("Seconds until the last call."),
    });
    object(&properties, &[])
}
