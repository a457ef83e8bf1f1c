//! A broker that is killed, paused, unreachable, slow, or resets connections within a reply.

use std::time::Duration;

use nix::sys::signal::Signal;
use testkit::FaultTest;
use testkit::fault_test::ServerSetup;
use testkit::fault_test::Setup;
use testkit::proxy::Fault;

use super::{OUTAGE, RECOVERY_TIMEOUT, SESSION_TIMEOUT, SILENCE_TIMEOUT, wait_seconds};

/// A fault test with its own broker.
async fn fault_test() -> FaultTest {
    let servers = ServerSetup { broker: true, ..ServerSetup::default() };
    FaultTest::start_with_load(Setup { servers, ..Setup::default() }).await
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_broker_killed_and_restarted_no_event_is_lost() {
    let mut test = fault_test().await;
    test.begin_fault();
    test.servers.broker().kill();
    wait_seconds(5).await;
    test.servers.broker().restart().await.unwrap();
    // The member joins anew, and the broker keeps its partitions for the old member until its
    // session expires.
    test.end_fault_and_resume_within(RECOVERY_TIMEOUT + SESSION_TIMEOUT).await;
    test.assert_only_reported("kafka");
    test.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_broker_connections_reset_for_15_s_no_event_is_lost() {
    let mut test = fault_test().await;
    test.begin_fault();
    test.kafka().set(Fault::Reset);
    tokio::time::sleep(OUTAGE).await;
    test.kafka().set(Fault::None);
    test.end_fault_and_resume_within(RECOVERY_TIMEOUT).await;
    test.assert_only_reported("kafka");
    test.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_broker_network_drops_all_data_for_15_s_no_event_is_lost() {
    let mut test = fault_test().await;
    test.begin_fault();
    test.kafka().set(Fault::Blackhole);
    tokio::time::sleep(OUTAGE).await;
    test.kafka().set(Fault::None);
    test.end_fault_and_resume_within(RECOVERY_TIMEOUT).await;
    test.assert_only_reported("kafka");
    test.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_half_open_broker_connections_are_replaced_within_10_s() {
    let mut test = fault_test().await;
    test.begin_fault();
    test.kafka().make_half_open();
    test.assert_work_resumes_within(SILENCE_TIMEOUT).await;
    test.end_fault();
    test.assert_never_reported("consumer", "mongodb");
    test.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g1_broker_latency_of_100_ms_is_not_reported_as_an_outage() {
    let test = fault_test().await;
    test.kafka().set(Fault::Latency(Duration::from_millis(100)));
    test.wait_for_finished(1_000, Duration::from_secs(60)).await;
    test.kafka().set(Fault::None);
    for process in ["producer", "consumer"] {
        test.assert_never_reported(process, "kafka");
    }
    test.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_broker_connections_reset_within_replies_no_event_is_lost() {
    let mut test = fault_test().await;
    test.begin_fault();
    test.kafka().set(Fault::ResetAfter(4_000));
    wait_seconds(10).await;
    test.kafka().set(Fault::None);
    assert!(test.kafka().lost_replies() > 10, "{} replies lost", test.kafka().lost_replies());
    test.end_fault_and_resume_within(RECOVERY_TIMEOUT).await;
    test.assert_never_reported("consumer", "mongodb");
    test.verify_and_end(0).await;
}

/// The pauses are as long as in the storm that found the fault. Without `kafka::context::Rebootstrap` a
/// client lost its only broker within eight rounds.
#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_broker_paused_repeatedly_clients_reconnect_each_time() {
    let mut test = fault_test().await;
    for _ in 0..8 {
        test.begin_fault();
        test.servers.broker().pause();
        tokio::time::sleep(Duration::from_millis(4_188)).await;
        test.servers.broker().resume();
        test.end_fault_and_resume_within(RECOVERY_TIMEOUT + SESSION_TIMEOUT).await;
        test.begin_fault();
        test.servers.broker().pause();
        test.producer().signal(Signal::SIGSTOP);
        tokio::time::sleep(Duration::from_millis(1_780)).await;
        test.servers.broker().resume();
        test.producer().signal(Signal::SIGCONT);
        test.end_fault_and_resume_within(RECOVERY_TIMEOUT).await;
    }
    test.assert_never_reported("consumer", "mongodb");
    test.verify_and_end(0).await;
}
