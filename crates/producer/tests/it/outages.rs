//! Brokers that are unavailable, slow or reject records: responses are true, and work resumes
//! without a restart. Shutdown (G7): requests in flight are finished, or return the outcome that is
//! known, within 10 s.

use std::time::{Duration, Instant};

use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Wire};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::application::{Application, Cluster, assert_says, unique};

const NAMED: &str = r#"{"id":"a-1","source":"manual","payload":{}}"#;
const UNNAMED: &str = r#"{"source":"manual","payload":{}}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unavailable_broker_is_a_503_at_once_and_work_resumes_by_itself() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    assert_eq!(app.ingest(NAMED).await.status, 202);
    assert_eq!(app.get("/health").await.json()["status"], "ok");

    cluster.mock.broker_down(-1).unwrap();
    assert!(app.readyz(503).await < Duration::from_secs(1), "the outage was detected too late");
    let began = Instant::now();
    let (seconds, body) = app.ingest(NAMED).await.retry_after(503);
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    assert_eq!((seconds, &body["id"]), (1, &json!("a-1")));
    assert_says(&body, &["nothing was stored", "kafka does not answer"]);
    let (_, body) = app.ingest(UNNAMED).await.retry_after(503);
    assert_eq!(body["id"].as_str().map(str::len), Some(36), "a generated id is in the response too");
    app.post("/ingest/adsbdb").await.retry_after(503);

    let health = app.get("/health").await;
    assert_eq!(health.status, 200);
    let health = health.json();
    assert_eq!((&health["status"], &health["counters"]["accepted"]), (&json!("degraded"), &json!(1)));
    assert!(health["cause"].as_str().unwrap().contains("kafka does not answer"), "{health}");
    assert!(health["last_error"].as_str().unwrap().contains("nothing was stored"), "{health}");
    assert_eq!(app.metric("slipstream_kafka_up").await, Some(0.0));
    assert_eq!(app.metric(r#"slipstream_events_rejected_total{reason="kafka_away"}"#).await, Some(3.0));

    cluster.mock.broker_up(-1).unwrap();
    let returned = Instant::now();
    while app.ingest(NAMED).await.status != 202 {
        assert!(returned.elapsed() < Duration::from_secs(5), "work did not resume");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    app.readyz(200).await;
    assert_eq!(app.get("/health").await.json()["status"], "ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_was_never_available_is_a_503_and_no_exit() {
    let app = Application::start("127.0.0.1:9", &[]).await;
    let began = Instant::now();
    let (_, body) = app.ingest(NAMED).await.retry_after(503);
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_says(&body, &["nothing was stored", "kafka"]);
    app.get("/readyz").await.retry_after(503);
    let alive = app.get("/livez").await;
    assert_eq!((alive.status, alive.header("content-type")), (200, Some("application/json")));
    assert_eq!(alive.json(), json!({"status": "alive"}));
    assert!(app.stop().await < Duration::from_secs(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_topic_is_named_in_readyz_and_in_the_503() {
    let cluster = Cluster::start();
    // The mock cluster cannot create topics.
    let topic = unique("missing");
    let app = Application::start_on(&cluster.mock.bootstrap_servers(), &topic, &[]).await;
    let began = Instant::now();
    loop {
        let (_, body) = app.get("/readyz").await.retry_after(503);
        if body["detail"].as_str().unwrap().contains(&topic) {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{body}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_says(&app.ingest(NAMED).await.retry_after(503).1, &[&topic, "nothing was stored"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_acknowledgement_is_a_504_with_the_id() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("DELIVERY_TIMEOUT_MS", "1000")]).await;
    cluster.mock.broker_round_trip_time(-1, Duration::from_secs(60)).unwrap();
    let began = Instant::now();
    let (named, unnamed) = tokio::join!(app.ingest(NAMED), app.ingest(UNNAMED));
    assert!(began.elapsed() < Duration::from_millis(1800), "{:?}", began.elapsed());
    let body = named.problem(504, true);
    assert_eq!(body["id"], "a-1");
    assert_says(&body, &["may or may not be stored", "same id is safe"]);
    assert_eq!(unnamed.problem(504, true)["id"].as_str().map(str::len), Some(36));
    let health = app.get("/health").await.json();
    assert_eq!((&health["counters"]["unconfirmed"], &health["counters"]["rejected"]), (&json!(2), &json!(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_is_a_503_at_once() {
    let cluster = Cluster::start();
    let full = [("KAFKA_PROPERTIES", "queue.buffering.max.messages=1"), ("DELIVERY_TIMEOUT_MS", "1500")];
    let app = cluster.application(&full).await;
    cluster.mock.broker_round_trip_time(-1, Duration::from_secs(60)).unwrap();
    let second = async {
        while app.get("/health").await.json()["counters"]["kafka_queue_records"] != 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let began = Instant::now();
        let (_, body) = app.ingest(UNNAMED).await.retry_after(503);
        assert!(began.elapsed() < Duration::from_millis(500));
        body
    };
    let (first, body) = tokio::join!(app.ingest(NAMED), second);
    first.problem(504, true);
    assert_says(&body, &["nothing was stored", "too many events"]);
    assert!(body["id"].is_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejection_by_the_broker_is_a_503_because_nothing_was_stored() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    cluster.mock.request_errors(Api::Produce, &[Wire::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED]);
    let (_, body) = app.ingest(NAMED).await.retry_after(503);
    assert_says(&body, &["nothing was stored", "uthorization"]);
    assert_eq!(body["id"], "a-1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transient_error_of_broker_or_connection_is_hidden_from_the_client() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let transient = [
        Wire::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        Wire::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        Wire::RD_KAFKA_RESP_ERR__TRANSPORT,
    ];
    cluster.mock.request_errors(Api::Produce, &transient);
    assert_eq!(app.ingest(NAMED).await.status, 202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_is_too_large_only_if_the_broker_rejects_it_alone() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let too_large = Wire::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    cluster.mock.request_errors(Api::Produce, &[too_large]);
    assert_eq!(app.ingest(NAMED).await.status, 202, "the librdkafka batch was too large, the record is not");
    cluster.mock.request_errors(Api::Produce, &[too_large, too_large]);
    assert_says(&app.ingest(NAMED).await.problem(413, false), &["kafka's limit"]);
    assert_eq!(app.ingest(NAMED).await.status, 202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fatal_client_error_is_an_unknown_outcome_and_replaces_the_client() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    assert_eq!(app.ingest(NAMED).await.status, 202);
    cluster.mock.request_errors(Api::Produce, &[Wire::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER]);
    let body = app.ingest(NAMED).await.problem(504, true);
    assert_eq!(body["id"], "a-1");
    assert_resumes(&app).await;
    app.readyz(200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicate_sequence_without_an_offset_is_an_unknown_outcome() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let duplicate = Wire::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER;
    cluster.mock.request_errors(Api::Produce, &[duplicate]);
    let body = app.ingest(NAMED).await.problem(504, true);
    assert_says(&body, &["may not be stored"]);
    assert_eq!(body["id"], "a-1");
    cluster.mock.request_errors(Api::Produce, &[duplicate]);
    let response = app.batch(&[NAMED]).await;
    assert_eq!(response.statuses(), [504], "{response:?}");
    assert_eq!(app.ingest(NAMED).await.status, 202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_producer_id_is_rejected_is_replaced() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    for rejection in [Wire::RD_KAFKA_RESP_ERR_PRODUCER_FENCED, Wire::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH]
    {
        cluster.mock.request_errors(Api::Produce, &[rejection]);
        assert_eq!(app.ingest(NAMED).await.problem(504, true)["id"], "a-1");
        assert!(app.readyz(503).await < Duration::from_secs(1));
        assert_resumes(&app).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_client_is_not_ready_until_the_broker_accepts_it() {
    let cluster = Cluster::start();
    // Each new client requests a producer id, and the broker rejects the client.
    let rejections = [Wire::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED; 3];
    cluster.mock.request_errors(Api::InitProducerId, &rejections);
    let app = Application::start_on(&cluster.mock.bootstrap_servers(), &cluster.topic, &[]).await;
    let began = Instant::now();
    while !app.get("/readyz").await.text.contains("fatal error") {
        assert!(began.elapsed() < Duration::from_secs(10));
    }
    app.readyz(503).await;
    assert_resumes(&app).await;
    app.readyz(200).await;
}

/// Checks that events are rejected as not stored until one is accepted.
async fn assert_resumes(app: &Application) {
    let began = Instant::now();
    loop {
        let response = app.ingest(NAMED).await;
        if response.status == 202 {
            break;
        }
        response.retry_after(503);
        assert!(began.elapsed() < Duration::from_secs(15), "{response:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

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
    let began = Instant::now();
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
