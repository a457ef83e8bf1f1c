//! Answers to clients whose request is not read: to those that are one too many, and to what is not
//! HTTP/1.1.

use std::io::Write;
use std::net::Shutdown;

use tokio::net::TcpStream;

use crate::error::ApiError;
use crate::routes;

/// Why a request is refused beyond the limit of connections.
pub const TOO_MANY_CONNECTIONS: &str = "too many connections are open (MAX_CONNECTIONS)";

/// The same for a client whose request is not even read.
const UNREAD: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n\
                      connection: close\r\ncontent-length: 161\r\n\r\n\
                      {\"type\":\"about:blank\",\"title\":\"Service Unavailable\",\"status\":503,\"detail\":\"nothing was \
                      stored: too many connections are open (MAX_CONNECTIONS)\",\"retryable\":true}";

/// What a client of HTTP/2 sends first, where it does not ask before.
const HTTP_2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The answer to it. Such a client cannot read it as HTTP/2; a person who looks at the bytes can.
const HTTP_2_REFUSED: &str = "HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-type: text/plain; charset=utf-8\r\n\
                              connection: close\r\ncontent-length: 79\r\n\r\n\
                              this server speaks HTTP/1.1 only: HTTP/2 must not be used with prior knowledge\n";
/// hyper's words for a Transfer-Encoding whose last coding is not `chunked`; its error has no other
/// sign of it.
const TRANSFER_CODING: &str = "invalid transfer-encoding parsed";

/// The answer to a head that hyper cannot parse: that of hyper, `withheld` until now, unless there
/// is a better one. `unread` is what was not parsed.
pub fn to_unparsed(error: &hyper::Error, unread: &[u8], withheld: Vec<u8>) -> Vec<u8> {
    if unread.starts_with(HTTP_2_PREFACE) {
        return HTTP_2_REFUSED.into();
    }
    if withheld.is_empty() || error.to_string() != TRANSFER_CODING {
        return withheld;
    }
    let problem = ApiError::TransferCoding.problem();
    let body = serde_json::to_string(&problem).unwrap_or_default();
    format!(
        "HTTP/1.1 {}\r\ncontent-type: application/problem+json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        problem.status,
        body.len()
    )
    .into()
}

/// Whether a path is answered however much there is to do: health and metrics.
pub fn is_exempt(path: &str) -> bool {
    matches!(routes::without_slash(path).unwrap_or(path), "/livez" | "/readyz" | "/health" | "/metrics")
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

    #[tokio::test]
    async fn a_request_that_is_not_read_is_answered_as_one_that_is() {
        let read = ApiError::overloaded(TOO_MANY_CONNECTIONS).into_response();
        let body = axum::body::to_bytes(read.into_body(), 4096).await.unwrap();
        let (head, unread) = UNREAD.split_once("\r\n\r\n").unwrap();
        assert_eq!(unread, std::str::from_utf8(&body).unwrap());
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        let (head, body) = HTTP_2_REFUSED.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{}", body.len());
    }
}
