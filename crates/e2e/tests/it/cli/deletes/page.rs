//! The commands of `docs/deletes.md` on real processes. The driver runs those of mongosh.

use std::time::Duration;

use bson::{Bson, Document, doc};
use mongodb::Collection;
use testkit::page::{blocks, commands, is_shown};
use testkit::{Names, Process, SourcesFile, Stack, eventually, http, mongo};

const PAGE: &str = include_str!("../../../../../../docs/deletes.md");
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a command of the page against this producer.
async fn run_curl(line: &str, producer: &str, topic: &str) -> String {
    let line = line.replace("http://localhost:8090", producer);
    let mut shell = tokio::process::Command::new("sh");
    let output = shell.args(["-c", &format!("{line} -s")]).output().await.unwrap();
    String::from_utf8(output.stdout).unwrap().replace(topic, "events.raw")
}

fn bson_of(json: &str) -> Bson {
    let json: serde_json::Value =
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"));
    bson::serialize_to_bson(&json).unwrap()
}

/// The indexes of a collection.
async fn indexes(collection: &Collection<Document>) -> Vec<Document> {
    let list = collection.list_indexes().await.unwrap();
    let list: Vec<mongodb::IndexModel> = futures::TryStreamExt::try_collect(list).await.unwrap();
    list.iter().map(|index| bson::serialize_to_document(index).unwrap()).collect()
}

/// What mongosh prints for an expression of the page.
async fn evaluate(expression: &str, names: &Names) -> String {
    let (path, call) = expression.split_once('(').expect("a call");
    let (collection, method) = path.strip_prefix("db.").unwrap().rsplit_once('.').unwrap();
    let collection = mongo::collection(names, collection).await;
    match method {
        "countDocuments" => {
            let filter = bson_of(call.strip_suffix(')').unwrap());
            collection.count_documents(filter.as_document().unwrap().clone()).await.unwrap().to_string()
        }
        "find" => {
            assert_eq!(call, ").map(order => order.event_id).join()");
            let all = mongo::all(&collection, doc! {}).await;
            all.iter().map(|order| order.get_str("event_id").unwrap()).collect::<Vec<_>>().join(",")
        }
        "getIndexes" => {
            let name = call.strip_prefix(").find(index => index.name == \"").unwrap();
            let (name, rest) = name.split_once('"').unwrap();
            assert_eq!(rest, ").expireAfterSeconds");
            let all = indexes(&collection).await;
            let found = all.iter().find(|index| index.get_str("name").is_ok_and(|named| named == name));
            found.expect("the index").get("expireAfterSeconds").expect("its option").to_string()
        }
        "updateMany" => {
            let update = call.strip_prefix("{}, ").unwrap().strip_suffix(").modifiedCount").unwrap();
            let Bson::Array(pipeline) = bson_of(update) else { panic!("{update}") };
            let pipeline: Vec<Document> =
                pipeline.iter().map(|stage| stage.as_document().unwrap().clone()).collect();
            collection.update_many(doc! {}, pipeline).await.unwrap().modified_count.to_string()
        }
        other => panic!("{other} of {expression}"),
    }
}

/// Waits until the consumer has finished this number of records.
async fn finish(consumer: &Process, records: u64) {
    let finished = || async { (consumer.counters().await?.finished == records).then_some(()) };
    eventually("the records are finished", LIMIT, finished).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_of_the_page_about_deletes_do_what_it_says() {
    let stack = Stack::shared().await;
    let blocks = blocks(PAGE);
    let file = blocks.iter().find(|block| block.info == "yaml").expect("a sources file");
    let file = SourcesFile::new(&file.text);
    let names = stack.names().with_sources(&file);
    let (producer, consumer) = (stack.producer(&names, &[]), stack.consumer(&names, &[]));
    producer.ready().await;
    consumer.ready().await;
    let (mut curls, mut shells) = (0, 0);
    assert!(blocks.iter().all(|block| ["yaml", "console"].contains(&block.info.as_str())), "{blocks:?}");
    for (line, shown) in blocks.iter().flat_map(commands) {
        let (wait, command) = match line.split_once("; ") {
            Some(("sleep 70", command)) => (Duration::from_secs(70), command),
            Some(other) => panic!("{other:?}"),
            None => (Duration::ZERO, line.as_str()),
        };
        if command.starts_with("curl ") {
            curls += 1;
            let printed = run_curl(command, producer.url("").trim_end_matches('/'), &names.topic).await;
            assert!(is_shown(&printed, &shown), "{line} printed {printed}");
            continue;
        }
        shells += 1;
        let expression = command.strip_prefix("mongosh kafka_events_db --eval '").expect("mongosh");
        let expression = expression.strip_suffix('\'').unwrap();
        finish(&consumer, curls).await;
        let is_printed = || async { (evaluate(expression, &names).await == shown).then_some(()) };
        match wait.is_zero() {
            true => assert_eq!(evaluate(expression, &names).await, shown, "{line}"),
            false => eventually(&line, wait, is_printed).await,
        }
    }
    assert!(curls == 7 && shells == 8, "{curls} {shells}");

    let counters = http::get(&consumer.url("/health")).await.unwrap().body["counters"].clone();
    let [inserted, deleted, superseded] =
        ["inserted", "deleted", "superseded"].map(|name| counters[name].as_u64().unwrap());
    // An event in one batch with its delete is superseded and not inserted.
    assert!(deleted == 2 && superseded >= 1 && inserted + superseded == 5, "{counters}");
    let order = mongo::find(&mongo::collection(&names, "orders").await, "DE-1").await.expect("an order");
    let moved = order.get_i64("event_timestamp").unwrap() + 2_000 * 24 * 3_600_000;
    assert_eq!(order.get_datetime("expires_at").unwrap().timestamp_millis(), moved, "{order}");
    let expiries = |indexes: Vec<Document>| {
        let expire = indexes.into_iter().filter(|index| index.contains_key("expireAfterSeconds"));
        expire.map(|index| index.get_document("key").unwrap().clone()).collect::<Vec<_>>()
    };
    for collection in ["orders", "orders.deletes"] {
        let collection = mongo::collection(&names, collection).await;
        assert_eq!(expiries(indexes(&collection).await), [doc! { "expires_at": 1 }]);
    }
    assert!(producer.terminate().await.success());
    assert!(consumer.terminate().await.success());
}
