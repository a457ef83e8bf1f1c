//! Groups: members that come and go, another group beside it, and one that is sent back to the beginning. That moves
//! repeat no work is in `series::moves`; what a batch in flight does at each step of a move, in the consumer's own tests.

use std::time::Duration;

use testkit::fault_test::Setup;
use testkit::proxy::Fault;
use testkit::{FaultTest, Names, eventually, kafka, load};

use super::share;

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g7_members_that_come_and_go_with_batches_in_flight_lose_nothing() {
    let mut trial = FaultTest::start_with_load(Setup::default()).await;
    // So that there is a batch in flight nearly always.
    trial.mongodb().set(Fault::Latency(Duration::from_millis(200)));
    for _ in 0..2 {
        trial.start_consumer(&[]);
        trial.wait_for_finished(200, Duration::from_secs(60)).await;
    }
    share(&trial).await;
    trial.wait_for_finished(500, Duration::from_secs(60)).await;
    for _ in 0..2 {
        let counted = trial.consumers.remove(0).terminate_with_counters().await;
        assert!(counted.finished > 0 && counted.repeated == 0, "{counted:?}");
        share(&trial).await;
        trial.wait_for_finished(200, Duration::from_secs(60)).await;
    }
    trial.mongodb().set(Fault::None);
    trial.assert_work_resumes_within(super::RECOVERY).await;
    trial.assert_no_server_reported();
    trial.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g2_two_groups_store_the_same_and_one_does_not_notice_the_end_of_the_other() {
    let mut trial = FaultTest::start_with_load(Setup::default()).await;
    let other = Names {
        group: format!("{}-too", trial.names.group),
        database: format!("{}-too", trial.names.database),
        ..trial.names.clone()
    };
    let environment = [("KAFKA_GROUP_ID", other.group.as_str()), ("MONGODB_DB", &other.database)];
    trial.start_consumer(&environment);
    let finished = || async { (trial.consumers[1].counters().await?.finished > 1_000).then_some(()) };
    eventually("the other group works", Duration::from_secs(60), finished).await;
    trial.consumers.pop().unwrap().kill().await;
    trial.wait_for_finished(1_000, Duration::from_secs(60)).await;
    trial.start_consumer(&environment);
    trial.wait_for_late_outcomes().await;
    let ledger = trial.end_load().await;
    for names in [&trial.names, &other] {
        println!("{}: {}", names.group, load::assert_verified(names, &ledger, 0).await);
    }
    trial.assert_no_server_reported();
    trial.end().await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g3_a_group_that_is_sent_back_to_the_beginning_under_load_changes_nothing() {
    let mut trial = FaultTest::start_with_load(Setup::default()).await;
    trial.wait_for_finished(2_000, Duration::from_secs(60)).await;
    let first = trial.consumers.pop().unwrap().terminate_with_counters().await;
    kafka::reset_group_to_beginning(&trial.names).await;
    trial.start_consumer(&[]);
    // More than there was before: it has read all of that again, and what came since.
    trial.wait_for_finished(first.finished + 1_000, Duration::from_secs(60)).await;
    assert!(first.finished > 2_000, "{first:?}");
    trial.assert_no_server_reported();
    trial.verify_and_end(0).await;
}
