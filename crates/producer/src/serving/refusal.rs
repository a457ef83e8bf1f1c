//! What those hear who are one too many.

use std::io::Write;
use std::net::Shutdown;

use tokio::net::TcpStream;

/// Why a request is refused beyond the limit of connections.
pub const TOO_MANY_CONNECTIONS: &str = "too many connections are open (MAX_CONNECTIONS)";

/// The same for a client whose request is not even read.
const UNREAD: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n\
                      connection: close\r\ncontent-length: 161\r\n\r\n\
                      {\"type\":\"about:blank\",\"title\":\"Service Unavailable\",\"status\":503,\"detail\":\"nothing was \
                      stored: too many connections are open (MAX_CONNECTIONS)\",\"retryable\":true}";

/// Whether a path is answered however much there is to do: health and metrics.
pub fn is_exempt(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz" | "/health" | "/metrics")
}

/// Refuses a connection without waiting for anything: as much as its socket takes at once is sent. Through TLS nothing
/// can be said without a handshake, so it is closed.
pub fn turn_away(stream: TcpStream, tls: bool) {
    let Ok(mut stream) = stream.into_std() else { return };
    if !tls && stream.write_all(UNREAD.as_bytes()).is_ok() {
        // The client may be gone already.
        _ = stream.shutdown(Shutdown::Write);
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;
    use crate::error::ApiError;

    #[tokio::test]
    async fn a_request_that_is_not_read_is_answered_as_one_that_is() {
        let read = ApiError::overloaded(TOO_MANY_CONNECTIONS).into_response();
        let body = axum::body::to_bytes(read.into_body(), 4096).await.unwrap();
        let (head, unread) = UNREAD.split_once("\r\n\r\n").unwrap();
        assert_eq!(unread, std::str::from_utf8(&body).unwrap());
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
    }
}
