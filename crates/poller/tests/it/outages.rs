//! A producer that is unavailable or slow, or that rejects calls.

use std::time::{Duration, Instant, SystemTime};

use crate::harness::{Poller, Response, ScriptedProducer, until};

/// An address without a listener.
async fn free_address() -> std::net::SocketAddr {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_producer_that_is_unavailable_at_the_start_is_awaited() {
    let address = free_address().await;
    let poller = Poller::start(address, &[("INTERVAL_SEC", "0.1"), ("DURATION_SEC", "0.25")]).await;
    assert!(poller.get("/livez").await.starts_with("HTTP/1.1 200"));
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut ready = poller.get("/readyz").await;
    while !ready.contains("cannot be reached") {
        assert!(Instant::now() < deadline, "{ready}");
        ready = poller.get("/readyz").await;
    }
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    assert!(poller.get("/health").await.contains(r#""status":"degraded""#));

    let producer = ScriptedProducer::start_at(address, [Response::accepted()]).await;
    let ended = poller.end().await;
    assert!(!ended.failed() && ended.took < Duration::from_secs(4), "{ended:?}");
    assert_eq!((ended.counts.sent, ended.counts.failed), (3, 0), "the duration counts from readiness");
    assert_eq!(producer.calls().len(), 3);
}

#[tokio::test]
async fn no_call_is_made_before_the_producer_is_ready() {
    let producer = ScriptedProducer::start([Response::accepted()]).await;
    producer.set_ready(false);
    let poller = Poller::start(producer.address, &[("INTERVAL_SEC", "0.05"), ("DURATION_SEC", "0")]).await;
    until("three readiness checks", || producer.readiness_checks() >= 3).await;
    assert!(producer.calls().is_empty());
    producer.set_ready(true);
    until("calls", || poller.counts().sent >= 2).await;
    assert!(poller.get("/readyz").await.starts_with("HTTP/1.1 200"));
    let metrics = poller.get("/metrics").await;
    assert!(metrics.contains("slipstream_producer_up 1"), "{metrics}");
    assert!(metrics.contains(r#"slipstream_poll_calls_total{outcome="failed"} 0"#), "{metrics}");
    poller.stop().await;
}

#[tokio::test]
async fn retry_after_delays_the_next_call_and_skips_the_ticks_within_it() {
    let producer =
        ScriptedProducer::start([Response::rejected(503).retry_after(2), Response::accepted()]).await;
    let poller = Poller::start(producer.address, &[("INTERVAL_SEC", "0.1"), ("DURATION_SEC", "4")]).await;
    let ended = poller.end().await;
    let calls = producer.calls();
    assert!(calls[1].at >= Duration::from_secs(2) && calls[1].at < Duration::from_millis(3500), "{calls:?}");
    assert_eq!(ended.counts.failed, 1);
    assert!(!ended.failed(), "one success is enough");
    assert_eq!(ended.counts.sent + ended.counts.failed + ended.counts.skipped, 40, "{ended:?}");
}

#[tokio::test]
async fn a_retry_after_date_delays_the_next_call() {
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3));
    let producer = ScriptedProducer::start([
        Response::rejected(503).with_header("retry-after", &date),
        Response::accepted(),
    ])
    .await;
    let poller = Poller::start(producer.address, &[("INTERVAL_SEC", "0.1"), ("DURATION_SEC", "6")]).await;
    until("a second call", || producer.calls().len() >= 2).await;
    let waited = producer.calls()[1].at;
    // A date has a resolution of one second.
    assert!((1900..4500).contains(&waited.as_millis()), "{waited:?}");
    poller.stop().await;
}

#[tokio::test]
async fn an_error_body_that_is_an_array_is_not_read_as_a_problem() {
    let producer = ScriptedProducer::start([Response::rejected(503).with_body(r#"["not a problem"]"#)]).await;
    let poller = Poller::start(producer.address, &[("INTERVAL_SEC", "0.1"), ("DURATION_SEC", "0")]).await;
    until("a failure", || poller.counts().failed >= 1).await;
    let health = poller.get("/health").await;
    assert!(health.contains("answered 503") && !health.contains("not a problem"), "{health}");
    poller.stop().await;
}

#[tokio::test]
async fn delays_after_failures_grow_until_a_success() {
    let rejected = Response::rejected(502);
    let script = [rejected.clone(), rejected.clone(), rejected, Response::accepted()];
    let producer = ScriptedProducer::start(script).await;
    let poller = Poller::start(producer.address, &[("INTERVAL_SEC", "0.05"), ("DURATION_SEC", "0")]).await;
    until("six calls", || producer.calls().len() >= 6).await;
    let at: Vec<Duration> = producer.calls().iter().map(|call| call.at).collect();
    let pauses: Vec<u128> = at.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    // The jitter leaves at least half of the backoff.
    for (pause, min_ms) in pauses.iter().zip([250, 500, 1000]) {
        assert!(*pause >= min_ms, "{pauses:?}");
    }
    assert!(pauses[3] < 1000 && pauses[4] < 1000, "{pauses:?}");
    let health = poller.get("/health").await;
    assert!(
        health.contains(r#""status":"ok""#) && health.contains("502 Bad Gateway: rejected by script"),
        "{health}"
    );
    poller.stop().await;
}

#[tokio::test]
async fn calls_without_one_success_end_with_code_1() {
    let variables = [("INTERVAL_SEC", "0.1"), ("DURATION_SEC", "0.3")];
    let not_ours = "<html>welcome</html>";
    for response in [
        Response::rejected(401),
        Response::rejected(503).retry_after(3600),
        Response::accepted().with_body(not_ours),
        // The values of a valid body, in the order of its fields.
        Response::accepted().with_body(r#"["3F28BC",4,17]"#),
        Response::rejected(200).with_body(not_ours),
        Response::rejected(307).with_header("location", "/readyz"),
    ] {
        let what = format!("{response:?}");
        let producer = ScriptedProducer::start([response]).await;
        let ended = Poller::start(producer.address, &variables).await.end().await;
        assert!(ended.failed(), "{what}");
        assert!(ended.counts.failed >= 1 && ended.counts.sent == 0, "{what}: {ended:?}");
        assert!(ended.took < Duration::from_secs(3), "the schedule ends at once: {what}");
    }
}

#[tokio::test]
async fn a_call_without_a_response_times_out_and_the_next_one_succeeds() {
    let producer = ScriptedProducer::start([Response::never(), Response::accepted()]).await;
    let variables = [("INTERVAL_SEC", "0.1"), ("DURATION_SEC", "0"), ("CALL_TIMEOUT_SEC", "0.3")];
    let poller = Poller::start(producer.address, &variables).await;
    until("a success", || poller.counts().sent >= 1).await;
    assert_eq!(poller.counts().failed, 1);
    assert!(poller.get("/health").await.contains("did not answer within 300 ms"));
    poller.stop().await;
}

#[tokio::test]
async fn calls_succeed_within_5_s_of_the_return_of_the_producer() {
    let producer = ScriptedProducer::start([Response::accepted()]).await;
    let address = producer.address;
    let poller = Poller::start(address, &[("INTERVAL_SEC", "0.1"), ("DURATION_SEC", "0")]).await;
    until("a success", || poller.counts().sent >= 1).await;
    drop(producer);
    until("failures", || poller.counts().failed >= 4).await;
    let sent = poller.counts().sent;
    let _producer = ScriptedProducer::start_at(address, [Response::accepted()]).await;
    let back = Instant::now();
    until("a success after the return", || poller.counts().sent > sent).await;
    assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
    poller.stop().await;
}
