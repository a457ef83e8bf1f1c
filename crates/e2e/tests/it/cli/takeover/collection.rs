//! Takes over the collection of the original: blocked records, reports, removed duplicates, stored
//! documents.

use std::collections::BTreeSet;
use std::time::Duration;

use bson::oid::ObjectId;
use bson::{Document, doc};
use futures::TryStreamExt;
use mongodb::Collection;
use testkit::{Names, Process, Stack, eventually, http, kafka, mongo};

use super::original::{self, bytes, dedupe, read_back, said, snapshot};

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn collection_of_the_original_is_taken_over_without_loss() {
    let stack = Stack::shared().await;
    let names = stack.names();
    let adsbdb = mongo::collection(&names, "adsbdb").await;
    let in_the_way = the_originals_documents(&adsbdb).await;
    let before = snapshot(&adsbdb).await;

    let consumer = stack.consumer(&names, &[]);
    consumer.ready().await;
    send_events(&names).await;
    let query = blocked(&consumer).await;
    assert_eq!(found_by(&names, &query).await, 3, "keys");
    let other = mongo::collection(&names, "manual").await;
    eventually("another source goes on", LIMIT, || mongo::find(&other, "m")).await;
    assert_eq!(snapshot(&adsbdb).await, before, "nothing is written to the collection");

    let dry = dedupe(&names, &[], &["--json"]).await;
    assert_eq!(dry.status.code(), Some(1), "{dry:?}");
    assert_eq!((&said(&dry)["keys"], &said(&dry)["in_the_way"]), (&3.into(), &4.into()));
    assert_eq!(snapshot(&adsbdb).await, before, "a dry run changes nothing");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("removed.jsonl");
    let applied = dedupe(&names, &[], &["--apply", "--out", file.to_str().unwrap()]).await;
    assert_eq!(applied.status.code(), Some(0), "{applied:?}");
    let removed = read_back(&file);
    let ids: BTreeSet<ObjectId> = removed.iter().map(|d| d.get_object_id("_id").unwrap()).collect();
    assert_eq!(ids, in_the_way, "the newest of each key stays");
    // Events of these keys wait for the index, and no event changes the other documents.
    the_rest_is_stored(&consumer, &adsbdb).await;
    let kept: Vec<Document> = mongo::all(&adsbdb, doc! { "untouched": true }).await;
    assert_eq!(bytes(&kept).len() + removed.len() + 4, before.len());
    assert!(bytes(&kept).iter().chain(&bytes(&removed)).all(|document| before.contains(document)));
    assert!(consumer.terminate().await.success());
}

/// Two documents of `race`, three of `old` (one without version fields), two of `tie` that differ
/// only in `_id`, one of `alone` without version fields, and twenty more. Returns the `_id`s of the
/// duplicates.
async fn the_originals_documents(adsbdb: &Collection<Document>) -> BTreeSet<ObjectId> {
    for n in 0..20 {
        let mut document = original::document(&format!("id{n}"), 100, 100, "Private");
        document.insert("untouched", true);
        original::upsert(adsbdb, document).await;
    }
    let id = |n: u8| ObjectId::from_bytes([n; 12]);
    let with_id = |n: u8, mut document: Document| {
        document.insert("_id", id(n));
        document
    };
    let bare = |event_id: &str| doc! { "event_id": event_id, "mode_s": event_id };
    let race = [original::document("race", 200, 1, "newest"), original::document("race", 100, 900, "older")];
    let old =
        [bare("old"), original::document("old", 5, 7, "newest"), original::document("old", 5, 6, "older")];
    let tie = [original::document("tie", 5, 5, "first"), original::document("tie", 5, 5, "second")];
    let all = race.into_iter().chain(old).chain(tie).chain([bare("alone")]);
    let all = (1..).zip(all).map(|(n, document)| with_id(n, document)).collect();
    original::upserts_at_once(adsbdb, all).await;
    [2, 3, 5, 6].map(id).into()
}

