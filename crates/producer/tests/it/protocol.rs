//! HTTP/1.1 itself: heads, framing, and half-closed connections.

use std::time::{Duration, Instant};

use devservers::Simulator;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::application::{Answer, Application, Cluster, PATIENCE, assert_says};

const EVENT: &str = r#"{"source":"manual","payload":{}}"#;

/// Sends `request` and closes the sending side. Returns all bytes of the response.
async fn half_closed(app: &Application, request: &[u8]) -> String {
    let mut connection = TcpStream::connect(app.address).await.unwrap();
    connection.write_all(request).await.unwrap();
    connection.shutdown().await.unwrap();
    let mut answer = String::new();
    let read = connection.read_to_string(&mut answer);
    tokio::time::timeout(PATIENCE, read).await.expect("an end in time").unwrap();
    answer
}

fn post(path: &str, headers: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: t\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

async fn raw(app: &Application, request: &str) -> Answer {
    app.raw(&[request.as_bytes()]).await
}

async fn eventually(app: &Application, metric: &str, value: f64) {
    let began = Instant::now();
    while app.metric(metric).await != Some(value) {
        assert!(began.elapsed() < PATIENCE, "{metric} is {:?}", app.metric(metric).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_closes_its_sending_side_gets_its_response() {
    let (cluster, simulator) =
        (Cluster::start(), Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap());
    let app = cluster.application(&[("ADSBDB_BASE_URL", &simulator.base_url())]).await;
    // The response must come after the client closed its sending side.
    cluster.mock.broker_round_trip_time(-1, Duration::from_millis(300)).unwrap();
    let lines = format!("{EVENT}\n{EVENT}\n");
    for request in [
        post("/ingest", "", EVENT),
        post("/ingest/batch", "Content-Type: application/x-ndjson\r\n", &lines),
        post("/ingest/adsbdb", "", ""),
        format!(
            "POST /ingest HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{EVENT}\r\n0\r\n\r\n",
            EVENT.len()
        ),
    ] {
        let answer = half_closed(&app, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 202 "), "{answer:?} for {request}");
    }
    let two = post("/ingest", "", EVENT).repeat(2);
    let answers = half_closed(&app, two.as_bytes()).await;
    assert_eq!(answers.matches("HTTP/1.1 202 ").count(), 2, "{answers}");
    assert_eq!(app.counters.accepted(), 7);
    eventually(&app, "slipstream_connections", 1.0).await;
    assert_eq!(app.metric("slipstream_requests_in_flight").await, Some(0.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_connection_returns_its_permit_at_once() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("DELIVERY_TIMEOUT_MS", "60000")]).await;
    cluster.mock.broker_round_trip_time(-1, Duration::from_secs(60)).unwrap();
    let mut connection = TcpStream::connect(app.address).await.unwrap();
    connection.write_all(post("/ingest", "", EVENT).as_bytes()).await.unwrap();
    eventually(&app, "slipstream_requests_in_flight", 1.0).await;
    connection.set_zero_linger().unwrap();
    let began = Instant::now();
    drop(connection);
    eventually(&app, "slipstream_requests_in_flight", 0.0).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_body_returns_a_retryable_400() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let chunked = "Host: t\r\nTransfer-Encoding: chunked\r\n\r\n";
    for request in [
        "POST /ingest HTTP/1.1\r\nHost: t\r\nContent-Length: 50\r\n\r\n{\"source\":".to_owned(),
        format!("POST /ingest HTTP/1.1\r\n{chunked}20\r\n{{\"source\":"),
        format!("POST /ingest HTTP/1.1\r\n{chunked}{:x}\r\n{EVENT}\r\n", EVENT.len()),
        format!("POST /ingest HTTP/1.1\r\nContent-Encoding: gzip\r\n{chunked}2\r\n\x1f"),
    ] {
        let answer = Answer::parse(half_closed(&app, request.as_bytes()).await.as_bytes());
        assert_says(&answer.problem(400, true), &["incomplete", "again"]);
        assert_eq!(answer.header("connection"), Some("close"));
    }
    assert_eq!(app.metric(r#"slipstream_events_rejected_total{reason="body_cut"}"#).await, Some(4.0));
    let broken = format!("POST /ingest HTTP/1.1\r\n{chunked}ZZ\r\n");
    raw(&app, &broken).await.problem(400, false);

    let batch = "POST /ingest/batch HTTP/1.1\r\nHost: t\r\nContent-Type: application/x-ndjson\r\n\
                 Content-Length: 500\r\n\r\n";
    let half = half_closed(&app, format!("{batch}{EVENT}\n{{\"source\"").as_bytes()).await;
    let half = Answer::parse(half.as_bytes());
    assert_eq!((half.status, half.statuses()), (207, vec![202, 400]));
    assert_eq!(half.result(1)["retryable"], true);
    let nothing = half_closed(&app, format!("{batch}{{\"source\"").as_bytes()).await;
    let nothing = Answer::parse(nothing.as_bytes());
    nothing.problem(400, true);
    assert_eq!((nothing.statuses(), &nothing.result(0)["retryable"]), (vec![400], &json!(true)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_one_valid_host_returns_400_at_every_path() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let end = "Connection: close\r\n\r\n";
    let routes = [
        "POST /ingest",
        "POST /ingest/batch",
        "POST /ingest/adsbdb",
        "POST /ingest/adsbdb/poll",
        "GET /ingest/adsbdb/poll",
        "DELETE /ingest/adsbdb/poll/x",
        "GET /livez",
        "GET /readyz",
        "GET /health",
        "GET /metrics",
        "GET /openapi.json",
        "GET /docs",
        "GET /docs/start.js",
        "GET /",
        "GET /nowhere",
        "TRACE /livez",
    ];
    for route in routes {
        for hosts in ["", "Host: a\r\nHost: a\r\n", "Host: a b\r\n"] {
            let answer = raw(&app, &format!("{route} HTTP/1.1\r\n{hosts}{end}")).await;
            assert_says(&answer.problem(400, false), &["Host"]);
            assert!(answer.header("x-request-id").is_some(), "{route}");
        }
    }
    // HTTP/1.0 requires no Host, but allows one.
    for (hosts, status) in
        [("", 200), ("Host: a\r\n", 200), ("Host: a\r\nHost: b\r\n", 400), ("Host: a b\r\n", 400)]
    {
        let answer = raw(&app, &format!("GET /livez HTTP/1.0\r\n{hosts}\r\n")).await;
        assert_eq!(answer.status, status, "{hosts:?}");
    }
    assert_eq!(app.counters.accepted(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_a_name_or_an_address_with_an_optional_port() {
    let app = Application::start("127.0.0.1:9", &[]).await;
    let end = "Connection: close\r\n\r\n";
    for wrong in [
        "a/b", "user@a", "a:b", "a:-1", "a:65536", "a:1:2", "[::1", "::1", "[::g]", "[::1]x", "a%2", "a%zz",
        "a?b", "a#b", "http://a", "a\\b", "\"a\"", "a, b", "<a>", "\u{e4}",
    ] {
        let answer = raw(&app, &format!("GET /livez HTTP/1.1\r\nHost: {wrong}\r\n{end}")).await;
        assert_eq!(answer.status, 400, "{wrong}");
    }
    for right in [
        "",
        "a",
        "a:",
        "a:8080",
        "a.example.",
        "A_b-c~1",
        "127.0.0.1:80",
        "[::1]",
        "[::1]:8080",
        "[fe80::1:2]",
        "[v1.a:b]",
        "a%20b",
        "a,b",
        "xn--bcher-kva.example",
    ] {
        let answer = raw(&app, &format!("GET /livez HTTP/1.1\r\nHost: {right}\r\n{end}")).await;
        assert_eq!(answer.status, 200, "{right}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absolute_uri_as_target_leads_to_its_path() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let end = "Connection: close\r\n\r\n";
    for target in ["http://other:1/livez", "HTTP://[::1]/livez/", "https://other/livez?x=y"] {
        let answer = raw(&app, &format!("GET {target} HTTP/1.1\r\nHost: t\r\n{end}")).await;
        assert_eq!(answer.status, 200, "{target}");
        let answer = raw(&app, &format!("GET {target} HTTP/1.1\r\n{end}")).await;
        assert_says(&answer.problem(400, false), &["Host"]);
    }
    let answer = raw(&app, &post("http://other/ingest", "Connection: close\r\n", EVENT)).await;
    assert_eq!(answer.status, 202, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_transfer_coding_returns_501() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let body = format!("{:x}\r\n{EVENT}\r\n0\r\n\r\n", EVENT.len());
    for unknown in
        ["gzip, chunked", "gzip", "chunked, gzip", "identity", "x", "gzip\r\nTransfer-Encoding: chunked"]
    {
        for path in ["/ingest", "/ingest/batch", "/livez"] {
            let head = format!("POST {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\nTransfer-Encoding: ");
            let answer = raw(&app, &format!("{head}{unknown}\r\n\r\n{body}")).await;
            assert_says(&answer.problem(501, false), &["chunked"]);
            assert_eq!(answer.header("connection"), Some("close"));
        }
    }
    let chunked = |coding: &str| {
        format!(
            "POST /ingest HTTP/1.1\r\nHost: t\r\nConnection: close\r\nTransfer-Encoding: {coding}\r\n\r\n{body}"
        )
    };
    assert_eq!(raw(&app, &chunked("Chunked")).await.status, 202);
    assert_eq!(raw(&app, &chunked("chunked, chunked")).await.status, 400);
    assert_eq!(raw(&app, &chunked("chunked").replace("HTTP/1.1", "HTTP/1.0")).await.status, 400);
    // The rejection of a head does not suppress the response to the request before it.
    let two = format!("{}{}", post("/ingest", "", EVENT), chunked("gzip"));
    let answers = half_closed(&app, two.as_bytes()).await;
    let statuses: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)).collect();
    assert_eq!(statuses, ["202", "501"], "{answers}");
    assert_eq!(app.counters.accepted(), 2);
    assert_eq!(app.get("/health").await.json()["last_error"], json!(null), "the client caused the error");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_preface_of_http_2_gets_a_505_in_plain_text() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    let answer = app.raw(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", settings]).await;
    assert_eq!((answer.status, answer.header("content-type")), (505, Some("text/plain; charset=utf-8")));
    assert_eq!(answer.header("content-length"), Some(answer.text.len().to_string().as_str()));
    assert!(answer.text.contains("HTTP/1.1"), "{answer:?}");
    assert_eq!(answer.header("connection"), Some("close"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_uri_that_is_too_long_returns_414_or_431_without_a_body() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let get = async |bytes: usize| {
        let path = format!("/livez?{}", "x".repeat(bytes - 7));
        raw(&app, &format!("GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")).await
    };
    for bytes in [8_000, 60_000, 65_000] {
        assert_eq!(get(bytes).await.status, 200, "{bytes} bytes");
    }
    // The limit of the head may be reached before the end of the target.
    for bytes in [65_535, 70_000, 200_000] {
        let answer = get(bytes).await;
        assert!(matches!(answer.status, 414 | 431), "{bytes} bytes: {answer:?}");
        assert_eq!(answer.text, "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slash_at_the_end_of_a_path_changes_nothing() {
    let (cluster, simulator) =
        (Cluster::start(), Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap());
    let app = cluster.application(&[("ADSBDB_BASE_URL", &simulator.base_url())]).await;
    for path in
        ["/livez/", "/readyz/", "/health/", "/metrics/", "/openapi.json/", "/docs/", "/docs/start.js/"]
    {
        assert_eq!(app.get(path).await.status, 200, "{path}");
    }
    let json = [("Content-Type", "application/json"), ("Idempotency-Key", "order-7")];
    let answer = app.request("POST", "/ingest/", &json, EVENT).await;
    assert_eq!((answer.status, &answer.json()["id"]), (202, &json!("order-7")));
    assert_eq!(app.request("POST", "/ingest/batch/", &[], &format!("[{EVENT}]")).await.status, 202);
    assert_eq!(app.post("/ingest/adsbdb/").await.status, 202);
    let started = app.post("/ingest/adsbdb/poll/?interval_sec=600&duration_sec=600").await;
    assert_eq!((started.status, &started.json()["interval_sec"]), (202, &json!(600)));
    let job = started.header("location").unwrap().to_owned();
    assert_eq!(app.get("/ingest/adsbdb/poll/").await.json()["jobs"].as_array().unwrap().len(), 1);
    assert_eq!(app.get(&format!("{job}/")).await.status, 200);
    assert_eq!(app.request("DELETE", &format!("{job}/"), &[], "").await.status, 200);
    let counted = r#"slipstream_http_requests_total{route="/ingest",status="202"}"#;
    assert_eq!(app.metric(counted).await, Some(1.0));
    for unknown in ["/ingest//", "//", "/nowhere/"] {
        app.get(unknown).await.problem(404, false);
    }
    app.get("/ingest/").await.problem(405, false);
    let page = app.get("/docs/").await.text;
    for file in page.split('"').filter(|text| text.contains('.') && !text.contains(' ')) {
        let path = file.strip_prefix("../").map_or(format!("/docs/{file}"), |file| format!("/{file}"));
        assert_eq!(app.get(&path).await.status, 200, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_redirects_to_the_documentation() {
    let app = Application::start("127.0.0.1:9", &[]).await;
    let answer = app.get("/").await;
    assert_eq!((answer.status, answer.header("location")), (303, Some("/docs")));
    assert_eq!(app.get("/?x=y").await.status, 303);
    let answer = app.request("POST", "/", &[], EVENT).await;
    answer.problem(405, false);
    assert_eq!(answer.header("allow"), Some("GET,HEAD"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_values_of_a_single_value_header_are_rejected() {
    const KEYS: &str = "plant-7:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b,\
                        lab:d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";
    let cluster = Cluster::start();
    let (open, locked) = (cluster.application(&[]).await, cluster.application(&[("API_KEYS", KEYS)]).await);
    for (app, name, one, other, status) in [
        (&open, "Idempotency-Key", "order-7", "order-8", 422),
        (&open, "Idempotency-Key", "order-7", "\"order-8\"", 422),
        (&open, "Content-Type", "application/json", "application/x-ndjson", 422),
        (&open, "Content-Type", "application/json", "text/plain", 422),
        (&open, "Content-Encoding", "gzip", "gzip", 415),
        (&open, "Content-Length", "32", "33", 400),
        (&open, "Content-Length", "32, 32", "32", 400),
        (&locked, "Authorization", "Bearer secret", "Bearer wrong", 401),
        (&locked, "Authorization", "Basic YTpi", "Bearer secret", 401),
        (&locked, "X-API-Key", "secret", "other", 401),
    ] {
        for (first, second) in [(one, other), (other, one)] {
            let both = format!("{name}: {first}\r\n{name}: {second}\r\n");
            let length = if name == "Content-Length" { "" } else { "Content-Length: 32\r\n" };
            let head = format!("POST /ingest HTTP/1.1\r\nHost: t\r\nConnection: close\r\n{both}{length}\r\n");
            let answer = raw(app, &format!("{head}{EVENT}")).await;
            assert_eq!(answer.status, status, "{both}{answer:?}");
            if status == 422 {
                assert_eq!(answer.problem(422, false)["errors"][0]["loc"], json!(["header", name]));
            }
        }
    }
    assert_eq!((open.counters.accepted(), locked.counters.accepted()), (0, 0));
    for same in [
        "Idempotency-Key: order-7\r\nIdempotency-Key: \"order-7\"\r\n",
        "Content-Type: application/json\r\nContent-Type: application/json\r\n",
        "Content-Encoding: identity\r\nContent-Encoding: identity\r\n",
        "Content-Length: 32\r\n",
    ] {
        let answer = raw(&open, &post("/ingest", &format!("Connection: close\r\n{same}"), EVENT)).await;
        assert_eq!(answer.status, 202, "{same}{answer:?}");
    }
    let twice = "Connection: close\r\nX-API-Key: secret\r\nX-API-Key: secret\r\n";
    assert_eq!(raw(&locked, &post("/ingest", twice, EVENT)).await.status, 202);
    let two = "Connection: close\r\nX-Request-Id: a\r\nX-Request-Id: b\r\n";
    let answer = raw(&open, &post("/ingest", two, EVENT)).await;
    assert_eq!((answer.status, answer.header("x-request-id").map(str::len)), (202, Some(36)));
    let two = "Connection: close\r\nContent-Type: text/json\r\nContent-Type: application/x-ndjson\r\n";
    raw(&open, &post("/ingest/batch", two, EVENT)).await.problem(422, false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quotes_around_an_idempotency_key_are_not_part_of_the_id() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let send = async |key: &str| app.request("POST", "/ingest", &[("Idempotency-Key", key)], EVENT).await;
    for (key, id) in [
        ("k", "k"),
        ("\"k\"", "k"),
        (" \"k\" ", "k"),
        (r#""a \"b\" \\ c""#, r#"a "b" \ c"#),
        ("\"k\";version=1", "k"),
        ("k\"", "k\""),
        ("a, b", "a, b"),
    ] {
        let answer = send(key).await;
        assert_eq!((answer.status, &answer.json()["id"]), (202, &json!(id)), "{key}");
    }
    for wrong in ["\"k", "\"\"", "\"", "\"k\"x", "\"a\", \"b\"", r#""a\b""#, r#""a\"#, "\"\u{e4}\""] {
        let body = send(wrong).await.problem(422, false);
        assert_eq!(body["errors"][0]["loc"], json!(["header", "Idempotency-Key"]), "{wrong}");
    }
    let named = r#"{"id":"k","source":"manual","payload":{}}"#;
    let answer = app.request("POST", "/ingest", &[("Idempotency-Key", "\"k\"")], named).await;
    assert_eq!(answer.status, 202, "{answer:?}");
}
