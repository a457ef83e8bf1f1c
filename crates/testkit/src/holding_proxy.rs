//! A TCP proxy that holds back one message, so that a test can act before the server receives it.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The proxy. It ends with the test's runtime.
#[derive(Debug)]
pub struct HoldingProxy {
    /// The address on which it listens.
    pub address: SocketAddr,
    held: watch::Receiver<bool>,
    released: watch::Sender<bool>,
}

impl HoldingProxy {
    /// Forwards to `server` all bytes before the first message of a client that contains `bytes`.
    pub async fn start(server: SocketAddr, bytes: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let (held, released) = (watch::Sender::new(false), watch::Sender::new(false));
        let proxy = Self { address, held: held.subscribe(), released: released.clone() };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(server).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let hold = Hold { bytes, held: held.clone(), released: released.subscribe() };
                tokio::spawn(forward(from_client, to_server, Some(hold)));
                tokio::spawn(forward(from_server, to_client, None));
            }
        });
        proxy
    }

    /// Waits until the message is held.
    pub async fn wait_until_held(&mut self) {
        self.held.wait_for(|held| *held).await.expect("the proxy runs");
    }

    /// Forwards the held message and all bytes after it.
    pub fn release(&self) {
        self.released.send_replace(true);
    }
}

struct Hold {
    bytes: &'static [u8],
    held: watch::Sender<bool>,
    released: watch::Receiver<bool>,
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut hold: Option<Hold>) {
    let (mut buffer, mut tail) = (vec![0; 64 * 1024], Vec::new());
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if let Some(hold) = &mut hold {
            // The bytes can arrive in two reads, so the end of the previous read is kept.
            tail.extend_from_slice(&buffer[..length]);
            if tail.windows(hold.bytes.len()).any(|part| part == hold.bytes) {
                hold.held.send_replace(true);
                if hold.released.wait_for(|released| *released).await.is_err() {
                    return;
                }
            }
            tail.drain(..tail.len().saturating_sub(hold.bytes.len() - 1));
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
