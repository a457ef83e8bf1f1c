//! The records that a replay sends, and their outcome.

use std::collections::BTreeMap;

use bson::{Document, doc};
use rdkafka::Message;
use rdkafka::message::{Headers, OwnedMessage};
use serde_json::json;
use testkit::{Names, eventually, kafka, mongo};

use super::{
    LIMIT, START_MS, Sent, consumer, dead, keys, letters, make_topics, replay, run, send, stack,
    write_letters,
};

fn event(id: &str, at: i64, bad: bool) -> String {
    format!(
        r#"{{"id":"{id}","timestamp":{at},"source":"adsbdb","payload":{{"bad":{bad}}},"ingested_at":{at},"api_version":"1.0.0"}}"#
    )
}

async fn documents(names: &Names) -> Vec<Document> {
    let adsbdb = mongo::collection(names, "adsbdb").await;
    let mut documents = mongo::all(&adsbdb, doc! {}).await;
    documents.sort_by_key(|document| document.get_str("event_id").unwrap().to_owned());
    documents
}

async fn end_of(names: &Names, topic: &str) -> usize {
    kafka::read_all(names, topic).await.len()
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn document_rejected_by_a_validator_is_stored_by_one_replay() {
    let stack = stack().await;
    let names = stack.names();
    let create = doc! { "create": "adsbdb", "validator": { "bad": { "$ne": true } } };
    mongo::database(&names).await.run_command(create).await.unwrap();
    let running = consumer(stack, &names).await;
    let values =
        [event("a", 100, true), event("b", 100, false), event("c", 100, true), event("c", 200, false)];
    let records: Vec<Sent<'_>> = ["a", "b", "c", "c"]
        .iter()
        .zip(&values)
        .map(|(key, value)| Sent {
            key: Some(key.as_bytes()),
            value: Some(value.as_bytes()),
            ..Sent::default()
        })
        .collect();
    send(&names, &names.topic, &records).await;
    dead(&names, 2).await;
    let drop_validator = doc! { "collMod": "adsbdb", "validator": {} };
    mongo::database(&names).await.run_command(drop_validator).await.unwrap();

    let replayed = replay(&names, &[]).await.summary(0);
    assert_eq!(
        (&replayed["replayed"], &replayed["ended_by"]),
        (&json!(2), &json!("everything")),
        "{replayed}"
    );
    assert_eq!(replayed["group"], format!("{}.dead-letters", names.group));
    let stored = eventually("all are stored", LIMIT, || async {
        let stored = documents(&names).await;
        (stored.len() == 3).then_some(stored)
    })
    .await;
    assert!(stored[0].get_bool("bad").unwrap(), "a is stored as it was");
    assert!(!stored[2].get_bool("bad").unwrap(), "the older event of c does not turn it back");

    let none = replay(&names, &[]).await.summary(0);
    assert_eq!(none["replayed"], 0, "what is replayed is not replayed again");
    let again = replay(&names, &["--group", &format!("{}-again", names.group)]).await.summary(0);
    assert_eq!(again["replayed"], 2);
    let finished = || async { running.counters().await.filter(|counted| counted.finished >= 8) };
    eventually("the consumer has finished them", LIMIT, finished).await;
    assert_eq!(documents(&names).await, stored, "replaying twice changes nothing");
    assert_eq!(end_of(&names, &names.dead_letter_topic()).await, 2, "no new dead letter");
    assert!(running.terminate().await.success());
}

/// Panics unless the record equals the one sent, byte for byte, except for its replay count.
fn assert_is(record: &OwnedMessage, sent: &Sent<'_>) {
    let place = (record.partition(), record.key(), record.payload(), record.timestamp().to_millis());
    assert_eq!(place, (sent.partition, sent.key, sent.value, sent.record_ms));
    let headers = record.headers().into_iter().flat_map(Headers::iter);
    let headers = headers.filter(|header| header.key != "slipstream.replays");
    assert_eq!(headers.map(|header| (header.key, header.value)).collect::<Vec<_>>(), sent.headers);
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn replay_copies_the_record_and_counts_up_to_max_replays() {
    let stack = stack().await;
    let names = stack.names();
    let running = consumer(stack, &names).await;
    let headers = [("a", Some(&b"1"[..])), ("a", Some(b"\xff\x00")), ("none", None), ("empty", Some(b""))];
    let connect = [("__connect.errors.topic", Some(&b"far away"[..]))];
    let records = [
        Sent {
            partition: 3,
            key: Some(b"\xfe"),
            value: Some(b"\xff\x00"),
            record_ms: Some(*START_MS),
            headers: &headers,
        },
        Sent { partition: 1, key: None, value: Some(b""), record_ms: Some(*START_MS + 1), headers: &[] },
        Sent {
            partition: 5,
            key: Some(b""),
            value: Some(b"[]"),
            record_ms: Some(*START_MS + 2),
            headers: &connect,
        },
    ];
    send(&names, &names.topic, &records).await;
    for round in 1..=3_usize {
        let written = dead(&names, 3 * round).await;
        let counts: BTreeMap<Option<String>, usize> =
            written.iter().fold(BTreeMap::new(), |mut counts, letter| {
                *counts.entry(kafka::header(letter, "slipstream.replays")).or_default() += 1;
                counts
            });
        let wanted = (0..round).map(|n| (n.checked_sub(1).map(|n| (n + 1).to_string()), 3));
        assert_eq!(counts, wanted.collect(), "the count goes with the record");
        let replayed = replay(&names, &["--max-replays", "2"]).await;
        if round < 3 {
            assert_eq!(replayed.summary(0)["replayed"], 3, "{replayed:?}");
            continue;
        }
        let summary = replayed.summary(0);
        assert_eq!(
            (&summary["replayed"], &summary["left_out"]["max_replays"]),
            (&json!(0), &json!(3)),
            "{summary}"
        );
        let named = &summary["named"]["max_replays"][0];
        assert!(named["reason"].as_str().unwrap().starts_with("left out, replayed 2 times: "), "{summary}");
        assert!(replayed.err.contains(named["at"].as_str().unwrap()), "{replayed:?}");
    }
    assert!(running.terminate().await.success());
    let all = kafka::read_all(&names, &names.topic).await;
    for sent in &records {
        let there: Vec<_> = all.iter().filter(|record| record.partition() == sent.partition).collect();
        assert_eq!(there.len(), 3, "the record and its replays are in one partition");
        there.into_iter().for_each(|record| assert_is(record, sent));
    }
    let more = ["--max-replays", "3", "--dry-run", "--group"];
    let same = replay(&names, &[&more[..], &[&letters(&names).group]].concat()).await.summary(0);
    assert_eq!(same["would_replay"], 0, "the group has passed those that were left out");
    let another = replay(&names, &[&more[..], &[&format!("{}-more", names.group)]].concat()).await.summary(0);
    assert_eq!(another["would_replay"], 9, "they are there for another group that allows more");
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn dry_run_reports_and_changes_nothing() {
    let stack = stack().await;
    let names = stack.names();
    make_topics(&names, 2).await;
    write_letters(&names, 6, 2, &["deep", "large", "deep"]).await;
    let dry = run(&names, &["replay", "--dry-run", "--reason", "large"]).await;
    let line = format!("would send to {}/1: {}/1@0  ", names.topic, names.dead_letter_topic());
    assert!(dry.code == Some(0) && dry.text().contains(&line), "{line} in {dry:?}");
    assert!(dry.text().ends_with("would replay 2 dead letters\nleft out by the filters: 4\n"), "{dry:?}");
    let limited = replay(&names, &["--dry-run", "--limit", "4"]).await.summary(0);
    assert_eq!((&limited["would_replay"], &limited["ended_by"]), (&json!(4), &json!("limit")), "{limited}");
    assert_eq!(end_of(&names, &names.topic).await, 0, "nothing is sent");
    assert!(kafka::committed_offsets(&letters(&names)).await.is_empty(), "nothing is committed");
    assert_eq!(replay(&names, &["--limit", "4"]).await.summary(0)["replayed"], 4);
    let rest = replay(&names, &["--dry-run"]).await.summary(0);
    assert_eq!(rest["would_replay"], 2, "a dry run goes on where the group is");
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn records_excluded_by_filter_or_limit_remain_for_the_next_replay() {
    let stack = stack().await;
    let names = stack.names();
    make_topics(&names, 2).await;
    write_letters(&names, 40, 2, &["deep", "large", "other", "large", "deep"]).await;
    let large = replay(&names, &["--reason", "large"]).await.summary(0);
    assert_eq!((&large["replayed"], &large["left_out"]["filtered"]), (&json!(16), &json!(24)), "{large}");
    let there = keys(&names).await;
    assert!(there.len() == 16 && there.contains_key("k1") && !there.contains_key("k0"), "{there:?}");
    // Partition 0 begins with a record of another reason, partition 1 has one at offset 2.
    let again = replay(&names, &["--reason", "large"]).await.summary(0);
    assert_eq!(again["replayed"], 14, "from the first record that the filter excludes");
    let listed = run(&names, &["list", "--json"]).await.lines();
    let sixth = listed.iter().find(|letter| letter["key"] == "k5").unwrap()["time"].as_str().unwrap();
    let until = replay(&names, &["--until", sixth]).await.summary(0);
    assert_eq!(until["replayed"], 3, "k0, k2 and k4");
    assert_eq!(replay(&names, &["--limit", "7"]).await.summary(0)["replayed"], 7);
    let rest = replay(&names, &[]).await.summary(0);
    assert_eq!((&rest["replayed"], &rest["ended_by"]), (&json!(28), &json!("everything")), "{rest}");
    assert_eq!(keys(&names).await.len(), 40, "each is sent");
    assert_eq!(kafka::committed_offsets(&letters(&names)).await, BTreeMap::from([(0, 20), (1, 20)]));
}
