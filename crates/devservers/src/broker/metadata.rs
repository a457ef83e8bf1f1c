//! The cluster id of a Kafka broker, and the readiness check that reads it: a metadata request
//! (version 4), encoded here.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::address;

/// API key 3, version 4, correlation 1, client id "up"; no topics, no automatic creation.
const REQUEST: &[u8] = b"\0\0\0\x11\0\x03\0\x04\0\0\0\x01\0\x02up\0\0\0\0\0";
const LARGEST_RESPONSE: u32 = 64 * 1024;

/// Whether a broker of this cluster responds and lists itself as alive. A broker of another cluster
/// on the port does not count.
pub(crate) async fn answers(port: u16, cluster_id: &str) -> io::Result<bool> {
    let mut stream = TcpStream::connect(address::loopback(port)).await?;
    stream.write_all(REQUEST).await?;
    let length = stream.read_u32().await?;
    if length > LARGEST_RESPONSE {
        return Ok(false);
    }
    let mut response = vec![0; length as usize];
    stream.read_exact(&mut response).await?;
    Ok(is_ready(&response, cluster_id).unwrap_or(false))
}

/// A random cluster id in Kafka's form: 16 bytes as 22 characters.
pub(super) fn new_cluster_id() -> String {
    let random = std::iter::repeat_with(fastrand::alphanumeric).take(21);
    random.chain(['A']).collect()
}

fn is_ready(response: &[u8], cluster_id: &str) -> Option<bool> {
    let mut rest = Fields(response);
    let _correlation = rest.int()?;
    let _throttle_ms = rest.int()?;
    let brokers = rest.int()?;
    for _ in 0..brokers {
        let (_id, _host, _port, _rack) = (rest.int()?, rest.text()?, rest.int()?, rest.text()?);
    }
    Some(brokers > 0 && rest.text()? == cluster_id.as_bytes())
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn int(&mut self) -> Option<i32> {
        Some(i32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    /// A nullable text; null has the length -1.
    fn text(&mut self) -> Option<&'a [u8]> {
        let length = i16::from_be_bytes(self.take(2)?.try_into().ok()?);
        self.take(usize::try_from(length).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE_BROKER: &[u8] =
        b"\0\0\0\x07\0\0\0\0\0\0\0\x01\0\0\0o\0\t127.0.0.1\0\0r\x08\xff\xff\0\x03abc\0\0\0o\0\0\0\0";

    #[test]
    fn only_a_live_broker_of_this_cluster_is_ready() {
        assert_eq!(is_ready(ONE_BROKER, "abc"), Some(true));
        assert_eq!(is_ready(ONE_BROKER, "abd"), Some(false));
        assert_eq!(is_ready(b"\0\0\0\x07\0\0\0\0\0\0\0\0\0\x03abc", "abc"), Some(false));
        assert_eq!(is_ready(&ONE_BROKER[..30], "abc"), None);
    }
}
