//! The listener: takes connections within limits and ends them in order. Guarantees: a client that is slow or silent
//! costs others nothing but its place; memory is bounded by MAX_CONNECTIONS and MAX_IN_FLIGHT; a machine that is out of
//! files is waited for; a stop lets the requests in hand end.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::accept::Door;
use super::connection_metrics::Counts;
use super::permits::{Places, Seat};
use super::timeouts::Limits;
use super::{connection, raw_response as refusal};
use crate::http::tls::Tls;
use crate::routes::Front;
use crate::shutdown::Stopping;

/// What every connection needs.
#[derive(Debug)]
pub struct Shared {
    /// Answers requests.
    pub front: Front,
    /// How long clients may take.
    pub limits: Limits,
    /// The certificate, if connections are secure.
    pub tls: Option<Tls>,
    /// Whether the end is near: answers say that their connection ends then.
    pub stopping: Stopping,
    /// Connections end when their request in hand does.
    pub close: CancellationToken,
    /// What is counted.
    pub counts: Counts,
}

/// Takes connections until `shared.close`, then waits until all have ended. Dropped, it cuts them.
pub async fn serve(socket: TcpListener, most_connections: usize, shared: Shared) {
    let places = Places::new(most_connections, shared.counts.connections.clone());
    let (mut door, shared) = (Door::new(socket), Arc::new(shared));
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            () = shared.close.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            stream = door.next() => stream,
        };
        let (place, reserve) = match places.seat() {
            Seat::Regular(place) => (place, false),
            Seat::Reserve(place) => (place, true),
            Seat::None => {
                shared.counts.refused();
                refusal::turn_away(stream, shared.tls.is_some());
                continue;
            }
        };
        let served = connection::run(stream, Arc::clone(&shared), reserve);
        connections.spawn(async move {
            served.await;
            drop(place);
        });
    }
    drop(door);
    while connections.join_next().await.is_some() {}
}
