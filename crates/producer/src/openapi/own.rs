//! How the producer is, and the documentation itself.

use serde_json::{Value, json};

use super::operation::Operation;
use super::refusals::Refusal;
use super::schemas::{count, named, object};
use crate::error::ApiError;
use crate::routes::docs;

/// The operations.
pub fn operations() -> Vec<Operation> {
    vec![health_for_people(), livez(), readyz(), metrics(), root(), document(), documentation(), file()]
}

fn get(path: &'static str, tag: &str, id: &str) -> Operation {
    Operation::new("get", path, tag, id)
}

fn health_for_people() -> Operation {
    let example = json!({
        "status": "ok",
        "topic": "events.raw",
        "api_version": "1.0.0",
        "uptime_seconds": 1,
        "accepted_last_min": 4,
        "counters": {"accepted": 4, "rejected": 2, "unconfirmed": 0, "poll_jobs": 1, "kafka_queue_records": 0},
        "last_error": null,
    });
    get("/health", "state", "health")
        .about("How it is, for people", "Always 200; `cause` is there while the status is `degraded`.")
        .answers(200, "How it is", "application/json", json!({"schema": named("Health"), "example": example}))
}

fn livez() -> Operation {
    let schema = object(&json!({"status": {"const": "alive"}}), &[]);
    get("/livez", "state", "livez").about("Whether the process runs", "").answers(
        200,
        "It runs",
        "application/json",
        json!({"schema": schema, "example": {"status": "alive"}}),
    )
}

fn readyz() -> Operation {
    let schema = object(&json!({"status": {"const": "ready"}}), &[]);
    let about = "Kafka answers and the topic exists: asked in the background, never by this request.";
    get("/readyz", "state", "readyz")
        .about("Whether events can be taken now", about)
        .answers(
            200,
            "They can",
            "application/json",
            json!({"schema": schema, "example": {"status": "ready"}}),
        )
        .refused(Refusal::not_ready())
}

fn metrics() -> Operation {
    let example = "# HELP slipstream_poll_jobs Poll jobs that run.\n# TYPE slipstream_poll_jobs gauge\n\
                   slipstream_poll_jobs 0\n# EOF\n";
    get("/metrics", "state", "metrics").about("Metrics for Prometheus", "").answers(
        200,
        "OpenMetrics text",
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
        json!({"schema": {"type": "string"}, "example": example}),
    )
}

fn root() -> Operation {
    let location = json!({"description": "The page.", "required": true, "schema": {"const": "/docs"}});
    get("/", "documentation", "root")
        .about("Leads to the page", "")
        .answers_nothing(303, "See `/docs`")
        .with(303, "headers", "Location", location)
}

fn document() -> Operation {
    let schema = json!({"type": "object", "required": ["openapi", "info", "paths"]});
    get("/openapi.json", "documentation", "openapi").about("This document", "").answers(
        200,
        "OpenAPI 3.1",
        "application/json",
        json!({"schema": schema}),
    )
}

fn documentation() -> Operation {
    get("/docs", "documentation", "docs").about("This document as a page", "No other host is asked.").answers(
        200,
        "Swagger UI",
        "text/html; charset=utf-8",
        json!({"schema": {"type": "string"}}),
    )
}

fn file() -> Operation {
    let name = json!({
        "name": "file",
        "in": "path",
        "required": true,
        "schema": {"type": "string", "enum": docs::FILES.each_ref().map(|file| file.name)},
    });
    let content = || json!({"schema": {"type": "string"}});
    get("/docs/{file}", "documentation", "docsFile")
        .about("A file of the page", "")
        .parameter(name)
        .answers(200, "The file", "text/javascript", content())
        .with(200, "content", "text/css", content())
        .with(200, "content", "image/png", content())
        .refused(ApiError::NoSuchPath)
}

/// The schema of `/health`.
pub fn health() -> Value {
    let counters =
        json!({"accepted": count("Events."), "rejected": count("Events."), "unconfirmed": count("Events.")});
    let properties = json!({
        "status": {"enum": ["ok", "degraded"]},
        "cause": {"type": "string", "description": "Why it is degraded."},
        "topic": {"type": "string"},
        "api_version": {"type": "string"},
        "uptime_seconds": count("Since the start."),
        "accepted_last_min": count("Events within the last minute."),
        "counters": {
            "type": "object",
            "required": ["accepted", "rejected", "unconfirmed"],
            "properties": counters,
            "additionalProperties": count("Others."),
        },
        "last_error": {"type": ["string", "null"], "description": "The last that was not a client's fault."},
    });
    object(&properties, &["cause"])
}
