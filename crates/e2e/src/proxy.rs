//! A relay in front of a server whose network can be broken in every way that a network breaks, at any moment.
//!
//! A fault holds for the connections that are there and for new ones, until the next [`Proxy::set`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, watch};

/// What is passed on at a time.
const CHUNK_BYTES: usize = 128 * 1024;

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
        let network = Arc::new(watch::Sender::new(Network { fault: Fault::None, epoch: 0 }));
        let (lost, road) = (Arc::default(), Arc::default());
        let proxy = Self { address, network: Arc::clone(&network), lost: Arc::clone(&lost) };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (network, lost, road) = (network.subscribe(), Arc::clone(&lost), Arc::clone(&road));
                let link = Link::new(network, lost, road);
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

    /// How many replies were lost to [`Fault::LosesReplyTo`] and [`Fault::ResetAfter`].
    pub fn lost_replies(&self) -> usize {
        self.lost.load(Ordering::Relaxed)
    }
}

/// When the road is free again: all connections share it.
type Road = Arc<Mutex<Option<Instant>>>;

/// One connection.
struct Link {
    network: watch::Receiver<Network>,
    born: u64,
    lost: Arc<AtomicUsize>,
    road: Road,
    /// Whether bytes of it were lost.
    torn: AtomicBool,
    /// Whether the reply to its last request is to be lost.
    condemned: AtomicBool,
    /// Bytes of replies under [`Fault::ResetAfter`].
    replied: AtomicUsize,
}

impl Link {
    fn new(network: watch::Receiver<Network>, lost: Arc<AtomicUsize>, road: Road) -> Self {
        let born = network.borrow().epoch;
        let (torn, condemned, replied) = Default::default();
        Self { network, born, lost, road, torn, condemned, replied }
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
            Fault::Cut => true,
            Fault::Silent => false,
            _ => self.torn.load(Ordering::Relaxed) && !self.is_forgotten(*network),
        });
        drop(severed.await);
    }

    fn is_forgotten(&self, network: Network) -> bool {
        self.born < network.epoch
    }

    async fn requests(&self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) {
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
            if self.carries(length).await && to.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    }

    /// Whether it is to end in a reset.
    async fn replies(&self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> bool {
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
            let whole = passed == length;
            if self.carries(passed).await && to.write_all(&buffer[..passed]).await.is_err() {
                return false;
            }
            if !whole {
                self.lost.fetch_add(1, Ordering::Relaxed);
                return true;
            }
        }
        false
    }

    /// Takes as long as the network takes for so many bytes; whether they arrive.
    async fn carries(&self, length: usize) -> bool {
        let network = *self.network.borrow();
        if network.fault == Fault::Silent || self.is_forgotten(network) {
            self.torn.store(true, Ordering::Relaxed);
            return false;
        }
        match network.fault {
            Fault::Late(delay) => tokio::time::sleep(delay).await,
            Fault::Slow(bytes_a_second) => {
                let takes = Duration::from_secs(1) * u32::try_from(length).expect("a chunk") / bytes_a_second;
                let mut free = self.road.lock().await;
                let arrives = free.unwrap_or_else(Instant::now).max(Instant::now()) + takes;
                *free = Some(arrives);
                drop(free);
                tokio::time::sleep_until(arrives.into()).await;
            }
            _ => {}
        }
        true
    }
}
