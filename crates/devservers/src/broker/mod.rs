//! A real broker on loopback.

mod class_archive;
mod data_folder;
mod installation;
mod kafka;
mod listeners;
pub(crate) mod metadata;
mod options;
mod sasl;
mod tansu;

use std::net::SocketAddr;

use listeners::Listeners;
pub use options::{BrokerKind, BrokerOptions};
pub use sasl::Sasl;

use crate::folder::FolderLock;
use crate::server::{Launch, Server};
use crate::{Machine, Progress, ServerError, address};

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
            kafka::add_user(&sasl.sasl, &broker.machine, folder, &broker.bootstrap()).await?;
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
