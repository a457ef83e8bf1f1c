//! Brokers that are away, slow, or refuse: what is answered is true, and work resumes by itself.

use std::time::{Duration, Instant};

use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Wire};
use serde_json::json;

use crate::application::{Application, assert_says, unique};
use crate::mock::Cluster;

const NAMED: &str = r#"{"id":"a-1","source":"manual","payload":{}}"#;
const UNNAMED: &str = r#"{"source":"manual","payload":{}}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_broker_is_away_the_answer_is_503_at_once_and_work_resumes_by_itself() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    assert_eq!(app.ingest(NAMED).await.status, 202);
    assert_eq!(app.get("/health").await.json()["status"], "ok");

    cluster.mock.broker_down(-1).unwrap();
    assert!(app.readyz(503).await < Duration::from_secs(1), "known too late");
    let began = Instant::now();
    let (seconds, body) = app.ingest(NAMED).await.retry_after(503);
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    assert_eq!((seconds, &body["id"]), (1, &json!("a-1")));
    assert_says(&body, &["nothing was stored", "kafka does not answer"]);
    let (_, body) = app.ingest(UNNAMED).await.retry_after(503);
    assert_eq!(body["id"].as_str().map(str::len), Some(36), "a generated id is told too");
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
async fn a_broker_that_was_never_there_is_waited_for() {
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
async fn a_missing_topic_is_named() {
    let cluster = Cluster::start();
    // The mock cluster cannot make topics.
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
async fn an_acknowledgement_that_does_not_come_is_a_504_with_the_id() {
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
    let later = async {
        while app.get("/health").await.json()["counters"]["kafka_queue_records"] != 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let began = Instant::now();
        let (_, body) = app.ingest(UNNAMED).await.retry_after(503);
        assert!(began.elapsed() < Duration::from_millis(500));
        body
    };
    let (first, body) = tokio::join!(app.ingest(NAMED), later);
    first.problem(504, true);
    assert_says(&body, &["nothing was stored", "too many events"]);
    assert!(body["id"].is_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_of_the_broker_is_a_503_because_nothing_was_stored() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    cluster.mock.request_errors(Api::Produce, &[Wire::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED]);
    let (_, body) = app.ingest(NAMED).await.retry_after(503);
    assert_says(&body, &["nothing was stored", "uthorization"]);
    assert_eq!(body["id"], "a-1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_passing_error_of_the_broker_or_the_connection_is_not_seen_by_the_client() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let passing = [
        Wire::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        Wire::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        Wire::RD_KAFKA_RESP_ERR__TRANSPORT,
    ];
    cluster.mock.request_errors(Api::Produce, &passing);
    assert_eq!(app.ingest(NAMED).await.status, 202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_is_too_large_only_if_the_broker_refuses_it_alone() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let too_large = Wire::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    cluster.mock.request_errors(Api::Produce, &[too_large]);
    assert_eq!(app.ingest(NAMED).await.status, 202, "its batch was too large, the record is not");
    cluster.mock.request_errors(Api::Produce, &[too_large, too_large]);
    assert_says(&app.ingest(NAMED).await.problem(413, false), &["kafka's limit"]);
    assert_eq!(app.ingest(NAMED).await.status, 202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fatal_error_of_the_client_is_an_unknown_outcome_and_the_client_is_replaced() {
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
async fn what_kafka_takes_for_a_repetition_without_saying_where_it_is_is_an_unknown_outcome() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let repetition = Wire::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER;
    cluster.mock.request_errors(Api::Produce, &[repetition]);
    let body = app.ingest(NAMED).await.problem(504, true);
    assert_says(&body, &["may not be stored"]);
    assert_eq!(body["id"], "a-1");
    cluster.mock.request_errors(Api::Produce, &[repetition]);
    let answer = app.batch(&[NAMED]).await;
    assert_eq!(answer.statuses(), [504], "{answer:?}");
    assert_eq!(app.ingest(NAMED).await.status, 202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_the_broker_disowns_is_replaced() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    for refusal in [Wire::RD_KAFKA_RESP_ERR_PRODUCER_FENCED, Wire::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH] {
        cluster.mock.request_errors(Api::Produce, &[refusal]);
        assert_eq!(app.ingest(NAMED).await.problem(504, true)["id"], "a-1");
        assert!(app.readyz(503).await < Duration::from_secs(1));
        assert_resumes(&app).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_replaced_is_not_ready() {
    let cluster = Cluster::start();
    // Each new client asks for a producer id, and is refused for good.
    let refusals = [Wire::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED; 3];
    cluster.mock.request_errors(Api::InitProducerId, &refusals);
    let app = Application::start_on(&cluster.mock.bootstrap_servers(), &cluster.topic, &[]).await;
    let began = Instant::now();
    while !app.get("/readyz").await.text.contains("fatal error") {
        assert!(began.elapsed() < Duration::from_secs(10));
    }
    app.readyz(503).await;
    assert_resumes(&app).await;
    app.readyz(200).await;
}

/// Refused as not stored until an event is accepted.
async fn assert_resumes(app: &Application) {
    let began = Instant::now();
    loop {
        let answer = app.ingest(NAMED).await;
        if answer.status == 202 {
            break;
        }
        answer.retry_after(503);
        assert!(began.elapsed() < Duration::from_secs(15), "{answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
