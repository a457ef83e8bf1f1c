//! The command `healthcheck` of a process: `GET /livez` of its running instance.
//!
//! Health checks of containers run it. A process that serves HTTPS passes a [`TlsConnector`], because
//! this crate has no TLS library.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Timeout of the connection and of each read and write.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Size at which the status line is cut. A valid one is shorter.
const MAX_STATUS_LINE_BYTES: u64 = 4096;

/// A connection that can be read and written.
pub trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// Opens TLS on a connection.
pub type TlsConnector = Box<dyn FnOnce(TcpStream) -> io::Result<Box<dyn Stream>>>;

/// A probe of one process.
pub struct Probe {
    address: SocketAddr,
    tls: Option<TlsConnector>,
}

impl Probe {
    /// A probe of the process that listens on `listen`. An unspecified address becomes loopback.
    pub fn new(listen: SocketAddr, tls: Option<TlsConnector>) -> Self {
        let ip = match listen.ip() {
            ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            ip => ip,
        };
        Self { address: SocketAddr::new(ip, listen.port()), tls }
    }

    /// Sends the request.
    ///
    /// # Errors
    /// The process does not answer within 3 s, or the status is not 200.
    pub fn run(self) -> Result<(), String> {
        match self.status_line() {
            Ok(status) if status.contains(" 200 ") => Ok(()),
            Ok(status) => Err(format!("/livez answered {status:?}")),
            Err(error) => Err(format!("/livez does not answer: {error}")),
        }
    }

    fn status_line(self) -> io::Result<String> {
        let address = self.address;
        let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let mut stream: Box<dyn Stream> = match self.tls {
            Some(connect) => connect(stream)?,
            None => Box::new(stream),
        };
        stream.write_all(
            format!("GET /livez HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes(),
        )?;
        let mut line = String::new();
        BufReader::new(stream.take(MAX_STATUS_LINE_BYTES)).read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn probe(response: &'static str) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            assert_ne!(stream.read(&mut [0; 256]).unwrap(), 0);
            stream.write_all(response.as_bytes()).unwrap();
        });
        let result = Probe::new(address, None).run();
        server.join().unwrap();
        result
    }

    #[test]
    fn a_probe_succeeds_only_on_a_200() {
        assert_eq!(probe("HTTP/1.1 200 OK\r\n\r\n"), Ok(()));
        assert!(probe("HTTP/1.1 503 Service Unavailable\r\n\r\n").unwrap_err().contains("503"));
        assert!(probe("").unwrap_err().contains("answered"));
    }

    #[test]
    fn a_refused_connection_is_an_error_with_the_path() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(Probe::new(address, None).run().unwrap_err().starts_with("/livez does not answer"));
    }
}
