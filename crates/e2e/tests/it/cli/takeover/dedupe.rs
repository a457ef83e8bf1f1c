//! `slipstream dedupe`, and interruptions at each of its steps.

use std::process::Stdio;
use std::time::Duration;

use bson::oid::ObjectId;
use bson::{Bson, Document, doc};
use futures::TryStreamExt;
use mongodb::Collection;
use testkit::process::command;
use testkit::{HoldingProxy, Names, Stack, mongo};

use super::original::{self, bytes, dedupe, read_back, said, snapshot};

/// The bytes of a `delete` command in a message.
const DELETE: &[u8] = b"\x02delete\0";

async fn with_duplicates(names: &Names) -> Collection<Document> {
    let adsbdb = mongo::collection(names, "adsbdb").await;
    let documents = [
        original::document("a", 1, 1, "oldest"),
        original::document("a", 2, 1, "older"),
        original::document("a", 3, 1, "newest"),
        original::document("b", 1, 1, "only"),
    ];
    original::upserts_at_once(&adsbdb, documents.into()).await;
    adsbdb
}

async fn owners(adsbdb: &Collection<Document>) -> Vec<String> {
    let documents = mongo::all(adsbdb, doc! {}).await;
    let mut owners: Vec<String> =
        documents.iter().map(|d| d.get_str("registered_owner").unwrap().to_owned()).collect();
    owners.sort();
    owners
}

async fn proxy(names: &Names) -> (HoldingProxy, Names) {
    let server = mongo::address(&names.mongodb).await;
    let proxy = HoldingProxy::start(server, DELETE).await;
    let through = Names { mongodb: format!("mongodb://{}", proxy.address), ..names.clone() };
    (proxy, through)
}

