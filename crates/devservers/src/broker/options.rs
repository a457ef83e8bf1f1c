//! The kinds of brokers, and the options to start one.

use std::ffi::OsStr;
use std::path::PathBuf;

use super::sasl::Sasl;
use crate::{Machine, ServerError};

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
