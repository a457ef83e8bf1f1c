//! A producer with scripted responses.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};

/// How it handles a request with events.
#[derive(Debug, Clone)]
pub enum Say {
    /// 202 for the one event of the request.
    Accepted,
    /// This status, with these headers and this body.
    This(u16, &'static str, String),
    /// Closes the connection after it has read the request.
    Nothing,
}

/// A request with events.
#[derive(Debug, Clone)]
pub struct Request {
    /// When it was complete.
    pub at: Instant,
    /// Its path.
    pub path: String,
    /// Its headers in lower case.
    pub head: String,
    /// Its body.
    pub body: String,
}

/// The producer. It ends with the test's runtime.
#[derive(Debug)]
pub struct Script {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Script {
    /// Sends `answers` in order, the last one forever.
    pub async fn start(answers: impl IntoIterator<Item = Say>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answers = Arc::new(Mutex::new(answers.into_iter().collect::<VecDeque<_>>()));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&answers), Arc::clone(&seen)));
            }
        });
        Self { address, requests }
    }

    /// The base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests that it received.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

async fn serve(stream: TcpStream, answers: Arc<Mutex<VecDeque<Say>>>, seen: Arc<Mutex<Vec<Request>>>) {
    let mut stream = BufStream::new(stream);
    while let Some((path, head, body)) = read(&mut stream).await {
        let mut say = Say::This(404, "", "{}".into());
        if path.starts_with("/ingest") {
            let request = Request { at: Instant::now(), path, head, body: body.clone() };
            seen.lock().unwrap().push(request);
            let mut answers = answers.lock().unwrap();
            say = if answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0].clone() };
        }
        let (status, headers, text) = match say {
            Say::This(status, headers, text) => (status, headers, text),
            Say::Nothing => return,
            Say::Accepted => {
                let event: Value = serde_json::from_str(&body).unwrap();
                let said =
                    json!({"id": event["id"], "topic": "t", "partition": 0, "offset": 7, "ingested_at": 9});
                (202, "", said.to_string())
            }
        };
        let answer = format!("HTTP/1.1 {status} x\r\n{headers}content-length: {}\r\n\r\n{text}", text.len());
        if stream.write_all(answer.as_bytes()).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}

/// Reads path, head and body of the next request.
async fn read(stream: &mut BufStream<TcpStream>) -> Option<(String, String, String)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let path = head.split(' ').nth(1)?.to_owned();
    let head = head.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await.ok()?;
    Some((path, head, String::from_utf8(body).unwrap()))
}
