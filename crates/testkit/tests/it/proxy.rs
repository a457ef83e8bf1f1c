//! The faults of the proxy.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use testkit::proxy::{Fault, Proxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SOON: Duration = Duration::from_secs(10);
/// Longer than a reply over loopback takes.
const SILENCE: Duration = Duration::from_millis(300);

/// A proxy in front of an echo server.
async fn echo_proxy() -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    Proxy::start(server).await
}

async fn connect(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(proxy.address).await.unwrap()
}

/// Sends `bytes` and reads as many.
async fn echo(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(bytes).await?;
    let mut heard = vec![0; bytes.len()];
    let read = tokio::time::timeout(SOON, stream.read_exact(&mut heard));
    read.await.expect("an answer or an error")?;
    Ok(heard)
}

async fn assert_silent(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    let heard = tokio::time::timeout(SILENCE, stream.read_u8()).await;
    assert!(heard.is_err(), "{heard:?}");
}

async fn assert_reset(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let end = tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await.expect("an end");
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn fault_reset_closes_open_and_new_connections_until_it_ends() {
    let proxy = echo_proxy().await;
    let mut open = connect(&proxy).await;
    assert_eq!(echo(&mut open, b"one").await.unwrap(), b"one");
    proxy.set(Fault::Reset);
    assert_reset(&mut open).await;
    assert_reset(&mut connect(&proxy).await).await;
    proxy.set(Fault::None);
    assert_eq!(echo(&mut connect(&proxy).await, b"two").await.unwrap(), b"two");
}

#[tokio::test]
async fn reset_connections_closes_only_open_connections() {
    let proxy = echo_proxy().await;
    let mut open = connect(&proxy).await;
    assert_eq!(echo(&mut open, b"one").await.unwrap(), b"one");
    proxy.reset_connections();
    assert_eq!(echo(&mut connect(&proxy).await, b"two").await.unwrap(), b"two");
    assert_reset(&mut open).await;
}

#[tokio::test]
async fn blackhole_loses_data_and_resets_its_connections_at_the_end() {
    let proxy = echo_proxy().await;
    let (mut talking, mut idle) = (connect(&proxy).await, connect(&proxy).await);
    assert_eq!(echo(&mut idle, b"one").await.unwrap(), b"one");
    proxy.set(Fault::Blackhole);
    assert_silent(&mut talking, b"lost").await;
    proxy.set(Fault::None);
    assert_reset(&mut talking).await;
    assert_eq!(echo(&mut idle, b"two").await.unwrap(), b"two");
}

#[tokio::test]
async fn half_open_connections_lose_all_data_and_new_ones_work() {
    let proxy = echo_proxy().await;
    let mut old = connect(&proxy).await;
    assert_eq!(echo(&mut old, b"one").await.unwrap(), b"one");
    proxy.make_half_open();
    assert_silent(&mut old, b"lost").await;
    assert_eq!(echo(&mut connect(&proxy).await, b"two").await.unwrap(), b"two");
    assert_silent(&mut old, b"lost as well").await;
}

#[tokio::test]
async fn latency_and_bandwidth_delay_data_without_loss() {
    let proxy = echo_proxy().await;
    let mut stream = connect(&proxy).await;
    proxy.set(Fault::Latency(Duration::from_millis(100)));
    let start = Instant::now();
    assert_eq!(echo(&mut stream, b"late").await.unwrap(), b"late");
    assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
    proxy.set(Fault::Bandwidth(100_000));
    let (start, bytes) = (Instant::now(), vec![7; 20_000]);
    assert_eq!(echo(&mut stream, &bytes).await.unwrap(), bytes);
    let took = start.elapsed();
    assert!((Duration::from_millis(380)..Duration::from_secs(5)).contains(&took), "{took:?} for 40 KB");
}

#[tokio::test]
async fn reset_after_ends_a_reply_after_this_many_bytes() {
    let proxy = echo_proxy().await;
    let mut stream = connect(&proxy).await;
    proxy.set(Fault::ResetAfter(5));
    assert_eq!(echo(&mut stream, b"abc").await.unwrap(), b"abc");
    // Two more bytes are forwarded, and the reset can overtake them.
    assert_eq!(echo(&mut stream, b"defg").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(proxy.lost_replies(), 1);
}

#[tokio::test]
async fn lose_reply_to_forwards_the_request_and_loses_its_reply() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap()).await;
    proxy.set(Fault::LoseReplyTo(b"write"));
    let mut client = connect(&proxy).await;
    let (mut server, _) = listener.accept().await.unwrap();
    client.write_all(b"read").await.unwrap();
    let mut heard = [0; 4];
    server.read_exact(&mut heard).await.unwrap();
    server.write_all(b"yes").await.unwrap();
    let mut answer = [0; 3];
    client.read_exact(&mut answer).await.unwrap();
    // The request arrives in two parts.
    client.write_all(b"wri").await.unwrap();
    server.read_exact(&mut heard[..3]).await.unwrap();
    client.write_all(b"te").await.unwrap();
    server.read_exact(&mut heard[..2]).await.unwrap();
    server.write_all(b"done").await.unwrap();
    assert_reset(&mut client).await;
    assert_eq!((&answer, proxy.lost_replies()), (b"yes", 1));
}
