//! gzip and zstd bodies: the limits apply to the decompressed body. A decompression bomb is a 413
//! and uses bounded memory.

use std::process::Stdio;
use std::time::{Duration, Instant};

use async_compression::Level;
use async_compression::tokio::bufread::{GzipEncoder, ZstdEncoder};
use async_compression::zstd::CParameter;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::application::{Answer, Application, Cluster, PATIENCE, assert_says};

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
async fn every_ingest_endpoint_accepts_gzip_and_zstd() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let lines = [EVENT; 1000].join("\n");
    for (coding, one, many) in [
        ("gzip", gzip(EVENT.as_bytes()).await, gzip(lines.as_bytes()).await),
        ("zstd", zstd(EVENT.as_bytes(), &[]).await, zstd(lines.as_bytes(), &[]).await),
    ] {
        let response = app.post_bytes("/ingest", &headers(coding, "application/json"), &one).await;
        assert_eq!((response.status, &response.json()["id"]), (202, &"a-1".into()), "{coding}: {response:?}");
        let response = app.post_bytes("/ingest/batch", &headers(coding, "application/x-ndjson"), &many).await;
        assert_eq!((response.status, response.statuses()), (202, vec![202; 1000]), "{coding}");
        // Several compressed members form one body.
        let twice = [one.clone(), one].concat();
        let body =
            app.post_bytes("/ingest", &headers(coding, "application/json"), &twice).await.problem(400, false);
        assert_says(&body, &["not JSON", "trailing"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_coding_is_a_415_with_the_supported_codings() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    for path in ["/ingest", "/ingest/batch"] {
        for coding in ["br", "deflate", "gzip, zstd"] {
            let response = app.request("POST", path, &headers(coding, "application/json"), EVENT).await;
            let given = format!("Content-Encoding {coding:?} is not supported");
            assert_says(&response.problem(415, false), &["gzip, zstd", &given]);
            assert_eq!(response.header("accept-encoding"), Some("gzip, zstd"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_compressed_twice_is_a_400_that_says_so() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let twice = gzip(&gzip(format!("[{EVENT}]").as_bytes()).await).await;
    let body =
        app.post_bytes("/ingest", &headers("gzip", "application/json"), &twice).await.problem(400, false);
    assert_says(&body, &["compressed twice"]);
    let response = app.post_bytes("/ingest/batch", &headers("gzip", "application/json"), &twice).await;
    assert_says(&response.result(0), &["compressed twice"]);
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
            let response = app.post_bytes("/ingest", &headers(coding, "application/json"), body).await;
            assert_says(&response.problem(400, false), &["the body cannot be read", &words]);
        }
        let half = &many[..many.len() / 2];
        let response = app.post_bytes("/ingest/batch", &headers(coding, "application/x-ndjson"), half).await;
        let statuses = response.statuses();
        let (last, read) = statuses.split_last().unwrap();
        assert_eq!(*last, 400, "{coding}");
        assert!(read.iter().all(|status| *status == 202), "events before the cut are accepted");
        assert_says(&response.result(read.len()), &[&words]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_size_limits_apply_to_the_decompressed_body() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("MAX_PAYLOAD_BYTES", "1000"), ("MAX_BATCH_BYTES", "1000")]).await;
    let event =
        |bytes: usize| format!(r#"{{"source":"manual","payload":{{"x":"{}"}}}}"#, "y".repeat(bytes - 38));
    for (bytes, status) in [(1000, 202), (1001, 413)] {
        let body = gzip(event(bytes).as_bytes()).await;
        assert!(body.len() < 200);
        let response = app.post_bytes("/ingest", &headers("gzip", "application/json"), &body).await;
        assert_eq!(response.status, status);
    }
    let body = zstd([EVENT; 100].join("\n").as_bytes(), &[]).await;
    let response = app.post_bytes("/ingest/batch", &headers("zstd", "application/x-ndjson"), &body).await;
    let statuses = response.statuses();
    assert_eq!((response.status, statuses.len(), statuses.last()), (207, 23, Some(&413)), "{response:?}");
    // Empty members decompress to nothing, so the compressed body has the same limit.
    let empty = gzip(b"").await.repeat(100);
    let response = app.post_bytes("/ingest", &headers("gzip", "application/json"), &empty).await;
    response.problem(413, false);
    let head =
        "POST /ingest HTTP/1.1\r\nHost: t\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("{head}{:x}\r\n", empty.len());
    let response = app.raw(&[chunk.as_bytes(), &empty, b"\r\n0\r\n\r\n"]).await;
    assert_says(&response.problem(413, false), &["MAX_PAYLOAD_BYTES"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zstd_window_above_the_limit_is_rejected() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let lines = [EVENT; 100_000].join("\n");
    let wide = zstd(lines.as_bytes(), &[CParameter::window_log(27)]).await;
    let response = app.post_bytes("/ingest/batch", &headers("zstd", "application/x-ndjson"), &wide).await;
    response.problem(400, false);
    assert_says(&response.result(0), &["zstd", "memory"]);
}

/// Peak memory of a process, in bytes.
pub async fn peak(child: &Child) -> usize {
    let status = tokio::fs::read_to_string(format!("/proc/{}/status", child.id().unwrap())).await.unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// Starts the producer as a process of its own, to measure its memory without that of the tests.
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
        // It decompresses to 1 GiB. The limits are 64 KiB and 16 MiB.
        let bomb = member.repeat(64);
        assert!(bomb.len() < 2 * MIB, "{coding}: {}", bomb.len());
        for (path, body) in [("/ingest", &member), ("/ingest/batch", &bomb)] {
            let began = Instant::now();
            let response = app.post_bytes(path, &headers(coding, "application/json"), body).await;
            response.problem(if path == "/ingest" { 413 } else { 400 }, false);
            let response = app.post_bytes(path, &headers(coding, "application/x-ndjson"), body).await;
            if path == "/ingest/batch" {
                response.problem(413, false);
                assert_eq!(response.statuses(), [413]);
                assert_says(&response.result(0), &["16777216 bytes", "MAX_BATCH_BYTES"]);
            }
            assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        }
    }
    let more = peak(&child).await - before;
    assert!(more < 32 * MIB, "{} MiB more", more / MIB);
}

/// Sends a body without its end, so that its decoder uses a window of 8 MiB.
async fn stalled(app: &Application, to: (&str, &str), wide: &[u8]) -> Answer {
    let mut connection = TcpStream::connect(app.address).await.unwrap();
    let head =
        format!("POST {} HTTP/1.1\r\nHost: t\r\nContent-Type: {}\r\nConnection: close\r\n", to.0, to.1);
    let head = format!("{head}Content-Encoding: zstd\r\nContent-Length: {}\r\n\r\n", wide.len());
    connection.write_all(&[head.as_bytes(), &wide[..wide.len() - 8]].concat()).await.unwrap();
    let mut response = Vec::new();
    let read = connection.read_to_end(&mut response);
    tokio::time::timeout(PATIENCE, read).await.expect("no response in time").unwrap();
    Answer::parse(&response)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_zstd_bodies_use_bounded_memory_and_excess_ones_are_a_503() {
    let cluster = Cluster::start();
    let broker = cluster.mock.bootstrap_servers();
    let settings =
        [("KAFKA_BROKER", &*broker), ("KAFKA_TOPIC", &cluster.topic), ("REQUEST_TIMEOUT_MS", "5000")];
    let (child, app) = process(&settings).await;
    app.readyz(200).await;
    let wide = zstd(&vec![b'x'; 12 * MIB], &[CParameter::window_log(23)]).await;
    assert!(wide.len() < 4096, "{}", wide.len());
    let (single, batch) = (("/ingest", "application/json"), ("/ingest/batch", "application/x-ndjson"));
    let small = zstd(EVENT.as_bytes(), &[]).await;
    let stalled_batches = futures::future::join_all((0..100).map(|_| stalled(&app, batch, &wide)));
    let others = async {
        let began = Instant::now();
        let rejected = loop {
            let response = app.post_bytes(batch.0, &headers("zstd", batch.1), &small).await;
            if response.status != 202 {
                break response;
            }
            assert!(began.elapsed() < PATIENCE, "no batch is rejected");
        };
        assert_says(&rejected.retry_after(503).1, &["nothing was stored", "zstd"]);
        let packed = gzip(EVENT.as_bytes()).await;
        let response = app.post_bytes(single.0, &headers("gzip", single.1), &packed).await;
        assert_eq!(response.status, 202, "gzip needs no such memory");
    };
    let (responses, ()) = tokio::join!(stalled_batches, others);
    // Of a single event at most 64 KiB are decompressed, so more of them fit.
    let singles = (0..450).map(|_| stalled(&app, single, &wide));
    let singles = futures::future::join_all(singles).await;
    for (responses, status, max) in [(responses, 408, 29), (singles, 413, 372)] {
        let (rejected, accepted): (Vec<Answer>, Vec<Answer>) =
            responses.into_iter().partition(|response| response.status == 503);
        assert!(accepted.len() <= max && accepted.len() > max / 2, "{} of {max} got memory", accepted.len());
        for response in accepted {
            response.problem(status, status == 408);
        }
        for response in rejected {
            assert_says(&response.retry_after(503).1, &["nothing was stored", "zstd"]);
        }
    }
    let peak = peak(&child).await;
    println!("peak: {} MiB", peak / MIB);
    assert!(peak < 350 * MIB, "{} MiB", peak / MIB);
    let response = app.post_bytes(single.0, &headers("zstd", single.1), &small).await;
    assert_eq!(response.status, 202, "the memory is released");
}
