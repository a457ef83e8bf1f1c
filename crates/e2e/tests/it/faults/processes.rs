//! Processes that are killed, or paused for seconds or for longer than every timeout.
//! `series::kills` kills the consumer at many moments, and `series::paused_member` resumes it
//! within a batch.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bson::doc;
use devservers::Simulator;
use nix::sys::signal::Signal;
use rdkafka::Message;
use testkit::fault_test::{MAX_MEMORY_BYTES, Setup};
use testkit::{FaultTest, Monitor, Process, Stack, eventually, kafka, mongo};

use super::{PAUSE, RECOVERY_TIMEOUT, SESSION_TIMEOUT, wait_for_equal_shares, wait_seconds};

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g1_producer_killed_under_load_every_accepted_event_is_stored() {
    let mut test = FaultTest::start_with_load(Setup::default()).await;
    test.begin_fault();
    test.producer.take().unwrap().kill().await;
    wait_seconds(5).await;
    test.start_producer(&[]);
    test.end_fault_and_resume_within(RECOVERY_TIMEOUT).await;
    test.assert_no_server_reported();
    test.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g1_producer_paused_for_40_s_every_accepted_event_is_stored() {
    let mut test = FaultTest::start_with_load(Setup::default()).await;
    test.begin_fault();
    test.producer().signal(Signal::SIGSTOP);
    // Longer than CALL_TIMEOUT_SEC of the load (30 s): its requests time out and are sent again.
    wait_seconds(40).await;
    test.producer().signal(Signal::SIGCONT);
    test.end_fault_and_resume_within(RECOVERY_TIMEOUT).await;
    test.assert_no_server_reported();
    test.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g3_only_consumer_paused_for_20_s_restores_no_older_event() {
    let mut test = FaultTest::start_with_load(Setup::default()).await;
    // The producer is not affected: no outcome may be unknown.
    test.consumers[0].signal(Signal::SIGSTOP);
    tokio::time::sleep(PAUSE).await;
    test.consumers[0].signal(Signal::SIGCONT);
    test.assert_work_resumes_within(RECOVERY_TIMEOUT).await;
    test.assert_no_server_reported();
    test.verify_and_end(0).await;
}

/// The pauses are about as long as the timeouts of requests: a request times out while the process
/// is paused.
#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_processes_paused_for_seconds_report_no_server_unavailable() {
    let mut test = FaultTest::start_with_load(Setup::default()).await;
    for millis in [1_200, 2_100, 2_600, 3_200, 3_900, 5_000] {
        test.begin_fault();
        test.consumers[0].signal(Signal::SIGSTOP);
        test.producer().signal(Signal::SIGSTOP);
        tokio::time::sleep(Duration::from_millis(millis)).await;
        test.consumers[0].signal(Signal::SIGCONT);
        test.producer().signal(Signal::SIGCONT);
        test.end_fault_and_resume_within(RECOVERY_TIMEOUT).await;
    }
    test.assert_no_server_reported();
    test.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g1_consumer_killed_under_load_and_restarted_no_event_is_lost() {
    let mut test = FaultTest::start_with_load(Setup::default()).await;
    test.consumers.pop().unwrap().kill().await;
    wait_seconds(5).await;
    test.start_consumer(&[]);
    // The broker keeps the partitions for the killed member until its session expires.
    test.assert_work_resumes_within(RECOVERY_TIMEOUT + SESSION_TIMEOUT).await;
    test.assert_no_server_reported();
    test.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g3_member_paused_for_20_s_restores_no_older_event() {
    let mut test = FaultTest::start_with_load(Setup { members: 2, ..Setup::default() }).await;
    wait_for_equal_shares(&test).await;
    test.consumers[0].signal(Signal::SIGSTOP);
    let stopped = Instant::now();
    let has_all = || async { (test.consumers[1].assigned_partitions().await == 6).then_some(()) };
    eventually("the other member has all partitions", RECOVERY_TIMEOUT + SESSION_TIMEOUT, has_all).await;
    tokio::time::sleep_until((stopped + PAUSE).into()).await;
    test.consumers[0].signal(Signal::SIGCONT);
    test.assert_work_resumes_within(RECOVERY_TIMEOUT).await;
    wait_for_equal_shares(&test).await;
    test.assert_no_server_reported();
    test.verify_and_end(0).await;
}

/// The interval of the poller, in seconds and as text.
const INTERVAL: (f64, &str) = (0.2, "0.2");

fn poller(producer: &Process) -> Process {
    let base = producer.url("");
    let environment =
        [("PRODUCER_BASE_URL", base.as_str()), ("INTERVAL_SEC", INTERVAL.1), ("DURATION_SEC", "0")];
    Process::start("poller", &environment)
}

async fn calls(simulator: &Simulator, more: u64) -> Duration {
    let (start, before) = (Instant::now(), simulator.requests());
    let called = || async { (simulator.requests() >= before + more).then_some(()) };
    eventually("the simulator receives requests", Duration::from_secs(60), called).await;
    start.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn poller_paused_for_20_s_does_not_catch_up_and_a_kill_loses_nothing() {
    let stack = Stack::shared_without_sync().await;
    let names = stack.names();
    let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap();
    let producer = stack.producer(&names, &[("ADSBDB_BASE_URL", &simulator.base_url())]);
    let consumer = stack.consumer(&names, &[]);
    producer.ready().await;
    consumer.ready().await;
    let (first, monitor) = (poller(&producer), Monitor::start());
    for (kind, process) in [("producer", &producer), ("consumer", &consumer), ("poller", &first)] {
        monitor.add(kind, process);
    }
    calls(&simulator, 10).await;
    first.signal(Signal::SIGSTOP);
    tokio::time::sleep(PAUSE).await;
    let missed = simulator.requests();
    first.signal(Signal::SIGCONT);
    let took = calls(&simulator, 10).await;
    // The call that was due comes at once, the next nine on schedule.
    assert!(took.as_secs_f64() > 8.0 * INTERVAL.0, "10 calls in {took:?}: it catches up missed calls");
    assert!(simulator.requests() < missed + 40, "it caught up the 100 missed calls");
    assert!(first.is_running(), "it ended early: {}", first.log());
    first.kill().await;
    let second = poller(&producer);
    monitor.add("poller", &second);
    calls(&simulator, 10).await;
    monitor.assert_no_server_reported();
    assert!(
        monitor.max_memory_bytes() < MAX_MEMORY_BYTES && monitor.unknown_outcomes().is_empty(),
        "{monitor:?}"
    );
    assert!(second.terminate().await.success());
    assert!(producer.terminate().await.success());

    let topic = kafka::read_all(&names, &names.topic).await;
    let sent: HashSet<&[u8]> = topic.iter().filter_map(Message::key).collect();
    let aircraft = mongo::collection(&names, "adsbdb").await;
    let stored = eventually("every event is a document", Duration::from_secs(60), || async {
        let stored = mongo::all(&aircraft, doc! {}).await;
        (stored.len() >= sent.len()).then_some(stored)
    })
    .await;
    let ids: HashSet<&[u8]> =
        stored.iter().map(|document| document.get_str("event_id").unwrap().as_bytes()).collect();
    assert_eq!((ids, stored.len()), (sent.clone(), sent.len()), "none lost, none twice, none of others");
    assert!(consumer.terminate().await.success());
}
