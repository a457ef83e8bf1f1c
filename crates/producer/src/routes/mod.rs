//! The route table, the dispatch of requests to it, and the state of the producer for `/readyz`,
//! `/health` and `/metrics`.

mod adsbdb;
mod delete;
mod docs;
pub mod ingest;
mod source;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Extension, Request, State};
use axum::http::{Method, Uri, header};
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, get_service, post};
use bytes::Bytes;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use service::health::HealthSource;
use tower_service::Service;

use crate::batch::ingest_batch;
use crate::config::Config;
use crate::error::ApiError;
use crate::http::middleware::{self, Auth, Endpoint, Events, HadSlash, Limit, Matched, reject};
use crate::openapi::{self, ErrorExample};
use crate::source_set::SourceSet;
use crate::state::{Admission, AppState, Parts, Permit};

use Auth::ApiKey;
use Events::{Fetched, Many, One};
use Limit::{Connections, Exempt, InFlight};

/// A row of the route table.
struct Route {
    endpoint: Endpoint,
    handler: fn(&AppState) -> MethodRouter<AppState>,
    /// The error responses of the OpenAPI document that only this endpoint has.
    errors: fn(&Config) -> Vec<ErrorExample>,
}

/// The path of single events.
const INGEST: &str = "/ingest";

/// The path of the records of a source.
const SOURCE: &str = "/ingest/{source}";

/// The path of the document of an id.
const DOCUMENT: &str = "/ingest/{source}/{id}";

/// The endpoints of the sources of the file, with the columns of [`ROUTES`]. They exist only with a
/// file.
#[rustfmt::skip]
static SOURCE_ROUTES: [Route; 7] = [
    route(endpoint(POST, SOURCE, ApiKey, InFlight, One),
        |_| post(source::ingest), openapi::no_errors),
    route(endpoint(POST, "/ingest/{source}/batch", ApiKey, InFlight, Many),
        |_| post(source::ingest_batch), openapi::no_errors),

    route(endpoint(GET, "/ingest/{source}/poll", ApiKey, Connections, Events::None),
        |_| without_body(get(source::list_jobs)), openapi::no_errors),
    route(endpoint(POST, "/ingest/{source}/poll", ApiKey, InFlight, Events::None),
        |_| without_body(post(source::start_job)), openapi::no_errors),
    route(endpoint(GET, "/ingest/{source}/poll/{job_id}", ApiKey, Connections, Events::None),
        |_| without_body(get(source::show_job)), openapi::no_errors),
    route(endpoint(DELETE, "/ingest/{source}/poll/{job_id}", ApiKey, Connections, Events::None),
        |_| without_body(delete(source::cancel_job)), openapi::no_errors),

    route(endpoint(DELETE, DOCUMENT, ApiKey, InFlight, One),
        |_| delete(delete::unrouted), openapi::no_errors),
];

