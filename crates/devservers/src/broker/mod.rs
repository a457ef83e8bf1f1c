//! A real broker on loopback.

mod class_archive;
mod kafka;
mod listeners;
mod metadata;
mod sasl;
mod tansu;

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::PathBuf;

use listeners::Listeners;
pub(crate) use metadata::answers;
pub use sasl::Sasl;

use crate::folder::FolderLock;
use crate::server::{Launch, Server};
use crate::{Machine, Progress, ServerError, address};

/// The kind of a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerKind {
    /// Apache Kafka: keeps its data over a kill and a restart. Needs Java 17 and, once, Maven.
    ApacheKafka,
    /// tansu: starts at once, stores its data in memory only, and reports a wrong end offset (first
    /// offset of the last batch + 1).
    Tansu,
}

impl BrokerKind {
    /// The kind in SLIPSTREAM_BROKER. If unset: Apache Kafka if Java 17 and Maven are on PATH, else
    /// tansu.
    pub fn from_env() -> Result<BrokerKind, ServerError> {
        BrokerKind::choose(std::env::var_os("SLIPSTREAM_BROKER").as_deref(), &Machine::from_env())
    }

    /// The kind that `setting` names; without one, Apache Kafka if this machine can run it, else
    /// tansu.
    pub fn choose(setting: Option<&OsStr>, machine: &Machine) -> Result<BrokerKind, ServerError> {
        match setting.map(OsStr::to_string_lossy).as_deref() {
            Some("apache-kafka") => Ok(BrokerKind::ApacheKafka),
            Some("tansu") => Ok(BrokerKind::Tansu),
            None | Some("") if machine.program("mvn").is_some() && machine.java().is_some() => {
                Ok(BrokerKind::ApacheKafka)
            }
            None | Some("") => Ok(BrokerKind::Tansu),
            Some(other) => {
                let sentence = format!("SLIPSTREAM_BROKER is {other:?}: it must be apache-kafka or tansu");
                Err(ServerError::Setting(sentence))
            }
        }
    }
}

/// Options of a broker.
#[derive(Clone, Debug)]
pub struct BrokerOptions {
    /// The kind.
    pub kind: BrokerKind,
    /// The folder for data, configuration and log. It is created if missing.
    pub data_dir: PathBuf,
    /// Its port; 0 is a free port.
    pub port: u16,
    /// The machine with its programs.
    pub machine: Machine,
    /// A second listener with passwords; Apache Kafka only.
    pub sasl: Option<Sasl>,
    /// The port of a proxy on loopback in front of another listener, which advertises that port.
    /// Apache Kafka only.
    pub relay: Option<u16>,
}

impl BrokerOptions {
    /// On a free port, with the programs on PATH.
    pub fn new(kind: BrokerKind, data_dir: impl Into<PathBuf>) -> BrokerOptions {
        let (data_dir, machine) = (data_dir.into(), Machine::from_env());
        BrokerOptions { kind, data_dir, port: 0, machine, sasl: None, relay: None }
    }
}

/// A running broker. It is killed when it is dropped.
#[derive(Debug)]
pub struct Broker {
    kind: BrokerKind,
    machine: Machine,
    server: Server,
    listeners: Listeners,
    _folder: FolderLock,
}

impl Broker {
    /// Downloads missing packages, starts the broker, and returns when it is ready.
    pub async fn start(mut options: BrokerOptions, progress: Progress) -> Result<Broker, ServerError> {
        options.data_dir = std::path::absolute(&options.data_dir).unwrap_or(options.data_dir);
        let folder = FolderLock::take(&options.data_dir)?;
        let mut tries = 3;
        let (server, listeners) = loop {
            tries -= 1;
            let listeners = Listeners::on_free_ports(&options)?;
            match Server::start(launch(&options, &listeners, &progress).await?).await {
                Err(error) if error.is_port_conflict() && options.port == 0 && tries > 0 => {}
                outcome => break (outcome?, listeners),
            }
        };
        let (kind, machine) = (options.kind, options.machine);
        let broker = Broker { kind, machine, server, listeners, _folder: folder };
        if let Some(sasl) = &broker.listeners.sasl {
            let folder = &broker.server.launch().folder;
            sasl.add_user(&broker.machine, folder, &broker.bootstrap()).await?;
        }
        Ok(broker)
    }

