//! A real broker on loopback, for one process at a time.

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

/// Which broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerKind {
    /// The real one: keeps its data over a kill and a restart. Needs Java 17 and, once, Maven.
    ApacheKafka,
    /// Ready in a blink; keeps its data in memory only, and its latest offset is wrong (the last batch's first offset + 1).
    Tansu,
}

impl BrokerKind {
    /// As SLIPSTREAM_BROKER says; unset, Apache Kafka where Java 17 and Maven are, else tansu.
    pub fn from_env() -> Result<BrokerKind, ServerError> {
        BrokerKind::choose(std::env::var_os("SLIPSTREAM_BROKER").as_deref(), &Machine::from_env())
    }

    /// The kind that `setting` names; without one, the best that this machine can run.
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

/// How to start a broker.
#[derive(Clone, Debug)]
pub struct BrokerOptions {
    /// Which one.
    pub kind: BrokerKind,
    /// Where its data, its configuration and its log go; created where missing.
    pub data_dir: PathBuf,
    /// Its port; 0 is a free one.
    pub port: u16,
    /// Where its programs come from.
    pub machine: Machine,
    /// A second listener, for clients with a password; Apache Kafka only.
    pub sasl: Option<Sasl>,
    /// The port of a relay on loopback that stands before a further listener: clients that come through it are told to
    /// go on through it. Apache Kafka only.
    pub relay: Option<u16>,
}

impl BrokerOptions {
    /// On a free port, with the programs that the environment names.
    pub fn new(kind: BrokerKind, data_dir: impl Into<PathBuf>) -> BrokerOptions {
        let (data_dir, machine) = (data_dir.into(), Machine::from_env());
        BrokerOptions { kind, data_dir, port: 0, machine, sasl: None, relay: None }
    }
}

/// A running broker; dropping it kills it.
#[derive(Debug)]
pub struct Broker {
    kind: BrokerKind,
    machine: Machine,
    server: Server,
    listeners: Listeners,
    _folder: FolderLock,
}

impl Broker {
    /// Fetches what is missing, starts the broker and returns when it answers.
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

    /// What KAFKA_BROKER takes for the listener that asks for a password, if there is one.
    pub fn sasl_bootstrap(&self) -> Option<String> {
        self.listeners.sasl.as_ref().map(|sasl| address::loopback(sasl.port).to_string())
    }

    /// Where the relay of [`BrokerOptions::relay`] finds the broker, if there is one.
    pub fn behind_relay(&self) -> Option<SocketAddr> {
        self.listeners.relayed.map(|relayed| address::loopback(relayed.port))
    }

    /// What KAFKA_BROKER takes.
    pub fn bootstrap(&self) -> String {
        address::loopback(self.server.port()).to_string()
    }

    /// Which broker it is.
    pub fn kind(&self) -> BrokerKind {
        self.kind
    }

    /// The number of its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// Stops it cleanly.
    pub async fn stop(&self) {
        self.server.stop().await;
    }

    /// Kills it with SIGKILL.
    pub fn kill(&self) {
        self.server.kill();
    }

    /// Starts it again on the same port with the same data (tansu: with none); stops it before if it runs.
    pub async fn restart(&self) -> Result<(), ServerError> {
        self.server.restart().await
    }

    /// Keeps it from running: its connections stay open and nothing answers.
    pub fn pause(&self) {
        self.server.pause();
    }

    /// Lets it go on after a pause.
    pub fn resume(&self) {
        self.server.resume();
    }

    /// Runs one of Apache Kafka's command-line classes and gives its standard output, for example
    /// `org.apache.kafka.tools.consumer.group.ConsumerGroupCommand`, the class behind `kafka-consumer-groups`. The arguments
    /// are those of the command line, `--bootstrap-server` among them.
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

/// A name for a cluster, in the form that Kafka gives them: 16 bytes as 22 characters.
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