/// Every endpoint of the producer. Columns: method, path, authentication, limit class, events in
/// the request, handler, errors. The header Allow has the order of the rows.
#[rustfmt::skip]
static ROUTES: [Route; 15] = [
    route(endpoint(POST, INGEST, ApiKey, InFlight, One),
        |_| post(ingest::ingest), openapi::ingest_errors),
    route(endpoint(POST, "/ingest/batch", ApiKey, InFlight, Many),
        |_| post(ingest_batch), openapi::batch_errors),
    route(endpoint(POST, "/ingest/adsbdb", ApiKey, InFlight, Fetched),
        |_| without_body(post(adsbdb::ingest_aircraft)), openapi::aircraft_errors),

    route(endpoint(GET, "/ingest/adsbdb/poll", ApiKey, Connections, Events::None),
        |_| without_body(get(adsbdb::list)), openapi::list_jobs_errors),
    route(endpoint(POST, "/ingest/adsbdb/poll", ApiKey, InFlight, Events::None),
        |_| without_body(post(adsbdb::start)), openapi::start_job_errors),
    route(endpoint(GET, "/ingest/adsbdb/poll/{job_id}", ApiKey, Connections, Events::None),
        |_| without_body(get(adsbdb::show)), openapi::job_errors),
    route(endpoint(DELETE, "/ingest/adsbdb/poll/{job_id}", ApiKey, Connections, Events::None),
        |_| without_body(delete(adsbdb::cancel)), openapi::job_errors),

    route(endpoint(GET, "/livez", Auth::None, Exempt, Events::None), health, openapi::livez_errors),
    route(endpoint(GET, "/readyz", Auth::None, Exempt, Events::None), health, openapi::readyz_errors),
    route(endpoint(GET, "/health", Auth::None, Exempt, Events::None), health, openapi::no_errors),
    route(endpoint(GET, "/metrics", Auth::None, Exempt, Events::None), health, openapi::no_errors),

    route(endpoint(GET, "/", Auth::None, Connections, Events::None),
        |_| get(docs::root), openapi::no_errors),
    route(endpoint(GET, "/openapi.json", Auth::None, Connections, Events::None),
        openapi_json, openapi::no_errors),
    route(endpoint(GET, "/docs", Auth::None, Connections, Events::None),
        |_| get(docs::page), openapi::no_errors),
    route(endpoint(GET, "/docs/{file}", Auth::None, Connections, Events::None),
        |_| get(docs::file), openapi::docs_file_errors),
];

const GET: Method = Method::GET;
const POST: Method = Method::POST;
const DELETE: Method = Method::DELETE;

const fn endpoint(method: Method, path: &'static str, auth: Auth, limit: Limit, events: Events) -> Endpoint {
    Endpoint { method, path, auth, limit, events }
}

const fn route(
    endpoint: Endpoint,
    handler: fn(&AppState) -> MethodRouter<AppState>,
    errors: fn(&Config) -> Vec<ErrorExample>,
) -> Route {
    Route { endpoint, handler, errors }
}

/// Adds the layer for endpoints that accept neither an id nor a body.
fn without_body(handler: MethodRouter<AppState>) -> MethodRouter<AppState> {
    handler.layer(from_fn(middleware::without_body))
}

/// The handler of the health endpoints and the metrics, which all processes have.
fn health(state: &AppState) -> MethodRouter<AppState> {
    get_service(service::health::routes(Arc::clone(state)))
}

/// The handler of `/openapi.json`. The document is created once.
fn openapi_json(state: &AppState) -> MethodRouter<AppState> {
    let document = Bytes::from(document(&state.config).to_string());
    get(async move || ([(header::CONTENT_TYPE, "application/json")], document))
}

/// The OpenAPI document of all endpoints.
pub fn document(config: &Config) -> Value {
    openapi::document(ROUTES.iter().map(|route| (&route.endpoint, (route.errors)(config))), config)
}

/// Finds the endpoint of a request.
fn find(method: &Method, path: &str) -> Matched {
    Matched::find(ROUTES.iter().map(|route| &route.endpoint), method, path)
}

/// Finds the endpoint of a request among those of all producers, and then among those of the
/// sources of the file. If a source takes deletes, an id may be the name of an endpoint:
/// `DELETE /ingest/adsbdb/poll`.
fn find_with_sources(sources: &SourceSet, method: &Method, path: &str) -> Matched {
    let of_all = find(method, path);
    if of_all.has_method {
        return of_all;
    }
    let source = path.split('/').nth(2).and_then(|name| sources.get(name));
    let takes_deletes = source.is_some_and(|source| source.delete.is_some());
    let endpoints = || SOURCE_ROUTES.iter().map(|route| &route.endpoint);
    let of_source = endpoints().filter(|endpoint| takes_deletes || endpoint.path != DOCUMENT);
    let of_source = Matched::find(of_source, method, path);
    if of_source.has_method {
        return of_source;
    }
    let known = [of_all, of_source].into_iter().find(Matched::is_known);
    // The 404 of a delete says how the source takes deletes.
    known.unwrap_or_else(|| Matched::find(endpoints(), method, path))
}

