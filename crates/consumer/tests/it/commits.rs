//! What is committed, what is waited for, and what a stop and a move leave behind.

use std::time::{Duration, Instant};

use rdkafka::admin::{AdminOptions, AlterConfig, ResourceSpecifier};

use crate::trial::{SOON, Sent, Trial, event, eventually};

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g2_nothing_is_committed_past_a_record_that_is_not_finished() {
    let trial = Trial::new(2).await;
    // Dead letters of 100 kB and more cannot be produced.
    let letters = format!("{}.dlq", trial.topic);
    trial.make_topic(&letters, 1, &[("max.message.bytes", "10000")]).await;
    let noise: String = std::iter::repeat_with(fastrand::alphanumeric).take(100_000).collect();
    trial.send(Sent::new("a", &event("a", 1, "{}"))).await;
    trial.send(Sent::new("bad", &noise)).await;
    trial.send(Sent::new("b", &event("b", 1, "{}"))).await;
    for id in ["c", "d"] {
        trial.send(Sent { partition: 1, ..Sent::new(id, &event(id, 1, "{}")) }).await;
    }
    let member = trial.start(&[]).await;

    let said = async || {
        let (status, body) = member.get("/readyz").await;
        status == 503
            && body.contains(&format!("{}/0 offset 1", trial.topic))
            && body.contains("max.message.bytes")
    };
    eventually("readyz names the record and the remedy", SOON, said).await;
    eventually("the other partition goes on", SOON, async || trial.committed().await.get(&1) == Some(&2))
        .await;
    eventually("the finished prefix is committed", SOON, async || {
        trial.committed().await.get(&0) == Some(&1)
    })
    .await;
    assert_eq!(trial.ids().await.iter().filter(|id| *id == "c" || *id == "d").count(), 2);

    let larger = AlterConfig::new(ResourceSpecifier::Topic(&letters)).set("max.message.bytes", "1000000");
    trial.admin().alter_configs([&larger], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    member.finishes(5).await;
    member.becomes_ready().await;
    assert_eq!(trial.dead_letters().await.len(), 1);
    member.stop().await;
    assert_eq!(trial.committed().await, [(0, 3), (1, 2)].into());
    assert_eq!(trial.ids().await, ["a", "b", "c", "d"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn g7_a_stop_under_load_is_quick_and_leaves_nothing_to_be_done_twice() {
    let trial = Trial::new(6).await;
    trial.send_many("k", 20_000).await;
    let first = trial.start(&[("BATCH_MAX_RECORDS", "200")]).await;
    eventually("the load is under way", SOON, async || first.seen().finished() > 2_000).await;
    let asked = Instant::now();
    let first = first.stop().await;
    assert!(asked.elapsed() < Duration::from_secs(10));
    assert!(first.finished() < 20_000, "the stop came too late to tell anything");
    assert_eq!(first.read, first.finished(), "what was begun was finished");
    let committed: i64 = trial.committed().await.values().sum();
    assert_eq!(committed as u64, first.finished(), "what was finished was committed");

    let second = trial.start(&[]).await;
    eventually("the rest", SOON, async || first.finished() + second.seen().finished() >= 20_000).await;
    let second = second.stop().await;
    assert_eq!(first.read + second.read, 20_000, "{first:?} {second:?}");
    assert_eq!(first.inserted + second.inserted, 20_000, "{first:?} {second:?}");
    assert_eq!(trial.ids().await.len(), 20_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_members_share_the_partitions_and_a_clean_move_repeats_nothing() {
    let trial = Trial::new(6).await;
    trial.send_many("k", 15_000).await;
    let slow = [("BATCH_MAX_RECORDS", "100")];
    let first = trial.start(&slow).await;
    eventually("the first has begun", SOON, async || first.seen().finished() > 500).await;
    let second = trial.start(&slow).await;
    let assigned = async |member: &crate::trial::Member| {
        let health: serde_json::Value = serde_json::from_str(&member.get("/health").await.1).unwrap();
        health["assignment"].as_array().unwrap().len()
    };
    let shared = async || assigned(&first).await == 3 && assigned(&second).await == 3;
    eventually("three partitions each", SOON, shared).await;
    trial.send_many("m", 3_000).await;
    eventually("the second works", SOON, async || second.seen().finished() > 500).await;
    let first = first.stop().await;
    eventually("all", SOON, async || first.finished() + second.seen().finished() >= 18_000).await;
    let second = second.stop().await;
    assert_eq!(first.read + second.read, 18_000, "{first:?} {second:?}");
    assert_eq!(first.inserted + second.inserted, 18_000, "{first:?} {second:?}");
    assert_eq!(trial.committed().await.values().sum::<i64>(), 18_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_paused_and_resumed_loses_and_repeats_nothing() {
    let trial = Trial::new(2).await;
    trial.send_many("k", 3_000).await;
    // Eight records wait at most in a lane: the reader is far ahead of the writes all the time.
    let member = trial.start(&[("BATCH_MAX_RECORDS", "1")]).await;
    eventually("all are finished", SOON * 2, async || member.seen().finished() >= 3_000).await;
    let counted = member.stop().await;
    assert_eq!((counted.read, counted.inserted), (3_000, 3_000), "{counted:?}");
    assert_eq!(trial.ids().await.len(), 3_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_topics_are_read_each_with_its_own_dead_letters() {
    let trial = Trial::new(1).await;
    let other = format!("{}-other", trial.topic);
    trial.send(Sent::new("a", &event("a", 1, "{}"))).await;
    // The second topic is not there yet: the consumer makes it.
    let both = format!("{},{other}", trial.topic);
    let member = trial.start(&[("KAFKA_TOPIC", &both)]).await;
    member.finishes(1).await;
    member.becomes_ready().await;
    let there = Trial { topic: other, ..Trial::on(&trial.bootstrap, &trial.uri, 1) };
    there.send(Sent::new("x", "not json")).await;
    member.finishes(2).await;
    assert_eq!(there.dead_letters().await.len(), 1);
    assert_eq!(trial.dead_letters().await.len(), 0);
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_metrics_and_lag_tell_what_is_done() {
    let trial = Trial::new(2).await;
    let member = trial.start(&[]).await;
    trial.send_many("k", 10).await;
    member.finishes(10).await;
    eventually("lag is known and none", SOON, async || member.seen().lag == Some(0)).await;
    member.becomes_ready().await;
    let (status, body) = member.get("/health").await;
    let health: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, health["status"].as_str()), (200, Some("ok")), "{health}");
    assert_eq!(health["counters"]["inserted"], 10);
    assert_eq!(health["assignment"].as_array().unwrap().len(), 2);
    let (_, metrics) = member.get("/metrics").await;
    for line in [
        "slipstream_records_read_total 10",
        r#"slipstream_records_finished_total{outcome="inserted"} 10"#,
        &format!(r#"slipstream_lag_records{{topic="{}",partition="0"}} 0"#, trial.topic),
        "slipstream_freshness_seconds_count 10",
        "slipstream_store_up 1",
        "slipstream_kafka_up 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "no {line} in\n{metrics}");
    }
    member.stop().await;
}
