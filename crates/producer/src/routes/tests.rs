use std::collections::BTreeSet;

use super::*;
use crate::app::App;
use crate::http::endpoint::UNKNOWN;

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

/// Endpoints of one path differ in method and limit class only: the others apply to all methods.
#[test]
fn endpoints_of_a_path_have_the_same_authentication() {
    for Route { endpoint, .. } in &ROUTES {
        for other in ROUTES.iter().map(|route| &route.endpoint).filter(|other| other.path == endpoint.path) {
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
