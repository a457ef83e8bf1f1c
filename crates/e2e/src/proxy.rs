//! A relay in front of a server whose network can be broken in every way that a network breaks, at any moment.
//!
//! A fault holds for the connections that are there and for new ones, until the next [`Proxy::set`].

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// What is passed on at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// As much is on the road at most; then it is full, and the sender waits.
const CHUNKS: usize = 64;

/// What is wrong with the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Every connection is reset, and so is every new one.
    Cut,
    /// Connections stay open, and what is sent in either direction is lost. At the end of the fault those that lost
    /// something are reset: the other side no longer knows them.
    Silent,
    /// Whatever is sent arrives this much later.
    Late(Duration),
    /// So many bytes a second in both directions of all connections together.
    Slow(u32),
    /// Every connection is reset after so many bytes of replies.
    ResetAfter(usize),
    /// A request with these bytes is passed on; its reply is lost, and the connection is reset.
    LosesReplyTo(&'static [u8]),
}

#[derive(Debug, Clone, Copy)]
struct Network {
    fault: Fault,
    /// Connections that are older than this are forgotten.
    epoch: u64,
    /// How often all connections were reset at once: those of before the last time are.
    resets: u64,
}

/// The relay. It ends with the test's runtime.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    network: Arc<watch::Sender<Network>>,
    lost: Arc<AtomicUsize>,
}

impl Proxy {
    /// A relay before `server`.
    pub async fn before(server: SocketAddr) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.expect("a free port"), server)
    }

    /// A relay before `server` that listens on `listener`.
    pub fn on(listener: TcpListener, server: SocketAddr) -> Self {
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

    /// Breaks the network in this way from now on, or mends it.
    pub fn set(&self, fault: Fault) {
        self.network.send_modify(|network| network.fault = fault);
    }

    /// The connections of this moment stay open but carry nothing any more, ever; new ones are well.
    pub fn forget_connections(&self) {
        self.network.send_modify(|network| network.epoch += 1);
    }

    /// Resets the connections of this moment; new ones are well. A [`Fault::Cut`] that is mended at once could pass
    /// unnoticed: only the last of several changes is sure to be seen.
    pub fn reset_connections(&self) {
        self.network.send_modify(|network| network.resets += 1);
    }

    /// How many replies were lost to [`Fault::LosesReplyTo`] and [`Fault::ResetAfter`].
    pub fn lost_replies(&self) -> usize {
        self.lost.load(Ordering::Relaxed)
    }
}

/// When a slow network is free again: all connections share it.
type FreeAt = Arc<Mutex<Option<Instant>>>;

/// One connection.
struct Link {
    network: watch::Receiver<Network>,
    /// What the network was when it was made.
    born: Network,
    lost: Arc<AtomicUsize>,
    free_at: FreeAt,
    /// Whether bytes of it were lost.
    torn: AtomicBool,
    /// Whether the reply to its last request is to be lost.
    condemned: AtomicBool,
    /// Bytes of replies under [`Fault::ResetAfter`].
    replied: AtomicUsize,
}

impl Link {
    fn new(network: watch::Receiver<Network>, lost: Arc<AtomicUsize>, free_at: FreeAt) -> Self {
        let born = *network.borrow();
        let (torn, condemned, replied) = Default::default();
        Self { network, born, lost, free_at, torn, condemned, replied }
    }

    async fn serve(&self, mut client: TcpStream, server: SocketAddr) {
        let server = TcpStream::connect(server).await;
        let ends_in_a_reset = match server {
            Ok(mut server) => {
                let reset = self.relay(&mut client, &mut server).await;
                if reset {
                    drop(server.set_zero_linger());
                }
                reset
            }
            Err(_) => true,
        };
        if ends_in_a_reset {
            drop(client.set_zero_linger());
        }
    }

