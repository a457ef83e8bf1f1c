//! The listeners of Apache Kafka: plaintext, and optionally one with TLS and passwords, and one
//! behind a proxy.

use std::fmt;
use std::path::Path;

use crate::error::ServerError;
use crate::machine;

/// The listeners without that of the controller.
#[derive(Debug)]
pub(super) struct Listeners {
    /// The plaintext listener, which the broker uses too.
    pub port: u16,
    pub sasl: Option<SaslListener>,
    pub relayed: Option<Relayed>,
}

/// A listener behind a proxy. It advertises the port of the proxy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relayed {
    pub port: u16,
    relay: u16,
}

impl Listeners {
    pub(super) fn on_free_ports(
        port: u16,
        sasl: Option<&Sasl>,
        relay: Option<u16>,
    ) -> Result<Listeners, ServerError> {
        let relayed = |relay| Ok::<_, ServerError>(Relayed { port: machine::free_port()?, relay });
        Ok(Listeners {
            port: if port == 0 { machine::free_port()? } else { port },
            sasl: sasl.map(SaslListener::on_free_port).transpose()?,
            relayed: relay.map(relayed).transpose()?,
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
            listeners.push(format!("RELAYED://{}", machine::loopback(relayed.port)));
            advertised.push(format!("RELAYED://{}", machine::loopback(relayed.relay)));
        }
        let plain = format!("PLAINTEXT://{}", machine::loopback(self.port));
        listeners.extend([plain.clone(), format!("CONTROLLER://{}", machine::loopback(controller))]);
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

const KEYSTORE: &str = "sasl-keystore.pem";

/// The user and the certificate of the broker.
#[derive(Clone)]
pub struct Sasl {
    /// The certificate of the broker in PEM, for 127.0.0.1.
    pub certificate: String,
    /// Its private key, PKCS#8 in PEM.
    pub key: String,
    /// The user: letters and digits.
    pub user: String,
    /// The user's password: letters and digits.
    pub password: String,
}

impl fmt::Debug for Sasl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sasl").field("user", &self.user).finish_non_exhaustive()
    }
}

/// The SASL_SSL listener, with PLAIN and both SCRAM mechanisms.
#[derive(Clone, Debug)]
pub(super) struct SaslListener {
    pub sasl: Sasl,
    pub port: u16,
}

impl SaslListener {
    fn on_free_port(sasl: &Sasl) -> Result<SaslListener, ServerError> {
        let plain = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric());
        if !plain(&sasl.user) || !plain(&sasl.password) {
            let sentence = "user and password of the broker's SASL listener must be letters and digits";
            return Err(ServerError::Setting(sentence.to_owned()));
        }
        Ok(SaslListener { sasl: sasl.clone(), port: machine::free_port()? })
    }

    /// As an entry of `listeners`.
    fn entry(&self) -> String {
        format!("SASL_SSL://{}", machine::loopback(self.port))
    }

    /// Its configuration lines.
    fn properties(&self, folder: &Path) -> Result<String, ServerError> {
        let Sasl { certificate, key, user, password } = &self.sasl;
        let path = folder.join(KEYSTORE);
        std::fs::write(&path, format!("{key}\n{certificate}\n"))
            .map_err(ServerError::io("writing", &path))?;
        Ok(format!(
            "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl_ssl.ssl.keystore.type=PEM
listener.name.sasl_ssl.ssl.keystore.location={KEYSTORE}
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_{user}=\"{password}\";
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
"
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

    #[test]
    fn a_password_that_would_need_quoting_is_refused_and_not_shown() {
        let sasl = |user: &str, password: &str| Sasl {
            certificate: String::new(),
            key: String::new(),
            user: user.into(),
            password: password.into(),
        };
        let listener = SaslListener::on_free_port(&sasl("alice", "secret")).unwrap();
        assert_eq!(listener.entry(), format!("SASL_SSL://127.0.0.1:{}", listener.port));
        for wrong in [sasl("alice", "a\"b"), sasl("al ice", "secret"), sasl("alice", "")] {
            let said = SaslListener::on_free_port(&wrong).unwrap_err().to_string();
            assert!(said.contains("letters and digits") && !said.contains("secret"), "{said}");
            assert!(!format!("{wrong:?}").contains("secret"));
        }
    }
}
