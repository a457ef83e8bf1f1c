//! Migration from the original: its collection with duplicates, and the offsets of its group.

mod collection;
mod dedupe;

/// The consumer continues at the committed offsets of the original's group.
mod offsets {
    use std::collections::BTreeSet;
    use std::time::{Duration, Instant};

    use bson::doc;
    use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
    use rdkafka::client::DefaultClientContext;
    use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
    use rdkafka::producer::{FutureProducer, FutureRecord};
    use rdkafka::{ClientConfig, Offset, TopicPartitionList};
    use testkit::{Names, Stack, eventually, http, mongo};

    const LIMIT: Duration = Duration::from_secs(60);
    /// The group of the original, and the default of KAFKA_GROUP_ID.
    const GROUP: &str = "adsbdb-mongo-writer";

    #[tokio::test(flavor = "multi_thread")]
    async fn consumer_continues_at_the_offsets_of_the_original() {
        let stack = Stack::shared().await;
        let names = stack.names();
        make_topic(&names).await;
        for partition in 0..3 {
            send(&names, partition, 0..10).await;
        }
        // Partition 2 has no committed offset.
        let committed = [(0, 4), (1, 10)];
        let original = names.clone();
        tokio::task::spawn_blocking(move || commit_as_the_original(&original, &committed)).await.unwrap();

        // Unset, so the default applies.
        let consumer = stack.consumer(&names, &[("KAFKA_GROUP_ID", ""), ("EXPECTED_SOURCE", "adsbdb")]);
        let adsbdb = mongo::collection(&names, "adsbdb").await;
        send(&names, 1, 10..11).await;
        let expected: BTreeSet<String> = (4..10)
            .map(|n| format!("0-{n}"))
            .chain((0..10).map(|n| format!("2-{n}")))
            .chain(["1-10".to_owned()])
            .collect();
        eventually("the rest is stored", LIMIT, || async {
            (mongo::all(&adsbdb, doc! {}).await.len() >= expected.len()).then_some(())
        })
        .await;
        let stored: BTreeSet<String> = mongo::all(&adsbdb, doc! {})
            .await
            .iter()
            .map(|d| d.get_str("event_id").unwrap().to_owned())
            .collect();
        assert_eq!(stored, expected);
        let health = http::get(&consumer.url("/health")).await.unwrap().body;
        assert_eq!(health["counters"]["read"].as_u64(), Some(expected.len() as u64), "{health}");
        assert_eq!(health["group"], GROUP);
        assert!(consumer.terminate().await.success());
    }

    fn client(names: &Names) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &names.kafka);
        config
    }

    async fn make_topic(names: &Names) {
        let admin: AdminClient<DefaultClientContext> = client(names).create().unwrap();
        let topic = NewTopic::new(&names.topic, 3, TopicReplication::Fixed(1));
        let made = admin.create_topics([&topic], &AdminOptions::new()).await.unwrap();
        assert!(made.iter().all(Result::is_ok), "{made:?}");
    }

    async fn send(names: &Names, partition: i32, numbers: std::ops::Range<i32>) {
        let producer: FutureProducer = client(names).create().unwrap();
        for n in numbers {
            let id = format!("{partition}-{n}");
            let value = format!(
                r#"{{"id":"{id}","timestamp":5,"source":"adsbdb","payload":{{}},"ingested_at":5,"api_version":"1.0.0"}}"#
            );
            let record = FutureRecord::to(&names.topic).partition(partition).key(&id).payload(&value);
            producer.send(record, LIMIT).await.unwrap();
        }
    }

    /// Joins, commits and leaves as the client of the original does.
    fn commit_as_the_original(names: &Names, committed: &[(i32, i64)]) {
        let mut config = client(names);
        config
            .set("group.id", GROUP)
            .set("partition.assignment.strategy", "range,roundrobin")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest");
        let consumer: BaseConsumer = config.create().unwrap();
        consumer.subscribe(&[&names.topic]).unwrap();
        let start = Instant::now();
        while consumer.assignment().unwrap().count() < 3 {
            assert!(start.elapsed() < LIMIT, "no assignment");
            drop(consumer.poll(Duration::from_millis(100)));
        }
        let mut offsets = TopicPartitionList::new();
        for (partition, offset) in committed {
            offsets.add_partition_offset(&names.topic, *partition, Offset::Offset(*offset)).unwrap();
        }
        consumer.commit(&offsets, CommitMode::Sync).unwrap();
        consumer.unsubscribe();
    }
}

/// Documents as the original writes them.
mod original {
    use std::path::Path;
    use std::process::Output;

    use bson::{Document, RawDocumentBuf, doc};
    use mongodb::Collection;
    use serde_json::Value;
    use testkit::process::command;
    use testkit::{Names, mongo};

    /// The document that the original makes of an event: payload and metadata in one flat document,
    /// without an `_id`.
    pub fn document(id: &str, timestamp: i64, ingested_at: i64, owner: &str) -> Document {
        doc! {
            "type": "G Hot Air Balloon", "mode_s": id, "registered_owner": owner, "url_photo": null,
            "event_id": id, "event_timestamp": timestamp, "ingested_at": ingested_at, "api_version": "1.0.0",
            "event_timestamp_iso": "2025-10-26T20:16:03.123Z", "ingested_at_iso": "2025-10-26T20:16:03.123Z",
        }
    }

    /// An update with upsert, without a unique index.
    pub async fn upsert(collection: &Collection<Document>, document: Document) {
        let filter = doc! { "event_id": document.get("event_id") };
        let written = collection.update_one(filter, doc! { "$set": document }).upsert(true).await;
        written.expect("an upsert");
    }

    /// Concurrent upserts: each finds nothing and inserts.
    pub async fn upserts_at_once(collection: &Collection<Document>, documents: Vec<Document>) {
        collection.insert_many(documents).await.expect("documents");
    }

    /// All documents, byte for byte, in a fixed order.
    pub async fn snapshot(collection: &Collection<Document>) -> Vec<Vec<u8>> {
        bytes(&mongo::all(collection, doc! {}).await)
    }

    /// Documents, byte for byte, in a fixed order.
    pub fn bytes(documents: &[Document]) -> Vec<Vec<u8>> {
        let raw = |document: &Document| RawDocumentBuf::try_from(document).expect("BSON").into_bytes();
        let mut all: Vec<Vec<u8>> = documents.iter().map(raw).collect();
        all.sort();
        all
    }

    /// The documents in a file of `dedupe`.
    pub fn read_back(file: &Path) -> Vec<Document> {
        let text = std::fs::read_to_string(file).expect("the file");
        text.lines().map(|line| serde_json::from_str(line).expect("Extended JSON")).collect()
    }

    /// Runs `slipstream dedupe` on the database of `names`.
    pub async fn dedupe(names: &Names, more: &[(&str, &str)], arguments: &[&str]) -> Output {
        let mut environment = vec![("MONGODB_URI", names.mongodb.as_str()), ("MONGODB_DB", &names.database)];
        environment.extend_from_slice(more);
        command("slipstream", &environment).arg("dedupe").args(arguments).output().await.expect("it runs")
    }

    /// Its output with `--json`.
    pub fn said(output: &Output) -> Value {
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    }
}
