//! `healthcheck`: asks the running process' own `/livez`, as the health checks of containers do. A process that serves
//! TLS brings the client's side of it along: this crate knows nothing of certificates.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// How long connecting, and each read or write, may take.
const LIMIT: Duration = Duration::from_secs(3);
/// More than any status line has.
const STATUS_LINE_BYTES: u64 = 4096;

/// Both directions of a connection.
pub trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// Makes a connection a secure one.
pub type TlsConnector = Box<dyn FnOnce(TcpStream) -> io::Result<Box<dyn Stream>>>;

/// How the running process is reached.
pub struct Probe {
    address: SocketAddr,
    secure: Option<TlsConnector>,
}

impl Probe {
    /// Asks the process that listens there.
    pub fn new(listen: SocketAddr, secure: Option<TlsConnector>) -> Self {
        let ip = match listen.ip() {
            ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            ip => ip,
        };
        Self { address: SocketAddr::new(ip, listen.port()), secure }
    }

    /// Asks.
    ///
    /// # Errors
    /// It does not answer, or not with 200; in words.
    pub fn ask(self) -> Result<(), String> {
        match self.status_line() {
            Ok(status) if status.contains(" 200 ") => Ok(()),
            Ok(status) => Err(format!("/livez answered {status:?}")),
            Err(error) => Err(format!("/livez does not answer: {error}")),
        }
    }

    fn status_line(self) -> io::Result<String> {
        let address = self.address;
        let stream = TcpStream::connect_timeout(&address, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let mut stream: Box<dyn Stream> = match self.secure {
            Some(secure) => secure(stream)?,
            None => Box::new(stream),
        };
        stream.write_all(
            format!("GET /livez HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes(),
        )?;
        let mut line = String::new();
        BufReader::new(stream.take(STATUS_LINE_BYTES)).read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn asked(answer: &'static str) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            assert_ne!(stream.read(&mut [0; 256]).unwrap(), 0);
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let outcome = Probe::new(address, None).ask();
        server.join().unwrap();
        outcome
    }

    #[test]
    fn only_a_200_is_well() {
        assert_eq!(asked("HTTP/1.1 200 OK\r\n\r\n"), Ok(()));
        assert!(asked("HTTP/1.1 503 Service Unavailable\r\n\r\n").unwrap_err().contains("503"));
        assert!(asked("").unwrap_err().contains("answered"));
    }

    #[test]
    fn nobody_there_is_an_error_in_words() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(Probe::new(address, None).ask().unwrap_err().starts_with("/livez does not answer"));
    }
}
