//! A stop is clean, and at once where nothing is in hand.

use std::time::Duration;

use poller::metrics::Tally;

use crate::harness::{Poller, until};
use crate::scripted_producer::{Answer, FarSide};

const AT_ONCE: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_stop_while_waiting_for_a_tick_is_immediate() {
    let producer = FarSide::start([Answer::accepted()]).await;
    let poller = Poller::start(producer.address, &[("INTERVAL_SEC", "3600"), ("DURATION_SEC", "0")]).await;
    until("the first call", || poller.tally().sent == 1).await;
    let ended = poller.stop().await;
    assert!(!ended.failed() && ended.took < AT_ONCE, "{ended:?}");
}

#[tokio::test]
async fn a_stop_while_waiting_for_the_producer_is_immediate_and_clean() {
    let producer = FarSide::start([Answer::accepted()]).await;
    producer.set_ready(false);
    let poller = Poller::start(producer.address, &[]).await;
    until("asked", || producer.asked_ready() >= 1).await;
    let ended = poller.stop().await;
    assert!(!ended.failed() && ended.took < AT_ONCE, "{ended:?}");
    assert_eq!(ended.tally, Tally::default());
}

#[tokio::test]
async fn a_stop_during_a_long_retry_after_is_immediate() {
    let producer = FarSide::start([Answer::refused(503).retry_after(3000)]).await;
    let poller = Poller::start(producer.address, &[("DURATION_SEC", "0")]).await;
    until("the refusal", || poller.tally().failed == 1).await;
    let ended = poller.stop().await;
    assert!(ended.failed() && ended.took < AT_ONCE, "calls were made and not one succeeded: {ended:?}");
}

#[tokio::test]
async fn the_answer_to_a_call_in_hand_is_waited_for() {
    let producer = FarSide::start([Answer::accepted().after(Duration::from_millis(500))]).await;
    let poller = Poller::start(producer.address, &[("INTERVAL_SEC", "0.1"), ("DURATION_SEC", "0")]).await;
    until("the call", || !producer.calls().is_empty()).await;
    let ended = poller.stop().await;
    assert!(!ended.failed() && ended.took < Duration::from_secs(3), "{ended:?}");
    let Tally { sent, failed, abandoned, .. } = ended.tally;
    assert_eq!((sent, failed, abandoned), (1, 0, 0), "counted, and no further call");
    assert_eq!(producer.calls().len(), 1);
}

#[tokio::test]
async fn a_stop_while_a_request_hangs_ends_within_10_s() {
    let producer = FarSide::start([Answer::never()]).await;
    let poller = Poller::start(producer.address, &[("DURATION_SEC", "0")]).await;
    until("the call", || !producer.calls().is_empty()).await;
    let ended = poller.stop().await;
    assert!(!ended.failed() && ended.took < Duration::from_secs(10), "{ended:?}");
    assert_eq!(ended.tally, Tally { abandoned: 1, ..Tally::default() });
}

#[tokio::test]
async fn a_client_of_the_listener_that_hangs_does_not_hold_up_the_stop() {
    use tokio::io::AsyncWriteExt;
    let producer = FarSide::start([Answer::accepted()]).await;
    let poller = Poller::start(producer.address, &[("DURATION_SEC", "0")]).await;
    let mut half_asked = tokio::net::TcpStream::connect(poller.address).await.unwrap();
    half_asked.write_all(b"GET /health HTTP/1.1\r\nHost: ").await.unwrap();
    until("a call", || poller.tally().sent >= 1).await;
    let ended = poller.stop().await;
    assert!(!ended.failed() && ended.took < Duration::from_secs(3), "{ended:?}");
}
