//! Replays that are interrupted, run concurrently, or get new records all the time.

use std::collections::BTreeMap;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::{ClientConfig, Message};
use serde_json::json;
use testkit::{Names, eventually, kafka};
use tokio::process::Child;

use super::{
    Ended, LIMIT, Sent, assert_each_once, command, consumer, dead, keys, letters, make_topics, replay, run,
    send, stack, write_letters,
};

/// Sends one record at a time. A replay of thousands of records then takes seconds, and a test can
/// act meanwhile.
const SLOWLY: [(&str, &str); 1] = [("KAFKA_PROPERTIES", "max.in.flight.requests.per.connection=1")];
pub const MANY: usize = 12_000;

fn start(names: &Names) -> Child {
    let mut command = command("slipstream", &names.environment(&SLOWLY));
    command
        .args(["dead-letters", "replay", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Starts a replay of many records and waits until it has committed an offset.
pub async fn under_way(names: &Names) -> (Child, BTreeMap<i32, i64>) {
    make_topics(names, 2).await;
    write_letters(names, MANY, 2, &["why"]).await;
    let mut child = start(names);
    let group = letters(names);
    let committed = eventually("it commits", LIMIT, || async {
        let committed = kafka::committed_offsets(&group).await;
        (!committed.is_empty()).then_some(committed)
    });
    let committed = tokio::select! {
        committed = committed => committed,
        () = async { _ = child.wait().await } => panic!("it ended at once: {:?}", ended(child).await),
    };
    (child, committed)
}

pub async fn ended(child: Child) -> Ended {
    Ended::of(tokio::time::timeout(LIMIT, child.wait_with_output()).await.expect("it ends").unwrap())
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn replay_after_a_kill_repeats_no_committed_record() {
    let stack = stack().await;
    let names = stack.names();
    let (mut child, _) = under_way(&names).await;
    child.kill().await.unwrap();
    let committed = kafka::committed_offsets(&letters(&names)).await;
    let before = keys(&names).await;
    assert!(before.len() < MANY, "it was killed in the middle");
    let summary = replay(&names, &[]).await.summary(0);
    assert_eq!(summary["ended_by"], "everything", "{summary}");
    let after = keys(&names).await;
    assert_eq!(after.len(), MANY, "none is lost");
    for n in 0..MANY {
        let (partition, offset) = ((n % 2) as i32, (n / 2) as i64);
        let count = after[&format!("k{n}")];
        let is_committed = committed.get(&partition).is_some_and(|committed| offset < *committed);
        assert!(count == 1 || (count == 2 && !is_committed), "k{n} is there {count} times");
    }
    assert_eq!(replay(&names, &[]).await.summary(0)["replayed"], 0);
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn signal_ends_the_replay_and_commits_all_sent_records() {
    let stack = stack().await;
    let names = stack.names();
    let (child, _) = under_way(&names).await;
    kill(Pid::from_raw(child.id().unwrap().cast_signed()), Signal::SIGINT).unwrap();
    let asked = std::time::Instant::now();
    let summary = ended(child).await.summary(0);
    assert!(asked.elapsed().as_secs() < 10, "{:?}", asked.elapsed());
    assert_eq!(summary["ended_by"], "signal", "{summary}");
    let sent = keys(&names).await.len();
    assert!(sent < MANY && summary["replayed"] == sent, "{summary}, and {sent} on the topic");
    assert_eq!(kafka::group_members(&letters(&names)).await, 0, "the group was left");
    let rest = replay(&names, &[]).await.summary(0);
    assert_eq!(rest["replayed"], MANY - sent);
    assert_each_once(&names, MANY).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn two_concurrent_replays_send_each_record_once() {
    let stack = stack().await;
    let names = stack.names();
    let (child, _) = under_way(&names).await;
    // It waits some seconds for the end of the first replay.
    let second = run(&names, &["replay", "--json"]).await;
    let first = ended(child).await.summary(0);
    match second.code {
        Some(0) => assert_eq!(second.json()["replayed"], 0, "{second:?}"),
        _ => assert!(second.err.contains("another replay is running in group"), "{second:?}"),
    }
    assert_eq!(first["replayed"], MANY, "{first:?}");
    assert_each_once(&names, MANY).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn replay_is_rejected_while_the_group_has_another_member() {
    let stack = stack().await;
    let names = stack.names();
    make_topics(&names, 2).await;
    write_letters(&names, 2, 2, &["why"]).await;
    let replays = letters(&names);
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &names.kafka)
        .set("group.id", &replays.group)
        .set("auto.offset.reset", "earliest");
    let consumer: StreamConsumer = config.create().unwrap();
    consumer.subscribe(&[&replays.topic]).unwrap();
    consumer.recv().await.expect("it is a member, as it got a record");
    let stays = async { while consumer.recv().await.is_ok() {} };
    let refused = tokio::select! {
        refused = run(&names, &["replay", "--json"]) => refused,
        () = stays => panic!("the member left"),
    };
    assert_eq!(refused.summary(1)["ended_by"], "failure", "{refused:?}");
    assert!(
        refused.err.contains(&format!("another replay is running in group {}", replays.group)),
        "{refused:?}"
    );
    assert!(keys(&names).await.is_empty());
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn paused_replay_that_lost_its_partitions_commits_nothing() {
    let stack = stack().await;
    let names = stack.names();
    let (child, _) = under_way(&names).await;
    let pid = Pid::from_raw(child.id().unwrap().cast_signed());
    kill(pid, Signal::SIGSTOP).unwrap();
    let other = replay(&names, &["--limit", "500"]).await;
    let at = kafka::committed_offsets(&letters(&names)).await;
    kill(pid, Signal::SIGCONT).unwrap();
    let sleeper = ended(child).await;
    assert_eq!(other.summary(0)["ended_by"], "limit", "{other:?}");
    assert_eq!(sleeper.summary(1)["ended_by"], "failure", "{sleeper:?}");
    assert_eq!(kafka::committed_offsets(&letters(&names)).await, at, "{sleeper:?}");
    replay(&names, &[]).await.summary(0);
    assert_eq!(keys(&names).await.len(), MANY, "none is lost");
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn records_dead_lettered_again_do_not_prolong_the_replay() {
    let stack = stack().await;
    let names = stack.names();
    let running = consumer(stack, &names).await;
    let values: Vec<String> = (0..300).map(|n| format!("no JSON {n}")).collect();
    let poison = |value| Sent { key: Some(b"k"), value: Some(value), ..Sent::default() };
    let records: Vec<Sent<'_>> = values.iter().map(|value| poison(value.as_bytes())).collect();
    send(&names, &names.topic, &records).await;
    dead(&names, 300).await;
    for round in 2..=3 {
        let summary = replay(&names, &["--max-replays", "2"]).await.summary(0);
        assert_eq!(
            (&summary["replayed"], &summary["ended_by"]),
            (&json!(300), &json!("everything")),
            "{summary}"
        );
        dead(&names, 300 * round).await;
    }
    let summary = replay(&names, &["--max-replays", "2"]).await.summary(0);
    assert_eq!(
        (&summary["replayed"], &summary["left_out"]["max_replays"]),
        (&json!(0), &json!(300)),
        "{summary}"
    );
    assert!(running.terminate().await.success());
    let all = kafka::read_all(&names, &names.topic).await;
    assert_eq!(all.len(), 900);
    let order: Vec<_> = all[300..600].iter().map(|record| record.payload().unwrap().to_vec()).collect();
    assert_eq!(
        order,
        values.iter().map(|value| value.as_bytes().to_vec()).collect::<Vec<_>>(),
        "in their order"
    );
}
