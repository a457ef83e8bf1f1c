//! One side, started afresh for each measurement, so that its memory is its own.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use devservers::Child;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Failure;
use crate::cli::{Name, Options};
use crate::programs::Programs;

/// How long a side may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The producer.
    Slipstream,
    /// The minimal server.
    Minimal {
        /// Its `linger.ms`.
        linger_ms: u32,
        /// Whether each record has a key of its own.
        keyed: bool,
    },
    /// The original's design.
    Original,
    /// The producer without a sources file. It gets the record as payload of an envelope.
    Envelope,
    /// The producer with a sources file. It gets the record itself.
    Source(Mapping),
}

/// How a source of the file makes an event of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Two pointers. The payload is the record.
    Pointers,
    /// The same, after a schema of 20 properties.
    Schema,
    /// Two pointers. The payload is the output of a jq filter with six fields.
    Filter,
}

impl Mapping {
    /// The name of its source.
    pub fn source(self) -> &'static str {
        match self {
            Mapping::Pointers => "pointers",
            Mapping::Schema => "schema",
            Mapping::Filter => "filter",
        }
    }
}

impl Side {
    /// Those that the options name.
    pub fn all(options: &Options) -> Vec<Side> {
        let sides = options.only.iter().flat_map(|name| match name {
            Name::Slipstream => vec![Side::Slipstream],
            Name::Minimal => [true, false]
                .into_iter()
                .flat_map(|keyed| {
                    options.linger_ms.iter().map(move |&linger_ms| Side::Minimal { linger_ms, keyed })
                })
                .collect(),
            Name::Original => vec![Side::Original],
            Name::Sources => vec![
                Side::Envelope,
                Side::Source(Mapping::Pointers),
                Side::Source(Mapping::Schema),
                Side::Source(Mapping::Filter),
            ],
        });
        sides.filter(|side| options.batch.is_none() || side.has_batches()).collect()
    }

    /// Whether it has an endpoint for batches.
    fn has_batches(self) -> bool {
        !matches!(self, Side::Minimal { .. } | Side::Original)
    }

    /// For the table.
    pub fn title(self) -> String {
        match self {
            Side::Slipstream => "slipstream".into(),
            Side::Minimal { linger_ms, keyed: true } => format!("minimal server, linger {linger_ms} ms"),
            Side::Minimal { linger_ms, keyed: false } => {
                format!("minimal server without keys, linger {linger_ms} ms")
            }
            Side::Original => "original's design".into(),
            Side::Envelope => "record in an envelope".into(),
            Side::Source(Mapping::Pointers) => "source, pointers".into(),
            Side::Source(Mapping::Schema) => "source, pointers and schema".into(),
            Side::Source(Mapping::Filter) => "source, pointers and jq".into(),
        }
    }

    fn command(self, programs: &Programs, broker: &str, topic: &str, address: SocketAddr) -> Command {
        let address = address.to_string();
        let mut command = match self {
            Side::Slipstream | Side::Envelope | Side::Source(_) => {
                let mut command = Command::new(programs.binary("producer"));
                command.env("LISTEN_ADDR", address).env("LOG_FORMAT", "json");
                if matches!(self, Side::Source(_)) {
                    command.env("SOURCES_FILE", programs.sources_file());
                }
                command
            }
            Side::Minimal { linger_ms, keyed } => {
                let mut command = Command::new(programs.binary("minimal-server"));
                let keys = if keyed { "keyed" } else { "keyless" };
                command.args([broker, topic, &address, &linger_ms.to_string(), keys]);
                command
            }
            Side::Original => {
                let mut command = Command::new(programs.original_home().join("bin/uvicorn"));
                let (host, port) = address.rsplit_once(':').unwrap_or(("127.0.0.1", "0"));
                command.args(["app:app", "--no-access-log", "--host", host, "--port", port]);
                command.current_dir(programs.original_home());
                command
            }
        };
        command.env("KAFKA_BROKER", broker).env("KAFKA_TOPIC", topic).env("MAX_BATCH_EVENTS", "10000");
        command
    }

    /// Starts it, and returns when it is ready.
    pub async fn start(self, programs: &Programs, broker: &str, topic: &str) -> Result<Running, Failure> {
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = programs.folder().join("side.log");
        let child = Child::start(self.command(programs, broker, topic, address), &log)?;
        let began = Instant::now();
        while !is_ready(address).await {
            if child.status().is_some() || began.elapsed() > READY_LIMIT {
                return Err(format!("{} is not ready: see {}", self.title(), log.display()).into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Running { child, address })
    }
}

/// A side that takes requests. It is killed when it is dropped.
#[derive(Debug)]
pub struct Running {
    /// Its process.
    pub child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

async fn is_ready(address: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer.starts_with("HTTP/1.1 200 "))
    };
    ask.await.unwrap_or(false)
}
