//! What the tests of failed tasks need: the log lines of the thread, and `/livez`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::subscriber::DefaultGuard;

/// The log lines of the current thread.
#[derive(Debug, Clone, Default)]
pub struct LogLines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for LogLines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        std::io::Write::write(&mut *self.0.lock().expect("no thread panicked"), bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl LogLines {
    /// Collects the lines until the guard is dropped.
    pub fn collect(&self) -> DefaultGuard {
        let lines = self.clone();
        let subscriber = tracing_subscriber::fmt().json().with_writer(move || lines.clone()).finish();
        tracing::subscriber::set_default(subscriber)
    }

    /// The lines of level error.
    pub fn errors(&self) -> Vec<String> {
        let bytes = self.0.lock().expect("no thread panicked").clone();
        let text = String::from_utf8(bytes).expect("lines in UTF-8");
        text.lines().filter(|line| line.contains("\"ERROR\"")).map(str::to_owned).collect()
    }
}

/// The response of `/livez`, or an empty text if the listener has ended.
pub async fn livez(address: SocketAddr) -> String {
    let mut response = String::new();
    if let Ok(mut stream) = TcpStream::connect(address).await {
        let request = b"GET /livez HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n";
        _ = stream.write_all(request).await;
        _ = stream.read_to_string(&mut response).await;
    }
    response
}

/// The first response of `/livez` that is not a 200.
pub async fn failed_livez(address: SocketAddr) -> String {
    loop {
        let response = livez(address).await;
        if !response.starts_with("HTTP/1.1 200") {
            return response;
        }
    }
}
