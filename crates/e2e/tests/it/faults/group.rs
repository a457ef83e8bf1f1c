//! Groups: members that come and go, another group beside it, and one that is sent back to the beginning. That moves
//! repeat no work is in `series::moves`; what a batch in flight does at each step of a move, in the consumer's own tests.

use std::time::Duration;

use e2e::proxy::Fault;
use e2e::trial::Setup;
use e2e::{Names, Stack, Trial, eventually, kafka, ledger};

use super::share;

#[tokio::test(flavor = "multi_thread")]
async fn g7_members_that_come_and_go_with_batches_in_flight_lose_nothing() {
    if !Stack::is_apache_kafka() {
        return;
    }
    let mut trial = Trial::begin(Setup::default()).await;
    // So that there is a batch in flight nearly always.
    trial.mongodb().set(Fault::Late(Duration::from_millis(200)));
    for _ in 0..2 {
        trial.start_consumer(&[]);
        trial.finishes(200, Duration::from_secs(60)).await;
    }
    share(&trial).await;
    trial.finishes(500, Duration::from_secs(60)).await;
    for _ in 0..2 {
        let counted = trial.consumers.remove(0).terminate_counted().await;
        assert!(counted.finished > 0 && counted.repeated == 0, "{counted:?}");
        share(&trial).await;
        trial.finishes(200, Duration::from_secs(60)).await;
    }
    trial.mongodb().set(Fault::None);
    trial.works_within(super::RECOVERY).await;
    trial.blames_no_server();
    trial.judged(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g2_two_groups_store_the_same_and_one_does_not_notice_the_end_of_the_other() {
    if !Stack::is_apache_kafka() {
        return;
    }
    let mut trial = Trial::begin(Setup::default()).await;
    let other = Names {
        group: format!("{}-too", trial.names.group),
        database: format!("{}-too", trial.names.database),
        ..trial.names.clone()
    };
    let environment = [("KAFKA_GROUP_ID", other.group.as_str()), ("MONGODB_DB", &other.database)];
    trial.start_consumer(&environment);
    let finished = || async { (trial.consumers[1].counted().await?.finished > 1_000).then_some(()) };
    eventually("the other group works", Duration::from_secs(60), finished).await;
    trial.consumers.pop().unwrap().kill().await;
    trial.finishes(1_000, Duration::from_secs(60)).await;
    trial.start_consumer(&environment);
    trial.waits_for_aftermath().await;
    let ledger = trial.sent().await;
    for names in [&trial.names, &other] {
        println!("{}: {}", names.group, ledger::verify(names, &ledger, 0).await);
    }
    trial.blames_no_server();
    trial.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g3_a_group_that_is_sent_back_to_the_beginning_under_load_changes_nothing() {
    if !Stack::is_apache_kafka() {
        return;
    }
    let mut trial = Trial::begin(Setup::default()).await;
    trial.finishes(2_000, Duration::from_secs(60)).await;
    let first = trial.consumers.pop().unwrap().terminate_counted().await;
    kafka::rewind(&trial.names).await;
    trial.start_consumer(&[]);
    // More than there was before: it has read all of that again, and what came since.
    trial.finishes(first.finished + 1_000, Duration::from_secs(60)).await;
    assert!(first.finished > 2_000, "{first:?}");
    trial.blames_no_server();
    trial.judged(0).await;
}
