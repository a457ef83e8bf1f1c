//! Requests in the wire protocols of Kafka and MongoDB, sent here because this crate has no client
//! of either: the readiness checks, and the creation of a MongoDB user.

use std::io;

use bson::{Bson, Document, doc};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::machine::loopback;

/// API key 3, version 4, correlation 1, client id "up"; no topics, no automatic creation.
const METADATA_REQUEST: &[u8] = b"\0\0\0\x11\0\x03\0\x04\0\0\0\x01\0\x02up\0\0\0\0\0";
const LARGEST_RESPONSE: u32 = 64 * 1024;

/// Whether a broker of this cluster responds and lists itself as alive. A broker of another cluster
/// on the port does not count.
pub(crate) async fn broker_answers(port: u16, cluster_id: &str) -> io::Result<bool> {
    let mut stream = TcpStream::connect(loopback(port)).await?;
    stream.write_all(METADATA_REQUEST).await?;
    let length = stream.read_u32().await?;
    if length > LARGEST_RESPONSE {
        return Ok(false);
    }
    let mut response = vec![0; length as usize];
    stream.read_exact(&mut response).await?;
    Ok(is_ready(&response, cluster_id).unwrap_or(false))
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

const OP_MSG: u32 = 2013;
const LARGEST_REPLY: u32 = 1024 * 1024;
/// The error code for an existing user.
const USER_EXISTS: i32 = 51003;

/// Whether the server accepts commands.
pub(crate) async fn database_answers(port: u16) -> io::Result<bool> {
    Ok(is_ok(&run(port, &doc! {"hello": 1, "$db": "admin"}).await?))
}

/// Creates a user with the role `root`. An existing user is not changed.
pub(crate) async fn create_user(port: u16, user: &str, password: &str) -> io::Result<()> {
    let command = doc! {"createUser": user, "pwd": password, "roles": ["root"], "$db": "admin"};
    let reply = run(port, &command).await?;
    if is_ok(&reply) || reply.get_i32("code").is_ok_and(|code| code == USER_EXISTS) {
        return Ok(());
    }
    let message = reply.get_str("errmsg").unwrap_or("no error message");
    Err(io::Error::other(format!("the database rejected the user: {message}")))
}

async fn run(port: u16, command: &Document) -> io::Result<Document> {
    let document = command.to_vec().map_err(io::Error::other)?;
    let mut message = Vec::with_capacity(21 + document.len());
    for field in [21 + document.len() as u32, 1, 0, OP_MSG, 0] {
        message.extend(field.to_le_bytes());
    }
    // One section of kind 0: the document.
    message.push(0);
    message.extend(document);
    let mut stream = TcpStream::connect(loopback(port)).await?;
    stream.write_all(&message).await?;
    let length = stream.read_u32_le().await?;
    if !(21..=LARGEST_REPLY).contains(&length) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut reply = vec![0; length as usize - 4];
    stream.read_exact(&mut reply).await?;
    Document::from_reader(&reply[17..]).map_err(io::Error::other)
}

/// Whether the reply has `ok: 1`, of any numeric type.
fn is_ok(reply: &Document) -> bool {
    match reply.get("ok") {
        Some(Bson::Double(ok)) => *ok == 1.0,
        Some(Bson::Int32(ok)) => *ok == 1,
        Some(Bson::Int64(ok)) => *ok == 1,
        _ => false,
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

    #[test]
    fn only_ok_1_is_ok() {
        for ok in [Bson::Double(1.0), Bson::Int32(1), Bson::Int64(1)] {
            assert!(is_ok(&doc! {"ok": ok}));
        }
        assert!(!is_ok(&doc! {"ok": 0.0}) && !is_ok(&doc! {}));
    }
}