async fn send_events(names: &Names) {
    let event = |id: &str, source: &str, at: i64| {
        format!(
            r#"{{"id":"{id}","timestamp":{at},"source":"{source}","payload":{{"mode_s":"{id}","from":"event"}},"ingested_at":{at},"api_version":"1.0.0"}}"#
        )
    };
    let events = [
        ("new", event("new", "adsbdb", 50)),
        ("race", event("race", "adsbdb", 150)),
        ("tie", event("tie", "adsbdb", 6)),
        ("alone", event("alone", "adsbdb", 1)),
        ("m", event("m", "manual", 1)),
    ];
    let records: Vec<(Option<&str>, &[u8])> =
        events.iter().map(|(key, value)| (Some(*key), value.as_bytes())).collect();
    kafka::produce(names, &records).await;
}

/// Waits until the consumer reports the blocked collection. Returns the query in its message.
async fn blocked(consumer: &Process) -> String {
    let url = consumer.url("/readyz");
    let detail = eventually("readyz says why", LIMIT, || async {
        let answer = http::get(&url).await.ok()?;
        let detail = answer.body["detail"].as_str()?.to_owned();
        (answer.status == 503 && detail.contains("slipstream dedupe")).then_some(detail)
    });
    let detail = detail.await;
    let (_, query) = detail.split_once("This query finds them: ").expect("a query");
    query.to_owned()
}

/// Runs the query as mongosh would. Returns the number of groups that it finds.
async fn found_by(names: &Names, query: &str) -> usize {
    let (collection, arguments) = query.split_once(".aggregate(").expect("an aggregation");
    let wanted = format!("db.getSiblingDB({:?}).getCollection(\"adsbdb\")", names.database);
    assert_eq!(collection, wanted);
    let arguments = json(&format!("[{}]", arguments.strip_suffix(')').expect("its end")));
    let arguments: Vec<bson::Bson> = serde_json::from_str(&arguments).expect("two arguments");
    let [bson::Bson::Array(stages), options] = arguments.as_slice() else { panic!("{arguments:?}") };
    assert_eq!(options.as_document(), Some(&doc! { "allowDiskUse": true }));
    let stages = stages.iter().map(|stage| stage.as_document().expect("a stage").clone());
    let adsbdb = mongo::collection(names, "adsbdb").await;
    let groups = adsbdb.aggregate(stages).allow_disk_use(true).await.expect("an answer");
    groups.try_collect::<Vec<Document>>().await.expect("groups").len()
}

/// Quotes the bare names of the shell's notation.
fn json(shell: &str) -> String {
    let (mut json, mut quoted, mut word) = (String::new(), false, String::new());
    for c in shell.chars() {
        if !quoted && (c.is_alphanumeric() || c == '$' || c == '_') {
            word.push(c);
            continue;
        }
        if !word.is_empty() {
            json.push_str(&if c == ':' { format!("{word:?}") } else { word.clone() });
            word.clear();
        }
        quoted ^= c == '"';
        json.push(c);
    }
    json
}

/// The consumer continues by itself: it builds the index and applies the waiting records with the
/// guard.
async fn the_rest_is_stored(consumer: &Process, adsbdb: &Collection<Document>) {
    consumer.ready().await;
    let from_event = async |id: &str| {
        let document = mongo::find(adsbdb, id).await.expect("a document");
        document.get_str("from").is_ok()
    };
    eventually("the record that came first", LIMIT, || mongo::find(adsbdb, "new")).await;
    eventually("all are finished", LIMIT, || async {
        let counters = http::get(&consumer.url("/health")).await.ok()?.body["counters"].clone();
        let counted = |outcome: &str| counters[outcome].as_u64();
        let all = counted("inserted")? + counted("updated")? + counted("superseded")?;
        (all == 5).then_some(())
    })
    .await;
    assert!(!from_event("race").await, "an older event came after the newest document");
    assert!(
        from_event("tie").await && from_event("alone").await,
        "a document without the fields is the oldest"
    );
    let indexes: Vec<_> = adsbdb.list_indexes().await.unwrap().try_collect().await.unwrap();
    let unique = indexes.iter().find(|index| index.keys == doc! { "event_id": 1 }).expect("the index");
    assert_eq!(unique.options.as_ref().and_then(|options| options.unique), Some(true));
}