/// Removes a slash at the end of the path. Both paths are equivalent.
fn remove_slash(request: &mut Request) {
    let shorter = request.uri().path().strip_suffix('/');
    let Some(path) = shorter.filter(|path| !path.is_empty() && !path.ends_with('/')) else { return };
    let path = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = path.try_into().ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
        request.extensions_mut().insert(HadSlash);
    }
}

/// Dispatches requests to their handlers.
///
/// A single event goes to its handler directly. All other requests go through a router, which costs
/// several allocations.
#[derive(Debug)]
pub struct Dispatcher {
    state: AppState,
    router: Router,
}

impl Dispatcher {
    pub fn new(state: AppState) -> Self {
        let sources = if state.sources.has_file() { SOURCE_ROUTES.as_slice() } else { &[] };
        let router =
            ROUTES.iter().chain(sources).fold(Router::new(), |router, Route { endpoint, handler, .. }| {
                router.route(endpoint.path, handler(&state))
            });
        let router = router
            .fallback(|request| reject(ApiError::PathNotFound, request))
            .method_not_allowed_fallback(|request| reject(ApiError::MethodNotAllowed, request))
            .with_state(state.clone());
        Self { state, router }
    }

    /// Handles a request. On an `extra` connection, beyond MAX_CONNECTIONS, it rejects all requests
    /// but those of exempt endpoints.
    pub async fn handle(&self, mut request: Request, extra: bool) -> Response {
        remove_slash(&mut request);
        let (method, path) = (request.method(), request.uri().path());
        let matched = match self.state.sources.has_file() {
            true => find_with_sources(&self.state.sources, method, path),
            false => find(method, path),
        };
        let extra = extra && matched.endpoint.limit != Exempt;
        if extra {
            self.state.metrics.connections.rejected();
        }
        middleware::run(&self.state, matched, extra, request, |request, admission, permit| async {
            if matched.has_method && matched.endpoint.path == INGEST && matched.endpoint.method == POST {
                let _permit = permit;
                return ingest::ingest(State(self.state.clone()), Extension(admission), request)
                    .await
                    .into_response();
            }
            if matched.has_method && matched.endpoint.path == SOURCE {
                return source::handle(&self.state, admission, permit, request).await.into_response();
            }
            if matched.has_method && matched.endpoint.path == DOCUMENT {
                let handled = delete::handle(&self.state, admission, permit, request);
                return Box::pin(handled).await.into_response();
            }
            // Boxed, so that single events need no memory for this future.
            Box::pin(self.route(request, admission, permit)).await
        })
        .await
    }

    /// Calls the router. The request holds its admission and permit until it has a response. A
    /// streamed response holds both until its end, and a poll job holds the admission until its
    /// end.
    async fn route(&self, mut request: Request, admission: Admission, permit: Option<Permit>) -> Response {
        let permit = permit.map(Arc::new);
        request.extensions_mut().insert(admission.clone());
        if let Some(permit) = &permit {
            request.extensions_mut().insert(Arc::clone(permit));
        }
        let Ok(response) = self.router.clone().call(request).await;
        response
    }
}

impl HealthSource for Parts {
    fn alive(&self) -> Result<(), String> {
        self.tasks.alive()
    }

    fn ready(&self) -> Result<(), String> {
        if self.shutdown.begun.is_cancelled() {
            return Err("the producer is shutting down".into());
        }
        self.kafka.ready()
    }

