//! A TCP proxy in front of a server, with network faults that a test switches on and off, and one
//! that holds back one message.
//!
//! A fault applies to open and to new connections, until the next [`Proxy::set`].

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// Size of a forwarded chunk.
const CHUNK_BYTES: usize = 64 * 1024;
/// Maximum number of chunks in transit. Beyond it the sender waits.
const MAX_CHUNKS_IN_TRANSIT: usize = 64;

/// A network fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No fault.
    None,
    /// Open and new connections are reset.
    Reset,
    /// Connections stay open, and all data in both directions is lost. At the end of the fault each
    /// connection that lost data is reset, as by a peer that has forgotten it.
    Blackhole,
    /// Data arrives with this delay.
    Latency(Duration),
    /// Bytes per second, shared by both directions of all connections.
    Bandwidth(u32),
    /// Each connection is reset after this many bytes from the server.
    ResetAfter(usize),
    /// A request that contains these bytes is forwarded; its reply is lost and the connection is
    /// reset.
    LoseReplyTo(&'static [u8]),
}

#[derive(Debug, Clone, Copy)]
struct Network {
    fault: Fault,
    /// Connections of an earlier epoch are half-open.
    epoch: u64,
    /// Number of calls of [`Proxy::reset_connections`]. Connections from before the last one are
    /// reset.
    resets: u64,
}

/// The proxy. It ends with the test's runtime.
#[derive(Debug)]
pub struct Proxy {
    /// The address on which it listens.
    pub address: SocketAddr,
    network: Arc<watch::Sender<Network>>,
    lost: Arc<AtomicUsize>,
}

impl Proxy {
    /// Starts a proxy in front of `server`.
    pub async fn start(server: SocketAddr) -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").await.expect("a free port"), server)
    }

    /// Starts a proxy in front of `server` that listens on `listener`.
    pub fn start_on(listener: TcpListener, server: SocketAddr) -> Self {
        let address = listener.local_addr().expect("its address");
        let network = Arc::new(watch::Sender::new(Network { fault: Fault::None, epoch: 0, resets: 0 }));
        let (lost, free_at) = (Arc::default(), FreeAt::default());
        let proxy = Self { address, network: Arc::clone(&network), lost: Arc::clone(&lost) };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let link = Link::new(network.subscribe(), Arc::clone(&lost), Arc::clone(&free_at));
                tokio::spawn(async move { link.serve(client, server).await });
            }
        });
        proxy
    }

    /// Switches to `fault`.
    pub fn set(&self, fault: Fault) {
        self.network.send_modify(|network| network.fault = fault);
    }

    /// Makes the open connections half-open: they stay open and lose all data from now on. New ones
    /// work.
    pub fn make_half_open(&self) {
        self.network.send_modify(|network| network.epoch += 1);
    }

    /// Resets the open connections; new ones work. A short [`Fault::Reset`] would not do: a task
    /// sees only the last of several changes.
    pub fn reset_connections(&self) {
        self.network.send_modify(|network| network.resets += 1);
    }

    /// Number of replies lost by [`Fault::LoseReplyTo`] and [`Fault::ResetAfter`].
    pub fn lost_replies(&self) -> usize {
        self.lost.load(Ordering::Relaxed)
    }
}

/// When the bandwidth that all connections share is free again.
type FreeAt = Arc<Mutex<Option<Instant>>>;

/// One connection.
struct Link {
    network: watch::Receiver<Network>,
    /// The state of the network when the connection was accepted.
    initial: Network,
    lost: Arc<AtomicUsize>,
    free_at: FreeAt,
    /// Whether it lost data.
    lost_data: AtomicBool,
    /// Whether the reply to the last request must be lost.
    lose_reply: AtomicBool,
    /// Bytes from the server under [`Fault::ResetAfter`].
    replied: AtomicUsize,
}

impl Link {
    fn new(network: watch::Receiver<Network>, lost: Arc<AtomicUsize>, free_at: FreeAt) -> Self {
        let initial = *network.borrow();
        let (lost_data, lose_reply, replied) = Default::default();
        Self { network, initial, lost, free_at, lost_data, lose_reply, replied }
    }

    async fn serve(&self, mut client: TcpStream, server: SocketAddr) {
        let server = TcpStream::connect(server).await;
        let reset = match server {
            Ok(mut server) => {
                let reset = self.forward(&mut client, &mut server).await;
                if reset {
                    drop(server.set_zero_linger());
                }
                reset
            }
            Err(_) => true,
        };
        if reset {
            drop(client.set_zero_linger());
        }
    }

