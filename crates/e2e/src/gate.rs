//! A relay in front of a server that holds back one message, so that a test can act at exactly that moment.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The relay. It ends with the test's runtime.
#[derive(Debug)]
pub struct Gate {
    /// Where it listens.
    pub address: SocketAddr,
    reached: watch::Receiver<bool>,
    open: watch::Sender<bool>,
}

impl Gate {
    /// Passes everything on to `server`, up to the first message in which a client sends `bytes`.
    pub async fn before(server: SocketAddr, bytes: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let (reached, opened) = (watch::Sender::new(false), watch::Sender::new(false));
        let gate = Self { address, reached: reached.subscribe(), open: opened.clone() };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(server).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let hold = Hold { bytes, reached: reached.clone(), open: opened.subscribe() };
                tokio::spawn(relay(from_client, to_server, Some(hold)));
                tokio::spawn(relay(from_server, to_client, None));
            }
        });
        gate
    }

    /// Waits until the message is there.
    pub async fn reached(&mut self) {
        self.reached.wait_for(|reached| *reached).await.expect("the gate stands");
    }

    /// Lets it and everything after it pass.
    pub fn open(&self) {
        self.open.send_replace(true);
    }
}

struct Hold {
    bytes: &'static [u8],
    reached: watch::Sender<bool>,
    open: watch::Receiver<bool>,
}

async fn relay(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut hold: Option<Hold>) {
    let (mut buffer, mut tail) = (vec![0; 64 * 1024], Vec::new());
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if let Some(hold) = &mut hold {
            // What is looked for may come in two parts.
            tail.extend_from_slice(&buffer[..length]);
            if tail.windows(hold.bytes.len()).any(|part| part == hold.bytes) {
                hold.reached.send_replace(true);
                if hold.open.wait_for(|open| *open).await.is_err() {
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
