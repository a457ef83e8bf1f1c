//! Ports on loopback for servers that keep their port over restarts.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use crate::ServerError;

/// Below the ephemeral port range, so that no outgoing connection takes the port of a stopped
/// server.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

pub(crate) fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A port that is free now. The caller must handle that it is in use later.
pub(crate) fn free_port() -> Result<u16, ServerError> {
    (0..100).map(|_| fastrand::u16(RANGE)).find(|port| is_free(*port)).ok_or_else(|| ServerError::Io {
        doing: "looking for a free port on",
        path: Ipv4Addr::LOCALHOST.to_string().into(),
        source: std::io::ErrorKind::AddrInUse.into(),
    })
}

/// The standard library sets SO_REUSEADDR, so old connections in TIME_WAIT do not count.
fn is_free(port: u16) -> bool {
    TcpListener::bind(loopback(port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_not_free() {
        let listener = TcpListener::bind(loopback(0)).unwrap();
        assert!(!is_free(listener.local_addr().unwrap().port()));
        assert!(is_free(free_port().unwrap()));
    }
}