    /// Forwards until a side closes. Returns whether the connection must end with a reset.
    async fn forward(&self, client: &mut TcpStream, server: &mut TcpStream) -> bool {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        tokio::select! {
            // A reset connection forwards nothing, even if data is waiting.
            biased;
            () = self.reset() => true,
            reset = self.replies(from_server, to_client) => reset,
            () = self.requests(from_client, to_server) => false,
        }
    }

    /// Returns when the network resets this connection.
    async fn reset(&self) {
        let mut network = self.network.clone();
        let reset = network.wait_for(|network| match network.fault {
            _ if self.initial.resets < network.resets => true,
            Fault::Reset => true,
            Fault::Blackhole => false,
            _ => self.lost_data.load(Ordering::Relaxed) && !self.is_half_open(*network),
        });
        drop(reset.await);
    }

    fn is_half_open(&self, network: Network) -> bool {
        self.initial.epoch < network.epoch
    }

    async fn requests(&self, mut from: ReadHalf<'_>, to: WriteHalf<'_>) {
        let (transit, arrivals) = mpsc::channel(MAX_CHUNKS_IN_TRANSIT);
        let read = async move {
            let (mut buffer, mut tail) = (vec![0; CHUNK_BYTES], Vec::new());
            while let Ok(length @ 1..) = from.read(&mut buffer).await {
                if let Fault::LoseReplyTo(bytes) = self.network.borrow().fault {
                    // The bytes can arrive in two reads, so the end of the previous read is kept.
                    tail.extend_from_slice(&buffer[..length]);
                    if tail.windows(bytes.len()).any(|part| part == bytes) {
                        self.lose_reply.store(true, Ordering::Relaxed);
                    }
                    tail.drain(..tail.len().saturating_sub(bytes.len() - 1));
                }
                self.send(&transit, &buffer[..length]).await;
            }
        };
        tokio::join!(read, write(to, arrivals));
    }

    /// Returns whether the connection must end with a reset.
    async fn replies(&self, mut from: ReadHalf<'_>, to: WriteHalf<'_>) -> bool {
        let (transit, arrivals) = mpsc::channel(MAX_CHUNKS_IN_TRANSIT);
        let read = async move {
            let mut buffer = vec![0; CHUNK_BYTES];
            while let Ok(length @ 1..) = from.read(&mut buffer).await {
                let mut forwarded = length;
                let fault = self.network.borrow().fault;
                if let Fault::ResetAfter(limit) = fault {
                    let before = self.replied.fetch_add(length, Ordering::Relaxed);
                    forwarded = length.min(limit.saturating_sub(before));
                }
                if self.lose_reply.load(Ordering::Relaxed) {
                    forwarded = 0;
                }
                self.send(&transit, &buffer[..forwarded]).await;
                if forwarded < length {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    return true;
                }
            }
            false
        };
        tokio::join!(read, write(to, arrivals)).0
    }

    /// Sends bytes into transit, with the delay of the network, or loses them.
    async fn send(&self, transit: &mpsc::Sender<Arrival>, bytes: &[u8]) {
        let network = *self.network.borrow();
        if network.fault == Fault::Blackhole || self.is_half_open(network) {
            return self.lost_data.store(true, Ordering::Relaxed);
        }
        let mut at = Instant::now();
        match network.fault {
            Fault::Latency(delay) => at += delay,
            Fault::Bandwidth(bytes_per_second) => {
                let bytes = u32::try_from(bytes.len()).expect("a chunk");
                let mut free = self.free_at.lock().expect("no panic");
                at = free.unwrap_or(at).max(at) + Duration::from_secs(1) * bytes / bytes_per_second;
                *free = Some(at);
            }
            _ => {}
        }
        // If the receiver is gone, the other direction ends the connection.
        drop(transit.send(Arrival { at, bytes: bytes.to_vec() }).await);
    }
}

/// Bytes in transit.
struct Arrival {
    at: Instant,
    bytes: Vec<u8>,
}

async fn write(mut to: WriteHalf<'_>, mut arrivals: mpsc::Receiver<Arrival>) {
    while let Some(Arrival { at, bytes }) = arrivals.recv().await {
        tokio::time::sleep_until(at.into()).await;
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// A proxy that holds back one message, so that a test can act before the server receives it. It
/// ends with the test's runtime.
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
                tokio::spawn(forward_until_held(from_client, to_server, Some(hold)));
                tokio::spawn(forward_until_held(from_server, to_client, None));
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

async fn forward_until_held(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut hold: Option<Hold>) {
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
