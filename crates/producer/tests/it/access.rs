//! Authentication: with API_KEYS set, the ingest endpoints require a key, and the others do not.

use std::io::Write;

use crate::application::{Answer, Application, Cluster, assert_says};

const EVENT: &str = r#"{"source":"manual","payload":{}}"#;
/// `printf %s secret | sha256sum` and `printf %s other | sha256sum`.
const KEYS: &str = "plant-7:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b,\
                    lab:d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";

async fn ingest(app: &Application, header: Option<(&str, &str)>) -> Answer {
    let headers: Vec<(&str, &str)> =
        [("Content-Type", "application/json")].into_iter().chain(header).collect();
    app.request("POST", "/ingest", &headers, EVENT).await
}

#[track_caller]
fn assert_unauthorized(answer: &Answer, words: &str) {
    assert_says(&answer.problem(401, false), &[words]);
    let challenge = answer.header("www-authenticate");
    assert_eq!(challenge, Some("Bearer realm=\"slipstream\""), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_key_in_either_header_is_accepted_and_counted_by_name() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("API_KEYS", KEYS)]).await;
    for header in [
        ("Authorization", "Bearer secret"),
        ("authorization", "bearer secret"),
        ("X-API-Key", "secret"),
        ("X-Api-Key", "other"),
    ] {
        assert_eq!(ingest(&app, Some(header)).await.status, 202, "{header:?}");
    }
    let broken = app.request("POST", "/ingest", &[("X-API-Key", "other")], "{").await;
    broken.problem(400, false);
    let counted = async |key: &str, status: u16| {
        let line = format!(r#"slipstream_api_key_requests_total{{key="{key}",status="{status}"}}"#);
        app.metric(&line).await
    };
    assert_eq!(counted("plant-7", 202).await, Some(3.0));
    assert_eq!(counted("lab", 202).await, Some(1.0));
    assert_eq!(counted("lab", 400).await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_known_key_every_ingest_endpoint_returns_401() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("API_KEYS", KEYS)]).await;
    assert_unauthorized(&ingest(&app, None).await, "X-API-Key");
    for wrong in [
        ("Authorization", "Bearer wrong"),
        ("X-API-Key", "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"),
        ("X-API-Key", "plant-7"),
    ] {
        assert_unauthorized(&ingest(&app, Some(wrong)).await, "is unknown");
    }
    assert_unauthorized(
        &ingest(&app, Some(("Authorization", "Basic cGxhbnQtNzpzZWNyZXQ="))).await,
        "Bearer KEY",
    );
    for (method, path) in [
        ("POST", "/ingest/batch"),
        ("POST", "/ingest/adsbdb"),
        ("POST", "/ingest/adsbdb/poll"),
        ("GET", "/ingest/adsbdb/poll"),
        ("GET", "/ingest/adsbdb/poll/none"),
        ("DELETE", "/ingest/adsbdb/poll/none"),
    ] {
        assert_unauthorized(&app.request(method, path, &[], "").await, "X-API-Key");
    }
    assert_eq!(app.counters.accepted(), 0);
    let rejected = app.metric(r#"slipstream_events_rejected_total{reason="unauthorized"}"#).await;
    assert_eq!(rejected, Some(7.0));
    assert_eq!(
        app.get("/health").await.json()["last_error"],
        serde_json::Value::Null,
        "the client caused the error"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_of_a_gateway_do_not_hide_a_key() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("API_KEYS", KEYS)]).await;
    let status = async |bearer: &str, key: &str| {
        let headers = [("Content-Type", "application/json"), ("Authorization", bearer), ("X-API-Key", key)];
        app.request("POST", "/ingest", &headers, EVENT).await.status
    };
    assert_eq!(status("Bearer eyJhbGciOiJIUzI1NiJ9.e30.c2ln", "secret").await, 202);
    assert_eq!(status("Bearer secret", "of somebody else").await, 202);
    assert_eq!(status("Basic cGxhbnQtNzpzZWNyZXQ=", "secret").await, 202);
    assert_eq!(status("Bearer wrong", "wrong too").await, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_401_equals_its_example_in_the_openapi_document() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("API_KEYS", KEYS)]).await;
    let document = app.get("/openapi.json").await.json();
    for path in ["/ingest", "/ingest/batch", "/ingest/adsbdb"] {
        let documented = &document["paths"][path]["post"]["responses"]["401"];
        let examples = &documented["content"]["application/problem+json"]["examples"];
        let without = app.request("POST", path, &[], "").await;
        assert_eq!(without.problem(401, false), examples["no_key"]["value"], "{path}");
        assert!(without.header("www-authenticate").is_some());
        let wrong = app.request("POST", path, &[("X-API-Key", "wrong")], "").await;
        assert_eq!(wrong.problem(401, false), examples["unknown_key"]["value"], "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_metrics_require_no_key_and_contain_none() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("API_KEYS", KEYS)]).await;
    for path in ["/livez", "/readyz", "/health", "/metrics"] {
        let answer = app.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(!answer.text.contains("2bb80d53"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_still_sending_receives_the_401() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("API_KEYS", KEYS)]).await;
    let body = "x".repeat(900 * 1024);
    let answer = app.request("POST", "/ingest", &[("Content-Type", "application/json")], &body).await;
    assert_unauthorized(&answer, "X-API-Key");
    let head = b"POST /ingest HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 32\r\n\r\n";
    let answer = app.raw(&[head]).await;
    assert_unauthorized(&answer, "X-API-Key");
    assert_eq!(answer.header("connection"), Some("close"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_can_come_from_a_file() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "# of 2026\n{}", KEYS.replace(',', "\n")).unwrap();
    let cluster = Cluster::start();
    let app = cluster.application(&[("API_KEYS_FILE", file.path().to_str().unwrap())]).await;
    assert_eq!(ingest(&app, Some(("X-API-Key", "other"))).await.status, 202);
    assert_unauthorized(&ingest(&app, None).await, "X-API-Key");
}
