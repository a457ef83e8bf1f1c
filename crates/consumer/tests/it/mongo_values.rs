//! Values are data: MongoDB interprets no part of a payload as operator, path or variable.

use bson::{Document, RawDocumentBuf, doc};
use serde_json::json;

use crate::mongo_fixture::{StoreFixture, counts, event_with, expected_document, without_id};

/// Names and texts with a meaning for MongoDB, and numbers beyond int64.
fn hostile(mark: u32) -> String {
    let fields = [
        r#""$x":"$y""#,
        r#""a.b":{"$c":"$d.e","f.g":["$h"]}"#,
        r#""a":{"b":"$$ROOT"}"#,
        r#""":{"":"","$literal":1}"#,
        r#""$literal":{"$literal":"$$REMOVE"}"#,
        r#""$set":{"event_id":"stolen"}"#,
        r#""$where":"sleep(1000)""#,
        r#""text":"a\u0000b\ud83d\ude00""#,
        r#""big":123456789012345678901234567890"#,
        r#""int":9223372036854775807"#,
        r#""real":0.1"#,
        r#""empty":{}"#,
        r#""none":null"#,
        r#""list":[[],{},[null,"$z",{"$gt":""}]]"#,
    ];
    format!(r#"{{{},"mark":{mark}}}"#, fields.join(","))
}

#[tokio::test]
async fn hostile_names_and_values_are_inserted_and_updated_unchanged() {
    let fixture = StoreFixture::with_keys("event_id").await;
    let id = "$event_id.{\"$ne\": null}";
    let first = event_with(id, 1, 1, &hostile(1));
    assert_eq!(fixture.write(std::slice::from_ref(&first)).await, counts(1, 0, 0, 0));
    let stored = fixture.documents().await.remove(0);
    let object_id = stored.get_object_id("_id").expect("an _id");
    assert_eq!(without_id(stored), expected_document(&first));

    let second = event_with(id, 2, 1, &hostile(2));
    assert_eq!(fixture.write(&[second.clone(), second.clone()]).await, counts(0, 1, 1, 0));
    let stored = fixture.documents().await.remove(0);
    assert_eq!(stored.get_object_id("_id").ok(), Some(object_id));
    assert_eq!(stored.keys().nth(1).map(String::as_str), Some("$x"), "the fields keep their order");
    assert_eq!(without_id(stored), expected_document(&second));
}

#[tokio::test]
async fn a_value_of_a_key_is_only_compared() {
    let fixture = StoreFixture::with_keys("mode_s,place.name").await;
    let values = ["$mode_s", "$$ROOT", "", ".", "{\"$ne\":1}", "a.b", "/.*/", "A"];
    let batch = |timestamp: i64| {
        let one = |value: &&str| {
            let payload = json!({ "mode_s": value, "place": { "name": value }, "v": timestamp });
            event_with(&format!("{timestamp}-{value}"), timestamp, 1, &payload.to_string())
        };
        values.iter().map(one).collect::<Vec<_>>()
    };
    assert_eq!(fixture.write(&batch(1)).await, counts(8, 0, 0, 0));
    assert_eq!(fixture.write(&batch(2)).await, counts(0, 8, 0, 0));
    assert_eq!(fixture.write(&batch(1)).await, counts(0, 0, 0, 8));
    assert_eq!(fixture.documents().await.len(), 8);
}

#[tokio::test]
async fn the_deepest_accepted_payload_is_inserted_and_updated_unchanged() {
    let fixture = StoreFixture::with_keys("event_id").await;
    let deep = |mark: u32| {
        let nested = format!("{}{mark}{}", r#"{"a":"#.repeat(88), "}".repeat(88));
        event_with("deep", i64::from(mark), 1, &nested)
    };
    assert_eq!(fixture.write(&[deep(1)]).await, counts(1, 0, 0, 0));
    assert_eq!(fixture.write(&[deep(2)]).await, counts(0, 1, 0, 0));
    // Compared as bytes: parsing a document of this depth needs more stack than a test thread has.
    let raw = fixture.collection().clone_with_type::<RawDocumentBuf>();
    let stored = raw.find_one(doc! {}).await.expect("an answer").expect("a document");
    let event = deep(2);
    assert_eq!(stored.iter().count(), event.document.iter().count() + 1);
    let elements = stored.iter().skip(1).zip(event.document.iter());
    for (stored, wanted) in elements {
        assert_eq!(stored.expect("an element"), wanted.expect("an element"));
    }
}

#[tokio::test]
async fn values_that_look_like_extended_json_are_inserted_unchanged() {
    let fixture = StoreFixture::with_keys("event_id").await;
    let payloads = [
        r#"{"n":{"$numberLong":"5"}}"#,
        r#"{"a":[1,{"deep":[{"$date":"2020-01-01T00:00:00Z"}]}]}"#,
        r#"{"m":{"$oid":"555555555555555555555555"}}"#,
        r#"{"n":{"$numberInt":"5","other":1},"m":{"$x":1}}"#,
    ];
    let events: Vec<_> =
        payloads.iter().enumerate().map(|(n, p)| event_with(&format!("e{n}"), 1, 1, p)).collect();
    assert_eq!(fixture.write(&events).await, counts(payloads.len() as u64, 0, 0, 0));
    // Read as bytes: parsing a document would interpret the values as extended JSON.
    let raw = fixture.collection().clone_with_type::<RawDocumentBuf>();
    let stored = async |id: &str| raw.find_one(doc! { "event_id": id }).await.expect("an answer").expect(id);
    let fields =
        |document: &RawDocumentBuf| format!("{:?}", Document::try_from(document.clone()).map(without_id));
    for (n, event) in events.iter().enumerate() {
        assert_eq!(fields(&stored(&format!("e{n}")).await), fields(&event.document));
    }

    // With one that exists already, so that the reply contains an error.
    let older = [event_with("e0", 0, 0, payloads[0]), event_with("f", 1, 1, payloads[1])];
    assert_eq!(fixture.write(&older).await, counts(1, 0, 0, 1));
    assert_eq!(fields(&stored("e0").await), fields(&events[0].document));
}

#[tokio::test]
async fn invalid_extended_json_delays_no_other_event() {
    let fixture = StoreFixture::with_keys("event_id").await;
    let events: Vec<_> = ["1", r#"{"$uuid":"x"}"#, "2", r#"{"$oid":"x"}"#, r#"{"$numberLong":"5"}"#]
        .iter()
        .enumerate()
        .map(|(n, value)| event_with(&format!("e{n}"), 1, 1, &format!(r#"{{"n":{value}}}"#)))
        .collect();
    let applied = fixture.apply(&events).await;
    // A server that treats values as data stores them all.
    let rejected_reply: Vec<usize> =
        applied.unlisted.iter().map(|rejected_reply| rejected_reply.index).collect();
    assert!(rejected_reply.is_empty() || rejected_reply == [1, 3], "{applied:?}");
    assert_eq!((applied.unfinished, applied.rejected), (rejected_reply.clone(), vec![]));
    assert_eq!(applied.counts, counts(5 - rejected_reply.len() as u64, 0, 0, 0));
    assert!(fixture.store.takes_writes(&fixture.source).await);
}
