//! CORS: pages of the origins in CORS_ALLOWED_ORIGINS can send events and read responses.

use crate::application::{Answer, Application, Cluster};

const EVENT: &str = r#"{"source":"manual","payload":{}}"#;
const PAGE: &str = "https://app.example.com";
const OTHER_PAGE: &str = "https://evil.example";
const ORIGINS: (&str, &str) = ("CORS_ALLOWED_ORIGINS", "http://localhost:5173, https://app.example.com");
/// `printf %s secret | sha256sum`.
const KEYS: (&str, &str) =
    ("API_KEYS", "plant-7:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b");

async fn preflight(app: &Application, path: &str, origin: &str) -> Answer {
    let headers = [
        ("Origin", origin),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "content-type,x-api-key"),
    ];
    app.request("OPTIONS", path, &headers, "").await
}

#[track_caller]
fn assert_allowed(answer: &Answer, origin: Option<&str>) {
    assert_eq!(answer.header("access-control-allow-origin"), origin, "{answer:?}");
    let exposed = answer.header("access-control-expose-headers");
    assert_eq!(exposed, origin.map(|_| "Location, Retry-After, X-Request-Id"), "{answer:?}");
    assert_eq!(answer.header("access-control-allow-credentials"), None);
}

fn list(answer: &Answer, header: &str) -> Vec<String> {
    let value = answer.header(header).unwrap_or_else(|| panic!("no {header}: {answer:?}"));
    value.split(',').map(|item| item.trim().to_lowercase()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_preflight_of_an_allowed_page_returns_204_without_a_key() {
    let cluster = Cluster::start();
    let app = cluster.application(&[ORIGINS, KEYS]).await;
    for path in ["/ingest", "/ingest/", "/ingest/batch", "/ingest/adsbdb/poll/x", "/health", "/docs"] {
        for page in [PAGE, "http://localhost:5173"] {
            let answer = preflight(&app, path, page).await;
            assert_eq!((answer.status, answer.text.as_str()), (204, ""), "{path}");
            assert_allowed(&answer, Some(page));
            assert_eq!(list(&answer, "vary"), ["origin"]);
            assert_eq!(answer.header("access-control-max-age"), Some("7200"));
            for method in ["get", "post", "delete"] {
                assert!(list(&answer, "access-control-allow-methods").contains(&method.into()));
            }
            for header in [
                "authorization",
                "content-encoding",
                "content-type",
                "idempotency-key",
                "traceparent",
                "x-api-key",
                "x-request-id",
            ] {
                assert!(list(&answer, "access-control-allow-headers").contains(&header.into()), "{header}");
            }
            assert!(answer.header("x-request-id").is_some());
        }
    }
    preflight(&app, "/nowhere", PAGE).await.problem(404, false);
    let plain = app.request("OPTIONS", "/health", &[("Origin", PAGE)], "").await;
    plain.problem(405, false);
    assert_allowed(&plain, Some(PAGE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_allowed_page_can_read_every_response() {
    let cluster = Cluster::start();
    let app = cluster.application(&[ORIGINS, KEYS]).await;
    let json = ("Content-Type", "application/json");
    let key = ("X-API-Key", "secret");
    for (headers, body, status) in [
        (vec![json, key], EVENT, 202),
        (vec![json, key], "{", 400),
        (vec![json], EVENT, 401),
        (vec![json, key], r#"{"source":"manual"}"#, 422),
    ] {
        let headers = [&headers[..], &[("Origin", PAGE)]].concat();
        let answer = app.request("POST", "/ingest", &headers, body).await;
        assert_eq!(answer.status, status, "{answer:?}");
        assert_allowed(&answer, Some(PAGE));
    }
    for (path, status) in [("/nowhere", 404), ("/readyz", 200), ("/metrics", 200), ("/openapi.json", 200)] {
        let answer = app.request("GET", path, &[("Origin", PAGE)], "").await;
        assert_eq!(answer.status, status);
        assert_allowed(&answer, Some(PAGE));
    }
    let noted = app.request("GET", "/docs/swagger-ui.css", &[("Origin", PAGE)], "").await;
    let varies: Vec<&str> =
        noted.headers.iter().filter(|(name, _)| name == "vary").map(|(_, value)| &**value).collect();
    assert_eq!(varies, ["accept-encoding", "origin"]);
    let unnamed = app.get("/health").await;
    assert_allowed(&unnamed, None);
    assert_eq!(unnamed.header("vary"), Some("origin"), "a cache must not serve this response to a page");
    let raw = format!("GET /health HTTP/1.1\r\nOrigin: {PAGE}\r\nConnection: close\r\n\r\n");
    let without_host = app.raw(&[raw.as_bytes()]).await;
    without_host.problem(400, false);
    assert_allowed(&without_host, Some(PAGE));
    cluster.mock.broker_down(-1).unwrap();
    app.readyz(503).await;
    let away = app.request("POST", "/ingest", &[json, key, ("Origin", PAGE)], EVENT).await;
    away.retry_after(503);
    assert_allowed(&away, Some(PAGE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_is_not_allowed_gets_no_cors_headers() {
    let cluster = Cluster::start();
    let (off, on) = (cluster.application(&[]).await, cluster.application(&[ORIGINS]).await);
    for (app, vary) in [(&off, None), (&on, Some("origin"))] {
        for origin in [
            OTHER_PAGE,
            "null",
            "https://app.example.com:8443",
            "http://app.example.com",
            "https://APP.example.com",
            "https://app.example.com.evil.example",
            "",
        ] {
            let preflight = preflight(app, "/ingest", origin).await;
            assert_eq!(preflight.status, 405, "{preflight:?}");
            let answer = app.request("POST", "/ingest", &[("Origin", origin)], EVENT).await;
            assert_eq!(answer.status, 202, "the request itself is accepted");
            for answer in [&preflight, &answer] {
                let sent = answer.headers.iter().find(|(name, _)| name.starts_with("access-control-"));
                assert_eq!(sent, None);
                assert_eq!(answer.header("vary"), vary);
            }
        }
    }
    let two = [("Origin", PAGE), ("Origin", OTHER_PAGE)];
    assert_allowed(&on.request("GET", "/health", &two, "").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_star_allows_every_origin() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("CORS_ALLOWED_ORIGINS", "*")]).await;
    let answer = preflight(&app, "/ingest", OTHER_PAGE).await;
    assert_eq!(answer.status, 204);
    assert_allowed(&answer, Some("*"));
    let beacon = [("Origin", "null"), ("Content-Type", "text/plain;charset=UTF-8")];
    let answer = app.request("POST", "/ingest", &beacon, EVENT).await;
    assert_eq!(answer.status, 202);
    assert_allowed(&answer, Some("*"));
    assert_allowed(&app.get("/health").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_text_is_json_only_from_an_allowed_page() {
    let cluster = Cluster::start();
    let (off, on) = (cluster.application(&[]).await, cluster.application(&[ORIGINS]).await);
    let batch = format!("[{EVENT}]");
    let send = async |app: &Application, origin: &str, media_type: &str, path: &str, body: &str| {
        app.request("POST", path, &[("Origin", origin), ("Content-Type", media_type)], body).await.status
    };
    for (path, body) in [("/ingest", EVENT), ("/ingest/batch", &batch)] {
        for media_type in ["text/plain;charset=UTF-8", "text/plain", "Text/Plain; charset=\"utf-8\""] {
            assert_eq!(send(&on, PAGE, media_type, path, body).await, 202, "{media_type}");
            assert_eq!(send(&on, OTHER_PAGE, media_type, path, body).await, 415);
            assert_eq!(send(&off, PAGE, media_type, path, body).await, 415);
        }
        for other in ["text/plain;charset=latin1", "text/html", "application/x-www-form-urlencoded"] {
            assert_eq!(send(&on, PAGE, other, path, body).await, 415, "{other}");
        }
    }
    assert_eq!(send(&on, PAGE, "text/plain", "/ingest", "hello").await, 400);
}
