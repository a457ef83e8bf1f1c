//! Batches against a real broker that is killed: each accepted event is stored.

use std::fmt::Write;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::application::{Answer, Application, PATIENCE};
use crate::real_broker::assert_kept;

/// A batch request whose body is written in parts.
struct Upload {
    connection: TcpStream,
    events: usize,
}

impl Upload {
    async fn begin(app: &Application) -> Self {
        let mut connection = TcpStream::connect(app.address).await.unwrap();
        let head = "POST /ingest/batch HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\
                    Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n";
        connection.write_all(head.as_bytes()).await.unwrap();
        Self { connection, events: 0 }
    }

    async fn write(&mut self, events: usize) {
        let mut lines = String::new();
        for number in self.events..self.events + events {
            writeln!(lines, r#"{{"id":"n-{number}","source":"manual","payload":{{}}}}"#).unwrap();
        }
        self.events += events;
        let chunk = format!("{:x}\r\n{lines}\r\n", lines.len());
        self.connection.write_all(chunk.as_bytes()).await.unwrap();
    }

    async fn end(mut self) -> Answer {
        self.connection.write_all(b"0\r\n\r\n").await.unwrap();
        let mut response = Vec::new();
        self.connection.read_to_end(&mut response).await.unwrap();
        Answer::parse(&response)
    }
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_a_broker_killed_during_a_batch_loses_no_accepted_event() {
    let broker = testkit::servers::start_broker().await;
    let app = Application::start(&broker.bootstrap(), &[("DELIVERY_TIMEOUT_MS", "5000")]).await.ready().await;
    let mut upload = Upload::begin(&app).await;
    upload.write(1000).await;
    let began = Instant::now();
    while app.metric("slipstream_kafka_delivery_seconds_count").await != Some(1000.0) {
        assert!(began.elapsed() < PATIENCE, "no event is sent");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Events in flight at the kill, and events after it.
    upload.write(3000).await;
    broker.kill();
    upload.write(1000).await;
    app.readyz(503).await;
    upload.write(1000).await;
    let written = upload.events;
    let response = upload.end().await;
    let statuses = response.statuses();
    assert_eq!((response.status, statuses.len()), (207, written));
    assert!(statuses.iter().all(|status| matches!(status, 202 | 503 | 504)), "{statuses:?}");
    assert!(
        statuses[written - 1000..].iter().all(|status| *status == 503),
        "kafka is known to be unavailable"
    );
    assert!(statuses[..1000].iter().all(|status| *status == 202), "acknowledged before the kill");

    broker.restart().await.unwrap();
    let accepted = response.json()["results"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|r| r["status"] == 202)
        .cloned()
        .collect();
    assert_kept(&broker.bootstrap(), &app.topic, accepted).await;
    app.readyz(200).await;
    assert_eq!(app.batch(&[r#"{"source":"manual","payload":{}}"#]).await.status, 202);
}
