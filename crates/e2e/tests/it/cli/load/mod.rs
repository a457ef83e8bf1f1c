//! `slipstream load` and `slipstream verify`: successful runs, each finding of a verification, and
//! servers that reject, close connections or do not respond.

mod client;
mod endings;
mod runs;
mod tampering;

use std::path::{Path, PathBuf};

use serde_json::Value;
use testkit::process::command;
use testkit::{Names, Process, Stack};

/// The exit code of a command and its JSON output.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    json: Value,
}

impl Said {
    fn count(&self, path: &str) -> u64 {
        let found = self.json.pointer(path).and_then(Value::as_u64);
        found.unwrap_or_else(|| panic!("{path} in {self:?}"))
    }
}

async fn run(environment: &[(&str, &str)], arguments: &[&str]) -> Said {
    let output = command("slipstream", environment).args(arguments).arg("--json").output().await.unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    Said { code: output.status.code(), json }
}

/// Runs a command. Returns its exit code and its whole output.
async fn text(environment: &[(&str, &str)], arguments: &[&str]) -> (Option<i32>, String) {
    let output = command("slipstream", environment).args(arguments).output().await.unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// A producer, a consumer, and a folder for ledgers.
struct Site {
    names: Names,
    producer: Process,
    consumer: Process,
    folder: tempfile::TempDir,
}

impl Site {
    async fn start(stack: &Stack) -> Self {
        let names = stack.names();
        let (producer, consumer) = (stack.producer(&names, &[]), stack.consumer(&names, &[]));
        producer.ready().await;
        consumer.ready().await;
        Self { names, producer, consumer, folder: tempfile::tempdir().unwrap() }
    }

    fn ledger(&self) -> PathBuf {
        self.folder.path().join("ledger")
    }

    /// Runs a load with events of the source `manual`.
    async fn load(&self, arguments: &[&str]) -> Said {
        let ledger = self.ledger();
        load(&self.producer.url(""), &[], &ledger, arguments).await
    }

    async fn verify(&self, arguments: &[&str]) -> Said {
        verify(&self.names, &self.ledger(), arguments).await
    }

    async fn end(self) {
        assert!(self.producer.terminate().await.success());
        assert!(self.consumer.terminate().await.success());
    }
}

async fn load(producer: &str, more: &[(&str, &str)], ledger: &Path, arguments: &[&str]) -> Said {
    let environment = [&[("PRODUCER_BASE_URL", producer)], more].concat();
    let ours = ["load", "--source", "manual", "--ledger", ledger.to_str().unwrap()];
    run(&environment, &[&ours, arguments].concat()).await
}

async fn verify(names: &Names, ledger: &Path, arguments: &[&str]) -> Said {
    let ours = ["verify", "--wait", "60s", "--ledger", ledger.to_str().unwrap()];
    run(&names.for_every_source(&[]), &[&ours, arguments].concat()).await
}

/// The lines of the ledger; the first is its header.
fn lines(ledger: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(ledger).unwrap();
    assert!(text.ends_with('\n'), "the last line is cut");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A producer with scripted responses.
mod script {
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
                    let said = json!({"id": event["id"], "topic": "t", "partition": 0, "offset": 7, "ingested_at": 9});
                    (202, "", said.to_string())
                }
            };
            let answer =
                format!("HTTP/1.1 {status} x\r\n{headers}content-length: {}\r\n\r\n{text}", text.len());
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
}
