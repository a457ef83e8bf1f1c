//! The outcome of each kind of record.

use bson::{Bson, Document, doc};
use kafka::headers::{RawHeader, RawHeaders, with_header};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};

use crate::trial::{Sent, Trial, event};

const SAMPLE: &str = r#"{"id":"3F28BC","timestamp":1730000000000,"source":"adsbdb","payload":{"type":"G Hot Air Balloon","icao_type":"BALL","manufacturer":"Schroeder Fire Balloons","mode_s":"3F28BC","registration":"D-OBII","registered_owner_country_iso_name":"DE","registered_owner_country_name":"Germany","registered_owner_operator_flag_code":"BALL","registered_owner":"Private"},"ingested_at":1730000000100,"api_version":"1.0.0"}"#;

/// Events of one key whose timestamps are not in order.
const OUT_OF_ORDER: [(i64, &str); 4] =
    [(2000, "newer"), (1000, "older"), (3000, "newest"), (2500, "between")];

fn number(document: &Document, field: &str) -> i64 {
    document.get_i64(field).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sample_record_becomes_the_sample_document() {
    let trial = Trial::new(2).await;
    trial.send(Sent::new("3F28BC", SAMPLE)).await;
    let member = trial.start(&[]).await;
    member.finishes(1).await;
    let expected = doc! {
        "type": "G Hot Air Balloon",
        "icao_type": "BALL",
        "manufacturer": "Schroeder Fire Balloons",
        "mode_s": "3F28BC",
        "registration": "D-OBII",
        "registered_owner_country_iso_name": "DE",
        "registered_owner_country_name": "Germany",
        "registered_owner_operator_flag_code": "BALL",
        "registered_owner": "Private",
        "event_id": "3F28BC",
        "event_timestamp": 1_730_000_000_000_i64,
        "ingested_at": 1_730_000_000_100_i64,
        "api_version": "1.0.0",
        "event_timestamp_iso": "2024-10-27T03:33:20.000Z",
        "ingested_at_iso": "2024-10-27T03:33:20.100Z",
    };
    assert_eq!(trial.document("3F28BC").await, Some(expected));
    let counted = member.stop().await;
    assert_eq!((counted.read, counted.inserted), (1, 1));
}

/// Sends the first events before the consumer starts, so that they form one batch, and then one
/// event at a time.
async fn assert_newest_event_wins(in_one_batch: usize) {
    let trial = Trial::new(1).await;
    let (batch, single) = OUT_OF_ORDER.split_at(in_one_batch);
    let send = async |(at, v): &(i64, &str)| {
        trial.send(Sent::new("A", &event("A", *at, &format!(r#"{{"v":"{v}"}}"#)))).await
    };
    for one in batch {
        send(one).await;
    }
    let member = trial.start(&[]).await;
    member.finishes(in_one_batch as u64).await;
    for (before, one) in (in_one_batch as u64..).zip(single) {
        send(one).await;
        member.finishes(before + 1).await;
    }
    assert_eq!(trial.document("A").await.unwrap().get_str("v").unwrap(), "newest");
    let counted = member.stop().await;
    assert_eq!(
        (counted.inserted, counted.updated, counted.superseded),
        (1, 1, 2),
        "{in_one_batch}: {counted:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn g3_older_event_after_a_newer_one_is_superseded() {
    assert_newest_event_wins(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g3_older_event_after_a_newer_one_in_the_same_batch_is_superseded() {
    for in_one_batch in 1..=4 {
        assert_newest_event_wins(in_one_batch).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g3_out_of_order_batch_over_a_stored_event_leaves_the_newest() {
    let trial = Trial::new(1).await;
    let [first, rest @ ..] = OUT_OF_ORDER;
    trial.send(Sent::new("A", &event("A", first.0, r#"{"v":"newer"}"#))).await;
    let member = trial.start(&[]).await;
    member.finishes(1).await;
    member.stop().await;
    for (at, v) in rest {
        trial.send(Sent::new("A", &event("A", at, &format!(r#"{{"v":"{v}"}}"#)))).await;
    }
    let member = trial.start(&[]).await;
    member.finishes(3).await;
    assert_eq!(trial.document("A").await.unwrap().get_str("v").unwrap(), "newest");
    let counted = member.stop().await;
    assert_eq!((counted.updated, counted.superseded), (1, 2), "{counted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn g5_header_name_that_is_not_utf_8_is_preserved_in_the_dead_letter() {
    let trial = Trial::new(1).await;
    let not_utf_8 = RawHeader { name: b"\xffname", value: Some(b"v") };
    let headers = || Some(with_header(OwnedHeaders::new(), not_utf_8));
    trial.send(Sent { headers: headers(), ..Sent::new("good", &event("good", 1, "{}")) }).await;
    trial.send(Sent { headers: headers(), ..Sent::new("poison", "{") }).await;
    trial.send(Sent::new("after", &event("after", 2, "{}"))).await;

    let member = trial.start(&[]).await;
    member.finishes(3).await;
    assert_eq!(trial.ids().await, ["after", "good"]);
    let dead_letters = trial.dead_letters().await;
    assert_eq!(dead_letters.len(), 1);
    assert_eq!(dead_letters[0].headers().unwrap().raw_headers().next(), Some(not_utf_8));
}

#[tokio::test(flavor = "multi_thread")]
async fn g5_poison_record_is_dead_lettered_byte_for_byte_and_others_are_stored() {
    let trial = Trial::new(1).await;
    let headers = OwnedHeaders::new()
        .insert(Header { key: "traceparent", value: Some("00-ab-cd-01") })
        .insert(Header { key: "twice", value: Some(&b"\x00\xff"[..]) })
        .insert(Header { key: "twice", value: Some(&b""[..]) })
        .insert(Header::<&[u8]> { key: "null", value: None });
    let (key, value) = (&b"\xff\x00key"[..], &b"{\"source\":\"adsbdb\",\"payload\":\xc3"[..]);
    trial.send(Sent::new("a", &event("a", 1, "{}"))).await;
    let poison = Sent {
        partition: 0,
        key: Some(key),
        value: Some(value),
        timestamp: Some(1_234),
        headers: Some(headers.clone()),
    };
    trial.send(poison).await;
    trial.send(Sent::new("b", &event("b", 2, "{}"))).await;

    let member = trial.start(&[]).await;
    member.finishes(3).await;
    assert_eq!(trial.ids().await, ["a", "b"]);
    let dead_letters = trial.dead_letters().await;
    let [dead_letter] = dead_letters.as_slice() else { panic!("{} dead letters", dead_letters.len()) };
    assert_eq!((dead_letter.key(), dead_letter.payload()), (Some(key), Some(value)));
    assert_eq!(dead_letter.timestamp().to_millis(), Some(1_234));
    let found: Vec<(String, Option<Vec<u8>>)> = dead_letter
        .headers()
        .unwrap()
        .iter()
        .map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec)))
        .collect();
    let sent: Vec<(String, Option<Vec<u8>>)> =
        headers.iter().map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec))).collect();
    assert_eq!(found[..4], sent[..], "the headers of the record come first, unchanged");
    let text = |name: &str| {
        let name = format!("__connect.errors.{name}");
        let value =
            found.iter().find(|(key, _)| *key == name).unwrap_or_else(|| panic!("no {name}")).1.clone();
        String::from_utf8(value.unwrap()).unwrap()
    };
    assert_eq!(
        (text("topic"), text("partition"), text("offset")),
        (trial.topic.clone(), "0".into(), "1".into())
    );
    assert_eq!((text("stage"), text("connector.name")), ("decode".into(), trial.group.clone()));
    assert!(!text("exception.class.name").is_empty() && !text("exception.message").is_empty());
    assert_eq!(text("task.id"), "0");
    assert!(!text("class.name").is_empty());
    let counted = member.stop().await;
    assert_eq!((counted.inserted, counted.dead_lettered), (2, 1));
    assert_eq!(trial.committed().await, [(0, 3)].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn g5_record_rejected_by_the_collection_is_dead_lettered_alone() {
    let trial = Trial::new(1).await;
    let own = mongodb::IndexModel::builder()
        .keys(doc! {"registration": 1})
        .options(mongodb::options::IndexOptions::builder().unique(true).build())
        .build();
    trial.collection("adsbdb").await.create_index(own).await.unwrap();
    for (id, registration) in [("a", "R1"), ("b", "R1"), ("c", "R2")] {
        trial.send(Sent::new(id, &event(id, 1, &format!(r#"{{"registration":"{registration}"}}"#)))).await;
    }
    let member = trial.start(&[]).await;
    member.finishes(3).await;
    assert_eq!(trial.ids().await, ["a", "c"]);
    let dead_letters = trial.dead_letters().await;
    assert_eq!(dead_letters.len(), 1);
    assert_eq!(dead_letters[0].key(), Some(&b"b"[..]));
    let headers = dead_letters[0].headers().unwrap();
    let stage = headers.iter().find(|header| header.key == "__connect.errors.stage").unwrap();
    assert_eq!(stage.value, Some(&b"store"[..]));
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tombstone_is_skipped_and_empty_value_is_dead_lettered() {
    let trial = Trial::new(1).await;
    trial.send(Sent { value: None, ..Sent::new("gone", "") }).await;
    trial.send(Sent::new("empty", "")).await;
    let member = trial.start(&[]).await;
    member.finishes(2).await;
    let dead_letters = trial.dead_letters().await;
    assert_eq!(dead_letters.len(), 1);
    assert_eq!((dead_letters[0].key(), dead_letters[0].payload()), (Some(&b"empty"[..]), Some(&b""[..])));
    let counted = member.stop().await;
    assert_eq!((counted.skipped, counted.dead_lettered), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn event_of_another_source_is_skipped_unless_all_are_expected() {
    let trial = Trial::new(1).await;
    let manual = r#"{"id":"m","timestamp":1,"source":"manual","payload":{"value":42},"ingested_at":1,"api_version":"1.0.0"}"#;
    trial.send(Sent::new("m", manual)).await;
    trial.send(Sent::new("a", &event("a", 1, "{}"))).await;
    let member = trial.start(&[]).await;
    member.finishes(2).await;
    let counted = member.stop().await;
    assert_eq!((counted.skipped, counted.inserted), (1, 1));
    assert!(trial.collection("manual").await.find_one(doc! {}).await.unwrap().is_none());

    let other_group = format!("{}-all", trial.group);
    let member = trial.start(&[("EXPECTED_SOURCE", "*"), ("KAFKA_GROUP_ID", &other_group)]).await;
    member.finishes(2).await;
    let stored = trial.collection("manual").await.find_one(doc! {"event_id": "m"}).await.unwrap().unwrap();
    assert_eq!(stored.get("value"), Some(&Bson::Int32(42)));
    let counted = member.stop().await;
    assert_eq!((counted.inserted, counted.unchanged), (1, 1), "{counted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_without_id_or_times_get_them_from_key_and_timestamp() {
    let trial = Trial::new(1).await;
    let at = 1_730_000_000_555;
    // A key but no id, no times, and a field that is not in the envelope.
    let bare = r#"{"source":"adsbdb","payload":{"p":1},"trace":{"hop":"x"}}"#;
    trial.send(Sent { timestamp: Some(at), ..Sent::new("from-key", bare) }).await;
    // Times as text, without a key.
    let text = r#"{"id":"text","timestamp":"2024-10-27T03:33:20Z","source":"adsbdb","payload":{},"ingested_at":"2024-10-27T05:33:20.1+02:00"}"#;
    trial.send(Sent { key: None, ..Sent::new("", text) }).await;
    // Neither an id nor a key.
    trial.send(Sent { key: None, ..Sent::new("", r#"{"source":"adsbdb","payload":{}}"#) }).await;
    let member = trial.start(&[]).await;
    member.finishes(3).await;

    let stored = trial.document("from-key").await.unwrap();
    assert_eq!((number(&stored, "event_timestamp"), number(&stored, "ingested_at")), (at, at));
    assert_eq!(stored.get_document("envelope_extra").unwrap(), &doc! {"trace": {"hop": "x"}});
    let stored = trial.document("text").await.unwrap();
    assert_eq!(number(&stored, "event_timestamp"), 1_730_000_000_000);
    assert_eq!(number(&stored, "ingested_at"), 1_730_000_000_100);
    let dead_letters = trial.dead_letters().await;
    assert_eq!(dead_letters.len(), 1);
    let headers = dead_letters[0].headers().unwrap();
    let reason = headers.iter().find(|header| header.key == "__connect.errors.exception.message").unwrap();
    assert!(String::from_utf8_lossy(reason.value.unwrap()).contains("id"), "{reason:?}");
    assert_eq!(dead_letters[0].key(), None);
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_compression_codec_is_read() {
    let trial = Trial::new(1).await;
    for codec in ["gzip", "snappy", "lz4", "zstd", "none"] {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &trial.bootstrap).set("compression.type", codec);
        let payload = format!(r#"{{"text":"{}"}}"#, "again ".repeat(500));
        trial.send_with(&config.create().unwrap(), Sent::new(codec, &event(codec, 1, &payload))).await;
    }
    let member = trial.start(&[]).await;
    member.finishes(5).await;
    assert_eq!(trial.ids().await, ["gzip", "lz4", "none", "snappy", "zstd"]);
    member.stop().await;
}
