//! An error that ends a batch is its last result. Its index is that of the first unread event.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::application::{Answer, Application, Cluster, assert_says};

const EVENT: &str = r#"{"id":"a-1","source":"manual","payload":{}}"#;
const ARRAY: [(&str, &str); 1] = [("Content-Type", "application/json")];

/// Sends the body in one HTTP chunk, so that the producer does not know its length in advance.
async fn chunked(app: &Application, body: &str) -> Answer {
    let head = "POST /ingest/batch HTTP/1.1\r\nHost: t\r\nContent-Type: application/x-ndjson\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    app.raw(&[format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).as_bytes()]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_with_too_many_events_is_accepted_up_to_the_limit() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("MAX_BATCH_EVENTS", "3")]).await;
    assert_eq!(app.batch(&[EVENT; 3]).await.status, 202);
    let response = app.batch(&[EVENT; 5]).await;
    assert_eq!((response.status, response.statuses()), (207, vec![202, 202, 202, 413]));
    let expected = json!({
        "index": 3, "status": 413, "retryable": false,
        "detail": "the batch has more than 3 events (MAX_BATCH_EVENTS): send the rest in another batch",
    });
    assert_eq!(response.result(3), expected);
    assert_eq!(response.header("connection"), Some("close"));
    assert_eq!((app.counters.accepted(), app.counters.rejected()), (6, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_too_long_is_rejected_or_accepted_up_to_the_limit() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("MAX_BATCH_BYTES", "100")]).await;
    let body = [EVENT; 3].join("\n");
    assert!(body.len() > 100);
    // Content-Length is above the limit: nothing is accepted.
    let response = app.batch(&[EVENT; 3]).await;
    assert_says(&response.problem(413, false), &["longer than 100 bytes", "MAX_BATCH_BYTES"]);
    assert_eq!((response.json().get("results"), app.counters.accepted()), (None, 0));
    let response = chunked(&app, &body).await;
    assert_eq!((response.status, response.statuses()), (207, vec![202, 202, 413]));
    assert_says(&response.result(2), &["longer than 100 bytes", "MAX_BATCH_BYTES"]);
    assert_eq!(response.header("connection"), Some("close"));
    let response = chunked(&app, &" ".repeat(500_000)).await;
    response.problem(413, false);
    assert_eq!(response.statuses(), [413], "the client gets the response although it sent much more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_body_stalls_ends_with_a_408() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("REQUEST_TIMEOUT_MS", "300")]).await;
    let began = Instant::now();
    let head = "POST /ingest/batch HTTP/1.1\r\nHost: t\r\nContent-Type: application/x-ndjson\r\n\
                Content-Length: 500\r\n\r\n";
    let response = app.raw(&[format!("{head}{EVENT}\n{EVENT}\n{{\"id\":").as_bytes()]).await;
    assert_eq!((response.status, response.statuses()), (207, vec![202, 202, 408]));
    assert_eq!(response.result(2)["retryable"], true);
    assert_says(&response.result(2), &["300 ms"]);
    let response = app.raw(&[head.as_bytes()]).await;
    response.problem(408, true);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_array_with_an_error_between_its_events_ends_with_a_400() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let post = async |body: &str| app.request("POST", "/ingest/batch", &ARRAY, body).await;
    for (body, words) in [
        (format!("[{EVENT},{EVENT},"), "the array has no end"),
        (format!("[{EVENT},{EVENT},{{\"id\":\"c"), "the array has no end"),
        (format!("[{EVENT},{EVENT}]x"), "something follows the array"),
    ] {
        let response = post(&body).await;
        assert_eq!((response.status, response.statuses()), (207, vec![202, 202, 400]), "{body}");
        assert_says(&response.result(2), &["the batch cannot be read", words]);
    }
    let response = post(&EVENT.repeat(10_000)).await;
    response.problem(400, false);
    assert_says(&response.result(0), &["not a JSON array", "application/x-ndjson"]);
    let broken = format!(
        "POST /ingest/batch HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n[{EVENT},\r\nZZ\r\n",
        EVENT.len() + 2
    );
    let response = app.raw(&[broken.as_bytes()]).await;
    assert_eq!((response.status, response.statuses()), (207, vec![202, 400]));
    assert_says(&response.result(1), &["the body cannot be read"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_without_events_is_a_400() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    for (headers, body) in [
        ([("Content-Type", "application/x-ndjson")], ""),
        ([("Content-Type", "application/x-ndjson")], "\n \r\n"),
        (ARRAY, " [ ] "),
    ] {
        let response = app.request("POST", "/ingest/batch", &headers, body).await;
        assert_says(&response.problem(400, false), &["the batch is empty"]);
    }
    let response = app.request("POST", "/ingest/batch", &ARRAY, "").await;
    response.problem(400, false);
    assert_says(&response.result(0), &["there is no array"]);
    let response = app.request("GET", "/ingest/batch", &[], "").await;
    response.problem(405, false);
    assert_eq!(response.header("allow"), Some("POST"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_sent_while_the_body_arrives() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let mut connection = TcpStream::connect(app.address).await.unwrap();
    let head = "POST /ingest/batch HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\
                Content-Type: application/x-ndjson\r\n";
    let length = 2 * EVENT.len() + 1;
    let first = format!("{head}Content-Length: {length}\r\n\r\n{EVENT}\n");
    connection.write_all(first.as_bytes()).await.unwrap();
    let began = Instant::now();
    while app.metric("slipstream_kafka_delivery_seconds_count").await != Some(1.0) {
        assert!(began.elapsed() < Duration::from_secs(10), "the first event waits for the second");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    connection.write_all(EVENT.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    connection.read_to_end(&mut response).await.unwrap();
    let response = Answer::parse(&response);
    assert_eq!((response.status, response.statuses()), (202, vec![202, 202]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_sends_5_mb_after_the_error_of_a_batch_gets_all_results() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let body = format!("[{}]x{}", vec![EVENT; 2000].join(","), " ".repeat(5_000_000));
    let head = "POST /ingest/batch HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n";
    for framing in [
        format!("Content-Length: {}\r\n\r\n{body}", body.len()),
        format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
    ] {
        let response = app.raw(&[format!("{head}{framing}").as_bytes()]).await;
        let statuses = response.statuses();
        assert_eq!((response.status, statuses.len(), statuses[2000]), (207, 2001, 400));
        assert!(statuses[..2000].iter().all(|status| *status == 202));
    }
}
