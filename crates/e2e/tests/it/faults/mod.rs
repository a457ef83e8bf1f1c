//! One fault per test: real processes under load, and verification at the end.

mod broker;
mod database;
mod processes;
mod records;
mod resources;
mod sources;
mod storm;

use std::time::Duration;

use testkit::{FaultTest, eventually};

/// Duration of an outage of the network: longer than the session timeout and than
/// DELIVERY_TIMEOUT_MS, both 10 s.
const OUTAGE: Duration = Duration::from_secs(15);
/// Duration of a pause of a consumer or poller: longer than all its timeouts, which are at most 10
/// s.
const PAUSE: Duration = Duration::from_secs(20);
/// Maximum time until work resumes after a server returned (G6).
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time until work resumes after a connection became half-open (G6).
const SILENCE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time until the broker removes a member that was killed: `session.timeout.ms`.
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits until each member has the same number of the six partitions.
async fn wait_for_equal_shares(test: &FaultTest) {
    let each = 6 / test.consumers.len();
    let shared = || async {
        for member in &test.consumers {
            if member.assigned_partitions().await != each {
                return None;
            }
        }
        Some(())
    };
    eventually(&format!("{each} partitions each"), Duration::from_secs(60), shared).await;
}

async fn wait_seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// Members that join and leave, a second group, and a group that is reset to the beginning.
/// `series::rebalances` tests that rebalances repeat no work. The tests of the consumer cover a
/// batch in flight at each step of a rebalance.
mod group {
    use std::time::Duration;

    use testkit::fault_test::Setup;
    use testkit::proxy::Fault;
    use testkit::{FaultTest, Names, eventually, kafka, load};

    use super::wait_for_equal_shares;

    #[testkit::needs(apache_kafka)]
    #[tokio::test(flavor = "multi_thread")]
    async fn g7_members_join_and_leave_with_batches_in_flight_no_loss() {
        let mut test = FaultTest::start_with_load(Setup::default()).await;
        // Keeps a batch in flight nearly all the time.
        test.mongodb().set(Fault::Latency(Duration::from_millis(200)));
        for _ in 0..2 {
            test.start_consumer(&[]);
            test.wait_for_finished(200, Duration::from_secs(60)).await;
        }
        wait_for_equal_shares(&test).await;
        test.wait_for_finished(500, Duration::from_secs(60)).await;
        for _ in 0..2 {
            let counted = test.consumers.remove(0).terminate_with_counters().await;
            assert!(counted.finished > 0 && counted.repeated == 0, "{counted:?}");
            wait_for_equal_shares(&test).await;
            test.wait_for_finished(200, Duration::from_secs(60)).await;
        }
        test.mongodb().set(Fault::None);
        test.assert_work_resumes_within(super::RECOVERY_TIMEOUT).await;
        test.assert_no_server_reported();
        test.verify_and_end(0).await;
    }

    #[testkit::needs(apache_kafka)]
    #[tokio::test(flavor = "multi_thread")]
    async fn g2_two_groups_store_all_events_independently_of_each_other() {
        let mut test = FaultTest::start_with_load(Setup::default()).await;
        let other = Names {
            group: format!("{}-second", test.names.group),
            database: format!("{}-second", test.names.database),
            ..test.names.clone()
        };
        let environment = [("KAFKA_GROUP_ID", other.group.as_str()), ("MONGODB_DB", &other.database)];
        test.start_consumer(&environment);
        let finished = || async { (test.consumers[1].counters().await?.finished > 1_000).then_some(()) };
        eventually("the second group finishes records", Duration::from_secs(60), finished).await;
        test.consumers.pop().unwrap().kill().await;
        test.wait_for_finished(1_000, Duration::from_secs(60)).await;
        test.start_consumer(&environment);
        test.wait_for_late_outcomes().await;
        let ledger = test.end_load().await;
        for names in [&test.names, &other] {
            println!("{}: {}", names.group, load::assert_verified(names, &ledger, 0).await);
        }
        test.assert_no_server_reported();
        test.end().await;
    }

    #[testkit::needs(apache_kafka)]
    #[tokio::test(flavor = "multi_thread")]
    async fn g3_group_reset_to_the_beginning_under_load_changes_nothing() {
        let mut test = FaultTest::start_with_load(Setup::default()).await;
        test.wait_for_finished(2_000, Duration::from_secs(60)).await;
        let first = test.consumers.pop().unwrap().terminate_with_counters().await;
        kafka::reset_group_to_beginning(&test.names).await;
        test.start_consumer(&[]);
        // More than before the reset: it has read all of these records again, and new ones.
        test.wait_for_finished(first.finished + 1_000, Duration::from_secs(60)).await;
        assert!(first.finished > 2_000, "{first:?}");
        test.assert_no_server_reported();
        test.verify_and_end(0).await;
    }
}
