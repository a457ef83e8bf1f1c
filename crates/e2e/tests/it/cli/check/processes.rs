//! Producer, consumer and ADSBDB.

use std::net::SocketAddr;

use devservers::{Fault, Simulator};
use testkit::{Stack, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::findings::check;
use testkit::certificate::certificate;

/// Starts a server that returns this date in each response.
async fn of_another_time(date: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            _ = stream.read(&mut [0; 4096]).await;
            let answer = format!(
                "HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
            );
            _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn unnamed_unavailable_and_unready_processes_are_reported() {
    let stack = Stack::shared().await;
    let names = stack.names();
    let unknown = check(&names, &[]).await;
    unknown.assert("warn", "producer", "PRODUCER_BASE_URL is not set");
    unknown.assert("warn", "consumer", "CONSUMER_BASE_URL is not set");
    let nobody = format!("http://{}", testkit::process::free_address());
    let away = check(&names, &[("PRODUCER_BASE_URL", &nobody), ("CONSUMER_BASE_URL", &nobody)]).await;
    away.assert("fail", "producer", "refused");
    away.assert("fail", "consumer", "refused");

    let nobody = testkit::process::free_address();
    let producer = stack.producer(&names, &[("KAFKA_BROKER", &nobody.to_string())]);
    let consumer = stack.consumer(&names, &[("MONGODB_URI", &format!("mongodb://{nobody}"))]);
    let (producer_url, consumer_url) = (producer.url(""), consumer.url(""));
    eventually("both answer", std::time::Duration::from_secs(60), || async {
        let urls = [("PRODUCER_BASE_URL", producer_url.as_str()), ("CONSUMER_BASE_URL", &consumer_url)];
        let found = check(&names, &urls).await;
        let (kafka, mongodb) = ("is not ready (503): kafka", "is not ready (503): mongodb");
        (found.has("fail", "producer", kafka) && found.has("fail", "consumer", mongodb)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clock_difference_is_a_warning() {
    let names = Stack::shared().await.names();
    let past = format!("http://{}", of_another_time("Sun, 06 Nov 1994 08:49:37 GMT").await);
    let future = format!("http://{}", of_another_time("Sat, 06 Nov 2094 08:49:37 GMT").await);
    let found = check(&names, &[("PRODUCER_BASE_URL", &past), ("CONSUMER_BASE_URL", &future)]).await;
    found.assert("warn", "producer clock", "behind the local one");
    found.assert("warn", "consumer clock", "ahead of the local one");
}

#[tokio::test(flavor = "multi_thread")]
async fn adsbdb_without_response_or_with_an_error_is_a_warning() {
    let names = Stack::shared().await.names();
    let nobody = format!("http://{}", testkit::process::free_address());
    check(&names, &[("ADSBDB_BASE_URL", &nobody)]).await.assert("warn", "adsbdb", "does not answer");
    let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap();
    simulator.set_fault(Some(Fault::ServerError));
    check(&names, &[("ADSBDB_BASE_URL", &simulator.base_url())]).await.assert("warn", "adsbdb", "with 500");
    simulator.set_fault(Some(Fault::Html));
    check(&names, &[("ADSBDB_BASE_URL", &simulator.base_url())]).await.assert(
        "warn",
        "adsbdb",
        "without an aircraft",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn producer_with_its_own_ca_is_checked_over_tls() {
    let stack = Stack::shared().await;
    let names = stack.names();
    let folder = tempfile::tempdir().unwrap();
    let (certificate, private) = certificate(folder.path());
    let producer = stack.producer(&names, &[("TLS_CERT_FILE", &certificate), ("TLS_KEY_FILE", &private)]);
    let url = format!("https://{}", producer.address);
    let trusting = [("PRODUCER_BASE_URL", url.as_str()), ("PRODUCER_CA_FILE", &certificate)];
    eventually("the producer is ready", std::time::Duration::from_secs(60), || async {
        check(&names, &trusting).await.has("ok", "producer", "is ready").then_some(())
    })
    .await;
    let stranger = check(&names, &trusting[..1]).await;
    stranger.assert("fail", "producer", "does not answer");
    let remedy =
        stranger.all.iter().find(|finding| finding["subject"] == "producer").unwrap()["remedy"].as_str();
    assert!(remedy.unwrap().contains("this very certificate in PRODUCER_CA_FILE"), "{stranger:?}");
}
