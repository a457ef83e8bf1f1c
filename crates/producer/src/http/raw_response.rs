//! Responses without a parsed request: to connections beyond all limits, and to a head that is not
//! HTTP/1.1.

use std::io::Write;
use std::net::Shutdown;

use tokio::net::TcpStream;

use crate::error::ApiError;

/// The response to a connection beyond MAX_CONNECTIONS and the extra connections.
const TOO_MANY_CONNECTIONS: &str = "\
    HTTP/1.1 503 Service Unavailable\r\n\
    content-type: application/problem+json\r\n\
    retry-after: 1\r\n\
    connection: close\r\n\
    content-length: 161\r\n\r\n\
    {\"type\":\"about:blank\",\"title\":\"Service Unavailable\",\"status\":503,\
    \"detail\":\"nothing was stored: too many connections are open (MAX_CONNECTIONS)\",\
    \"retryable\":true}";

/// The first bytes of an HTTP/2 client with prior knowledge.
const HTTP_2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The response to the preface. The client cannot parse it, but a person who sees the bytes can.
const HTTP_2_REJECTED: &str = "\
    HTTP/1.1 505 HTTP Version Not Supported\r\n\
    content-type: text/plain; charset=utf-8\r\n\
    connection: close\r\n\
    content-length: 79\r\n\r\n\
    this server speaks HTTP/1.1 only: HTTP/2 must not be used with prior knowledge\n";
/// The text of hyper's error for a Transfer-Encoding whose last coding is not `chunked`. The error
/// has no other distinguishing mark.
const TRANSFER_CODING_ERROR: &str = "invalid transfer-encoding parsed";

/// The response to a head that hyper cannot parse. It is the `withheld` response of hyper, unless
/// there is a better one. `unparsed` contains the bytes of the head.
pub fn to_invalid_head(error: &hyper::Error, unparsed: &[u8], withheld: Vec<u8>) -> Vec<u8> {
    if unparsed.starts_with(HTTP_2_PREFACE) {
        return HTTP_2_REJECTED.into();
    }
    if withheld.is_empty() || error.to_string() != TRANSFER_CODING_ERROR {
        return withheld;
    }
    let problem = ApiError::UnsupportedTransferCoding.problem();
    let body = serde_json::to_string(&problem).unwrap_or_default();
    format!(
        "HTTP/1.1 {}\r\ncontent-type: application/problem+json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        problem.status,
        body.len()
    )
    .into()
}

/// Rejects a connection without any wait: the response is written into the buffer of the socket.
/// A TLS connection is closed, because a response would need a handshake.
pub fn reject_connection(stream: TcpStream, tls: bool) {
    let Ok(mut stream) = stream.into_std() else { return };
    if !tls && stream.write_all(TOO_MANY_CONNECTIONS.as_bytes()).is_ok() {
        // The client may have closed the connection already.
        _ = stream.shutdown(Shutdown::Write);
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;

    #[tokio::test]
    async fn a_raw_response_equals_the_response_to_a_parsed_request() {
        let parsed = ApiError::too_many_connections().into_response();
        let body = axum::body::to_bytes(parsed.into_body(), 4096).await.unwrap();
        let (head, raw) = TOO_MANY_CONNECTIONS.split_once("\r\n\r\n").unwrap();
        assert_eq!(raw, std::str::from_utf8(&body).unwrap());
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        let (head, body) = HTTP_2_REJECTED.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{}", body.len());
    }
}