    /// Until either side closes; whether it is to end in a reset.
    async fn relay(&self, client: &mut TcpStream, server: &mut TcpStream) -> bool {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        tokio::select! {
            // What is broken carries nothing any more, even if there is something to carry.
            biased;
            () = self.severed() => true,
            reset = self.replies(from_server, to_client) => reset,
            () = self.requests(from_client, to_server) => false,
        }
    }

    async fn severed(&self) {
        let mut network = self.network.clone();
        let severed = network.wait_for(|network| match network.fault {
            _ if self.born.resets < network.resets => true,
            Fault::Cut => true,
            Fault::Silent => false,
            _ => self.torn.load(Ordering::Relaxed) && !self.is_forgotten(*network),
        });
        drop(severed.await);
    }

    fn is_forgotten(&self, network: Network) -> bool {
        self.born.epoch < network.epoch
    }

    async fn requests(&self, mut from: ReadHalf<'_>, to: WriteHalf<'_>) {
        let (road, arriving) = mpsc::channel(CHUNKS);
        let read = async move {
            let (mut buffer, mut tail) = (vec![0; CHUNK_BYTES], Vec::new());
            while let Ok(length @ 1..) = from.read(&mut buffer).await {
                if let Fault::LosesReplyTo(bytes) = self.network.borrow().fault {
                    // What is looked for may come in two parts.
                    tail.extend_from_slice(&buffer[..length]);
                    if tail.windows(bytes.len()).any(|part| part == bytes) {
                        self.condemned.store(true, Ordering::Relaxed);
                    }
                    tail.drain(..tail.len().saturating_sub(bytes.len() - 1));
                }
                self.carry(&road, &buffer[..length]).await;
            }
        };
        tokio::join!(read, write(to, arriving));
    }

    /// Whether it is to end in a reset.
    async fn replies(&self, mut from: ReadHalf<'_>, to: WriteHalf<'_>) -> bool {
        let (road, arriving) = mpsc::channel(CHUNKS);
        let read = async move {
            let mut buffer = vec![0; CHUNK_BYTES];
            while let Ok(length @ 1..) = from.read(&mut buffer).await {
                let mut passed = length;
                let fault = self.network.borrow().fault;
                if let Fault::ResetAfter(limit) = fault {
                    let before = self.replied.fetch_add(length, Ordering::Relaxed);
                    passed = length.min(limit.saturating_sub(before));
                }
                if self.condemned.load(Ordering::Relaxed) {
                    passed = 0;
                }
                self.carry(&road, &buffer[..passed]).await;
                if passed < length {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    return true;
                }
            }
            false
        };
        tokio::join!(read, write(to, arriving)).0
    }

    /// Puts bytes on the road, on which they take as long as the network takes; those that it loses are lost.
    async fn carry(&self, road: &mpsc::Sender<Arriving>, bytes: &[u8]) {
        let network = *self.network.borrow();
        if network.fault == Fault::Silent || self.is_forgotten(network) {
            return self.torn.store(true, Ordering::Relaxed);
        }
        let mut at = Instant::now();
        match network.fault {
            Fault::Late(delay) => at += delay,
            Fault::Slow(bytes_a_second) => {
                let bytes = u32::try_from(bytes.len()).expect("a chunk");
                let mut free = self.free_at.lock().expect("no panic");
                at = free.unwrap_or(at).max(at) + Duration::from_secs(1) * bytes / bytes_a_second;
                *free = Some(at);
            }
            _ => {}
        }
        // Who does not take it any more is gone, which the other direction notices.
        drop(road.send(Arriving { at, bytes: bytes.to_vec() }).await);
    }
}

/// What is on the road.
struct Arriving {
    at: Instant,
    bytes: Vec<u8>,
}

async fn write(mut to: WriteHalf<'_>, mut arriving: mpsc::Receiver<Arriving>) {
    while let Some(Arriving { at, bytes }) = arriving.recv().await {
        tokio::time::sleep_until(at.into()).await;
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}
