//! Records from other producers, and their dead letters.

use bson::{Document, doc};
use devservers::BrokerKind;
use futures::TryStreamExt;
use rdkafka::Message;
use rdkafka::admin::{AdminOptions, ResourceSpecifier};
use rdkafka::message::{Header, Headers, OwnedHeaders};
use testkit::servers::{self, shared_broker, shared_mongodb};

use crate::trial::{Sent, Trial, event, told};

/// Values that can never be stored, and a part of the expected reason.
const INVALID: [(&str, &str); 17] = [
    ("", "empty"),
    ("{\n\"id\":", "line 2"),
    ("[1]", "not a JSON object"),
    (r#"{"id":"x","source":"adsbdb"}"#, "payload"),
    (r#"{"id":"x","source":"adsbdb","payload":[1]}"#, "payload"),
    (r#"{"id":"x","source":"adsbdb","payload":{"deep":{"n\u0000ul":1}}}"#, "payload.deep"),
    (r#"{"id":"x","source":"adsbdb","payload":{"text":"\ud800"}}"#, "payload.text"),
    (r#"{"id":"x","source":"adsbdb","payload":{"big":1e9999999}}"#, "payload.big"),
    (r#"{"id":"x","source":"adsbdb","payload":{"mode_s":["a"],"registration":["b"]}}"#, "registration"),
    (r#"{"id":"x","source":"adsbdb","payload":{},"timestamp":-1}"#, "timestamp"),
    (r#"{"id":"x","source":"adsbdb","payload":{},"timestamp":"yesterday"}"#, "timestamp"),
    (r#"{"id":"x","source":"adsbdb","payload":{},"ingested_at":true}"#, "ingested_at"),
    (r#"{"id":"x","source":"adsbdb","payload":{},"api_version":1}"#, "api_version"),
    (r#"{"id":"x","source":"adsbdb","payload":{},"extra":"\udfff"}"#, "extra"),
    (r#"{"id":{},"source":"adsbdb","payload":{}}"#, "id"),
    (r#"{"id":"x","id":"y","source":"adsbdb","payload":{}}"#, "id"),
    (r#"{"id":"x","payload":{}}"#, "source"),
];

#[tokio::test(flavor = "multi_thread")]
async fn g5_dead_letter_reason_names_the_field() {
    let trial = Trial::new(1).await;
    let own_headers = OwnedHeaders::new().insert(Header { key: "traceparent", value: Some("00-1-2-01") });
    for (n, (value, _)) in INVALID.iter().enumerate() {
        let key = n.to_string();
        let headers = Some(own_headers.clone());
        trial.send(Sent { headers, timestamp: Some(7 + n as i64), ..Sent::new(&key, value) }).await;
    }
    trial.send(Sent::new("good", &event("good", 1, "{}"))).await;
    let member = trial.start(&[]).await;
    member.finishes(INVALID.len() as u64 + 1).await;
    let dead_letters = trial.dead_letters().await;
    assert_eq!(dead_letters.len(), INVALID.len());
    for dead_letter in &dead_letters {
        let n: usize = String::from_utf8_lossy(dead_letter.key().unwrap()).parse().unwrap();
        let (value, named) = INVALID[n];
        let reason = told(dead_letter, "exception.message");
        assert!(reason.contains(named), "{value}: {reason}");
        assert_eq!(dead_letter.payload(), Some(value.as_bytes()));
        assert_eq!(dead_letter.timestamp().to_millis(), Some(7 + n as i64));
        assert_eq!(dead_letter.headers().unwrap().get(0).value, Some(&b"00-1-2-01"[..]));
        assert_eq!(told(dead_letter, "offset"), n.to_string());
    }
    assert_eq!(trial.ids().await, ["good"]);
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn record_of_another_source_is_skipped_only_if_it_is_readable() {
    let trial = Trial::new(1).await;
    let others = [r#"{"source":"other"}"#, r#"{"source":"other","payload":7,"id":{},"timestamp":-1}"#];
    let unreadable = [r#"{"source":"other""#, "\"source\"", r#"{"source":7,"payload":{}}"#];
    for value in others.iter().chain(&unreadable) {
        trial.send(Sent { key: None, ..Sent::new("", value) }).await;
    }
    let member = trial.start(&[]).await;
    member.finishes(5).await;
    let counted = member.stop().await;
    assert_eq!((counted.skipped, counted.dead_lettered), (2, 3), "{counted:?}");
}

async fn documents(trial: &Trial) -> Vec<Document> {
    let found = trial.collection("adsbdb").await.find(doc! {}).sort(doc! {"event_id": 1}).await.unwrap();
    found.try_collect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn g3_replay_of_foreign_records_gives_the_same_documents() {
    let trial = Trial::new(1).await;
    let values = [
        r#"{"source":"adsbdb","payload":{"a":1}}"#,
        r#"{"source":"adsbdb","payload":{"a":{"$set":1}},"id":null,"timestamp":null,"ingested_at":null}"#,
        r#"{"source":"adsbdb","payload":{},"timestamp":"2024-02-29T23:59:59.9999+01:00","headers":{"x":[1,"$y"]},"v":2}"#,
        r#"{"source":"adsbdb","payload":{"event_id":"mine","_id":7},"timestamp":5,"ingested_at":"2024-01-01T00:00:00Z"}"#,
    ];
    for (n, value) in values.iter().enumerate() {
        let key = format!("k{n}");
        trial.send(Sent { timestamp: Some(1_000 + n as i64), ..Sent::new(&key, value) }).await;
    }
    let member = trial.start(&[]).await;
    member.finishes(4).await;
    assert_eq!(member.stop().await.inserted, 4);
    let first = documents(&trial).await;
    let number = |n: usize, field: &str| first[n].get_i64(field).unwrap();
    assert_eq!((number(0, "event_timestamp"), number(0, "ingested_at")), (1_000, 1_000));
    assert_eq!((number(1, "event_timestamp"), number(1, "ingested_at")), (1_001, 1_001));
    assert_eq!((number(2, "event_timestamp"), number(2, "ingested_at")), (1_709_247_599_999, 1_002));
    let extra = doc! {"headers": {"x": [1, "$y"]}, "v": 2};
    assert_eq!(first[2].get_document("envelope_extra").unwrap(), &extra);
    assert_eq!((number(3, "event_timestamp"), number(3, "ingested_at")), (5, 1_704_067_200_000));
    let conflicts = doc! {"event_id": "mine", "_id": 7};
    assert_eq!(first[3].get_document("payload_conflicts").unwrap(), &conflicts);

    let again = format!("{}-again", trial.group);
    let member = trial.start(&[("KAFKA_GROUP_ID", &again)]).await;
    member.finishes(4).await;
    let counted = member.stop().await;
    assert_eq!(counted.unchanged, 4, "{counted:?}");
    assert_eq!(documents(&trial).await, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_source_has_its_own_collection_with_its_indexes() {
    let trial = Trial::new(2).await;
    for (n, source) in ["adsbdb", "manual", "third"].into_iter().enumerate() {
        let value = event("same id", 1, &format!(r#"{{"from":"{source}"}}"#)).replace("adsbdb", source);
        trial.send(Sent { partition: n as i32 % 2, ..Sent::new("same id", &value) }).await;
    }
    let listed = trial.start(&[("EXPECTED_SOURCE", "adsbdb, manual")]).await;
    listed.finishes(3).await;
    let counted = listed.stop().await;
    assert_eq!((counted.inserted, counted.skipped), (2, 1), "{counted:?}");

    let all = format!("{}-all", trial.group);
    let member = trial.start(&[("EXPECTED_SOURCE", "*"), ("KAFKA_GROUP_ID", &all)]).await;
    member.finishes(3).await;
    let counted = member.stop().await;
    assert_eq!((counted.inserted, counted.unchanged), (1, 2), "{counted:?}");
    for source in ["adsbdb", "manual", "third"] {
        let collection = trial.collection(source).await;
        let document = collection.find_one(doc! {"event_id": "same id"}).await.unwrap().unwrap();
        assert_eq!(document.get_str("from").unwrap(), source);
        let mut names = collection.list_index_names().await.unwrap();
        names.sort();
        assert_eq!(names, ["_id_", "event_id_1", "mode_s_1_registration_1_event_timestamp_1"], "{source}");
    }
}

async fn setting(trial: &Trial, topic: &str, name: &str) -> i64 {
    let described =
        trial.admin().describe_configs([&ResourceSpecifier::Topic(topic)], &AdminOptions::new()).await;
    let resource = described.unwrap().remove(0).unwrap();
    resource.get(name).unwrap().value.as_ref().unwrap().parse().unwrap()
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g5_dead_letter_topic_never_expires_and_accepts_the_largest_record() {
    let trial = Trial::on(&shared_broker().await.bootstrap(), &shared_mongodb().await.uri(), 1);
    trial.make_topic(&trial.topic, 1, &[("max.message.bytes", "200000")]).await;
    let member = trial.start(&[]).await;
    member.becomes_ready().await;
    let dead_letter_topic = format!("{}.dlq", trial.topic);
    assert_eq!(setting(&trial, &dead_letter_topic, "retention.ms").await, -1);
    assert_eq!(setting(&trial, &dead_letter_topic, "max.message.bytes").await, 200_000 + 64 * 1024);
    // The largest record that its topic accepts. Compression does not make it smaller.
    let noise: String = std::iter::repeat_with(fastrand::alphanumeric).take(199_800).collect();
    trial.send(Sent::new("largest", &noise)).await;
    member.finishes(1).await;
    assert_eq!(trial.dead_letters().await[0].payload(), Some(noise.as_bytes()));
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn configured_dead_letter_topic_receives_those_of_all_topics() {
    let trial = Trial::new(1).await;
    let (other, named) = (format!("{}-2", trial.topic), format!("{}-dead", trial.topic));
    trial.make_topic(&other, 1, &[("max.message.bytes", "2000000")]).await;
    let second = Trial { topic: other.clone(), ..Trial::on(&trial.bootstrap, &trial.uri, 1) };
    trial.send(Sent::new("one", "not json")).await;
    second.send(Sent::new("two", "not json")).await;
    let both = format!("{},{other}", trial.topic);
    let member = trial.start(&[("KAFKA_TOPIC", &both), ("DEAD_LETTER_TOPIC", &named)]).await;
    member.finishes(2).await;
    let mut origins: Vec<String> =
        trial.records_of(named.clone()).await.iter().map(|dead_letter| told(dead_letter, "topic")).collect();
    origins.sort();
    assert_eq!(origins, [trial.topic.clone(), other]);
    if servers::broker_kind() == BrokerKind::ApacheKafka {
        assert_eq!(setting(&trial, &named, "max.message.bytes").await, 2_000_000 + 64 * 1024);
    }
    member.stop().await;
}
