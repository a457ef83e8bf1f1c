//! Timestamps that a topic rejects: Kafka 4 accepts at most one hour ahead (KIP-1030).

use std::time::{SystemTime, UNIX_EPOCH};

use rdkafka::Message;
use rdkafka::message::OwnedMessage;
use testkit::{Names, kafka};

use super::refusals::set_all;
use super::{Sent, consumer, dead, letters, replay, run, send, stack};

const HOUR_MS: i64 = 3_600_000;
const TIMESTAMP: &str = "__connect.errors.timestamp";
const AFTER: &str = "message.timestamp.after.max.ms";
const BEFORE: &str = "message.timestamp.before.max.ms";

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

fn by_key(records: &[OwnedMessage], key: &str) -> OwnedMessage {
    let records: Vec<_> = records.iter().filter(|record| record.key() == Some(key.as_bytes())).collect();
    assert_eq!(records.len(), 1, "{key}");
    records[0].clone()
}

/// Poison records with three timestamps: two hours ahead, five hours ago, and now.
async fn send_poison(names: &Names) -> [(&'static str, i64); 3] {
    let now = now_ms();
    let times = [("ahead", now + 2 * HOUR_MS), ("old", now - 5 * HOUR_MS), ("now", now)];
    let sent = times.map(|(key, at)| Sent {
        key: Some(key.as_bytes()),
        value: Some(b"{"),
        record_ms: Some(at),
        ..Sent::default()
    });
    send(names, &names.topic, &sent).await;
    times
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g5_dead_letter_with_a_rejected_timestamp_gets_the_current_time() {
    let stack = stack().await;
    let names = stack.names();
    kafka::create_topic(&names, 1).await;
    let (hour, no_limit) = (HOUR_MS.to_string(), i64::MAX.to_string());
    set_all(&names, &[(AFTER, &no_limit)]).await;
    kafka::create_topic(&letters(&names), 1).await;
    set_all(&letters(&names), &[(BEFORE, &hour)]).await;
    let started = now_ms();
    let times = send_poison(&names).await;
    let consumer = consumer(stack, &names).await;
    let found = dead(&names, 3).await;
    assert_eq!(consumer.terminate_with_counters().await.dead_lettered, 3);
    for (key, at) in times {
        let letter = by_key(&found, key);
        let (has, header) = (letter.timestamp().to_millis().unwrap(), kafka::header(&letter, TIMESTAMP));
        if key == "now" {
            assert_eq!((has, header), (at, None), "{key}");
        } else {
            assert!((started..=now_ms()).contains(&has), "{key}: {has}");
            assert_eq!(header, Some(at.to_string()), "{key}");
        }
    }
    let listed = run(&names, &["list", "--json"]).await.lines();
    let mut told: Vec<i64> = listed.iter().map(|letter| letter["timestamp"].as_i64().unwrap()).collect();
    told.sort_unstable();
    assert_eq!(told, [times[1].1, times[2].1, times[0].1]);

    // The topic accepts these timestamps again, so the replay keeps them.
    assert_eq!(replay(&names, &[]).await.summary(0)["replayed"], 3);
    let all = kafka::read_all(&names, &names.topic).await;
    for (key, at) in times {
        let replayed = by_key(&all[3..], key);
        assert_eq!(replayed.timestamp().to_millis(), Some(at), "{key}");
        assert_eq!(kafka::header(&replayed, TIMESTAMP), None, "{key}");
    }

    // The topic rejects them: each is reported with the configuration, and kept for another replay.
    for (settings, setting, key) in [
        (&[(AFTER, hour.as_str())][..], AFTER, "ahead"),
        (&[(AFTER, &no_limit), (BEFORE, &hour)], BEFORE, "old"),
    ] {
        set_all(&names, settings).await;
        let group = format!("{}-{key}", names.group);
        let ended = replay(&names, &["--group", &group]).await;
        assert_eq!(ended.summary(1)["refused"], 1, "{key}: {ended:?}");
        assert_eq!(ended.json()["replayed"], 2, "{key}: {ended:?}");
        assert!(ended.err.contains("INVALID_TIMESTAMP") && ended.err.contains(setting), "{key}: {ended:?}");
    }
}
