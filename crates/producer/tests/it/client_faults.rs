//! Errors that the client caused: status, headers and body.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::application::{Answer, Application, Cluster, PATIENCE, assert_says};

const GOOD: &str = r#"{"source":"manual","payload":{"value":42}}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_not_json_returns_400_with_line_and_column() {
    let (cluster, app);
    cluster = Cluster::start();
    app = cluster.application(&[]).await;
    for empty in ["", "  \n "] {
        assert_says(&app.ingest(empty).await.problem(400, false), &["the body is empty"]);
    }
    let body = app.ingest("{\n  \"source\": manual}").await.problem(400, false);
    assert_says(&body, &["not JSON", "line 2", "column 13"]);
    assert_eq!(body.get("errors"), None);
    assert_eq!(app.metric("slipstream_events_rejected_total{reason=\"empty\"}").await, Some(2.0));
    assert_eq!(app.metric("slipstream_events_rejected_total{reason=\"not_json\"}").await, Some(1.0));
    assert_eq!(app.counters.rejected(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_422_lists_all_violations() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("ACCEPT_SOURCES", "manual")]).await;
    let event = r#"{"source":"other","payload":[],"colour":1,"timestamp":-5}"#;
    let headers = [("Content-Type", "application/json"), ("Idempotency-Key", "")];
    let body = app.request("POST", "/ingest", &headers, event).await.problem(422, false);
    let mut places: Vec<String> =
        body["errors"].as_array().unwrap().iter().map(|e| e["loc"].to_string()).collect();
    places.sort();
    assert_eq!(
        places,
        [
            r#"["body","colour"]"#,
            r#"["body","payload"]"#,
            r#"["body","source"]"#,
            r#"["body","timestamp"]"#,
            r#"["header","Idempotency-Key"]"#
        ]
    );
    for error in body["errors"].as_array().unwrap() {
        assert!(error["msg"].is_string() && error["type"].is_string(), "{error}");
    }
    assert_says(&body, &["5 rules"]);
    let body = app.request("POST", "/ingest", &headers, GOOD).await.problem(422, false);
    assert_eq!(body["errors"][0]["loc"], json!(["header", "Idempotency-Key"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_cannot_name_a_collection_returns_422() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    for source in ["system.a", "a.system.b", "a.system.buckets.b", "a.", "a..b"] {
        let event = format!(r#"{{"source":"{source}","payload":{{}}}}"#);
        let body = app.ingest(&event).await.problem(422, false);
        assert_eq!(body["errors"][0]["loc"], json!(["body", "source"]), "{source}");
        assert_eq!(app.batch(&[&event, GOOD]).await.statuses(), [422, 202], "{source}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_require_id_an_event_without_an_id_returns_400() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("REQUIRE_ID", "true")]).await;
    assert_says(&app.ingest(GOOD).await.problem(400, false), &["no id", "Idempotency-Key"]);
    let with_key = [("Content-Type", "application/json"), ("Idempotency-Key", "order-7")];
    let answer = app.request("POST", "/ingest", &with_key, GOOD).await;
    assert_eq!((answer.status, &answer.json()["id"]), (202, &json!("order-7")));
    let answer = app.ingest(r#"{"id":17,"source":"manual","payload":{}}"#).await;
    assert_eq!((answer.status, &answer.json()["id"]), (202, &json!("17")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_without_a_body_reject_an_idempotency_key() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    for path in ["/ingest/adsbdb", "/ingest/adsbdb/poll"] {
        let answer = app.request("POST", path, &[("Idempotency-Key", "k")], "").await;
        assert_says(&answer.problem(400, false), &["Idempotency-Key", "POST /ingest"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotency_key_must_equal_the_id_of_the_body() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let event = r#"{"id":"order-7","source":"manual","payload":{}}"#;
    let post = async |key: &str, body: &str| {
        app.request(
            "POST",
            "/ingest",
            &[("Content-Type", "application/json"), ("Idempotency-Key", key)],
            body,
        )
        .await
    };
    let answer = post("order-7", event).await;
    assert_eq!((answer.status, &answer.json()["id"]), (202, &json!("order-7")));
    let answer = post("order-8", GOOD).await;
    assert_eq!((answer.status, &answer.json()["id"]), (202, &json!("order-8")));
    let body = post("order-8", event).await.problem(422, false);
    assert_eq!(body["errors"][0]["loc"], json!(["header", "Idempotency-Key"]));
    assert_says(&body, &["should be the event's id"]);
    assert_eq!(app.counters.accepted(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_paths_and_methods_return_problems() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    app.get("/no/such/path").await.problem(404, false);
    app.get("/ingest/adsbdb/poll/none").await.problem(404, false);
    app.request("DELETE", "/ingest/adsbdb/poll/none", &[], "").await.problem(404, false);
    for (method, path, allow) in [
        ("GET", "/ingest", "POST"),
        ("PUT", "/ingest/adsbdb", "POST"),
        ("PUT", "/ingest/adsbdb/poll", "GET,HEAD,POST"),
        ("POST", "/health", "GET,HEAD"),
    ] {
        let answer = app.request(method, path, &[], "").await;
        answer.problem(405, false);
        assert_eq!(answer.header("allow"), Some(allow), "{path}");
    }
    let counted = r#"slipstream_http_requests_total{route="other",status="404"}"#;
    assert_eq!(app.metric(counted).await, Some(1.0), "the path must not be a label");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_read_to_its_end_whichever_check_rejects_it() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let body = "x".repeat(900 * 1024);
    // One connection for all: after an unread body it would be closed or reset.
    let mut connection = TcpStream::connect(app.address).await.unwrap();
    for (to, status) in [
        ("/no/such/path HTTP/1.1", 404),
        ("/health HTTP/1.1", 405),
        ("/ingest/adsbdb/poll/none HTTP/1.1", 405),
        ("/ingest/adsbdb HTTP/1.1\r\nIdempotency-Key: k", 400),
        ("/ingest/adsbdb/poll HTTP/1.1\r\nIdempotency-Key: k", 400),
    ] {
        let head = format!("POST {to}\r\nHost: t\r\nContent-Length: {}\r\n\r\n", body.len());
        connection.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await.unwrap();
        let mut answer = vec![0; 4096];
        let length = tokio::time::timeout(PATIENCE, connection.read(&mut answer)).await.unwrap().unwrap();
        let answer = Answer::parse(&answer[..length]);
        answer.problem(status, false);
        assert_eq!(answer.header("connection"), None, "{to}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_not_http_gets_a_status_without_a_body() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let many: String = (0..200).map(|number| format!("X-{number}: x\r\n")).collect();
    for (request, status) in [
        ("this is not HTTP\r\n\r\n".to_owned(), 400),
        (format!("GET /livez HTTP/1.1\r\nHost: t\r\n{many}\r\n"), 431),
    ] {
        let answer = app.raw(&[request.as_bytes()]).await;
        assert_eq!((answer.status, answer.text.as_str()), (status, ""), "{answer:?}");
        assert_eq!((answer.header("x-request-id"), answer.header("content-type")), (None, None));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn media_types_other_than_json_return_415() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    for (path, wrong, words) in [
        ("/ingest", "text/plain", "send JSON with Content-Type: application/json"),
        ("/ingest", "application/x-www-form-urlencoded", "send JSON with Content-Type: application/json"),
        ("/ingest", "application/x-ndjson", "send JSON with Content-Type: application/json"),
        (
            "/ingest",
            "application/json; charset=utf-16",
            r#"charset "utf-16" is not supported: send the body in UTF-8"#,
        ),
        ("/ingest/batch", "text/plain", "or one event a line with application/x-ndjson"),
        ("/ingest/batch", "application/json; charset=latin1", r#"charset "latin1" is not supported"#),
        ("/ingest/batch", "application/x-ndjson; charset=latin1", r#"charset "latin1" is not supported"#),
    ] {
        let answer = app.request("POST", path, &[("Content-Type", wrong)], GOOD).await;
        assert_says(&answer.problem(415, false), &[words]);
    }
    let compressed = [("Content-Type", "application/json"), ("Content-Encoding", "br")];
    app.request("POST", "/ingest", &compressed, GOOD).await.problem(415, false);
    assert_eq!(app.request("POST", "/ingest", &[], GOOD).await.status, 202, "as in the original system");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_does_not_arrive_returns_408() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("REQUEST_TIMEOUT_MS", "150")]).await;
    let began = Instant::now();
    let head = b"POST /ingest HTTP/1.1\r\nHost: t\r\nContent-Length: 50\r\n\r\n{\"source\":";
    let answer = app.raw(&[head]).await;
    assert_says(&answer.problem(408, true), &["150 ms"]);
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_sends_too_large_a_body_receives_the_413() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("MAX_PAYLOAD_BYTES", "1000")]).await;
    let body =
        |bytes: usize| format!(r#"{{"source":"manual","payload":{{"x":"{}"}}}}"#, "y".repeat(bytes - 38));
    assert_eq!(body(1000).len(), 1000);
    assert_eq!(app.ingest(&body(1000)).await.status, 202);
    assert_says(&app.ingest(&body(1001)).await.problem(413, false), &["1000 bytes", "MAX_PAYLOAD_BYTES"]);
    // This client reads the response only after it has sent the whole body.
    app.ingest(&body(1_000_000)).await.problem(413, false);
    let chunk = format!("{:x}\r\n{}\r\n", 60_000, "z".repeat(60_000));
    let chunked = format!(
        "POST /ingest HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n"
    );
    app.raw(&[chunked.as_bytes()]).await.problem(413, false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_expects_100_continue_is_rejected_before_the_body() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let head =
        b"POST /ingest HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n";
    let began = Instant::now();
    app.raw(&[head]).await.problem(413, false);
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_poll_parameters_return_400_or_422() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let poll = async |query: &str| app.post(&format!("/ingest/adsbdb/poll?{query}")).await;
    assert_says(&poll("interval_sec=0").await.problem(400, false), &["interval_sec", "above 0"]);
    assert_says(&poll("duration_sec=-1").await.problem(400, false), &["duration_sec", "above 0"]);
    let body = poll("interval_sec=x&duration_sec=1e300").await.problem(422, false);
    assert_eq!(body["errors"][0]["loc"], json!(["query", "interval_sec"]));
    assert_eq!(body["errors"][1]["loc"], json!(["query", "duration_sec"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_job_rejects_other_parameters_and_a_body() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let path = "/ingest/adsbdb/poll?duration_sec=60";
    let both = "interval_sec and duration_sec";
    for query in ["interval=2", "duration_sec=1&count=5"] {
        let body = app.post(&format!("/ingest/adsbdb/poll?{query}")).await.problem(400, false);
        assert_says(&body, &["unknown parameter", both]);
    }
    for body in [r#"{"interval_sec":5}"#, "interval_sec=5", " ", &"x".repeat(900 * 1024)] {
        assert_says(&app.request("POST", path, &[], body).await.problem(400, false), &["has a body", both]);
    }
    let head = format!("POST {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n");
    for rest in [
        "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "Expect: 100-continue\r\nContent-Length: 2\r\n\r\n",
    ] {
        let request = format!("{head}{rest}");
        assert_says(&app.raw(&[request.as_bytes()]).await.problem(400, false), &["has a body", both]);
    }
    assert_eq!(app.get("/ingest/adsbdb/poll").await.json()["jobs"], json!([]));
    let empty = format!("{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    assert_eq!(app.raw(&[empty.as_bytes()]).await.status, 202, "an empty body is allowed");
    assert_eq!(app.post("/ingest/adsbdb/poll?").await.status, 202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_poll_jobs_disabled_the_429_is_not_retryable() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("MAX_POLL_JOBS", "0")]).await;
    assert_says(&app.post("/ingest/adsbdb/poll").await.problem(429, false), &["MAX_POLL_JOBS is 0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_error_names_the_format_of_a_body_that_is_not_json() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let utf_16: Vec<u8> = GOOD.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let json = [("Content-Type", "application/json")];
    let lines = [("Content-Type", "application/x-ndjson")];
    let event = |payload: &str| format!(r#"{{"source":"manual","payload":{{"a":{payload}}}}}"#).into_bytes();
    for (text, words) in [
        (b"\x1f\x8b\x08\0\0\0\0\0".to_vec(), "compressed with gzip: send it with Content-Encoding: gzip"),
        (b"\x28\xb5\x2f\xfd\0\0\0\0".to_vec(), "compressed with zstd: send it with Content-Encoding: zstd"),
        ([b"\xff\xfe", &utf_16[..]].concat(), "in UTF-16 or UTF-32: send it in UTF-8"),
        (utf_16, "in UTF-16 or UTF-32: send it in UTF-8"),
    ] {
        assert_says(&app.post_bytes("/ingest", &json, &text).await.problem(400, false), &[words]);
        for headers in [json, lines] {
            let answer = app.post_bytes("/ingest/batch", &headers, &text).await;
            answer.problem(400, false);
            assert_eq!(answer.statuses(), [400], "one error for the body, not one per line");
            assert_says(&answer.result(0), &["the batch cannot be read", words]);
        }
    }
    let marked = format!("\u{feff}{GOOD}");
    assert_says(&app.ingest(&marked).await.problem(400, false), &["byte order mark", "send it without"]);
    let array = format!("\u{feff}[{GOOD}]");
    let answer = app.request("POST", "/ingest/batch", &json, &array).await;
    answer.problem(400, false);
    assert_says(&answer.result(0), &["begins with a byte order mark: send it without"]);
    let answer = app.batch(&[&marked, GOOD]).await;
    assert_eq!(answer.statuses(), [400, 202], "only the first line has the mark");
    assert_says(&answer.result(0), &["byte order mark", "send it without"]);
    for number in ["NaN", "Infinity", "-Infinity"] {
        let words = "NaN and Infinity are not JSON";
        let body = app.post_bytes("/ingest", &json, &event(number)).await.problem(400, false);
        assert_says(&body, &[words, "line 1"]);
        let array = [b"[", &event(number)[..], b"]"].concat();
        let answer = app.post_bytes("/ingest/batch", &json, &array).await;
        assert_says(&answer.result(0), &[words]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalid_chunk_does_not_affect_the_next_request() {
    let cluster = Cluster::start();
    let app: Application = cluster.application(&[]).await;
    let broken = b"POST /ingest HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n";
    app.raw(&[broken]).await.problem(400, false);
    assert_eq!(app.ingest(GOOD).await.status, 202);
}
