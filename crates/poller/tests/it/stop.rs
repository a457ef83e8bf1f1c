//! Graceful shutdown: immediate without a call in flight.

use std::time::Duration;

use poller::metrics::CallCounts;

use crate::harness::{Poller, until};
use crate::scripted_producer::{Response, ScriptedProducer};

const IMMEDIATELY: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_stop_while_waiting_for_a_tick_is_immediate() {
    let producer = ScriptedProducer::start([Response::accepted()]).await;
    let poller = Poller::start(producer.address, &[("INTERVAL_SEC", "3600"), ("DURATION_SEC", "0")]).await;
    until("the first call", || poller.counts().sent == 1).await;
    let ended = poller.stop().await;
    assert!(!ended.failed() && ended.took < IMMEDIATELY, "{ended:?}");
}

#[tokio::test]
async fn a_stop_while_waiting_for_the_producer_is_immediate_and_clean() {
    let producer = ScriptedProducer::start([Response::accepted()]).await;
    producer.set_ready(false);
    let poller = Poller::start(producer.address, &[]).await;
    until("a readiness check", || producer.readiness_checks() >= 1).await;
    let ended = poller.stop().await;
    assert!(!ended.failed() && ended.took < IMMEDIATELY, "{ended:?}");
    assert_eq!(ended.counts, CallCounts::default());
}

#[tokio::test]
async fn a_stop_during_a_long_retry_after_is_immediate() {
    let producer = ScriptedProducer::start([Response::rejected(503).retry_after(3000)]).await;
    let poller = Poller::start(producer.address, &[("DURATION_SEC", "0")]).await;
    until("the rejection", || poller.counts().failed == 1).await;
    let ended = poller.stop().await;
    assert!(ended.failed() && ended.took < IMMEDIATELY, "calls failed and none succeeded: {ended:?}");
}

#[tokio::test]
async fn a_stop_waits_for_the_response_of_the_call_in_flight() {
    let producer = ScriptedProducer::start([Response::accepted().delayed(Duration::from_millis(500))]).await;
    let poller = Poller::start(producer.address, &[("INTERVAL_SEC", "0.1"), ("DURATION_SEC", "0")]).await;
    until("the call", || !producer.calls().is_empty()).await;
    let ended = poller.stop().await;
    assert!(!ended.failed() && ended.took < Duration::from_secs(3), "{ended:?}");
    let CallCounts { sent, failed, abandoned, .. } = ended.counts;
    assert_eq!((sent, failed, abandoned), (1, 0, 0), "counted, and no further call");
    assert_eq!(producer.calls().len(), 1);
}

#[tokio::test]
async fn a_stop_while_a_request_hangs_ends_within_10_s() {
    let producer = ScriptedProducer::start([Response::never()]).await;
    let poller = Poller::start(producer.address, &[("DURATION_SEC", "0")]).await;
    until("the call", || !producer.calls().is_empty()).await;
    let ended = poller.stop().await;
    assert!(!ended.failed() && ended.took < Duration::from_secs(10), "{ended:?}");
    assert_eq!(ended.counts, CallCounts { abandoned: 1, ..CallCounts::default() });
}

#[tokio::test]
async fn a_listener_client_that_hangs_does_not_delay_the_stop() {
    use tokio::io::AsyncWriteExt;
    let producer = ScriptedProducer::start([Response::accepted()]).await;
    let poller = Poller::start(producer.address, &[("DURATION_SEC", "0")]).await;
    let mut half_request = tokio::net::TcpStream::connect(poller.address).await.unwrap();
    half_request.write_all(b"GET /health HTTP/1.1\r\nHost: ").await.unwrap();
    until("a call", || poller.counts().sent >= 1).await;
    let ended = poller.stop().await;
    assert!(!ended.failed() && ended.took < Duration::from_secs(3), "{ended:?}");
}
