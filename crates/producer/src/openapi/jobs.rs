//! `POST /ingest/adsbdb` and the poll jobs that repeat it.

use std::time::Duration;

use serde_json::{Value, json};

use super::operation::Operation;
use super::refusals::{of_adsbdb, of_delivery};
use super::schemas::{count, named, object};
use crate::config::Config;
use crate::error::ApiError;
use crate::poll_jobs::schedule::Schedule;

const JOBS: &str = "/ingest/adsbdb/poll";
const JOB: &str = "/ingest/adsbdb/poll/{job_id}";
const SAMPLE: &str = "01a20c8a-2255-735d-86f2-aa985a5a4431";

/// The operations.
pub fn operations(config: &Config) -> Vec<Operation> {
    vec![
        aircraft(config),
        start(config),
        list(config),
        one("get", "showPollJob", config),
        one("delete", "cancelPollJob", config),
    ]
}

fn guarded(method: &'static str, path: &'static str, id: &str, config: &Config) -> Operation {
    Operation::new(method, path, "adsbdb", id).guarded(config).refused(ApiError::KeyNotTaken)
}

fn aircraft(config: &Config) -> Operation {
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
    guarded("post", "/ingest/adsbdb", "ingestAircraft", config)
        .limited()
        .about(
            "Takes a random aircraft of ADSBDB",
            "The id is its `mode_s`, else its `registration`. A body is ignored.",
        )
        .traced()
        .answers(202, "In the topic, acknowledged", "application/json", content)
        .refused_by(of_adsbdb(config))
        .refused_by(of_delivery())
}

fn start(config: &Config) -> Operation {
    let seconds = |name, usual, description| {
        let schema =
            json!({"type": "number", "exclusiveMinimum": 0, "maximum": 31_536_000, "default": usual});
        json!({"name": name, "in": "query", "description": description, "schema": schema})
    };
    let example = json!({"status": "started", "job_id": SAMPLE, "interval_sec": 3, "duration_sec": 120});
    let content = json!({"schema": named("PollJobStarted"), "example": example});
    let location = json!({
        "description": "The job.",
        "required": true,
        "schema": {"type": "string", "pattern": "^/ingest/adsbdb/poll/[0-9a-f-]{36}$"},
    });
    let link =
        |operation| json!({"operationId": operation, "parameters": {"job_id": "$response.body#/job_id"}});
    let wrong = ["interval_sec=0", "interval=5", "interval_sec=soon&duration_sec=inf"];
    guarded("post", JOBS, "startPollJob", config)
        .limited()
        .about("Takes aircraft on a schedule", "A job in the background; calls of one job do not overlap. It takes no other parameters and no body.")
        .parameter(seconds("interval_sec", 3, "From one call to the next; fractions allowed."))
        .parameter(seconds("duration_sec", 120, "How long calls begin; fractions allowed."))
        .answers(202, "The job runs", "application/json", content)
        .with(202, "headers", "Location", location)
        .with(202, "links", "show", link("showPollJob"))
        .with(202, "links", "cancel", link("cancelPollJob"))
        .refused_by(wrong.map(Schedule::parse).into_iter().filter_map(Result::err))
        .refused(ApiError::JobsFull(config.max_poll_jobs, Duration::from_secs(42)))
        .refused(ApiError::stopping(None))
}

fn list(config: &Config) -> Operation {
    let schema = object(&json!({"jobs": {"type": "array", "items": named("PollJob")}}), &[]);
    let content = json!({"schema": schema, "example": {"jobs": [sample()]}});
    guarded("get", JOBS, "listPollJobs", config)
        .about(
            "Lists poll jobs",
            "Those that run or have ended within the last hour, of these at most 1,000; the newest first.",
        )
        .answers(200, "The jobs", "application/json", content)
}

fn one(method: &'static str, id: &str, config: &Config) -> Operation {
    let about = match method {
        "get" => ("Shows a poll job", ""),
        _ => ("Cancels a poll job", "No call begins any more; the job stays listed."),
    };
    let content = json!({"schema": named("PollJob"), "example": sample()});
    guarded(method, JOB, id, config)
        .about(about.0, about.1)
        .parameter(json!({
            "name": "job_id",
            "in": "path",
            "required": true,
            "description": "As its start answered it.",
            "schema": {"type": "string"},
            "example": SAMPLE,
        }))
        .answers(200, "The job", "application/json", content)
        .refused(ApiError::NoSuchJob)
}

fn sample() -> Value {
    json!({
        "job_id": SAMPLE,
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
        "interval_sec": seconds("From one call to the next."),
        "duration_sec": seconds("How long calls begin."),
        "started_at": time("When it began."),
        "ended_at": time("When it ended, if it has."),
        "next_tick_at": time("When its next call begins, if there is one."),
        "sent": count("Calls whose event is in the topic."),
        "failed": count("Calls that were refused."),
        "skipped_ticks": count("Calls that were left out because the one before was still under way."),
        "last_error": {"type": ["string", "null"], "description": "Why the last of those that failed was refused."},
    });
    object(&properties, &[])
}

/// The schema of the answer to a start.
pub fn started() -> Value {
    let properties = json!({
        "status": {"const": "started"},
        "job_id": {"type": "string", "format": "uuid"},
        "interval_sec": seconds("From one call to the next."),
        "duration_sec": seconds("How long calls begin."),
    });
    object(&properties, &[])
}
