//! Processes that are killed, or paused for seconds or for longer than every timeout.
//! `series::kills` kills the consumer at many moments, and `series::paused_member` resumes it
//! within a batch.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use testkit::fault_test::Setup;
use testkit::{FaultTest, eventually};

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
