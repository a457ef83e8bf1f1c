//! The bodies of the corpus and mutations of them, sent whole and in chunks. The response must not
//! depend on the chunks or be a server error, and every accepted event must be in the topic and
//! valid.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use events::{Decoded, RecordView, decode};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::application::{Answer, Application, Cluster, PATIENCE};
use crate::kept::{kept, near, shown};
use crate::sources::File;

/// Folder of the corpus, path, and media type.
const ROUTES: [(&str, &str, &str); 3] = [
    ("body", "/ingest", "application/json"),
    ("array", "/ingest/batch", "application/json"),
    ("lines", "/ingest/batch", "application/x-ndjson"),
];

/// The same corpus as records of a source.
const SOURCE_ROUTES: [(&str, &str, &str); 3] = [
    ("body", "/ingest/notes", "application/json"),
    ("array", "/ingest/notes/batch", "application/json"),
    ("lines", "/ingest/notes/batch", "application/x-ndjson"),
];
const SOURCE: &str = "sources:\n  notes:\n    push: {}\n    event: {id: {from: /id, else: uuid}, timestamp: \
                      {from: /timestamp, else: now}, payload: /payload}\n    schema: notes.json\n";
const SCHEMA: &str = r#"{"type":"object","properties":{"payload":{"type":"object","maxProperties":100}}}"#;

type Route = (&'static str, &'static str, &'static str);

struct Fuzz {
    runtime: Runtime,
    app: Application,
    cluster: Cluster,
}

impl Fuzz {
    fn start(settings: &[(&str, &str)]) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let _context = runtime.enter();
        let cluster = Cluster::start();
        let app = runtime.block_on(cluster.application(settings));
        Self { runtime, app, cluster }
    }

    /// Sends a body whole and in chunks and compares the responses. Returns whether an event was
    /// accepted.
    fn assert_same_response(&self, (_, path, content_type): Route, body: &[u8], cuts: &[usize]) -> bool {
        let headers = [("Content-Type", content_type)];
        let whole = self.runtime.block_on(self.app.post_bytes(path, &headers, body));
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Type: {content_type}\r\n\
             Transfer-Encoding: chunked\r\n\r\n"
        );
        let request = [head.as_bytes(), &chunks(body, cuts)].concat();
        let chunked = self.runtime.block_on(self.app.raw(&[&request]));
        assert!([202, 207, 400, 413, 422].contains(&whole.status), "{whole:?}: {}", shown(body));
        assert_eq!(comparable(&chunked), comparable(&whole), "cut at {cuts:?}: {}", shown(body));
        matches!(whole.status, 202 | 207)
    }

    /// Asserts that the topic contains all accepted events, and that all are valid.
    fn assert_all_storable(&self) {
        let accepted = self.app.counters.accepted();
        let values = values(&self.cluster.mock.bootstrap_servers(), &self.cluster.topic);
        // In a long run the mock cluster deletes the first records.
        assert_eq!(values.last_key_value().map(|(last, _)| *last + 1), i64::try_from(accepted).ok());
        for value in values.into_values() {
            let record = RecordView { key: None, value: &value, timestamp: None };
            let decoded = decode(&record, |_| true);
            assert!(matches!(decoded, Ok(Decoded::Event(_))), "{decoded:?}: {}", shown(&value));
        }
    }
}

impl Drop for Fuzz {
    fn drop(&mut self) {
        self.app.begin_to_stop();
        self.runtime.block_on(self.app.ended());
    }
}

/// Encodes `body` in HTTP chunks of these sizes; the rest is one chunk.
fn chunks(body: &[u8], cuts: &[usize]) -> Vec<u8> {
    let (mut chunked, mut rest) = (Vec::new(), body);
    for cut in cuts.iter().copied().chain([usize::MAX]) {
        let (chunk, behind) = rest.split_at(cut.min(rest.len()));
        if !chunk.is_empty() {
            chunked.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            chunked.extend_from_slice(chunk);
            chunked.extend_from_slice(b"\r\n");
        }
        rest = behind;
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    chunked
}

/// The response without the values that differ each time: ids, offsets, partitions, timestamps.
fn comparable(answer: &Answer) -> (u16, Value) {
    let mut body = answer.json();
    let entries = body["results"].as_array_mut().map(std::mem::take);
    let strip = |entry: &mut Value| {
        if let Some(entry) = entry.as_object_mut() {
            entry.retain(|name, _| {
                !["id", "offset", "partition", "timestamp", "ingested_at"].contains(&name.as_str())
            });
        }
    };
    strip(&mut body);
    let mut entries = entries.unwrap_or_default();
    entries.iter_mut().for_each(strip);
    (answer.status, serde_json::json!([body, entries]))
}

/// The values of all records of partition 0, by offset.
fn values(bootstrap: &str, topic: &str) -> BTreeMap<i64, Vec<u8>> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("group.id", "fuzz").set("enable.partition.eof", "true");
    let consumer: BaseConsumer = config.create().unwrap();
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&assignment).unwrap();
    let (mut values, began) = (BTreeMap::new(), Instant::now());
    loop {
        assert!(began.elapsed() < PATIENCE, "the topic has no end, after {} records", values.len());
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => _ = values.insert(message.offset(), message.payload().unwrap().to_vec()),
            Some(Err(KafkaError::PartitionEOF(_))) => return values,
            _ => {}
        }
    }
}

/// Sends the bodies of the corpus.
fn corpus(fuzz: &Fuzz, routes: [Route; 3]) {
    for route in routes {
        let (mut accepted, mut rejected) = (0, 0);
        for (_, body) in kept(route.0) {
            for cuts in [&[1; 200][..], &[7, 1, 64, 3], &[body.len().saturating_sub(1)]] {
                if fuzz.assert_same_response(route, &body, cuts) { accepted += 1 } else { rejected += 1 }
            }
        }
        assert!(accepted > 15 && rejected > 5, "{route:?}: {accepted} accepted, {rejected} rejected");
    }
    fuzz.assert_all_storable();
}

/// Sends mutations of the bodies of the corpus.
fn mutations(fuzz: &Fuzz, routes: [Route; 3]) {
    let cases = ProptestConfig::default().cases / 2;
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    for route in routes {
        let inputs = (near(route.0), proptest::collection::vec(1_usize..70, 0..40));
        let ended = TestRunner::new(config.clone()).run(&inputs, |(body, cuts)| {
            fuzz.assert_same_response(route, &body, &cuts);
            Ok(())
        });
        ended.unwrap_or_else(|error| panic!("{route:?}: {error}"));
    }
    fuzz.assert_all_storable();
}

#[test]
fn fuzz_chunks_do_not_change_the_response_to_a_corpus_body() {
    corpus(&Fuzz::start(&[]), ROUTES);
}

#[test]
fn fuzz_chunks_do_not_change_the_response_to_a_mutated_body() {
    mutations(&Fuzz::start(&[]), ROUTES);
}

#[test]
fn fuzz_chunks_do_not_change_the_response_to_records_of_a_source() {
    let file = File::new(SOURCE);
    file.add("notes.json", SCHEMA);
    let fuzz = Fuzz::start(&[("SOURCES_FILE", &file.path())]);
    corpus(&fuzz, SOURCE_ROUTES);
    mutations(&fuzz, SOURCE_ROUTES);
}
