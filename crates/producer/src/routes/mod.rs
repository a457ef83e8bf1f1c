//! The route table, and the dispatch of requests to it.

pub mod aircraft;
mod batch;
pub mod docs;
mod health;
pub mod ingest;
mod poll_jobs;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Extension, Request, State};
use axum::http::{Method, Uri, header};
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, get_service, post};
use bytes::Bytes;
use serde_json::Value;
use tower_service::Service;

use crate::config::Config;
use crate::error::ApiError;
use crate::http::connection::Handler;
use crate::http::endpoint::{Auth, Endpoint, Events, HadSlash, Limit, Matched};
use crate::http::middleware::{self, head_id};
use crate::http::permits::Permit;
use crate::http::reject::reject;
use crate::openapi::{self, Operation};
use crate::shutdown::Admission;
use crate::state::AppState;

use Auth::ApiKey;
use Events::{Fetched, Many, One};
use Limit::{Connections, Exempt, InFlight};

/// A row of the route table.
struct Route {
    endpoint: Endpoint,
    handler: fn(&AppState) -> MethodRouter<AppState>,
    /// Adds the documentation to the OpenAPI operation.
    document: fn(Operation, &Config) -> Operation,
}

/// Every endpoint of the producer. Columns: method, path, authentication, limit class, events in
/// the request, handler, OpenAPI documentation. The header Allow has the order of the rows.
#[rustfmt::skip]
static ROUTES: [Route; 15] = [
    route(endpoint(POST, "/ingest", ApiKey, InFlight, One),
        |_| post(ingest::ingest), openapi::event::ingest),
    route(endpoint(POST, "/ingest/batch", ApiKey, InFlight, Many),
        |_| post(batch::ingest_batch), openapi::batch::ingest_batch),
    route(endpoint(POST, "/ingest/adsbdb", ApiKey, InFlight, Fetched),
        |_| without_body(post(aircraft::ingest_aircraft)), openapi::jobs::ingest_aircraft),

    route(endpoint(GET, "/ingest/adsbdb/poll", ApiKey, Connections, Events::None),
        |_| without_body(get(poll_jobs::list)), openapi::jobs::list),
    route(endpoint(POST, "/ingest/adsbdb/poll", ApiKey, InFlight, Events::None),
        |_| without_body(post(poll_jobs::start)), openapi::jobs::start),
    route(endpoint(GET, "/ingest/adsbdb/poll/{job_id}", ApiKey, Connections, Events::None),
        |_| without_body(get(poll_jobs::show)), openapi::jobs::show),
    route(endpoint(DELETE, "/ingest/adsbdb/poll/{job_id}", ApiKey, Connections, Events::None),
        |_| without_body(delete(poll_jobs::cancel)), openapi::jobs::cancel),

    route(endpoint(GET, "/livez", Auth::None, Exempt, Events::None), health, openapi::state::livez),
    route(endpoint(GET, "/readyz", Auth::None, Exempt, Events::None), health, openapi::state::readyz),
    route(endpoint(GET, "/health", Auth::None, Exempt, Events::None), health, openapi::state::health),
    route(endpoint(GET, "/metrics", Auth::None, Exempt, Events::None), health, openapi::state::metrics),

    route(endpoint(GET, "/", Auth::None, Connections, Events::None),
        |_| get(docs::root), openapi::state::root),
    route(endpoint(GET, "/openapi.json", Auth::None, Connections, Events::None),
        openapi_json, openapi::state::openapi_json),
    route(endpoint(GET, "/docs", Auth::None, Connections, Events::None),
        |_| get(docs::page), openapi::state::docs),
    route(endpoint(GET, "/docs/{file}", Auth::None, Connections, Events::None),
        |_| get(docs::file), openapi::state::docs_file),
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
    document: fn(Operation, &Config) -> Operation,
) -> Route {
    Route { endpoint, handler, document }
}

/// Adds the layer for endpoints that accept neither an id nor a body.
fn without_body(handler: MethodRouter<AppState>) -> MethodRouter<AppState> {
    handler.layer(from_fn(middleware::without_body))
}

/// The handler of the health endpoints and the metrics, which all processes have.
fn health(state: &AppState) -> MethodRouter<AppState> {
    get_service(service::health::routes(Arc::new(state.clone())))
}

/// The handler of `/openapi.json`. The document is created once.
fn openapi_json(state: &AppState) -> MethodRouter<AppState> {
    let document = Bytes::from(document(&state.config).to_string());
    get(async move || ([(header::CONTENT_TYPE, "application/json")], document))
}

/// The OpenAPI document of all endpoints.
pub fn document(config: &Config) -> Value {
    let operations = ROUTES.iter().map(|Route { endpoint, document, .. }| {
        let operation = Operation::new(&endpoint.method, endpoint.path);
        let operation = match endpoint.auth {
            ApiKey => operation.authenticated(config),
            Auth::None => operation,
        };
        let operation = if endpoint.limit == InFlight { operation.limited() } else { operation };
        document(operation, config)
    });
    openapi::document(operations, config)
}

/// Finds the endpoint of a request.
fn find(method: &Method, path: &str) -> Matched {
    Matched::find(ROUTES.iter().map(|route| &route.endpoint), method, path)
}

/// The path without a slash at its end, if it has one. Both paths are equivalent.
fn without_slash(path: &str) -> Option<&str> {
    path.strip_suffix('/').filter(|shorter| !shorter.is_empty() && !shorter.ends_with('/'))
}

/// Removes a slash at the end of the path.
fn remove_slash(request: &mut Request) {
    let Some(path) = without_slash(request.uri().path()) else { return };
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
        let router = ROUTES.iter().fold(Router::new(), |router, Route { endpoint, handler, .. }| {
            router.route(endpoint.path, handler(&state))
        });
        let router = router
            .fallback(|request| reject(ApiError::PathNotFound, request))
            .method_not_allowed_fallback(|request| reject(ApiError::MethodNotAllowed, request))
            .with_state(state.clone());
        Self { state, router }
    }

    async fn dispatch(&self, matched: Matched, request: Request) -> Response {
        middleware::run(&self.state, matched, request, |request, admission, permit| async {
            if matched.has_method && matched.endpoint.events == One {
                let _permit = permit;
                return ingest::ingest(State(self.state.clone()), Extension(admission), request)
                    .await
                    .into_response();
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

    /// Rejects a request on a connection beyond MAX_CONNECTIONS.
    async fn reject_extra(&self, matched: Matched, request: Request) -> Response {
        self.state.metrics.connections.rejected();
        middleware::run(&self.state, matched, request, |request, _, permit| async {
            drop(permit);
            let id = head_id(matched, request.headers());
            reject(ApiError::too_many_connections().with_head_id(id), request).await
        })
        .await
    }
}

impl Handler for Dispatcher {
    async fn handle(&self, mut request: Request, extra: bool) -> Response {
        remove_slash(&mut request);
        let matched = find(request.method(), request.uri().path());
        if extra && matched.endpoint.limit != Exempt {
            // Boxed, so that other requests need no memory for this future.
            return Box::pin(self.reject_extra(matched, request)).await;
        }
        self.dispatch(matched, request).await
    }
}

#[cfg(test)]
mod tests;
