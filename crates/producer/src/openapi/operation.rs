//! One operation of the OpenAPI document: a method of a path, its parameters and its responses.

use std::collections::BTreeMap;

use axum::http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::error::ApiError;
use crate::http::headers::SUPPORTED_CODINGS;
use crate::openapi::errors::ErrorExample;
use crate::openapi::schemas::named;

#[derive(Debug, Clone)]
pub struct Operation {
    /// The method in lower case.
    pub method: String,
    /// The path, with parameters in braces.
    pub path: &'static str,
    body: Value,
    responses: BTreeMap<u16, Value>,
    errors: BTreeMap<u16, Vec<ErrorExample>>,
}

impl Operation {
    /// Creates the operation of an endpoint.
    pub fn new(method: &Method, path: &'static str) -> Self {
        let request_id = "Id of the request for the log and for the response's `X-Request-Id`.";
        let body = json!({"parameters": [header("X-Request-Id", request_id)]});
        let method = method.as_str().to_ascii_lowercase();
        Self { method, path, body, responses: BTreeMap::new(), errors: BTreeMap::new() }
    }

    /// Sets tag and id.
    pub fn named(mut self, tag: &str, id: &str) -> Self {
        self.body["operationId"] = id.into();
        self.body["tags"] = json!([tag]);
        self
    }

    /// Sets summary and description.
    pub fn about(mut self, summary: &str, description: &str) -> Self {
        self.body["summary"] = summary.into();
        if !description.is_empty() {
            self.body["description"] = description.into();
        }
        self
    }

    /// Adds a parameter.
    pub fn parameter(mut self, parameter: Value) -> Self {
        if let Some(parameters) = self.body["parameters"].as_array_mut() {
            parameters.push(parameter);
        }
        self
    }

    /// Adds `traceparent`, for endpoints that produce records.
    pub fn traced(self) -> Self {
        self.parameter(header(
            "traceparent",
            "W3C trace context. If it is valid, the record continues the trace.",
        ))
    }

    /// Adds Content-Encoding, for endpoints that accept compressed bodies.
    pub fn compressible(self) -> Self {
        let codings = ["identity"].into_iter().chain(SUPPORTED_CODINGS.split(", "));
        self.parameter(json!({
            "name": "Content-Encoding",
            "in": "header",
            "description": "Compression of the body. The size limits apply to the decompressed body. The zstd window \
                has at most 8 MiB.",
            "schema": {"type": "string", "enum": codings.collect::<Vec<_>>()},
        }))
    }

    /// Adds authentication, which is optional while API_KEYS is unset.
    pub fn authenticated(mut self, config: &Config) -> Self {
        self.body["security"] = match config.http.api_keys {
            None => json!([{}, {"bearer": []}, {"apiKey": []}]),
            Some(_) => json!([{"bearer": []}, {"apiKey": []}]),
        };
        self.errors(ErrorExample::unauthorized())
    }

    /// Adds the 503 beyond MAX_IN_FLIGHT.
    pub fn limited(self) -> Self {
        self.error(ApiError::too_many_requests())
    }

    /// Sets the body of the request.
    pub fn request_body(mut self, body: Value) -> Self {
        self.body["requestBody"] = body;
        self
    }

    /// Adds a successful response.
    pub fn response(mut self, status: u16, description: &str, media_type: &str, content: Value) -> Self {
        let mut response = json!({
            "description": description,
            "headers": {"X-Request-Id": request_id()},
        });
        response["content"][media_type] = content;
        self.responses.insert(status, response);
        self
    }

    /// Adds a successful response without a body.
    pub fn empty_response(mut self, status: u16, description: &str) -> Self {
        let response = json!({"description": description, "headers": {"X-Request-Id": request_id()}});
        self.responses.insert(status, response);
        self
    }

    /// Adds a header or a link to the response of `status`.
    pub fn with(mut self, status: u16, pointer: &str, name: &str, value: Value) -> Self {
        if let Some(response) = self.responses.get_mut(&status) {
            response[pointer][name] = value;
        }
        self
    }

    /// Adds an error response.
    pub fn error(mut self, error: impl Into<ErrorExample>) -> Self {
        let error = error.into();
        self.errors.entry(error.status()).or_default().push(error);
        self
    }

    /// Adds error responses.
    pub fn errors<E: Into<ErrorExample>>(self, errors: impl IntoIterator<Item = E>) -> Self {
        errors.into_iter().fold(self, Self::error)
    }

    /// The JSON of the operation, with the errors that every endpoint has.
    pub fn into_json(mut self) -> Value {
        let common = [
            ApiError::MethodNotAllowed,
            ApiError::InvalidHost("the request has no Host"),
            ApiError::UnsupportedTransferCoding,
        ];
        self = self.errors(common);
        for (status, errors) in std::mem::take(&mut self.errors) {
            let response = error_response(status, &errors);
            self.responses.insert(status, response);
        }
        let responses = std::mem::take(&mut self.responses).into_iter();
        self.body["responses"] =
            responses.map(|(status, response)| (status.to_string(), response)).collect::<Map<_, _>>().into();
        self.body
    }
}

/// An optional header of the request. Any text is valid, because an invalid value is ignored.
fn header(name: &str, description: &str) -> Value {
    json!({"name": name, "in": "header", "description": description, "schema": {"type": "string"}})
}

fn request_id() -> Value {
    json!({
        "description": "The id of the request, or a new id.",
        "required": true,
        "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
    })
}

/// The error response of a status, with an example of each error.
fn error_response(status: u16, errors: &[ErrorExample]) -> Value {
    let title = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let mut headers = json!({"X-Request-Id": request_id()});
    for (name, header) in errors.iter().flat_map(|error| error.headers(errors)) {
        headers[name] = header;
    }
    let examples: Map<String, Value> =
        errors.iter().map(|error| (error.name.clone(), json!({"value": error.body()}))).collect();
    // The schema of batches contains those of the other errors.
    let schemas: Vec<&str> = errors.iter().map(|error| error.schema).collect();
    let schema = schemas.iter().find(|schema| **schema == "BatchProblem").or(schemas.first());
    json!({
        "description": title.unwrap_or("Error"),
        "headers": headers,
        "content": {
            "application/problem+json": {
                "schema": schema.map(|name| named(name)),
                "examples": examples,
            },
        },
    })
}
