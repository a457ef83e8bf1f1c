//! The endpoints for health and metrics, and the documentation itself.

use serde_json::{Value, json};

use crate::config::Config;
use crate::error::ApiError;
use crate::openapi::errors::ErrorExample;
use crate::openapi::operation::Operation;
use crate::openapi::schemas::{count, named, object};
use crate::routes::docs::FILES;

pub fn health(operation: Operation, _: &Config) -> Operation {
    let example = json!({
        "status": "ok",
        "topic": "events.raw",
        "api_version": "1.0.0",
        "uptime_seconds": 1,
        "accepted_last_min": 4,
        "counters": {"accepted": 4, "rejected": 2, "unconfirmed": 0, "poll_jobs": 1, "kafka_queue_records": 0},
        "last_error": null,
    });
    operation
        .named("state", "health")
        .about(
            "Shows the state",
            "The status is always 200. `cause` is present while `status` is `degraded`.",
        )
        .response(
            200,
            "The state",
            "application/json",
            json!({"schema": named("Health"), "example": example}),
        )
}

pub fn livez(operation: Operation, _: &Config) -> Operation {
    let schema = object(&json!({"status": {"const": "alive"}}), &[]);
    let about = "503 means that a task of the process failed. The process is then shutting down.";
    operation
        .named("state", "livez")
        .about("Whether the process works", about)
        .response(
            200,
            "The process works",
            "application/json",
            json!({"schema": schema, "example": {"status": "alive"}}),
        )
        .error(ErrorExample::not_alive())
}

pub fn readyz(operation: Operation, _: &Config) -> Operation {
    let schema = object(&json!({"status": {"const": "ready"}}), &[]);
    let about = "Whether Kafka is available and the topic exists. It is checked in the background.";
    operation
        .named("state", "readyz")
        .about("Whether the producer accepts events", about)
        .response(
            200,
            "The producer accepts events",
            "application/json",
            json!({"schema": schema, "example": {"status": "ready"}}),
        )
        .error(ErrorExample::not_ready())
}

pub fn metrics(operation: Operation, _: &Config) -> Operation {
    let example = "# HELP slipstream_poll_jobs Running poll jobs.\n# TYPE slipstream_poll_jobs gauge\n\
                   slipstream_poll_jobs 0\n# EOF\n";
    operation.named("state", "metrics").about("Metrics for Prometheus", "").response(
        200,
        "OpenMetrics text",
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
        json!({"schema": {"type": "string"}, "example": example}),
    )
}

pub fn root(operation: Operation, _: &Config) -> Operation {
    let location =
        json!({"description": "The path of the page.", "required": true, "schema": {"const": "/docs"}});
    operation
        .named("documentation", "root")
        .about("Redirects to the page", "")
        .empty_response(303, "See `/docs`")
        .with(303, "headers", "Location", location)
}

pub fn openapi_json(operation: Operation, _: &Config) -> Operation {
    let schema = json!({"type": "object", "required": ["openapi", "info", "paths"]});
    operation.named("documentation", "openapi").about("This document", "").response(
        200,
        "OpenAPI 3.1",
        "application/json",
        json!({"schema": schema}),
    )
}

pub fn docs(operation: Operation, _: &Config) -> Operation {
    operation
        .named("documentation", "docs")
        .about("This document as a page", "It loads nothing from other hosts.")
        .response(200, "Swagger UI", "text/html; charset=utf-8", json!({"schema": {"type": "string"}}))
}

pub fn docs_file(operation: Operation, _: &Config) -> Operation {
    let name = json!({
        "name": "file",
        "in": "path",
        "required": true,
        "schema": {"type": "string", "enum": FILES.each_ref().map(|file| file.name)},
    });
    let content = || json!({"schema": {"type": "string"}});
    operation
        .named("documentation", "docsFile")
        .about("A file of the page", "")
        .parameter(name)
        .response(200, "The file", "text/javascript", content())
        .with(200, "content", "text/css", content())
        .with(200, "content", "image/png", content())
        .error(ApiError::PathNotFound)
}

/// The schema of `/health`.
pub fn health_schema() -> Value {
    let counters = json!({"accepted": count("Number of events."), "rejected": count("Number of events."), "unconfirmed": count("Number of events.")});
    let properties = json!({
        "status": {"enum": ["ok", "degraded"]},
        "cause": {"type": "string", "description": "Why the status is `degraded`."},
        "topic": {"type": "string"},
        "api_version": {"type": "string"},
        "uptime_seconds": count("Seconds since the start."),
        "accepted_last_min": count("Events accepted within the last minute."),
        "counters": {
            "type": "object",
            "required": ["accepted", "rejected", "unconfirmed"],
            "properties": counters,
            "additionalProperties": count("Further counters."),
        },
        "last_error": {"type": ["string", "null"], "description": "The last error that no client caused."},
    });
    object(&properties, &["cause"])
}
