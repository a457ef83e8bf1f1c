//! The relay breaks the network as it says.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use testkit::proxy::{Fault, Proxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SOON: Duration = Duration::from_secs(10);
/// Long enough that a reply over loopback would have come.
const SILENCE: Duration = Duration::from_millis(300);

/// A relay before a server that says what it hears.
async fn relay() -> Proxy {
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

/// Says `words` and reads as many bytes.
async fn echo(stream: &mut TcpStream, words: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(words).await?;
    let mut heard = vec![0; words.len()];
    let read = tokio::time::timeout(SOON, stream.read_exact(&mut heard));
    read.await.expect("an answer or an error")?;
    Ok(heard)
}

async fn is_silent(stream: &mut TcpStream, words: &[u8]) {
    stream.write_all(words).await.unwrap();
    let heard = tokio::time::timeout(SILENCE, stream.read_u8()).await;
    assert!(heard.is_err(), "{heard:?}");
}

async fn is_reset(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let end = tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await.expect("an end");
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_cut_resets_what_is_open_and_what_comes_until_it_is_mended() {
    let proxy = relay().await;
    let mut open = connect(&proxy).await;
    assert_eq!(echo(&mut open, b"one").await.unwrap(), b"one");
    proxy.set(Fault::Reset);
    is_reset(&mut open).await;
    is_reset(&mut connect(&proxy).await).await;
    proxy.set(Fault::None);
    assert_eq!(echo(&mut connect(&proxy).await, b"two").await.unwrap(), b"two");
}

#[tokio::test]
async fn a_reset_ends_what_is_open_and_nothing_else() {
    let proxy = relay().await;
    let mut open = connect(&proxy).await;
    assert_eq!(echo(&mut open, b"one").await.unwrap(), b"one");
    proxy.reset_connections();
    assert_eq!(echo(&mut connect(&proxy).await, b"two").await.unwrap(), b"two");
    is_reset(&mut open).await;
}

#[tokio::test]
async fn silence_loses_bytes_and_its_end_resets_those_that_lost_some() {
    let proxy = relay().await;
    let (mut talking, mut idle) = (connect(&proxy).await, connect(&proxy).await);
    assert_eq!(echo(&mut idle, b"one").await.unwrap(), b"one");
    proxy.set(Fault::Blackhole);
    is_silent(&mut talking, b"lost").await;
    proxy.set(Fault::None);
    is_reset(&mut talking).await;
    assert_eq!(echo(&mut idle, b"two").await.unwrap(), b"two");
}

#[tokio::test]
async fn forgotten_connections_stay_open_and_silent_while_new_ones_are_well() {
    let proxy = relay().await;
    let mut old = connect(&proxy).await;
    assert_eq!(echo(&mut old, b"one").await.unwrap(), b"one");
    proxy.make_half_open();
    is_silent(&mut old, b"lost").await;
    assert_eq!(echo(&mut connect(&proxy).await, b"two").await.unwrap(), b"two");
    is_silent(&mut old, b"lost as well").await;
}

#[tokio::test]
async fn what_is_late_and_what_is_slow_arrives_whole() {
    let proxy = relay().await;
    let mut stream = connect(&proxy).await;
    proxy.set(Fault::Latency(Duration::from_millis(100)));
    let start = Instant::now();
    assert_eq!(echo(&mut stream, b"late").await.unwrap(), b"late");
    assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
    proxy.set(Fault::Bandwidth(100_000));
    let (start, words) = (Instant::now(), vec![7; 20_000]);
    assert_eq!(echo(&mut stream, &words).await.unwrap(), words);
    let took = start.elapsed();
    assert!((Duration::from_millis(380)..Duration::from_secs(5)).contains(&took), "{took:?} for 40 KB");
}

#[tokio::test]
async fn a_reply_is_broken_off_after_so_many_bytes() {
    let proxy = relay().await;
    let mut stream = connect(&proxy).await;
    proxy.set(Fault::ResetAfter(5));
    assert_eq!(echo(&mut stream, b"abc").await.unwrap(), b"abc");
    // Two more bytes pass, and a reset may overtake them.
    assert_eq!(echo(&mut stream, b"defg").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(proxy.lost_replies(), 1);
}

#[tokio::test]
async fn a_reply_is_lost_after_its_request_was_passed_on() {
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
    // In two parts.
    client.write_all(b"wri").await.unwrap();
    server.read_exact(&mut heard[..3]).await.unwrap();
    client.write_all(b"te").await.unwrap();
    server.read_exact(&mut heard[..2]).await.unwrap();
    server.write_all(b"done").await.unwrap();
    is_reset(&mut client).await;
    assert_eq!((&answer, proxy.lost_replies()), (b"yes", 1));
}
