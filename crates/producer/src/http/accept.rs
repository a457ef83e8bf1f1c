//! Accepting connections on a machine that may run out of files: then it waits, with one log line a change of state, and
//! the connections wait in the kernel's queue.

use std::time::Duration;

use service::backoff::Backoff;
use tokio::net::{TcpListener, TcpStream};

const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Where connections come in.
#[derive(Debug)]
pub struct Door {
    socket: TcpListener,
    backoff: Backoff,
}

impl Door {
    /// Nothing is accepted before it is asked for.
    pub fn new(socket: TcpListener) -> Self {
        Self { socket, backoff: Backoff::new(PAUSES.0, PAUSES.1) }
    }

    /// The next connection, as soon as there is one and the machine can take it. Cancelled, it loses none.
    pub async fn next(&mut self) -> TcpStream {
        loop {
            match self.socket.accept().await {
                Ok((stream, _)) => {
                    if self.backoff.attempts() > 0 {
                        tracing::info!("connections are accepted again");
                        self.backoff.reset();
                    }
                    // Answers are whole when they are written. A socket that refuses this refuses more, soon enough.
                    _ = stream.set_nodelay(true);
                    return stream;
                }
                // The client left before it was its turn.
                Err(error) if is_the_clients(&error) => {}
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

fn is_the_clients(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
