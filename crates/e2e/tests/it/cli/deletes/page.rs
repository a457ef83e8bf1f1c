//! The commands of `docs/deletes.md` on real processes.

use std::time::Duration;

use bson::{Document, doc};
use testkit::{Stack, eventually, mongo};

const PAGE: &str = include_str!("../../../../../../docs/deletes.md");
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a command of the page against this producer.
async fn run_curl(line: &str, producer: &str) -> String {
    let line = line.replace("http://localhost:8090", producer);
    let mut shell = tokio::process::Command::new("sh");
    let output = shell.args(["-c", &format!("{line} -s")]).output().await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// A command of the page, with the line that it prints.
enum Command<'p> {
    Curl(&'p str, &'p str),
    /// The collection, the filter that is counted, and the number.
    Count(&'p str, &'p str, u64),
}

fn commands() -> Vec<Command<'static>> {
    let lines: Vec<&str> = PAGE.lines().collect();
    let commands = lines.windows(2).filter_map(|pair| {
        let command = pair[0].strip_prefix("$ ")?;
        let Some(expression) = command.strip_prefix("mongosh kafka_events_db --eval 'db.") else {
            assert!(command.starts_with("curl "), "{command}");
            return Some(Command::Curl(command, pair[1]));
        };
        let (collection, filter) = expression.split_once(".countDocuments(").expect("a count");
        Some(Command::Count(
            collection,
            filter.strip_suffix(")'").expect("a filter"),
            pair[1].parse().expect("a number"),
        ))
    });
    commands.collect()
}

/// The sources file of the page.
fn file() -> &'static str {
    let block = PAGE.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next());
    block.expect("a sources file")
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_of_the_page_about_deletes_do_what_it_says() {
    let stack = Stack::shared().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.yaml");
    std::fs::write(&path, file()).unwrap();
    let mut names = stack.names();
    names.sources_file = Some(path.display().to_string());
    let (producer, consumer) = (stack.producer(&names, &[]), stack.consumer(&names, &[]));
    producer.ready().await;
    consumer.ready().await;
    let database = mongo::collection(&names, "orders").await;
    let (mut curls, mut counts) = (0, 0);
    for command in commands() {
        match command {
            Command::Curl(line, shown) => {
                curls += 1;
                let said = run_curl(line, producer.url("").trim_end_matches('/')).await;
                for part in shown.replace("events.raw", &names.topic).split('…') {
                    assert!(said.contains(part), "{line} printed {said}, not {part}");
                }
            }
            Command::Count(collection, filter, wanted) => {
                counts += 1;
                let finished = || async { (consumer.counters().await?.finished == curls).then_some(()) };
                eventually("the records are finished", LIMIT, finished).await;
                let filter: serde_json::Value = serde_json::from_str(filter).unwrap();
                let filter = bson::serialize_to_document(&filter).unwrap();
                let collection = mongo::collection(&names, collection).await;
                assert_eq!(collection.count_documents(filter).await.unwrap(), wanted);
            }
        }
    }
    assert!(curls >= 6 && counts >= 4, "{curls} {counts}");
    let mut expiries = Vec::new();
    let mut indexes = database.list_indexes().await.unwrap();
    while indexes.advance().await.unwrap() {
        let index: Document = bson::serialize_to_document(&indexes.deserialize_current().unwrap()).unwrap();
        expiries.extend(
            index.contains_key("expireAfterSeconds").then(|| index.get_document("key").unwrap().clone()),
        );
    }
    assert_eq!(expiries, [doc! { "expires_at": 1 }]);
    assert!(producer.terminate().await.success());
    assert!(consumer.terminate().await.success());
}