    /// The value for KAFKA_BROKER of the listener with passwords, if there is one.
    pub fn sasl_bootstrap(&self) -> Option<String> {
        self.listeners.sasl.as_ref().map(|sasl| address::loopback(sasl.port).to_string())
    }

    /// The address of the listener behind the proxy of [`BrokerOptions::relay`], if there is one.
    pub fn behind_relay(&self) -> Option<SocketAddr> {
        self.listeners.relayed.map(|relayed| address::loopback(relayed.port))
    }

    /// The value for KAFKA_BROKER.
    pub fn bootstrap(&self) -> String {
        address::loopback(self.server.port()).to_string()
    }

    /// The kind.
    pub fn kind(&self) -> BrokerKind {
        self.kind
    }

    /// The process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// Stops it gracefully.
    pub async fn stop(&self) {
        self.server.stop().await;
    }

    /// Sends SIGKILL.
    pub fn kill(&self) {
        self.server.kill();
    }

    /// Stops it if it runs, and starts it on the same port with the same data (tansu: without
    /// data).
    pub async fn restart(&self) -> Result<(), ServerError> {
        self.server.restart().await
    }

    /// Pauses it: connections stay open without responses.
    pub fn pause(&self) {
        self.server.pause();
    }

    /// Resumes it after a pause.
    pub fn resume(&self) {
        self.server.resume();
    }

    /// Runs a command-line class of Apache Kafka and returns its standard output, for example
    /// `org.apache.kafka.tools.consumer.group.ConsumerGroupCommand`, the class of
    /// `kafka-consumer-groups`. The arguments are those of the command line, with
    /// `--bootstrap-server`.
    pub async fn tool(&self, class: &str, arguments: &[&str]) -> Result<String, ServerError> {
        match self.kind {
            BrokerKind::ApacheKafka => {
                kafka::tool(&self.machine, &self.server.launch().folder, class, arguments).await
            }
            BrokerKind::Tansu => {
                let reason = "the broker is tansu, which has no command-line classes".to_owned();
                Err(ServerError::Tool { class: class.to_owned(), reason })
            }
        }
    }
}

async fn launch(
    options: &BrokerOptions,
    listeners: &Listeners,
    progress: &Progress,
) -> Result<Launch, ServerError> {
    match options.kind {
        BrokerKind::ApacheKafka => {
            kafka::launch(&options.machine, &options.data_dir, listeners, progress).await
        }
        BrokerKind::Tansu if listeners.is_one() => {
            tansu::launch(&options.machine, &options.data_dir, listeners.port, progress).await
        }
        BrokerKind::Tansu => {
            let sentence = "tansu has one listener: none that asks for a password, and none behind a relay";
            Err(ServerError::Setting(sentence.to_owned()))
        }
    }
}

/// A random cluster id in Kafka's form: 16 bytes as 22 characters.
fn new_cluster_id() -> String {
    let random = std::iter::repeat_with(fastrand::alphanumeric).take(21);
    random.chain(['A']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_names_the_broker_and_anything_else_is_an_error() {
        let bare = Machine::new("", "");
        let choose = |setting: &str| BrokerKind::choose(Some(OsStr::new(setting)), &bare);
        assert_eq!(choose("apache-kafka").unwrap(), BrokerKind::ApacheKafka);
        assert_eq!(choose("tansu").unwrap(), BrokerKind::Tansu);
        let sentence = choose("kafka").unwrap_err().to_string();
        assert_eq!(sentence, "SLIPSTREAM_BROKER is \"kafka\": it must be apache-kafka or tansu");
    }

    #[test]
    fn a_machine_without_java_and_maven_gets_tansu() {
        assert_eq!(BrokerKind::choose(None, &Machine::new("", "")).unwrap(), BrokerKind::Tansu);
        assert_eq!(
            BrokerKind::choose(Some(OsStr::new("")), &Machine::new("", "")).unwrap(),
            BrokerKind::Tansu
        );
    }
}
