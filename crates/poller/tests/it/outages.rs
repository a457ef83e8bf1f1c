//! A producer that is away, slow, or refuses.

use std::time::{Duration, Instant, SystemTime};

use crate::harness::{Poller, until};
use crate::scripted_producer::{Answer, FarSide};

/// An address at which nothing listens.
async fn free_address() -> std::net::SocketAddr {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_producer_that_is_away_at_the_start_is_waited_for() {
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

    let producer = FarSide::start_at(address, [Answer::accepted()]).await;
    let ended = poller.end().await;
    assert!(!ended.failed() && ended.took < Duration::from_secs(4), "{ended:?}");
    assert_eq!((ended.tally.sent, ended.tally.failed), (3, 0), "the duration counts from ready");
    assert_eq!(producer.calls().len(), 3);
}

#[tokio::test]
async fn no_call_is_made_before_the_producer_is_ready() {
    let producer = FarSide::start([Answer::accepted()]).await;
    producer.set_ready(false);
    let poller = Poller::start(producer.address, &[("INTERVAL_SEC", "0.05"), ("DURATION_SEC", "0")]).await;
    until("asked three times", || producer.asked_ready() >= 3).await;
    assert!(producer.calls().is_empty());
    producer.set_ready(true);
    until("calls", || poller.tally().sent >= 2).await;
    assert!(poller.get("/readyz").await.starts_with("HTTP/1.1 200"));
    let metrics = poller.get("/metrics").await;
    assert!(metrics.contains("slipstream_producer_up 1"), "{metrics}");
    assert!(metrics.contains(r#"slipstream_poll_calls_total{outcome="failed"} 0"#), "{metrics}");
    poller.stop().await;
}

#[tokio::test]
async fn retry_after_is_waited_out_and_the_ticks_within_it_are_skipped() {
    let producer = FarSide::start([Answer::refused(503).retry_after(2), Answer::accepted()]).await;
    let poller = Poller::start(producer.address, &[("INTERVAL_SEC", "0.1"), ("DURATION_SEC", "4")]).await;
    let ended = poller.end().await;
    let calls = producer.calls();
    assert!(calls[1].at >= Duration::from_secs(2) && calls[1].at < Duration::from_millis(3500), "{calls:?}");
    assert_eq!(ended.tally.failed, 1);
    assert!(!ended.failed(), "one success is enough");
    assert_eq!(ended.tally.sent + ended.tally.failed + ended.tally.skipped, 40, "{ended:?}");
}

#[tokio::test]
async fn a_retry_after_that_is_a_date_is_waited_out() {
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3));
    let producer =
        FarSide::start([Answer::refused(503).with_header("retry-after", &date), Answer::accepted()]).await;
    let poller = Poller::start(producer.address, &[("INTERVAL_SEC", "0.1"), ("DURATION_SEC", "6")]).await;
    until("a second call", || producer.calls().len() >= 2).await;
    let waited = producer.calls()[1].at;
    // A date has whole seconds.
    assert!((1900..4500).contains(&waited.as_millis()), "{waited:?}");
    poller.stop().await;
}

#[tokio::test]
async fn a_refusal_in_an_array_is_no_problem_body() {
    let producer = FarSide::start([Answer::refused(503).with_body(r#"["words of a stranger"]"#)]).await;
    let poller = Poller::start(producer.address, &[("INTERVAL_SEC", "0.1"), ("DURATION_SEC", "0")]).await;
    until("a failure", || poller.tally().failed >= 1).await;
    let health = poller.get("/health").await;
    assert!(health.contains("answered 503") && !health.contains("stranger"), "{health}");
    poller.stop().await;
}

#[tokio::test]
async fn pauses_between_failures_grow_and_a_success_ends_them() {
    let refused = Answer::refused(502);
    let script = [refused.clone(), refused.clone(), refused, Answer::accepted()];
    let producer = FarSide::start(script).await;
    let poller = Poller::start(producer.address, &[("INTERVAL_SEC", "0.05"), ("DURATION_SEC", "0")]).await;
    until("six calls", || producer.calls().len() >= 6).await;
    let at: Vec<Duration> = producer.calls().iter().map(|call| call.at).collect();
    let pauses: Vec<u128> = at.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    // Half of the backoff's ceiling at least: jitter never takes more.
    for (pause, least) in pauses.iter().zip([250, 500, 1000]) {
        assert!(*pause >= least, "{pauses:?}");
    }
    assert!(pauses[3] < 1000 && pauses[4] < 1000, "{pauses:?}");
    let health = poller.get("/health").await;
    assert!(
        health.contains(r#""status":"ok""#) && health.contains("502 Bad Gateway: refused by script"),
        "{health}"
    );
    poller.stop().await;
}

#[tokio::test]
async fn not_one_success_is_exit_code_1() {
    let variables = [("INTERVAL_SEC", "0.1"), ("DURATION_SEC", "0.3")];
    let not_ours = "<html>welcome</html>";
    for answer in [
        Answer::refused(401),
        Answer::refused(503).retry_after(3600),
        Answer::accepted().with_body(not_ours),
        // The fields of the right answer, in their order.
        Answer::accepted().with_body(r#"["3F28BC",4,17]"#),
        Answer::refused(200).with_body(not_ours),
        Answer::refused(307).with_header("location", "/readyz"),
    ] {
        let what = format!("{answer:?}");
        let producer = FarSide::start([answer]).await;
        let ended = Poller::start(producer.address, &variables).await.end().await;
        assert!(ended.failed(), "{what}");
        assert!(ended.tally.failed >= 1 && ended.tally.sent == 0, "{what}: {ended:?}");
        assert!(ended.took < Duration::from_secs(3), "nothing is left to wait for: {what}");
    }
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_given_up_and_the_next_call_succeeds() {
    let producer = FarSide::start([Answer::never(), Answer::accepted()]).await;
    let variables = [("INTERVAL_SEC", "0.1"), ("DURATION_SEC", "0"), ("CALL_TIMEOUT_SEC", "0.3")];
    let poller = Poller::start(producer.address, &variables).await;
    until("a success", || poller.tally().sent >= 1).await;
    assert_eq!(poller.tally().failed, 1);
    assert!(poller.get("/health").await.contains("did not answer within 300 ms"));
    poller.stop().await;
}

#[tokio::test]
async fn a_producer_that_comes_back_is_called_again_within_5_s() {
    let producer = FarSide::start([Answer::accepted()]).await;
    let address = producer.address;
    let poller = Poller::start(address, &[("INTERVAL_SEC", "0.1"), ("DURATION_SEC", "0")]).await;
    until("a success", || poller.tally().sent >= 1).await;
    drop(producer);
    until("failures", || poller.tally().failed >= 4).await;
    let sent = poller.tally().sent;
    let _producer = FarSide::start_at(address, [Answer::accepted()]).await;
    let back = Instant::now();
    until("a success after the return", || poller.tally().sent > sent).await;
    assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
    poller.stop().await;
}
