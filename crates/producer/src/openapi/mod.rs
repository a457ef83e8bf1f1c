//! The OpenAPI 3.1 document of the HTTP API, which is created at startup.
//!
//! Paths, methods and authentication come from the route table, limits from the configuration, and
//! error responses from the [`ApiError`](crate::error::ApiError)s that the handlers return. So the
//! document cannot differ from the behavior.

pub mod batch;
mod errors;
pub mod event;
pub mod jobs;
mod operation;
mod schemas;
pub mod state;

use serde_json::{Map, Value, json};

use crate::config::Config;
pub use operation::Operation;
use schemas::{accepted, errors, named, object, problem};

/// The document with these operations.
pub fn document(operations: impl Iterator<Item = Operation>, config: &Config) -> Value {
    let mut paths = Map::new();
    for operation in operations {
        let (method, path) = (operation.method.clone(), operation.path);
        paths.entry(path).or_insert_with(|| json!({}))[method] = operation.into_json();
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Slipstream producer",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "HTTP to Kafka: returns 202 only after Kafka acknowledged the event.",
            "description": include_str!("about.md"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "This producer"}],
        "tags": [
            {"name": "events", "description": "Accept events."},
            {"name": "adsbdb", "description": "Fetch aircraft from ADSBDB, once or on a schedule."},
            {"name": "state", "description": "Health and metrics."},
            {"name": "documentation", "description": "This document."},
        ],
        "paths": paths,
        "components": {
            "schemas": components(config),
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key of API_KEYS, if that is set.",
                },
                "apiKey": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-API-Key",
                    "description": "A key of API_KEYS, if that is set.",
                },
            },
        },
    })
}

/// The named schemas.
fn components(config: &Config) -> Value {
    let aircraft = json!({"type": "object", "description": "The aircraft as ADSBDB returned it."});
    json!({
        "Event": schemas::event(config),
        "Accepted": accepted(json!({})),
        "AcceptedAircraft": accepted(json!({"payload": aircraft})),
        "Problem": problem(json!({}), &[]),
        "InvalidProblem": problem(json!({"errors": errors()}), &["errors"]),
        "UnknownOutcomeProblem": problem(json!({}), &["id"]),
        "BatchResults": object(&batch::results(), &[]),
        "BatchProblem": {"anyOf": [named("Problem"), problem(batch::results(), &[])]},
        "PollJob": jobs::job(),
        "PollJobStarted": jobs::started(),
        "Health": state::health_schema(),
    })
}

#[cfg(test)]
mod tests;
