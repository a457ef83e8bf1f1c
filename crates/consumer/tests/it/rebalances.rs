//! Partitions that move between members during a batch.

use std::time::Duration;

use testkit::servers::start_durable_mongodb;

use crate::trial::{SOON, Trial, eventually};

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn group_uses_the_cooperative_sticky_assignor() {
    let trial = Trial::new(2).await;
    let member = trial.start(&[]).await;
    let reader = trial.reader("none");
    let protocol = async || {
        let groups = rdkafka::consumer::Consumer::fetch_group_list(
            &reader,
            Some(&trial.group),
            Duration::from_secs(5),
        );
        groups.unwrap().groups().iter().any(|group| group.protocol() == "cooperative-sticky")
    };
    eventually("the group is cooperative-sticky", SOON, protocol).await;
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn member_without_a_partition_is_ready_and_reports_the_wait() {
    let trial = Trial::new(1).await;
    let first = trial.start(&[]).await;
    eventually("the first has the partition", SOON, async || first.assigned().await == 1).await;
    let second = trial.start(&[]).await;
    second.becomes_ready().await;
    let health = second.health().await;
    assert_eq!((second.assigned().await, health["status"].as_str()), (0, Some("ok")), "{health}");
    assert!(health["waiting_for"][0].as_str().unwrap().contains("not assigned a partition"), "{health}");
    second.stop().await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_series_end_when_their_partition_is_revoked() {
    let trial = Trial::new(2).await;
    let first = trial.start(&[]).await;
    trial.send_many("a", 10).await;
    first.finishes(10).await;
    let series = async |family: &str| {
        let (_, body) = first.get("/metrics").await;
        body.lines().filter(|line| line.starts_with(&format!("{family}{{"))).count()
    };
    let have = async |partitions: usize| {
        series("slipstream_lag_records").await == partitions
            && series("slipstream_committed_lag_records").await == partitions
    };
    eventually("each partition has its series", SOON, async || have(2).await).await;
    let second = trial.start(&[]).await;
    eventually("one partition is revoked", SOON, async || first.assigned().await == 1).await;
    eventually("its series have ended", SOON, async || have(1).await).await;
    second.stop().await;
    first.stop().await;
}

#[testkit::needs(own_mongodb)]
#[tokio::test(flavor = "multi_thread")]
async fn g7_revoked_partition_finishes_and_commits_its_batch_first() {
    let database = start_durable_mongodb().await;
    let trial = Trial::with_database(&database.uri(), 2).await;
    let first = trial.start(&[]).await;
    trial.send_many("a", 2).await;
    first.finishes(2).await;
    database.pause();
    trial.send_many("b", 600).await;
    eventually("batches are in flight", SOON, async || first.seen().read > 2).await;
    let second = trial.start(&[]).await;
    eventually("one partition is being revoked", SOON, async || first.assigned().await == 1).await;
    assert_eq!(second.assigned().await, 0, "not assigned before its batch is finished");
    assert_eq!(first.seen().finished(), 2, "nothing can be finished yet");
    database.resume();
    let all = async || first.seen().finished() + second.seen().finished() >= 602;
    eventually("all are finished", SOON, all).await;
    eventually("one partition each", SOON, async || second.assigned().await == 1).await;
    let (first, second) = (first.stop().await, second.stop().await);
    assert_eq!(first.read + second.read, 602, "{first:?} {second:?}");
    assert_eq!(first.inserted + second.inserted, 602, "{first:?} {second:?}");
    assert_eq!(trial.ids().await.len(), 602);
    assert_eq!(trial.committed().await, [(0, 301), (1, 301)].into());
}

#[testkit::needs(own_mongodb)]
#[tokio::test(flavor = "multi_thread")]
async fn g2_batch_not_finished_in_time_is_processed_by_the_next_member() {
    let database = start_durable_mongodb().await;
    let trial = Trial::with_database(&database.uri(), 2).await;
    let first = trial.start(&[]).await;
    trial.send_many("a", 2).await;
    first.finishes(2).await;
    eventually("they are committed", SOON, async || trial.committed().await.len() == 2).await;
    database.pause();
    trial.send_many("b", 600).await;
    eventually("batches are in flight", SOON, async || first.seen().read > 2).await;
    let second = trial.start(&[]).await;
    eventually("the second has a partition", SOON, async || second.assigned().await == 1).await;
    assert_eq!(trial.committed().await, [(0, 1), (1, 1)].into(), "nothing unfinished is committed");
    database.resume();
    let committed = async || trial.committed().await == [(0, 301), (1, 301)].into();
    eventually("all are finished and committed", SOON, committed).await;
    let (first, second) = (first.stop().await, second.stop().await);
    // Writes that were sent before the batch was abandoned may be stored. The next member then
    // counts those records as unchanged.
    let fresh = |counted: &consumer::Snapshot| counted.inserted + counted.unchanged;
    assert!(fresh(&first) + fresh(&second) >= 602, "{first:?} {second:?}");
    assert_eq!(
        (first.superseded + second.superseded, first.updated + second.updated),
        (0, 0),
        "{first:?} {second:?}"
    );
    assert_eq!(trial.ids().await.len(), 602);
}
