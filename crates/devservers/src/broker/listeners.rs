//! The listeners of Apache Kafka: plaintext, and optionally SASL_SSL, and one behind a proxy.

use std::path::Path;

use super::options::BrokerOptions;
use super::sasl::Listener;
use crate::{ServerError, address};

/// The listeners without that of the controller.
#[derive(Debug)]
pub(super) struct Listeners {
    /// The plaintext listener, which the broker uses too.
    pub port: u16,
    pub sasl: Option<Listener>,
    pub relayed: Option<Relayed>,
}

/// A listener behind a proxy. It advertises the port of the proxy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relayed {
    pub port: u16,
    relay: u16,
}

impl Listeners {
    pub(super) fn on_free_ports(options: &BrokerOptions) -> Result<Listeners, ServerError> {
        let relayed = |relay| Ok::<_, ServerError>(Relayed { port: address::free_port()?, relay });
        Ok(Listeners {
            port: if options.port == 0 { address::free_port()? } else { options.port },
            sasl: options.sasl.as_ref().map(Listener::on_free_port).transpose()?,
            relayed: options.relay.map(relayed).transpose()?,
        })
    }

    /// Whether there is only the plaintext listener.
    pub(super) fn only(port: u16) -> Listeners {
        Listeners { port, sasl: None, relayed: None }
    }

    pub(super) fn is_one(&self) -> bool {
        self.sasl.is_none() && self.relayed.is_none()
    }

    /// The configuration lines of the listeners. Writes their files to `folder`.
    pub(super) fn properties(&self, controller: u16, folder: &Path) -> Result<String, ServerError> {
        let (mut listeners, mut advertised) = (Vec::new(), Vec::new());
        if let Some(sasl) = &self.sasl {
            listeners.push(sasl.entry());
            advertised.push(sasl.entry());
        }
        if let Some(relayed) = &self.relayed {
            listeners.push(format!("RELAYED://{}", address::loopback(relayed.port)));
            advertised.push(format!("RELAYED://{}", address::loopback(relayed.relay)));
        }
        let plain = format!("PLAINTEXT://{}", address::loopback(self.port));
        listeners.extend([plain.clone(), format!("CONTROLLER://{}", address::loopback(controller))]);
        advertised.push(plain);
        let of_sasl = self.sasl.as_ref().map(|sasl| sasl.properties(folder)).transpose()?.unwrap_or_default();
        Ok(format!(
            "listeners={}
advertised.listeners={}
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,RELAYED:PLAINTEXT,SASL_SSL:SASL_SSL
{of_sasl}",
            listeners.join(","),
            advertised.join(",")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_behind_a_relay_are_told_the_relay_s_port_and_the_others_the_broker_s() {
        let relayed = Some(Relayed { port: 2, relay: 3 });
        let listeners = Listeners { relayed, ..Listeners::only(1) };
        assert!(!listeners.is_one() && Listeners::only(1).is_one());
        let lines = listeners.properties(4, Path::new("")).unwrap();
        assert!(
            lines.starts_with(
                "listeners=RELAYED://127.0.0.1:2,PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:4\n\
                 advertised.listeners=RELAYED://127.0.0.1:3,PLAINTEXT://127.0.0.1:1\n"
            ),
            "{lines}"
        );
    }
}
