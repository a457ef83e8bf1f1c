//! Batches while the broker is unavailable or slow, or rejects records. Each result is as reliable
//! as the response to a single event.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Wire};
use serde_json::json;

use crate::application::{Application, Cluster, assert_says, unique};
use crate::real_broker::shared;

const NAMED: &str = r#"{"id":"a-1","source":"manual","payload":{}}"#;
const UNNAMED: &str = r#"{"source":"manual","payload":{}}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_broker_is_unavailable_each_event_is_a_503_at_once() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    cluster.mock.broker_down(-1).unwrap();
    app.readyz(503).await;
    let began = Instant::now();
    let response = app.batch(&[NAMED, UNNAMED]).await;
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    let (seconds, body) = response.retry_after(503);
    assert_says(&body, &["no event was accepted"]);
    assert_eq!((seconds, response.statuses()), (1, vec![503, 503]));
    let (named, unnamed) = (response.result(0), response.result(1));
    assert_eq!((&named["id"], &named["retryable"]), (&json!("a-1"), &json!(true)));
    assert_says(&named, &["nothing was stored", "kafka does not answer"]);
    assert_eq!(unnamed["id"].as_str().map(str::len), Some(36), "a generated id is in the result too");
    let response = app.batch(&[NAMED, "oops"]).await;
    assert_eq!((response.status, response.statuses()), (207, vec![503, 400]));
    assert_eq!(app.metric(r#"slipstream_events_rejected_total{reason="kafka_away"}"#).await, Some(3.0));
    let health = app.get("/health").await.json();
    assert!(health["last_error"].as_str().unwrap().contains("nothing was stored"), "{health}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_without_acknowledgement_is_a_504_with_its_id() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("DELIVERY_TIMEOUT_MS", "1000")]).await;
    cluster.mock.broker_round_trip_time(-1, Duration::from_secs(60)).unwrap();
    let began = Instant::now();
    let response = app.batch(&[NAMED, UNNAMED, "{}"]).await;
    assert!(began.elapsed() < Duration::from_millis(2500), "{:?}", began.elapsed());
    assert_eq!((response.status, response.statuses()), (207, vec![504, 504, 422]));
    assert_eq!(response.result(0)["id"], "a-1");
    assert_says(&response.result(0), &["may or may not be stored", "same id is safe"]);
    assert_eq!(response.result(1)["id"].as_str().map(str::len), Some(36));
    let response = app.batch(&[NAMED]).await;
    response.problem(504, true);
    assert_eq!((app.counters.unconfirmed(), app.counters.rejected()), (3, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_delays_a_batch_until_the_delivery_timeout() {
    let cluster = Cluster::start();
    let full = [("KAFKA_PROPERTIES", "queue.buffering.max.messages=1"), ("DELIVERY_TIMEOUT_MS", "1000")];
    let app = cluster.application(&full).await;
    let response = app.batch(&[NAMED; 20]).await;
    assert_eq!((response.status, response.statuses()), (202, vec![202; 20]), "sent one after another");
    cluster.mock.broker_round_trip_time(-1, Duration::from_secs(60)).unwrap();
    let response = app.batch(&[NAMED, NAMED]).await;
    assert_eq!(response.status, 207);
    assert_says(&response.result(0), &["may or may not be stored"]);
    let second = response.result(1);
    match second["status"].as_u64() {
        Some(503) => assert_says(&second, &["nothing was stored", "too many events"]),
        // The queue had room again when the first event timed out.
        Some(504) => assert_says(&second, &["may or may not be stored"]),
        _ => panic!("{second}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejection_by_the_broker_is_a_503_for_each_event() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    cluster.mock.request_errors(Api::Produce, &[Wire::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED; 8]);
    let response = app.batch(&[NAMED, NAMED]).await;
    response.retry_after(503);
    assert_says(&response.result(1), &["nothing was stored", "uthorization"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transient_error_of_the_broker_is_hidden_from_the_client() {
    let cluster = Cluster::start();
    // The mock cluster accepts a request after an earlier one failed. A broker rejects it.
    let sequential = [("KAFKA_PROPERTIES", "max.in.flight.requests.per.connection=1")];
    let app = cluster.application(&sequential).await;
    let transient = [
        Wire::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        Wire::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        Wire::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
    ];
    cluster.mock.request_errors(Api::Produce, &transient);
    let response = app.batch(&[UNNAMED; 50]).await;
    assert_eq!(response.status, 202, "{response:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_rejected_with_their_librdkafka_batch_are_sent_again_alone() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    cluster.mock.request_errors(Api::Produce, &[Wire::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
    let began = Instant::now();
    let response = app.batch(&[NAMED; 100]).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!((response.status, response.statuses()), (202, vec![202; 100]));
    let mut offsets: Vec<i64> = response.json()["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["offset"].as_i64().unwrap())
        .collect();
    offsets.sort_unstable();
    assert!(offsets.windows(2).all(|pair| pair[0] < pair[1]), "each event is stored once: {offsets:?}");
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_record_above_the_brokers_limit_is_rejected_for_its_size() {
    let (bootstrap, topic) = (shared().await, unique("small"));
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap();
    let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set("max.message.bytes", "3000");
    admin.create_topics([&new], &AdminOptions::new()).await.unwrap();
    let app = Application::start_on(bootstrap, &topic, &[]).await.ready().await;
    let event = |bytes: usize| format!(r#"{{"source":"manual","payload":{{"x":"{}"}}}}"#, "y".repeat(bytes));
    let (small, large) = (event(500), event(4000));
    let events: Vec<&str> = (0..200).map(|number| if number == 30 { &*large } else { &*small }).collect();
    let response = app.batch(&events).await;
    assert_eq!(response.status, 207);
    for (number, status) in response.statuses().into_iter().enumerate() {
        assert_eq!(status, if number == 30 { 413 } else { 202 }, "{number}");
    }
    assert_says(&response.result(30), &["kafka's limit"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_producer_id_is_rejected_is_replaced_during_a_batch() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    cluster.mock.request_errors(Api::Produce, &[Wire::RD_KAFKA_RESP_ERR_PRODUCER_FENCED]);
    app.batch(&[NAMED]).await.problem(504, true);
    let began = Instant::now();
    loop {
        let response = app.batch(&[NAMED; 10]).await;
        if response.status == 202 {
            break;
        }
        assert!(response.statuses().iter().all(|status| matches!(status, 202 | 503)), "{response:?}");
        assert!(began.elapsed() < Duration::from_secs(15), "{response:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g7_an_unfinished_batch_ends_truthfully_within_10_s_of_the_shutdown() {
    let cluster = Cluster::start();
    let slow = [("DELIVERY_TIMEOUT_MS", "60000"), ("REQUEST_TIMEOUT_MS", "60000")];
    let app = cluster.application(&slow).await;
    assert_eq!(app.ingest(NAMED).await.status, 202);
    cluster.mock.broker_round_trip_time(-1, Duration::from_secs(60)).unwrap();
    let head = "POST /ingest/batch HTTP/1.1\r\nHost: t\r\nContent-Type: application/x-ndjson\r\n\
                Content-Length: 500\r\n\r\n";
    let half = format!("{head}{NAMED}\n{{\"id\":");
    let parts: [&[u8]; 1] = [half.as_bytes()];
    let began = Instant::now();
    let stop = async {
        while app.get("/health").await.json()["counters"]["kafka_queue_records"] != 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        app.begin_to_stop();
        app.readyz(503).await;
        app.batch(&[NAMED]).await.retry_after(503);
    };
    let (response, ()) = tokio::join!(app.raw(&parts), stop);
    assert_eq!((response.status, response.statuses()), (207, vec![504, 503]), "{response:?}");
    assert_eq!(response.result(0)["id"], "a-1");
    assert_says(&response.result(1), &["nothing was stored", "shutting down"]);
    app.stop().await;
    assert!(began.elapsed() < Duration::from_secs(11), "{:?}", began.elapsed());
}
