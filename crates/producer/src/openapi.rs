//! The OpenAPI 3.1 document of the HTTP API, which is created at startup.
//!
//! `openapi.json` describes the requests and the successful responses. Authentication comes from
//! the route table, limits come from the configuration, and error responses come from the
//! [`ApiError`]s that the handlers return. So the document cannot differ from the behavior.

mod source_endpoints;

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::StatusCode;
use events::{EventId, RequestError, Rules, Violation};
use serde_json::{Map, Value, json};
use service::http::Problem;

use crate::adsbdb::UpstreamError;
use crate::batch::results::rejection_json;
use crate::batch::splitter::RIGHT_TYPES;
use crate::config::Config;
use crate::error::ApiError;
use crate::http::auth::{ApiKeys, NO_KEY, SEVERAL_KEYS, UNKNOWN_KEY};
use crate::http::headers::{SEND_JSON, SUPPORTED_CODINGS, unsupported_media_type};
use crate::http::middleware::{Auth, Endpoint, Limit};
use crate::poll_jobs::Schedule;

/// The document of these endpoints, each with its own errors.
#[expect(clippy::expect_used, reason = "the text is constant, and tests parse it")]
pub fn document(
    endpoints: impl Iterator<Item = (&'static Endpoint, Vec<ErrorExample>)>,
    config: &Config,
) -> Value {
    let text = include_str!("openapi.json")
        .replace("{MAX_PAYLOAD_BYTES}", &config.max_payload_bytes.to_string())
        .replace("{KAFKA_TOPIC}", &config.topic.name);
    let mut document: Value = serde_json::from_str(&text).expect("openapi.json is JSON");
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    document["info"]["description"] = include_str!("openapi.md").into();
    if let Some(sources) = &config.accept_sources {
        document["components"]["schemas"]["Event"]["properties"]["source"]["enum"] =
            sources.iter().map(ToString::to_string).collect();
    }
    source_endpoints::add(&mut document, config);
    for (endpoint, errors) in endpoints {
        let method = endpoint.method.as_str().to_ascii_lowercase();
        complete(&mut document["paths"][endpoint.path][method], endpoint, errors, config);
    }
    document
}

/// Adds to an operation what every operation has, its authentication and its errors.
fn complete(operation: &mut Value, endpoint: &Endpoint, errors: Vec<ErrorExample>, config: &Config) {
    let mut parameters = vec![json!({
        "name": "X-Request-Id",
        "in": "header",
        "description": "Id of the request for the log and for the response's `X-Request-Id`.",
        "schema": {"type": "string"},
    })];
    if let Value::Array(own) = operation["parameters"].take() {
        parameters.extend(own);
    }
    operation["parameters"] = parameters.into();
    let mut all = Vec::new();
    if endpoint.auth == Auth::ApiKey {
        operation["security"] = match config.http.api_keys {
            None => json!([{}, {"bearer": []}, {"apiKey": []}]),
            Some(_) => json!([{"bearer": []}, {"apiKey": []}]),
        };
        all.extend(unauthorized());
        if config.http.api_keys.as_ref().is_some_and(ApiKeys::has_scopes) {
            all.push(ApiError::SourceForbidden("orders".into()).into());
        }
    }
    if endpoint.limit == Limit::InFlight {
        all.push(ApiError::too_many_requests().into());
    }
    all.extend(errors);
    all.extend(examples([
        ApiError::MethodNotAllowed,
        ApiError::InvalidHost("the request has no Host"),
        ApiError::UnsupportedTransferCoding,
    ]));
    let mut by_status: BTreeMap<u16, Vec<ErrorExample>> = BTreeMap::new();
    for error in all {
        by_status.entry(error.status.as_u16()).or_default().push(error);
    }
    for (status, errors) in by_status {
        operation["responses"][status.to_string()] = error_response(&errors);
    }
    for response in operation["responses"].as_object_mut().into_iter().flat_map(Map::values_mut) {
        response["headers"]["X-Request-Id"] = json!({
            "description": "The id of the request, or a new id.",
            "required": true,
            "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
        });
    }
}

/// The error response of a status, with an example of each error. A header is required only if all
/// errors have it.
fn error_response(errors: &[ErrorExample]) -> Value {
    let status = errors.first().and_then(|error| error.status.canonical_reason());
    let has = |error: &ErrorExample, name| error.headers.iter().any(|(other, ..)| *other == name);
    let mut headers = Map::new();
    for (name, description, schema) in errors.iter().flat_map(|error| &error.headers) {
        let required = errors.iter().all(|error| has(error, *name));
        let header = json!({"description": description, "required": required, "schema": schema});
        headers.insert((*name).into(), header);
    }
    let examples: Map<String, Value> =
        errors.iter().map(|error| (error.name.clone(), json!({"value": error.body}))).collect();
    // The schema of batches contains those of the other errors.
    let mut schemas = errors.iter().map(|error| error.schema);
    let schema = schemas.clone().find(|schema| *schema == BATCH_PROBLEM).or(schemas.next());
    json!({
        "description": status.unwrap_or("Error"),
        "headers": headers,
        "content": {
            "application/problem+json": {
                "schema": schema.map(|name| json!({"$ref": format!("#/components/schemas/{name}")})),
                "examples": examples,
            },
        },
    })
}

const BATCH_PROBLEM: &str = "BatchProblem";

/// An example of an error response.
#[derive(Debug, Clone)]
pub struct ErrorExample {
    name: String,
    /// The name of the body's schema.
    schema: &'static str,
    status: StatusCode,
    body: Value,
    /// Headers: name, description, schema.
    headers: Vec<(&'static str, &'static str, Value)>,
}

impl ErrorExample {
    fn new(name: impl Into<String>, problem: &Problem) -> Self {
        let schema = match problem.status {
            StatusCode::UNPROCESSABLE_ENTITY => "InvalidProblem",
            StatusCode::GATEWAY_TIMEOUT => "UnknownOutcomeProblem",
            _ => "Problem",
        };
        let seconds = json!({"type": "integer", "minimum": 1});
        let retry_after =
            problem.retry_after.map(|_| ("Retry-After", "Seconds to wait before trying again.", seconds));
        Self {
            name: name.into(),
            schema,
            status: problem.status,
            body: serde_json::to_value(problem).unwrap_or_default(),
            headers: retry_after.into_iter().collect(),
        }
    }

    fn with_header(mut self, name: &'static str, description: &'static str, pattern: &str) -> Self {
        self.headers.push((name, description, json!({"type": "string", "pattern": pattern})));
        self
    }

    /// The response to a batch whose last result is `error`, at `index`, and that has no accepted
    /// event.
    fn last_result(index: usize, error: &ApiError) -> Self {
        let reason = match error {
            ApiError::InvalidBatch(_) => "batch_broken",
            error => error.reason(),
        };
        let problem = ApiError::whole_batch(error.status(), matches!(error, ApiError::TruncatedBody));
        let mut example = Self { schema: BATCH_PROBLEM, ..Self::new(format!("all_{reason}"), &problem) };
        let last: Value = serde_json::from_slice(&rejection_json(index, error)).unwrap_or_default();
        example.body["accepted"] = 0.into();
        example.body["rejected"] = (index + 1).into();
        example.body["results"] = json!([last]);
        example
    }
}

impl From<ApiError> for ErrorExample {
    fn from(error: ApiError) -> Self {
        let example = Self::new(error.reason(), &error.problem());
        match error {
            ApiError::UnsupportedContentCoding { .. } => {
                example.with_header("Accept-Encoding", "The supported codings.", "^[a-z]+(, [a-z]+)*$")
            }
            ApiError::MethodNotAllowed => {
                example.with_header("Allow", "The methods of this path.", "^[A-Z]+(,[A-Z]+)*$")
            }
            _ => example,
        }
    }
}

fn examples(errors: impl IntoIterator<Item = ApiError>) -> Vec<ErrorExample> {
    errors.into_iter().map(ErrorExample::from).collect()
}

/// The three 401 responses.
fn unauthorized() -> [ErrorExample; 3] {
    [("no_key", NO_KEY), ("several_keys", SEVERAL_KEYS), ("unknown_key", UNKNOWN_KEY)].map(
        |(name, detail)| {
            ErrorExample::new(name, &Problem::new(StatusCode::UNAUTHORIZED, detail)).with_header(
                "WWW-Authenticate",
                "The authentication scheme.",
                "^Bearer",
            )
        },
    )
}

/// The errors of an endpoint that has only those of every endpoint.
pub fn no_errors(_: &Config) -> Vec<ErrorExample> {
    Vec::new()
}

/// The errors of `GET /livez`.
pub fn livez_errors(_: &Config) -> Vec<ErrorExample> {
    vec![unavailable("not_alive", "task \"topic maintenance\" ended before the stop signal")]
}

/// The errors of `GET /readyz`.
pub fn readyz_errors(_: &Config) -> Vec<ErrorExample> {
    vec![unavailable("not_ready", "kafka does not answer: 1/1 brokers are down")]
}

fn unavailable(name: &str, detail: &str) -> ErrorExample {
    let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retryable(Duration::from_secs(1));
    ErrorExample::new(name, &problem)
}

/// The errors of `GET /docs/{file}`.
pub fn docs_file_errors(_: &Config) -> Vec<ErrorExample> {
    examples([ApiError::PathNotFound])
}

/// The errors of `POST /ingest`.
pub fn ingest_errors(config: &Config) -> Vec<ErrorExample> {
    let body = [
        ApiError::EmptyBody,
        ApiError::UnreadableBody("invalid chunk size".into()),
        ApiError::TruncatedBody,
        ApiError::BodyTimeout(config.request_timeout),
        ApiError::BodyTooLarge(config.max_payload_bytes, "MAX_PAYLOAD_BYTES"),
        unsupported_media_type("text/plain", SEND_JSON),
        unsupported_coding(),
        ApiError::Violations(violations()),
    ];
    let body = not_json("body").into_iter().chain(body);
    examples(body.chain(config.require_id.then_some(ApiError::MissingId)).chain(delivery_errors()))
}

/// The errors of a whole batch, and the responses whose results are all errors.
pub fn batch_errors(config: &Config) -> Vec<ErrorExample> {
    let too_long = || ApiError::BodyTooLarge(config.max_batch_bytes, "MAX_BATCH_BYTES");
    let whole = examples([
        ApiError::UnexpectedIdempotencyKey,
        ApiError::EmptyBatch,
        too_long(),
        unsupported_media_type("text/plain", RIGHT_TYPES),
        unsupported_coding(),
        ApiError::shutting_down(None),
    ]);
    let first = [
        ApiError::InvalidBatch("there is no array".into()),
        ApiError::UnreadableBody("invalid chunk size".into()),
        ApiError::TruncatedBody,
        ApiError::BodyTimeout(config.request_timeout),
        ApiError::EventTooLarge(config.max_payload_bytes),
        too_long(),
        ApiError::Violations(violations()),
    ];
    let first = not_json("event").into_iter().chain(first).chain(delivery_errors());
    let first = first.chain(config.require_id.then_some(ApiError::MissingId));
    let too_many = ApiError::TooManyEvents(config.max_batch_events);
    let results = first.map(|error| (0, error)).chain([(config.max_batch_events, too_many)]);
    let results = results.map(|(index, error)| ErrorExample::last_result(index, &error));
    whole.into_iter().chain(results).collect()
}

/// The errors of `POST /ingest/adsbdb`.
pub fn aircraft_errors(config: &Config) -> Vec<ErrorExample> {
    let status = UpstreamError::Status { status: 500, text: None, retry_after: None };
    let adsbdb = [
        ("limited", UpstreamError::RateLimited(Duration::from_secs(60))),
        ("slow", UpstreamError::Timeout(config.adsbdb_timeout)),
        ("unreachable", UpstreamError::Unreachable("Connection refused (os error 111)".into())),
        ("status", status),
        ("nonsense", UpstreamError::InvalidResponse("not a JSON object".into())),
    ];
    let adsbdb =
        adsbdb.map(|(name, error)| ErrorExample { name: name.into(), ..ApiError::from(error).into() });
    let mut errors = examples([ApiError::UnexpectedIdempotencyKey]);
    errors.extend(adsbdb);
    errors.extend(examples(delivery_errors()));
    errors
}

/// The errors of `POST /ingest/adsbdb/poll`.
pub fn start_job_errors(config: &Config) -> Vec<ErrorExample> {
    let invalid = ["interval_sec=0", "interval=5", "interval_sec=soon&duration_sec=inf"];
    let invalid = invalid.map(Schedule::parse).into_iter().filter_map(Result::err);
    let others = [
        ApiError::UnexpectedIdempotencyKey,
        ApiError::TooManyJobs(config.max_poll_jobs, Duration::from_secs(42)),
        ApiError::shutting_down(None),
    ];
    examples(invalid.chain(others))
}

/// The errors of `GET /ingest/adsbdb/poll`.
pub fn list_jobs_errors(_: &Config) -> Vec<ErrorExample> {
    examples([ApiError::UnexpectedIdempotencyKey])
}

/// The errors of the endpoints of one poll job.
pub fn job_errors(_: &Config) -> Vec<ErrorExample> {
    examples([ApiError::UnexpectedIdempotencyKey, ApiError::JobNotFound])
}

fn unsupported_coding() -> ApiError {
    ApiError::UnsupportedContentCoding { given: "br".into(), supported: SUPPORTED_CODINGS }
}

/// The error for invalid JSON.
fn not_json(subject: &'static str) -> Option<ApiError> {
    match events::parse_request(b"{\n  \"source\": manual}", &Rules::default()) {
        Err(error @ RequestError::NotJson { .. }) => Some(ApiError::from_parser(error, subject, None)),
        _ => None,
    }
}

/// The violations of the example in the manual.
fn violations() -> Vec<Violation> {
    let body = br#"{"source":"system.x","payload":[1],"extra":1}"#;
    match events::parse_request(body, &Rules::default()) {
        Err(RequestError::Invalid(violations)) => violations,
        _ => Vec::new(),
    }
}

/// The errors of the delivery to Kafka.
fn delivery_errors() -> Vec<ApiError> {
    let id = || EventId::new("order-7").ok();
    let not_stored = |reason, detail: &str| ApiError::NotStored { reason, detail: detail.into(), id: id() };
    let mut errors = vec![
        ApiError::RecordTooLarge,
        not_stored("kafka_away", "kafka does not answer: 1/1 brokers are down"),
        not_stored("queue_full", "too many events are waiting for kafka"),
        not_stored("stopping", "the producer is shutting down"),
    ];
    let detail = || "kafka did not acknowledge the event in time".to_owned();
    errors.extend(id().map(|id| ApiError::UnknownOutcome { detail: detail(), id }));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The document of a producer with these variables.
    fn document_with(variables: &[(&str, &str)]) -> Value {
        crate::routes::document(&Config::without_kafka(variables))
    }

    /// Each operation as method, path and JSON.
    fn operations_with(variables: &[(&str, &str)]) -> Vec<(String, String, Value)> {
        let document = document_with(variables);
        let mut operations = Vec::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                operations.push((method.clone(), path.clone(), operation.clone()));
            }
        }
        operations
    }

    #[test]
    fn every_reference_has_a_target_and_every_operation_has_an_id() {
        let document = document_with(&[("ACCEPT_SOURCES", "manual"), ("REQUIRE_ID", "true")]);
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
        let ids: Vec<&str> =
            text.split("\"operationId\":\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        for (.., operation) in operations_with(&[]) {
            let id = operation["operationId"].as_str().unwrap().to_owned();
            let links = ids.iter().filter(|known| **known == id).count();
            assert!(links >= 1, "{id}");
        }
    }

    #[test]
    fn every_error_status_of_an_operation_has_an_example() {
        for (method, path, operation) in operations_with(&[]) {
            for (status, response) in operation["responses"].as_object().unwrap() {
                assert!(response["headers"]["X-Request-Id"].is_object(), "{method} {path} {status}");
                let problem = &response["content"]["application/problem+json"];
                if status.starts_with(['4', '5']) {
                    let examples = problem["examples"].as_object().expect("examples");
                    for (name, example) in examples {
                        let value = &example["value"];
                        assert_eq!(value["status"].to_string(), *status, "{method} {path} {name}");
                        let retry_after = response["headers"]["Retry-After"]["required"] == true;
                        assert!(
                            !retry_after || value["retryable"] == true,
                            "{method} {path} {name}: {value}"
                        );
                    }
                }
            }
            let statuses: Vec<&String> = operation["responses"].as_object().unwrap().keys().collect();
            assert!(statuses.iter().any(|status| *status == "405"), "{method} {path}: {statuses:?}");
        }
    }

    #[test]
    fn the_statuses_of_ingest_are_those_of_the_contract() {
        let document = document_with(&[("REQUIRE_ID", "true")]);
        let statuses = |path: &str, method: &str| -> Vec<String> {
            document["paths"][path][method]["responses"].as_object().unwrap().keys().cloned().collect()
        };
        let ingest = ["202", "400", "401", "405", "408", "413", "415", "422", "501", "503", "504"];
        assert_eq!(statuses("/ingest", "post"), ingest);
        assert_eq!(
            statuses("/ingest/adsbdb", "post"),
            ["202", "400", "401", "405", "413", "501", "502", "503", "504"]
        );
        assert_eq!(
            statuses("/ingest/adsbdb/poll", "post"),
            ["202", "400", "401", "405", "422", "429", "501", "503"]
        );
        assert_eq!(
            statuses("/ingest/adsbdb/poll/{job_id}", "delete"),
            ["200", "400", "401", "404", "405", "501"]
        );
        assert_eq!(statuses("/readyz", "get"), ["200", "400", "405", "501", "503"]);
        let reasons = &document["paths"]["/ingest"]["post"]["responses"]["503"]["content"];
        let reasons = reasons["application/problem+json"]["examples"].as_object().unwrap();
        assert_eq!(
            reasons.keys().collect::<Vec<_>>(),
            ["kafka_away", "overloaded", "queue_full", "stopping"]
        );
    }

    #[test]
    fn the_document_contains_the_limits_of_the_configuration() {
        let document = document_with(&[("ACCEPT_SOURCES", "manual,adsbdb"), ("MAX_PAYLOAD_BYTES", "12345")]);
        let source = &document["components"]["schemas"]["Event"]["properties"]["source"];
        assert_eq!(source["enum"], json!(["adsbdb", "manual"]));
        assert!(
            document["paths"]["/ingest"]["post"]["description"].as_str().unwrap().contains("12345 bytes")
        );
    }

    #[test]
    fn every_status_of_a_batch_has_an_example() {
        let document = document_with(&[("REQUIRE_ID", "true")]);
        let responses = document["paths"]["/ingest/batch"]["post"]["responses"].as_object().unwrap();
        let statuses: Vec<&String> = responses.keys().collect();
        assert_eq!(
            statuses,
            ["202", "207", "400", "401", "405", "408", "413", "415", "422", "501", "503", "504"]
        );
        let names = |status: &str| -> Vec<String> {
            let content = &responses[status]["content"]["application/problem+json"];
            for example in content["examples"].as_object().unwrap().values() {
                let value = &example["value"];
                let last = value["results"].as_array().map(|results| results.last().unwrap().clone());
                if let Some(last) = last {
                    assert_eq!(last["status"].to_string(), status);
                    assert_eq!(last["retryable"], value["retryable"]);
                    assert_eq!(content["schema"], json!({"$ref": "#/components/schemas/BatchProblem"}));
                }
            }
            content["examples"].as_object().unwrap().keys().cloned().collect()
        };
        assert_eq!(
            names("400"),
            [
                "all_batch_broken",
                "all_body_broken",
                "all_body_cut",
                "all_id_missing",
                "all_not_json",
                "empty",
                "host",
                "idempotency_key"
            ]
        );
        assert_eq!(names("408"), ["all_body_slow"]);
        assert_eq!(
            names("413"),
            [
                "all_body_too_large",
                "all_event_too_large",
                "all_record_too_large",
                "all_too_many_events",
                "body_too_large"
            ]
        );
        assert_eq!(names("422"), ["all_invalid"]);
        assert_eq!(
            names("503"),
            ["all_kafka_away", "all_queue_full", "all_stopping", "overloaded", "stopping"]
        );
        assert_eq!(names("504"), ["all_unconfirmed"]);
    }

    #[test]
    fn authentication_is_optional_only_without_api_keys() {
        let security = |settings: &[(&str, &str)]| {
            let of = |(.., operation): (String, String, Value)| operation["security"].clone();
            let mut all: Vec<Value> = operations_with(settings).into_iter().map(of).collect();
            all.retain(|security| !security.is_null());
            all
        };
        let key = format!("lab:{}", "a".repeat(64));
        assert_eq!(security(&[]), vec![json!([{}, {"bearer": []}, {"apiKey": []}]); 7]);
        assert_eq!(security(&[("API_KEYS", &key)]), vec![json!([{"bearer": []}, {"apiKey": []}]); 7]);
    }
}
