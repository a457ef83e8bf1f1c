//! Commits: while a record waits, at a stop, and when partitions move to another member.

use std::time::{Duration, Instant};

use rdkafka::admin::{AdminOptions, AlterConfig, ResourceSpecifier};

use crate::trial::{SOON, Sent, Trial, event, eventually};

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g2_no_offset_is_committed_past_an_unfinished_record() {
    let trial = Trial::new(2).await;
    // The topic rejects dead letters of 100 kB.
    let dead_letters = format!("{}.dlq", trial.topic);
    trial.make_topic(&dead_letters, 1, &[("max.message.bytes", "10000")]).await;
    let noise: String = std::iter::repeat_with(fastrand::alphanumeric).take(100_000).collect();
    trial.send(Sent::new("a", &event("a", 1, "{}"))).await;
    trial.send(Sent::new("bad", &noise)).await;
    trial.send(Sent::new("b", &event("b", 1, "{}"))).await;
    for id in ["c", "d"] {
        trial.send(Sent { partition: 1, ..Sent::new(id, &event(id, 1, "{}")) }).await;
    }
    let member = trial.start(&[]).await;

    let is_reported = async || {
        let (status, body) = member.get("/readyz").await;
        status == 503
            && body.contains(&format!("{}/0 offset 1", trial.topic))
            && body.contains("max.message.bytes")
    };
    eventually("readyz names the record and the remedy", SOON, is_reported).await;
    eventually("the other partition continues", SOON, async || trial.committed().await.get(&1) == Some(&2))
        .await;
    eventually("the finished prefix is committed", SOON, async || {
        trial.committed().await.get(&0) == Some(&1)
    })
    .await;
    assert_eq!(trial.ids().await.iter().filter(|id| *id == "c" || *id == "d").count(), 2);

    let larger =
        AlterConfig::new(ResourceSpecifier::Topic(&dead_letters)).set("max.message.bytes", "1000000");
    trial.admin().alter_configs([&larger], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    member.finishes(5).await;
    member.becomes_ready().await;
    assert_eq!(trial.dead_letters().await.len(), 1);
    member.stop().await;
    assert_eq!(trial.committed().await, [(0, 3), (1, 2)].into());
    assert_eq!(trial.ids().await, ["a", "b", "c", "d"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn g7_stop_under_load_ends_in_time_and_no_record_is_processed_twice() {
    let trial = Trial::new(6).await;
    trial.send_many("k", 20_000).await;
    let first = trial.start(&[("BATCH_MAX_RECORDS", "200")]).await;
    eventually("the load has begun", SOON, async || first.seen().finished() > 2_000).await;
    let stopped_at = Instant::now();
    let first = first.stop().await;
    assert!(stopped_at.elapsed() < Duration::from_secs(10));
    assert!(first.finished() < 20_000, "the stop came too late to test anything");
    assert_eq!(first.read, first.finished(), "begun records were finished");
    let committed: i64 = trial.committed().await.values().sum();
    assert_eq!(committed as u64, first.finished(), "finished records were committed");

    let second = trial.start(&[]).await;
    eventually("the other records are finished", SOON, async || {
        first.finished() + second.seen().finished() >= 20_000
    })
    .await;
    let second = second.stop().await;
    assert_eq!(first.read + second.read, 20_000, "{first:?} {second:?}");
    assert_eq!(first.inserted + second.inserted, 20_000, "{first:?} {second:?}");
    assert_eq!(trial.ids().await.len(), 20_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_move_between_two_members_without_repeated_records() {
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
    eventually("the second member has made progress", SOON, async || second.seen().finished() > 500).await;
    let first = first.stop().await;
    eventually("all are finished", SOON, async || first.finished() + second.seen().finished() >= 18_000)
        .await;
    let second = second.stop().await;
    assert_eq!(first.read + second.read, 18_000, "{first:?} {second:?}");
    assert_eq!(first.inserted + second.inserted, 18_000, "{first:?} {second:?}");
    assert_eq!(trial.committed().await.values().sum::<i64>(), 18_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_and_resumed_partition_loses_and_repeats_no_record() {
    let trial = Trial::new(2).await;
    trial.send_many("k", 3_000).await;
    // At most eight records are queued, so the reader is always ahead of the writes.
    let member = trial.start(&[("BATCH_MAX_RECORDS", "1")]).await;
    eventually("all are finished", SOON * 2, async || member.seen().finished() >= 3_000).await;
    let counted = member.stop().await;
    assert_eq!((counted.read, counted.inserted), (3_000, 3_000), "{counted:?}");
    assert_eq!(trial.ids().await.len(), 3_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_topics_are_read_with_a_dead_letter_topic_each() {
    let trial = Trial::new(1).await;
    let other = format!("{}-other", trial.topic);
    trial.send(Sent::new("a", &event("a", 1, "{}"))).await;
    // The second topic does not exist yet, so the consumer creates it.
    let both = format!("{},{other}", trial.topic);
    let member = trial.start(&[("KAFKA_TOPIC", &both)]).await;
    member.finishes(1).await;
    member.becomes_ready().await;
    let second = Trial { topic: other, ..Trial::on(&trial.bootstrap, &trial.uri, 1) };
    second.send(Sent::new("x", "not json")).await;
    member.finishes(2).await;
    assert_eq!(second.dead_letters().await.len(), 1);
    assert_eq!(trial.dead_letters().await.len(), 0);
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_metrics_and_lag_report_the_finished_records() {
    let trial = Trial::new(2).await;
    let member = trial.start(&[]).await;
    trial.send_many("k", 10).await;
    member.finishes(10).await;
    eventually("lag is known and zero", SOON, async || member.seen().lag == Some(0)).await;
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
