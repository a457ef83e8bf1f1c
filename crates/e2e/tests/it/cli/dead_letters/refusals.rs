//! Records that are not sent, and records that Kafka rejects.

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::{ClientConfig, Message};
use serde_json::json;
use testkit::{Stack, kafka};

use super::{Sent, keys, letters, make_topics, replay, run, send, stack, write_letters};
use testkit::Names;

async fn set(names: &Names, setting: &str, value: &str) {
    set_all(names, &[(setting, value)]).await;
}

/// Sets configurations of the topic. All others return to the defaults of the broker.
pub async fn set_all(names: &Names, settings: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &names.kafka).create().unwrap();
    let change = AlterConfig::new(ResourceSpecifier::Topic(&names.topic));
    let change = settings.iter().fold(change, |change, (setting, value)| change.set(setting, value));
    let changed = admin.alter_configs([&change], &AdminOptions::new()).await.unwrap();
    assert!(changed.iter().all(Result::is_ok), "{changed:?}");
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(|| random.u8(..)).take(bytes).collect()
}

/// Writes a dead letter of partition 0 of the topic.
async fn write_one(names: &Names, key: &str, value: &[u8], record_ms: Option<i64>) {
    let headers = [
        ("__connect.errors.topic", Some(names.topic.as_bytes())),
        ("__connect.errors.partition", Some(&b"0"[..])),
        ("__connect.errors.offset", Some(b"0")),
    ];
    let sent = Sent {
        key: Some(key.as_bytes()),
        value: Some(value),
        record_ms,
        headers: &headers,
        ..Sent::default()
    };
    send(names, &names.dead_letter_topic(), &[sent]).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn too_large_record_is_reported_and_the_others_are_replayed() {
    let stack = stack().await;
    let names = stack.names();
    make_topics(&names, 1).await;
    let large = noise(5_000);
    for (key, value) in [("k0", &b"small"[..]), ("k1", &large), ("k2", b"small"), ("k3", &large[..100])] {
        write_one(&names, key, value, None).await;
    }
    set(&names, "max.message.bytes", "2000").await;
    let ended = replay(&names, &[]).await;
    let summary = ended.summary(1);
    assert_eq!((&summary["replayed"], &summary["refused"]), (&json!(3), &json!(1)), "{summary}");
    let place = format!("{}/0@1", names.dead_letter_topic());
    let remedy = format!("raise max.message.bytes of topic {}", names.topic);
    assert!(ended.err.contains(&place) && ended.err.contains(&remedy), "{ended:?}");
    assert_eq!(summary["named"]["refused"][0]["at"], place);
    assert_eq!(kafka::committed_offsets(&letters(&names)).await[&0], 1, "nothing is committed past it");
    assert_eq!(replay(&names, &[]).await.summary(1)["replayed"], 2, "those after it, once more");
    set(&names, "max.message.bytes", "1000000").await;
    assert_eq!(replay(&names, &[]).await.summary(0)["replayed"], 3);
    assert_eq!(
        keys(&names).await,
        [("k0", 1), ("k1", 1), ("k2", 3), ("k3", 3)].map(|(key, count)| (key.to_owned(), count)).into()
    );
    let all = kafka::read_all(&names, &names.topic).await;
    let sent = all.iter().find(|record| record.key() == Some(b"k1")).unwrap();
    assert_eq!(sent.payload(), Some(&large[..]));
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn record_without_topic_or_too_old_is_reported_and_kept() {
    let stack = stack().await;
    let names = stack.names();
    kafka::create_topic(&letters(&names), 1).await;
    write_one(&names, "k0", b"x", Some(5)).await;
    write_one(&names, "k1", b"x", None).await;
    for arguments in [&["--dry-run"][..], &[]] {
        let ended = replay(&names, arguments).await;
        assert_eq!(ended.summary(1)["refused"], 2, "{ended:?}");
        assert!(ended.err.contains(&format!("topic {} does not exist: create it", names.topic)), "{ended:?}");
    }
    kafka::create_topic(&names, 1).await;
    set(&names, "message.timestamp.before.max.ms", "3600000").await;
    let ended = replay(&names, &[]).await;
    assert_eq!(
        (&ended.summary(1)["replayed"], &ended.json()["refused"]),
        (&json!(1), &json!(1)),
        "{ended:?}"
    );
    assert!(ended.err.contains("message.timestamp.before.max.ms"), "{ended:?}");
    assert_eq!(keys(&names).await.into_keys().collect::<Vec<_>>(), ["k1"]);
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn records_of_another_or_no_topic_are_not_replayed() {
    let stack = stack().await;
    let names = stack.names();
    make_topics(&names, 1).await;
    let foreign = Names { topic: format!("{}-b", names.topic), ..names.clone() };
    kafka::create_topic(&foreign, 1).await;
    let shared = [("DEAD_LETTER_TOPIC", names.dead_letter_topic())];
    write_letters(&names, 3, 1, &["why"]).await;
    let of_another = [
        ("__connect.errors.topic", Some(foreign.topic.as_bytes())),
        ("__connect.errors.partition", Some(b"0")),
        ("__connect.errors.offset", Some(b"0")),
    ];
    let circle = [
        ("__connect.errors.topic", Some(shared[0].1.as_bytes())),
        ("__connect.errors.partition", Some(b"0")),
        ("__connect.errors.offset", Some(b"0")),
    ];
    let records = [
        Sent { headers: &of_another, ..Sent::default() },
        Sent { headers: &circle, ..Sent::default() },
        Sent { value: Some(b"nobody knows"), ..Sent::default() },
    ];
    send(&names, &names.dead_letter_topic(), &records).await;
    let ended = replay(&names, &[]).await;
    let left_out = json!({"filtered": 0, "pulled": 0, "other_topics": 2, "no_origin": 1, "max_replays": 0});
    assert_eq!(
        (&ended.summary(0)["replayed"], &ended.json()["left_out"]),
        (&json!(3), &left_out),
        "{ended:?}"
    );
    assert!(ended.err.contains(&format!("{}/0@5: left out", names.dead_letter_topic())), "{ended:?}");
    let text = run(&names, &["replay", "--group", &format!("{}-text", names.group)]).await;
    let wanted = "replayed 3 dead letters\nleft out of topics that KAFKA_TOPIC does not name: 2\nleft out without an original position: 1\n";
    assert_eq!((text.code, text.text()), (Some(0), wanted), "{text:?}");
    assert_eq!(kafka::read_all(&foreign, &foreign.topic).await.len(), 0);
    assert_eq!(kafka::read_all(&names, &names.dead_letter_topic()).await.len(), 6);
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn replay_is_rejected_for_the_consumer_group_or_a_missing_topic_or_broker() {
    let stack = stack().await;
    let names = stack.names();
    let missing = run(&names, &["replay"]).await;
    assert!(missing.code == Some(1) && missing.err.contains("does not exist"), "{missing:?}");
    make_topics(&names, 1).await;
    let empty = replay(&names, &[]).await.summary(0);
    assert_eq!((&empty["replayed"], &empty["ended_by"]), (&json!(0), &json!("everything")));
    let own = run(&names, &["replay", "--group", &names.group]).await;
    assert!(own.code == Some(2) && own.err.contains("consumer's own group"), "{own:?}");
    for wrong in [&["--max-replays", "0"][..], &["--limit", "0"], &["--until", "x"]] {
        assert_eq!(replay(&names, wrong).await.code, Some(2), "{wrong:?}");
    }
    let nobody = testkit::process::free_address().to_string();
    let away = super::run_with(&names, &[("KAFKA_BROKER", &nobody)], &["replay"]).await;
    assert!(away.code == Some(1) && away.err.contains("kafka does not answer"), "{away:?}");
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn unresponsive_broker_ends_the_replay_and_the_next_one_continues() {
    let stack = Stack::start_without_sync().await;
    let names = stack.names();
    let (child, _) = super::runs::under_way(&names).await;
    stack.broker.pause();
    let silent = super::runs::ended(child).await;
    stack.broker.resume();
    assert_eq!(silent.summary(1)["ended_by"], "failure", "{silent:?}");
    let told = ["was not acknowledged", "cannot be committed"].iter().any(|why| silent.err.contains(why));
    assert!(told, "{silent:?}");
    let rest = replay(&names, &[]).await.summary(0);
    assert_eq!(rest["ended_by"], "everything", "{rest}");
    let there = keys(&names).await;
    assert_eq!(there.len(), super::runs::MANY, "none is lost");
}
