//! The description of the HTTP interface, OpenAPI 3.1, and a page to read and try it. It is made from the code: the
//! refusals of each operation are the very [`ApiError`](crate::error::ApiError)s that its handler answers, so status,
//! body, `retryable` and `Retry-After` in the document are those of the wire; the limits are those of the configuration.
//! A test compares its paths with the router's, another has schemathesis judge the running producer by it.

mod batch;
mod event;
mod jobs;
mod operation;
mod own;
mod refusals;
mod schemas;

use axum::Router;
use axum::http::header;
use axum::routing::get;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::config::Config;
use operation::Operation;

/// `/openapi.json` and the page.
pub fn routes(config: &Config) -> Router {
    let document = Bytes::from(document(config).to_string());
    let answer = async move || ([(header::CONTENT_TYPE, "application/json")], document);
    Router::new().route("/openapi.json", get(answer))
}

/// Every operation.
fn operations(config: &Config) -> Vec<Operation> {
    [event::operations(config), batch::operations(config), jobs::operations(config), own::operations()]
        .concat()
}

/// The document.
fn document(config: &Config) -> Value {
    let mut paths = Map::new();
    for operation in operations(config) {
        let (method, path) = (operation.method, operation.path);
        paths.entry(path).or_insert_with(|| json!({}))[method] = operation.into_json();
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Slipstream producer",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "HTTP to Kafka: 202 only once the broker has acknowledged the event.",
            "description": include_str!("about.md"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "This producer"}],
        "tags": [
            {"name": "events", "description": "Events in."},
            {"name": "adsbdb", "description": "Aircraft of ADSBDB as events, one or on a schedule."},
            {"name": "state", "description": "How the producer is, for people, orchestrators and Prometheus."},
            {"name": "documentation", "description": "What you read."},
        ],
        "paths": paths,
        "components": {
            "schemas": schemas::all(config),
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key of API_KEYS, where that is set.",
                },
                "apiKey": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-API-Key",
                    "description": "A key of API_KEYS, where that is set.",
                },
            },
        },
    })
}

#[cfg(test)]
mod tests;
