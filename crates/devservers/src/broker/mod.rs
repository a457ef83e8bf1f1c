//! A real broker on loopback: its kind, its options, and the broker tansu.

mod kafka;
mod listeners;

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use self::kafka::new_cluster_id;
use self::listeners::Listeners;
pub use self::listeners::Sasl;
use crate::error::ServerError;
use crate::machine::{self, FolderLock, Machine, Progress};
use crate::packages;
use crate::server::{Launch, ReadinessCheck, Server};

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
            let listeners = Listeners::on_free_ports(options.port, options.sasl.as_ref(), options.relay)?;
            match Server::start(launch(&options, &listeners, &progress).await?).await {
                Err(error) if error.is_port_conflict() && options.port == 0 && tries > 0 => {}
                outcome => break (outcome?, listeners),
            }
        };
        let (kind, machine) = (options.kind, options.machine);
        let broker = Broker { kind, machine, server, listeners, _folder: folder };
        if let Some(sasl) = &broker.listeners.sasl {
            let folder = &broker.server.launch().folder;
            kafka::add_user(&sasl.sasl, &broker.machine, folder, &broker.bootstrap()).await?;
        }
        Ok(broker)
    }

    /// The value for KAFKA_BROKER of the listener with passwords, if there is one.
    pub fn sasl_bootstrap(&self) -> Option<String> {
        self.listeners.sasl.as_ref().map(|sasl| machine::loopback(sasl.port).to_string())
    }

    /// The address of the listener behind the proxy of [`BrokerOptions::relay`], if there is one.
    pub fn behind_relay(&self) -> Option<SocketAddr> {
        self.listeners.relayed.map(|relayed| machine::loopback(relayed.port))
    }

    /// The value for KAFKA_BROKER.
    pub fn bootstrap(&self) -> String {
        machine::loopback(self.server.port()).to_string()
    }

    /// The kind.
    pub fn kind(&self) -> BrokerKind {
        self.kind
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

impl Deref for Broker {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
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
            launch_tansu(&options.machine, &options.data_dir, listeners.port, progress).await
        }
        BrokerKind::Tansu => {
            let sentence =
                "tansu supports one listener only, without SASL and without a relay: use Apache Kafka";
            Err(ServerError::Setting(sentence.to_owned()))
        }
    }
}

/// The broker tansu: a static binary that stores its records in memory.
async fn launch_tansu(
    machine: &Machine,
    folder: &Path,
    port: u16,
    progress: &Progress,
) -> Result<Launch, ServerError> {
    let cluster_id = new_cluster_id();
    let listener = format!("tcp://{}", machine::loopback(port));
    let arguments = [
        ("--cluster-id", cluster_id.as_str()),
        ("--storage-engine", "memory://tansu/"),
        ("--listener-url", &listener),
        ("--advertised-listener-url", &listener),
    ];
    Ok(Launch {
        name: "tansu",
        program: packages::tansu(machine, progress).await?,
        arguments: arguments.into_iter().flat_map(|(flag, value)| [flag.into(), value.into()]).collect(),
        only_path: Some(machine.path().clone()),
        folder: folder.to_owned(),
        log: folder.join("broker.log"),
        port,
        readiness_check: ReadinessCheck::Metadata { cluster_id },
    })
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

    #[tokio::test]
    async fn tansu_says_that_it_has_no_such_listener() {
        let folder = tempfile::tempdir().unwrap();
        let mut options = BrokerOptions::new(BrokerKind::Tansu, folder.path());
        let text = String::new;
        options.sasl =
            Some(Sasl { certificate: text(), key: text(), user: "a".into(), password: "b".into() });
        let error = Broker::start(options, Progress::silent()).await.unwrap_err();
        assert!(error.to_string().contains("tansu"), "{error}");
    }
}
