//! gzip and zstd bodies: the limits are those of what they become, and a bomb is a 413 in bounded memory.

use std::process::Stdio;
use std::time::{Duration, Instant};

use async_compression::Level;
use async_compression::tokio::bufread::{GzipEncoder, ZstdEncoder};
use async_compression::zstd::CParameter;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::application::{Application, assert_says};
use crate::mock::Cluster;

const EVENT: &str = r#"{"id":"a-1","source":"manual","payload":{}}"#;
const MIB: usize = 1024 * 1024;

async fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut compressed = Vec::new();
    GzipEncoder::new(bytes).read_to_end(&mut compressed).await.unwrap();
    compressed
}

async fn zstd(bytes: &[u8], parameters: &[CParameter]) -> Vec<u8> {
    let mut compressed = Vec::new();
    let mut encoder = ZstdEncoder::with_quality_and_params(bytes, Level::Default, parameters);
    encoder.read_to_end(&mut compressed).await.unwrap();
    compressed
}

fn headers<'a>(coding: &'a str, media_type: &'a str) -> [(&'a str, &'a str); 2] {
    [("Content-Encoding", coding), ("Content-Type", media_type)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_ingest_endpoint_takes_gzip_and_zstd() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let lines = [EVENT; 1000].join("\n");
    for (coding, one, many) in [
        ("gzip", gzip(EVENT.as_bytes()).await, gzip(lines.as_bytes()).await),
        ("zstd", zstd(EVENT.as_bytes(), &[]).await, zstd(lines.as_bytes(), &[]).await),
    ] {
        let answer = app.post_bytes("/ingest", &headers(coding, "application/json"), &one).await;
        assert_eq!((answer.status, &answer.json()["id"]), (202, &"a-1".into()), "{coding}: {answer:?}");
        let answer = app.post_bytes("/ingest/batch", &headers(coding, "application/x-ndjson"), &many).await;
        assert_eq!((answer.status, answer.statuses()), (202, vec![202; 1000]), "{coding}");
        // Several members, one after another, are one body.
        let twice = [one.clone(), one].concat();
        let body =
            app.post_bytes("/ingest", &headers(coding, "application/json"), &twice).await.problem(400, false);
        assert_says(&body, &["not JSON", "trailing"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_coding_is_a_415_that_names_those_that_are_taken() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    for path in ["/ingest", "/ingest/batch"] {
        for coding in ["br", "deflate", "gzip, zstd"] {
            let answer = app.request("POST", path, &headers(coding, "application/json"), EVENT).await;
            assert_says(&answer.problem(415, false), &["gzip, zstd"]);
            assert_eq!(answer.header("accept-encoding"), Some("gzip, zstd"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_or_truncated_body_is_a_400() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let lines: Vec<String> = (0..2000)
        .map(|number| EVENT.replace("a-1", &fastrand::u64(..).to_string().repeat(1 + number % 2)))
        .collect();
    let lines = lines.join("\n");
    for (coding, one, many) in [
        ("gzip", gzip(EVENT.as_bytes()).await, gzip(lines.as_bytes()).await),
        ("zstd", zstd(EVENT.as_bytes(), &[]).await, zstd(lines.as_bytes(), &[]).await),
    ] {
        let words = format!("cannot be decompressed as {coding}");
        for body in [EVENT.as_bytes(), &one[..one.len() - 3]] {
            let answer = app.post_bytes("/ingest", &headers(coding, "application/json"), body).await;
            assert_says(&answer.problem(400, false), &["the body cannot be read", &words]);
        }
        let half = &many[..many.len() / 2];
        let answer = app.post_bytes("/ingest/batch", &headers(coding, "application/x-ndjson"), half).await;
        let statuses = answer.statuses();
        let (last, read) = statuses.split_last().unwrap();
        assert_eq!(*last, 400, "{coding}");
        assert!(read.iter().all(|status| *status == 202), "what came before the cut is taken");
        assert_says(&answer.result(read.len()), &[&words]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limits_are_those_of_the_decompressed_body() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("MAX_PAYLOAD_BYTES", "1000"), ("MAX_BATCH_BYTES", "1000")]).await;
    let event =
        |bytes: usize| format!(r#"{{"source":"manual","payload":{{"x":"{}"}}}}"#, "y".repeat(bytes - 38));
    for (bytes, status) in [(1000, 202), (1001, 413)] {
        let body = gzip(event(bytes).as_bytes()).await;
        assert!(body.len() < 200);
        let answer = app.post_bytes("/ingest", &headers("gzip", "application/json"), &body).await;
        assert_eq!(answer.status, status);
    }
    let body = zstd([EVENT; 100].join("\n").as_bytes(), &[]).await;
    let answer = app.post_bytes("/ingest/batch", &headers("zstd", "application/x-ndjson"), &body).await;
    let statuses = answer.statuses();
    assert_eq!((answer.status, statuses.len(), statuses.last()), (207, 23, Some(&413)), "{answer:?}");
    // Empty members take no room in what they become: the compressed body has the same limit.
    let empty = gzip(b"").await.repeat(100);
    let answer = app.post_bytes("/ingest", &headers("gzip", "application/json"), &empty).await;
    answer.problem(413, false);
    let head =
        "POST /ingest HTTP/1.1\r\nHost: t\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("{head}{:x}\r\n", empty.len());
    let answer = app.raw(&[chunk.as_bytes(), &empty, b"\r\n0\r\n\r\n"]).await;
    assert_says(&answer.problem(413, false), &["MAX_PAYLOAD_BYTES"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_that_asks_for_much_memory_is_refused() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let lines = [EVENT; 100_000].join("\n");
    let wide = zstd(lines.as_bytes(), &[CParameter::window_log(27)]).await;
    let answer = app.post_bytes("/ingest/batch", &headers("zstd", "application/x-ndjson"), &wide).await;
    answer.problem(400, false);
    assert_says(&answer.result(0), &["zstd", "memory"]);
}

/// The most memory that a process has had so far, in bytes.
pub async fn peak(child: &Child) -> usize {
    let status = tokio::fs::read_to_string(format!("/proc/{}/status", child.id().unwrap())).await.unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// The producer as a process of its own, so that its memory can be told from that of the tests.
pub async fn process(environment: &[(&str, &str)]) -> (Child, Application) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_producer"));
    command.env_clear().env("LISTEN_ADDR", "127.0.0.1:0").envs(environment.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    loop {
        let line: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
        if line["message"] == "listening" {
            let address = line["address"].as_str().unwrap().parse().unwrap();
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return (child, Application::at(address));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decompression_bomb_is_a_413_in_bounded_memory() {
    let (child, app) = process(&[("KAFKA_BROKER", "127.0.0.1:9")]).await;
    let zeros = vec![0; 16 * MIB];
    let before = peak(&child).await;
    for (coding, member) in [("gzip", gzip(&zeros).await), ("zstd", zstd(&zeros, &[]).await)] {
        // A gibibyte, of which the limits let 64 KiB and 16 MiB through.
        let bomb = member.repeat(64);
        assert!(bomb.len() < 2 * MIB, "{coding}: {}", bomb.len());
        for (path, body) in [("/ingest", &member), ("/ingest/batch", &bomb)] {
            let began = Instant::now();
            let answer = app.post_bytes(path, &headers(coding, "application/json"), body).await;
            answer.problem(if path == "/ingest" { 413 } else { 400 }, false);
            let answer = app.post_bytes(path, &headers(coding, "application/x-ndjson"), body).await;
            if path == "/ingest/batch" {
                answer.problem(413, false);
                assert_eq!(answer.statuses(), [413]);
                assert_says(&answer.result(0), &["16777216 bytes", "MAX_BATCH_BYTES"]);
            }
            assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        }
    }
    let more = peak(&child).await - before;
    assert!(more < 32 * MIB, "{} MiB more", more / MIB);
}