#[tokio::test(flavor = "multi_thread")]
async fn dedupe_killed_between_file_and_removal_can_be_repeated() {
    let names = Stack::shared().await.names();
    let adsbdb = with_duplicates(&names).await;
    let before = snapshot(&adsbdb).await;
    let (mut proxy, through) = proxy(&names).await;
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
    let mut child = command(
        "slipstream",
        &[("MONGODB_URI", through.mongodb.as_str()), ("MONGODB_DB", &through.database)],
    )
    .args(["dedupe", "--apply", "--out", first.to_str().unwrap()])
    .stdout(Stdio::null())
    .spawn()
    .unwrap();
    proxy.wait_until_held().await;
    child.kill().await.unwrap();
    assert_eq!(snapshot(&adsbdb).await, before);
    assert_eq!(read_back(&first).len(), 2, "what was to be removed is in the file");

    let again = dedupe(&names, &[], &["--apply", "--out", second.to_str().unwrap()]).await;
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    assert_eq!(owners(&adsbdb).await, ["newest", "only"]);
    assert_eq!(bytes(&read_back(&second)), bytes(&read_back(&first)));
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_with_large_ids_are_removed_in_several_commands() {
    let names = Stack::shared().await.names();
    let adsbdb = mongo::collection(&names, "adsbdb").await;
    for n in 0..12 {
        let mut document = original::document("a", n, 1, &format!("owner {n:02}"));
        document.insert("_id", format!("{n}{}", "x".repeat(2 << 20)));
        adsbdb.insert_one(document).await.unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("removed");
    let ended =
        dedupe(&names, &[], &["--apply", "--show", "0", "--json", "--out", file.to_str().unwrap()]).await;
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(said(&ended)["removed"], 11, "{ended:?}");
    assert_eq!(owners(&adsbdb).await, ["owner 11"]);
    assert_eq!(read_back(&file).len(), 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn document_that_changes_meanwhile_is_read_again() {
    let names = Stack::shared().await.names();
    let adsbdb = with_duplicates(&names).await;
    let (mut proxy, through) = proxy(&names).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("removed");
    let arguments = ["--apply", "--json", "--out", file.to_str().unwrap()];
    let original_goes_on = async {
        proxy.wait_until_held().await;
        let newer = doc! { "$set": { "event_timestamp": 9, "registered_owner": "newest of all" } };
        adsbdb.update_one(doc! { "registered_owner": "older" }, newer).await.unwrap();
        proxy.release();
    };
    let (applied, ()) = tokio::join!(dedupe(&through, &[], &arguments), original_goes_on);
    assert_eq!(applied.status.code(), Some(0), "{applied:?}");
    assert_eq!(said(&applied)["removed"], 2);
    assert_eq!(owners(&adsbdb).await, ["newest of all", "only"]);
    let kept: Vec<_> =
        read_back(&file).iter().map(|d| d.get_str("registered_owner").unwrap().to_owned()).collect();
    assert!(
        ["oldest", "older", "newest"].iter().all(|owner| kept.contains(&(*owner).to_owned())),
        "{kept:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_documents_that_the_unique_index_covers_are_compared() {
    let names = Stack::shared().await.names();
    let manual = mongo::collection(&names, "manual").await;
    let key = |mode_s: Bson, registration: Bson, at: i64| {
        doc! { "_id": ObjectId::new(), "mode_s": mode_s, "registration": registration, "event_timestamp": at }
    };
    let duplicates = [key("A".into(), 1.into(), 1), key("A".into(), Bson::Double(1.0), 2)];
    let outside = [
        key(Bson::Null, 1.into(), 1),
        key(Bson::Null, 1.into(), 2),
        doc! { "mode_s": "A" },
        doc! { "mode_s": "A" },
        key("A".into(), doc! { "x": 1 }.into(), 1),
        key("A".into(), doc! { "x": 1 }.into(), 1),
        key("A".into(), "1".into(), 1),
    ];
    manual.insert_many(duplicates.iter().chain(&outside).cloned()).await.unwrap();
    let own = doc! { "createIndexes": "manual", "indexes": [{ "key": { "mode_s": 1, "registration": 1 }, "name": "own" }] };
    client_of(&names).await.database(&names.database).run_command(own).await.unwrap();

    let keys = [("UPSERT_KEYS", "mode_s,registration"), ("EXPECTED_SOURCE", "manual,adsbdb")];
    let dry = dedupe(&names, &keys, &["--json"]).await;
    assert_eq!((dry.status.code(), &said(&dry)["in_the_way"]), (Some(1), &1.into()), "{dry:?}");
    assert_eq!(said(&dry)["index_in_the_way"], "own");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("removed");
    let applied = dedupe(&names, &keys, &["--apply", "--out", file.to_str().unwrap()]).await;
    assert_eq!(applied.status.code(), Some(0), "{applied:?}");
    assert_eq!(read_back(&file), duplicates[..1]);
    assert_eq!(snapshot(&manual).await.len(), 1 + outside.len());
    let indexes: Vec<String> = manual.list_index_names().await.unwrap();
    assert_eq!(indexes, ["_id_"], "the index that was in the way is dropped");
    let clear = dedupe(&names, &keys, &["--collection", "manual"]).await;
    assert_eq!(clear.status.code(), Some(0), "{clear:?}");
}

async fn client_of(names: &Names) -> mongodb::Client {
    mongodb::Client::with_uri_str(&names.mongodb).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_without_the_key_share_null_and_several_batches_are_removed() {
    let names = Stack::shared().await.names();
    let adsbdb = mongo::collection(&names, "adsbdb").await;
    let bare = (0..1_200).map(|n| doc! { "n": n, "ingested_at": n });
    adsbdb.insert_many(bare.chain([doc! { "event_id": "a" }])).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("removed");
    let applied = dedupe(&names, &[], &["--apply", "--json", "--out", file.to_str().unwrap()]).await;
    assert_eq!(applied.status.code(), Some(0), "{applied:?}");
    assert_eq!(said(&applied)["removed"], 1_199);
    let left: Vec<Document> =
        adsbdb.find(doc! { "n": { "$exists": true } }).await.unwrap().try_collect().await.unwrap();
    assert_eq!(left.iter().map(|d| d.get_i32("n").unwrap()).collect::<Vec<_>>(), [1_199]);
    assert_eq!(read_back(&file).len(), 1_199);
}

#[tokio::test(flavor = "multi_thread")]
async fn index_with_options_and_document_without_json_form_are_not_removed() {
    let names = Stack::shared().await.names();
    let adsbdb = mongo::collection(&names, "adsbdb").await;
    let awkward = doc! { "event_id": "a", "note": { "$numberInt": "7" } };
    adsbdb.insert_many([awkward, doc! { "event_id": "a", "event_timestamp": 5 }]).await.unwrap();
    let index = doc! { "key": { "event_id": 1 }, "name": "sparse", "sparse": true };
    let command = doc! { "createIndexes": "adsbdb", "indexes": [index] };
    client_of(&names).await.database(&names.database).run_command(command).await.unwrap();
    let before = snapshot(&adsbdb).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("removed");
    let applied = dedupe(&names, &[], &["--apply", "--out", file.to_str().unwrap()]).await;
    let text = String::from_utf8_lossy(&applied.stdout);
    assert_eq!(applied.status.code(), Some(1), "{applied:?}");
    assert!(text.contains("dropIndex(\"sparse\")") && text.contains("1 document has fields"), "{text}");
    assert_eq!(snapshot(&adsbdb).await, before);
    assert!(!file.exists(), "there is nothing in it");
    assert_eq!(adsbdb.list_index_names().await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_configuration_existing_file_or_missing_server_end_dedupe() {
    let names = Stack::shared().await.names();
    let adsbdb = with_duplicates(&names).await;
    let before = snapshot(&adsbdb).await;
    let uri = ("MONGODB_URI", names.mongodb.as_str());
    for (environment, arguments) in [
        (&[("UPSERT_KEYS", "a,,b")][..], &["dedupe"][..]),
        (&[uri, ("EXPECTED_SOURCE", "*")], &["dedupe"]),
        (&[uri], &["dedupe", "--apply"]),
        (&[uri], &["dedupe", "--out", "file"]),
        (&[uri], &["dedupe", "--collection", "system.users"]),
    ] {
        let output = command("slipstream", environment).args(arguments).output().await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let taken = dedupe(&names, &[], &["--apply", "--out", file.path().to_str().unwrap()]).await;
    assert_eq!(taken.status.code(), Some(1), "{taken:?}");
    assert!(String::from_utf8_lossy(&taken.stderr).contains("exists"), "{taken:?}");
    assert_eq!(snapshot(&adsbdb).await, before);
    let nobody =
        Names { mongodb: format!("mongodb://{}", testkit::process::free_address()), ..names.clone() };
    let away = tokio::time::timeout(Duration::from_secs(20), dedupe(&nobody, &[], &[])).await.unwrap();
    assert_eq!(away.status.code(), Some(1), "{away:?}");
}