    /// The fields are those of the original system. `cause` is present while the status is
    /// `degraded`. A missing topic of one source degrades the process, which stays ready for the
    /// others.
    fn health(&self) -> Value {
        let cause = self.ready().and_then(|()| self.kafka.ready_for_all()).err();
        let counters = &self.metrics.counters;
        let mut health = json!({
            "status": if cause.is_none() { "ok" } else { "degraded" },
            "topic": self.config.topic.name,
            "api_version": self.config.api_version,
            "uptime_seconds": self.metrics.uptime().as_secs(),
            "accepted_last_min": self.metrics.accepted_last_minute(),
            "counters": {
                "accepted": counters.accepted(),
                "rejected": counters.rejected(),
                "unconfirmed": counters.unconfirmed(),
                "poll_jobs": self.jobs.running_count(),
                "kafka_queue_records": self.kafka.queued_records(),
            },
            "last_error": self.last_error(),
        });
        if let (Some(cause), Some(health)) = (cause, health.as_object_mut()) {
            health.insert("cause".into(), cause.into());
        }
        health
    }

    /// Updates the gauges that are read on request, and returns all metrics.
    fn registry(&self) -> &Registry {
        let metrics = &self.metrics;
        metrics.kafka_up.set(i64::from(self.kafka.ready().is_ok()));
        metrics.kafka_queue_records.set(self.kafka.queued_records());
        let jobs = self.jobs.running_count();
        metrics.poll_jobs.set(i64::try_from(jobs).unwrap_or(i64::MAX));
        &metrics.registry
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::app::App;
    use crate::http::middleware::UNKNOWN;

    /// A connection keeps the memory of a request's future for as long as it is open.
    #[tokio::test]
    async fn the_future_of_a_request_stays_small() {
        let app = App::build(Config::without_kafka(&[])).await.unwrap();
        let bytes = size_of_val(&app.dispatcher().handle(Request::default(), false));
        assert!(bytes <= 5 * 1024, "{bytes}");
    }

    #[test]
    fn a_path_leads_to_its_endpoint_and_an_unknown_path_to_none() {
        for Route { endpoint, .. } in &ROUTES {
            let path = endpoint.path.replace("{job_id}", "x-1").replace("{file}", "a.js");
            let found = find(&endpoint.method, &path);
            assert!(std::ptr::eq(found.endpoint, endpoint) && found.has_method, "{path}");
            let found = find(&Method::PATCH, &path);
            assert_eq!((found.endpoint.path, found.has_method), (endpoint.path, false));
        }
        for unknown in ["//", "/ingest/", "/ingest/x", "/ingest/adsbdb/poll/", "/docs/a/b", "/livez/x", ""] {
            assert_eq!(find(&Method::GET, unknown).endpoint.path, UNKNOWN.path, "{unknown}");
        }
    }

    /// Endpoints of one path differ in method and limit class only: the others apply to all
    /// methods.
    #[test]
    fn endpoints_of_a_path_have_the_same_authentication() {
        for Route { endpoint, .. } in &ROUTES {
            for other in
                ROUTES.iter().map(|route| &route.endpoint).filter(|other| other.path == endpoint.path)
            {
                assert_eq!((other.auth, other.events), (endpoint.auth, endpoint.events), "{}", other.path);
            }
            assert_eq!(endpoint.auth == ApiKey, endpoint.path.starts_with("/ingest"), "{}", endpoint.path);
        }
    }

    /// The paths of a router, from its `Debug` output, which alone contains them.
    fn paths_of(router: &Router) -> BTreeSet<String> {
        let shown = format!("{router:?}");
        let node = shown.split_once("paths: {").expect("axum shows its paths").1;
        // The fallback is a route at `/` and at a private path.
        let routed = |path: &&str| path.starts_with('/') && !path.contains("__private__");
        let paths = node.split('"').filter(routed);
        paths.map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn the_openapi_document_has_exactly_the_paths_of_the_router() {
        let config = Config::without_kafka(&[]);
        let document = document(&config);
        let documented: BTreeSet<String> = document["paths"].as_object().unwrap().keys().cloned().collect();
        let app = App::build(config).await.unwrap();
        let routed = paths_of(&app.dispatcher().router);
        assert!(routed.contains("/ingest") && routed.len() > 5, "{routed:?}");
        assert_eq!(documented, routed);
        assert_eq!(routed, ROUTES.iter().map(|route| route.endpoint.path.to_owned()).collect());
    }
}
