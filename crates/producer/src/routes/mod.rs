//! The route table, and what is known of a route before its handler is called.

mod aircraft;
mod batch;
pub mod docs;
mod health;
pub mod ingest;
mod poll_jobs;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Extension, Request, State};
use axum::http::{Method, Uri};
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tower_service::Service;

use crate::app::Producer;
use crate::error::ApiError;
use crate::http::permits::Place;
use crate::http::{auth as access, middleware as traffic, raw_response};
use crate::openapi;
use crate::shutdown::Admission;

/// Every path, as metrics and traces name its route. What asks for a key goes by it: a test holds it against the router.
pub const ROUTES: &[&str] = &[
    "/",
    SINGLE,
    "/ingest/batch",
    "/ingest/adsbdb",
    "/ingest/adsbdb/poll",
    "/ingest/adsbdb/poll/{job_id}",
    "/livez",
    "/readyz",
    "/health",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/docs/{file}",
];

/// Where single events go.
pub const SINGLE: &str = "/ingest";

/// The name of all that is no route: paths are the client's choice, a metric's labels are not.
pub const OTHER: &str = "other";

/// The name of the route that `path` leads to.
pub fn named(path: &str) -> &'static str {
    let leads = |route: &&str| match route.split_once('{') {
        None => **route == *path,
        Some((before, _)) => {
            path.strip_prefix(before).is_some_and(|rest| !rest.is_empty() && !rest.contains('/'))
        }
    };
    ROUTES.iter().copied().find(leads).unwrap_or(OTHER)
}

/// The path without a slash at its end: it leads to the same.
pub fn without_slash(path: &str) -> Option<&str> {
    path.strip_suffix('/').filter(|shorter| !shorter.is_empty() && !shorter.ends_with('/'))
}

/// The path of a request had a slash at its end.
#[derive(Debug, Clone, Copy)]
pub struct Slashed;

/// Takes that slash off.
fn take_slash(request: &mut Request) {
    let Some(path) = without_slash(request.uri().path()) else { return };
    let path = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = path.try_into().ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
        request.extensions_mut().insert(Slashed);
    }
}

/// Whether refusals at this route are events that were not accepted.
pub fn takes_events(route: &str) -> bool {
    matches!(route, "/ingest" | "/ingest/batch" | "/ingest/adsbdb")
}

/// Whether whoever asks must have a key, if keys are asked for.
pub fn needs_key(route: &str) -> bool {
    route.starts_with("/ingest")
}

/// Whether a request makes records, or starts what makes them.
pub fn makes_records(route: &str, method: &Method) -> bool {
    *method == Method::POST && (takes_events(route) || route == "/ingest/adsbdb/poll")
}

/// Answers requests. What happens to every request, whatever its route, is in [`traffic`]: each layer of a router costs
/// a request several allocations, and so does the router, which single events go past.
#[derive(Debug)]
pub struct Front {
    producer: Producer,
    router: Router,
}

impl Front {
    /// Every path of the producer.
    pub fn new(producer: Producer) -> Self {
        let upstream = Router::new()
            .route("/ingest/adsbdb", post(aircraft::ingest_aircraft))
            .route("/ingest/adsbdb/poll", get(poll_jobs::list).post(poll_jobs::start))
            .route("/ingest/adsbdb/poll/{job_id}", get(poll_jobs::show).delete(poll_jobs::cancel))
            .route_layer(from_fn(traffic::takes_nothing));
        let router = Router::new()
            // For its 405: `answer` does not bring a POST here.
            .route(SINGLE, post(ingest::ingest))
            .route("/ingest/batch", post(batch::ingest_batch))
            .merge(upstream)
            .with_state(producer.clone())
            .merge(service::health::routes(Arc::new(producer.clone())))
            .merge(openapi::routes(&producer.config))
            .merge(docs::routes())
            .fallback(|request| access::refuse(ApiError::NoSuchPath, request))
            .method_not_allowed_fallback(|request| access::refuse(ApiError::MethodNotAllowed, request));
        Self { producer, router }
    }

    /// The router within.
    #[cfg(test)]
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// The answer.
    pub async fn answer(&self, mut request: Request) -> Response {
        take_slash(&mut request);
        traffic::watch(&self.producer, request, |request, admission, place| async {
            if request.uri().path() == SINGLE && *request.method() == Method::POST {
                let _place = place;
                return ingest::ingest(State(self.producer.clone()), Extension(admission), request)
                    .await
                    .into_response();
            }
            // Apart, so that single events need no room for it.
            Box::pin(self.route(request, admission, place)).await
        })
        .await
    }

    /// The refusal of a request whose connection is one too many.
    pub async fn turn_away(&self, mut request: Request) -> Response {
        take_slash(&mut request);
        let refused = traffic::watch(&self.producer, request, |request, _, place| async {
            drop(place);
            let id = ingest::id_in_head(named(request.uri().path()), request.headers());
            access::refuse(ApiError::overloaded(raw_response::TOO_MANY_CONNECTIONS).naming(id), request).await
        });
        // Apart, so that other requests need no room for it.
        Box::pin(refused).await
    }

    /// The router's answer. Admission and place are kept until it is there; a streamed answer keeps both until its last
    /// byte, a poll job keeps the admission until it ends.
    async fn route(&self, mut request: Request, admission: Admission, place: Option<Place>) -> Response {
        let place = place.map(Arc::new);
        request.extensions_mut().insert(admission.clone());
        if let Some(place) = &place {
            request.extensions_mut().insert(Arc::clone(place));
        }
        let Ok(response) = self.router.clone().call(request).await;
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::App;
    use crate::config::Config;

    /// A connection keeps room for the future of a request for as long as it is open.
    #[tokio::test]
    async fn the_future_of_a_request_stays_small() {
        let app = App::build(Config::without_kafka(&[])).await.unwrap();
        let bytes = size_of_val(&app.front().answer(Request::default()));
        assert!(bytes <= 5 * 1024, "{bytes}");
    }

    #[test]
    fn a_path_has_the_name_of_its_route_and_a_stranger_none() {
        for route in ROUTES {
            assert_eq!(named(&route.replace("{job_id}", "x-1").replace("{file}", "a.js")), *route);
        }
        for stranger in ["//", "/ingest/", "/ingest/x", "/ingest/adsbdb/poll/", "/docs/a/b", "/livez/x", ""] {
            assert_eq!(named(stranger), OTHER, "{stranger}");
        }
    }
}
