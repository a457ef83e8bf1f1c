//! Shutdown (G7): requests in flight are finished, or return the outcome that is known, within 10
//! s.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::application::{Cluster, assert_says};

/// One record per produce request, and one produce request at a time. So each further record waits
/// in the queue.
const ONE_AT_A_TIME: &str =
    "batch.num.messages=1;max.in.flight.requests.per.connection=1;topic.metadata.refresh.interval.ms=-1";
const EVENT: &str = r#"{"id":"a-1","source":"manual","payload":{}}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g7_a_request_in_flight_is_finished_and_a_later_one_rejected() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    assert_eq!(app.ingest(EVENT).await.status, 202);
    cluster.mock.broker_round_trip_time(-1, Duration::from_millis(1500)).unwrap();
    let later = async {
        while app.get("/health").await.json()["counters"]["kafka_queue_records"] != 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        app.begin_to_stop();
        app.readyz(503).await;
        let (_, body) = app.ingest(EVENT).await.retry_after(503);
        assert_says(&body, &["nothing was stored", "shutting down"]);
        assert_eq!(body["id"], "a-1");
        app.post("/ingest/adsbdb").await.retry_after(503);
        app.post("/ingest/adsbdb/poll").await.retry_after(503);
        assert_eq!(app.get("/livez").await.status, 200);
    };
    let (first, ()) = tokio::join!(app.ingest(EVENT), later);
    assert_eq!(first.status, 202, "{first:?}");
    assert!(app.stop().await < Duration::from_secs(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g7_unfinished_requests_return_their_known_outcome_within_10_s() {
    let cluster = Cluster::start();
    let settings = [
        ("KAFKA_PROPERTIES", ONE_AT_A_TIME),
        ("DELIVERY_TIMEOUT_MS", "60000"),
        ("REQUEST_TIMEOUT_MS", "60000"),
    ];
    let app = cluster.application(&settings).await;
    assert_eq!(app.ingest(EVENT).await.status, 202);
    cluster.mock.broker_round_trip_time(-1, Duration::from_secs(60)).unwrap();
    let queued = async |records: u64| {
        while app.get("/health").await.json()["counters"]["kafka_queue_records"] != records {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let stop = async {
        queued(2).await;
        app.begin_to_stop();
    };
    let second = async {
        queued(1).await;
        app.ingest(EVENT).await
    };
    let half_a_body =
        b"POST /ingest HTTP/1.1\r\nHost: t\r\nIdempotency-Key: a-2\r\nContent-Length: 50\r\n\r\n{";
    let began = std::time::Instant::now();
    let parts: [&[u8]; 1] = [half_a_body];
    let (in_flight, queued, reading, ()) = tokio::join!(app.ingest(EVENT), second, app.raw(&parts), stop);
    assert_eq!(in_flight.problem(504, true)["id"], "a-1");
    let (_, body) = queued.retry_after(503);
    assert_says(&body, &["nothing was stored"]);
    assert_eq!(body["id"], "a-1");
    let (_, body) = reading.retry_after(503);
    assert_says(&body, &["shutting down"]);
    assert_eq!(body["id"], "a-2");
    app.stop().await;
    assert!(began.elapsed() < Duration::from_secs(11), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g7_idle_and_silent_connections_do_not_delay_the_shutdown() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let mut idle = TcpStream::connect(app.address).await.unwrap();
    idle.write_all(b"GET /livez HTTP/1.1\r\nHost: t\r\n\r\n").await.unwrap();
    assert_ne!(idle.read(&mut [0; 64]).await.unwrap(), 0);
    let mut silent = TcpStream::connect(app.address).await.unwrap();
    silent.write_all(b"POST /ingest HTT").await.unwrap();
    assert!(app.stop().await < Duration::from_secs(2));
}
