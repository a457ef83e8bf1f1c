//! Slow and silent clients: their connections are closed on a timeout, and others are not affected.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::application::{Application, Cluster, PATIENCE};

const EVENT: &str = r#"{"source":"manual","payload":{}}"#;
const LIMIT: Duration = Duration::from_millis(700);
const SETTINGS: &[(&str, &str)] = &[("REQUEST_TIMEOUT_MS", "700")];

/// Sends `start` at once and `rest` byte by byte. Returns the response and the duration.
async fn send_slowly(app: &Application, start: &str, rest: &str) -> (String, Duration) {
    let began = Instant::now();
    let (mut reader, mut writer) = TcpStream::connect(app.address).await.unwrap().into_split();
    writer.write_all(start.as_bytes()).await.unwrap();
    let bytes: Vec<u8> = rest.bytes().collect();
    let send = async {
        for byte in bytes {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if writer.write_all(&[byte]).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    let read = async {
        // A closed connection may end with a reset.
        _ = reader.read_to_end(&mut answer).await;
    };
    tokio::select! {
        () = send => {}
        ended = tokio::time::timeout(PATIENCE, read) => ended.expect("an end in time"),
    }
    (String::from_utf8(answer).unwrap(), began.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_heads_and_bodies_time_out_and_do_not_affect_others() {
    let cluster = Cluster::start();
    let app = cluster.application(SETTINGS).await;
    let long = "x".repeat(1000);
    let head = "POST /ingest HTTP/1.1\r\nHost: t\r\nContent-Length: 1000\r\n\r\n{";
    let slow_heads = (0..50).map(|_| send_slowly(&app, "POST /ingest HTTP/1.1\r\nHo", &long));
    let slow_bodies = (0..50).map(|_| send_slowly(&app, head, &long));
    let others = async {
        let began = Instant::now();
        while began.elapsed() < LIMIT * 2 {
            let asked = Instant::now();
            assert_eq!(app.ingest(EVENT).await.status, 202);
            assert!(asked.elapsed() < LIMIT / 2, "{:?}", asked.elapsed());
        }
    };
    let (heads, bodies, ()) =
        tokio::join!(futures::future::join_all(slow_heads), futures::future::join_all(slow_bodies), others);
    for (answer, took) in heads {
        assert_eq!(answer, "");
        assert!(took >= LIMIT && took < LIMIT * 3, "{took:?}");
    }
    for (answer, took) in bodies {
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.contains("connection: close") && answer.contains("within 700 ms"), "{answer}");
        assert!(took >= LIMIT && took < LIMIT * 3, "{took:?}");
    }
    assert_eq!(app.metric(r#"slipstream_connections_cut_total{step="head"}"#).await, Some(50.0));
    assert_eq!(app.metric("slipstream_requests_in_flight").await, Some(0.0));
    assert_eq!(app.metric("slipstream_connections").await, Some(1.0), "the connection of this query");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_can_be_idle_for_longer_than_the_request_timeout() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("REQUEST_TIMEOUT_MS", "200"), ("IDLE_TIMEOUT_MS", "1500")]).await;
    let request = b"GET /livez HTTP/1.1\r\nHost: t\r\n\r\n";
    let mut connection = TcpStream::connect(app.address).await.unwrap();
    let mut buffer = [0; 1024];
    for pause_ms in [600, 600] {
        connection.write_all(request).await.unwrap();
        assert_ne!(connection.read(&mut buffer).await.unwrap(), 0);
        let silence = tokio::time::timeout(Duration::from_millis(pause_ms), connection.read(&mut buffer));
        assert!(silence.await.is_err(), "the connection stays open");
    }
    let began = Instant::now();
    let end = tokio::time::timeout(PATIENCE, connection.read(&mut buffer)).await.unwrap();
    assert_eq!(end.unwrap(), 0);
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_its_responses_is_disconnected() {
    let cluster = Cluster::start();
    let app = cluster.application(SETTINGS).await;
    let mut connection = TcpStream::connect(app.address).await.unwrap();
    let requests = b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n".repeat(500);
    // The client does not read the responses, so the producer stops to read requests.
    let send = async { while connection.write_all(&requests).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, send).await.expect("the connection is closed");
    assert_eq!(app.metric(r#"slipstream_connections_cut_total{step="answer"}"#).await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_is_too_long_returns_431() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let (mut reader, mut writer) = TcpStream::connect(app.address).await.unwrap().into_split();
    writer.write_all(b"GET /livez HTTP/1.1\r\nHost: t\r\nX: ").await.unwrap();
    let endless = async { while writer.write_all(&[b'x'; 4096]).await.is_ok() {} };
    let mut answer = Vec::new();
    let ended = async { tokio::join!(endless, reader.read_to_end(&mut answer)) };
    _ = tokio::time::timeout(PATIENCE, ended).await.expect("an end in time");
    // A reset may overtake the response.
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
}
