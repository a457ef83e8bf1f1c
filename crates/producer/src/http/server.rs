//! The listener: it accepts connections within limits and closes them in order at shutdown.
//!
//! - A slow or silent client blocks only its own connection.
//! - MAX_CONNECTIONS and MAX_IN_FLIGHT bound the memory.
//! - Without free file descriptors new connections wait in the kernel's queue.
//! - At shutdown each connection first finishes its current request.

use std::sync::Arc;
use std::time::Duration;

use service::backoff::Backoff;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::http::connection::{self, Handler, Shared};
use crate::http::permits::{ConnectionPermit, Permits};
use crate::http::raw_response;

/// Minimum and maximum pause after an error of `accept`.
const ACCEPT_BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Serves connections until `shared.close`, then waits for their end. Dropping the future aborts
/// all connections.
pub async fn serve<H: Handler>(socket: TcpListener, max_connections: usize, shared: Shared<H>) {
    let permits = Permits::new(max_connections, shared.metrics.connections.clone());
    let (mut acceptor, shared) = (Acceptor::new(socket), Arc::new(shared));
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            () = shared.close.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            stream = acceptor.accept() => stream,
        };
        let (permit, extra) = match permits.take_for_connection() {
            ConnectionPermit::Regular(permit) => (permit, false),
            ConnectionPermit::Extra(permit) => (permit, true),
            ConnectionPermit::Denied => {
                shared.metrics.rejected();
                raw_response::reject_connection(stream, shared.tls.is_some());
                continue;
            }
        };
        let connection = connection::serve(stream, Arc::clone(&shared), extra);
        connections.spawn(async move {
            connection.await;
            drop(permit);
        });
    }
    drop(acceptor);
    while connections.join_next().await.is_some() {}
}

/// Accepts connections. After an error, such as the limit of open files, it waits and tries again.
#[derive(Debug)]
struct Acceptor {
    socket: TcpListener,
    backoff: Backoff,
}

impl Acceptor {
    fn new(socket: TcpListener) -> Self {
        Self { socket, backoff: Backoff::new(ACCEPT_BACKOFF.0, ACCEPT_BACKOFF.1) }
    }

    /// Returns the next connection. No connection is lost if the future is dropped.
    async fn accept(&mut self) -> TcpStream {
        loop {
            match self.socket.accept().await {
                Ok((stream, _)) => {
                    if self.backoff.attempts() > 0 {
                        tracing::info!("connections are accepted again");
                        self.backoff.reset();
                    }
                    // Each response is written as a whole, so Nagle's algorithm would only delay
                    // it. An error is ignored: if the socket is broken, the next call fails, too.
                    _ = stream.set_nodelay(true);
                    return stream;
                }
                Err(error) if is_client_error(&error) => {}
                Err(error) => {
                    if self.backoff.attempts() == 0 {
                        tracing::warn!(%error, "connections cannot be accepted");
                    }
                    tokio::time::sleep(self.backoff.next_delay()).await;
                }
            }
        }
    }
}

/// Whether the client closed its connection before it was accepted.
fn is_client_error(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
