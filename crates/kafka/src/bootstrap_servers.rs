//! KAFKA_BROKER: a list of bootstrap servers.
//!
//! librdkafka ignores an invalid entry, or treats it as an unknown host, and then never connects.
//! All entries are therefore checked at the start.

use std::net::{Ipv4Addr, Ipv6Addr};

use service::config::redact;

/// The schemes of an entry, which are the values of `security.protocol`.
const SCHEMES: [&str; 4] = ["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"];

/// The valid form, for error texts.
const VALID_FORM: &str =
    "the right form is host:port, or several separated by commas, as in kafka-1:9092,kafka-2:9092";

/// A list of bootstrap servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootstrapServers {
    /// `host:port` separated by commas, without schemes.
    pub servers: String,
    /// The `security.protocol` of the schemes. `None` if no entry has a scheme.
    pub protocol: Option<&'static str>,
}

impl BootstrapServers {
    /// Parses KAFKA_BROKER.
    ///
    /// # Errors
    /// The first invalid entry, and the valid form.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut servers = Vec::new();
        let mut protocol = None;
        for entry in text.split(',').map(str::trim) {
            let invalid =
                |reason: String| format!("has the entry {:?}, which {reason}; {VALID_FORM}", redact(entry));
            if entry.is_empty() {
                return Err(format!("has an empty entry; {VALID_FORM}"));
            }
            if entry.contains(|c: char| c == ';' || c.is_whitespace()) {
                return Err(invalid("has another separator than a comma".into()));
            }
            let (scheme, address) = scheme(entry).map_err(invalid)?;
            if let (Some(scheme), Some(other)) = (scheme, protocol)
                && scheme != other
            {
                return Err(invalid(format!(
                    "has another scheme than an entry before it ({})",
                    upper(other)
                )));
            }
            check_address(address).map_err(|reason| invalid(reason.into()))?;
            protocol = protocol.or(scheme);
            servers.push(address);
        }
        Ok(Self { servers: servers.join(","), protocol })
    }
}

/// `protocol` in upper case, as in the documentation of Kafka.
pub fn upper(protocol: &str) -> String {
    protocol.to_ascii_uppercase()
}

fn scheme(entry: &str) -> Result<(Option<&'static str>, &str), String> {
    let Some((scheme, address)) = entry.split_once("://") else { return Ok((None, entry)) };
    match SCHEMES.into_iter().find(|known| known.eq_ignore_ascii_case(scheme)) {
        Some(known) => Ok((Some(known), address)),
        None => Err(format!("has a scheme that is none of {}", SCHEMES.map(upper).join(", "))),
    }
}

fn check_address(address: &str) -> Result<(), &'static str> {
    if address.contains('@') {
        return Err("has a user or a password, which belong in KAFKA_PROPERTIES");
    }
    let port = match address.strip_prefix('[') {
        Some(rest) => {
            let Some((host, port)) = rest.split_once(']') else { return Err("has no ] after its [") };
            // A link-local address can end with `%` and the name of an interface.
            if host.split('%').next().unwrap_or_default().parse::<Ipv6Addr>().is_err() {
                return Err("has no IPv6 address in its brackets");
            }
            port.strip_prefix(':').ok_or("has no port")?
        }
        None => {
            let (host, port) = address.split_once(':').ok_or("has no port")?;
            if looks_like_ipv6(address) {
                return Err("has an IPv6 address without brackets, which is written as in [::1]:9092");
            }
            check_host(host)?;
            port
        }
    };
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse::<u16>() {
        Ok(1..) if digits => Ok(()),
        _ if port.is_empty() => Err("has no port"),
        _ => Err("has a port that is not a number from 1 to 65535"),
    }
}

fn looks_like_ipv6(address: &str) -> bool {
    let digits = address.split('%').next().unwrap_or_default();
    digits.matches(':').count() > 1 && digits.chars().all(|c| c.is_ascii_hexdigit() || matches!(c, ':' | '.'))
}

fn check_host(host: &str) -> Result<(), &'static str> {
    let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let last_label = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    if host.is_empty() {
        Err("has no host")
    } else if host.len() > 253
        || !host.chars().all(is_valid)
        || host.starts_with(['.', '-'])
        || host.contains("..")
    {
        Err("has a host that is neither a name nor an address")
    } else if last_label.bytes().all(|byte| byte.is_ascii_digit()) && host.parse::<Ipv4Addr>().is_err() {
        Err("has a host that looks like an IPv4 address but is invalid")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, Option<&'static str>) {
        let brokers = BootstrapServers::parse(text).expect(text);
        (brokers.servers, brokers.protocol)
    }

    #[test]
    fn a_valid_list_is_parsed_without_schemes_and_spaces() {
        for (text, servers, protocol) in [
            ("k:9092", "k:9092", None),
            (
                "kafka_1.example-net.com:1, 10.0.0.1:65535,\n k:29092",
                "kafka_1.example-net.com:1,10.0.0.1:65535,k:29092",
                None,
            ),
            ("SASL_SSL://a:1,b:2,sasl_ssl://c:3", "a:1,b:2,c:3", Some("sasl_ssl")),
            ("b:2,plaintext://c:3", "b:2,c:3", Some("plaintext")),
            ("[::1]:9092,SSL://[fe80::1%eth0]:9093", "[::1]:9092,[fe80::1%eth0]:9093", Some("ssl")),
            ("broker.example.com.:9092", "broker.example.com.:9092", None),
        ] {
            assert_eq!(parsed(text), (servers.to_owned(), protocol), "{text}");
        }
    }

    #[test]
    fn an_invalid_list_is_an_error_with_the_entry_and_the_valid_form() {
        for (text, entry, reason) in [
            ("k", "\"k\"", "no port"),
            ("a:1,k", "\"k\"", "no port"),
            ("k:", "\"k:\"", "no port"),
            ("k:0", "\"k:0\"", "1 to 65535"),
            ("k:99999", "\"k:99999\"", "1 to 65535"),
            ("k:+9092", "\"k:+9092\"", "1 to 65535"),
            ("k:9092/", "\"k:9092/\"", "1 to 65535"),
            ("k:9092:9093", "\"k:9092:9093\"", "1 to 65535"),
            (":9092", "\":9092\"", "no host"),
            ("a:1;b:2", "\"a:1;b:2\"", "another separator"),
            ("a:1 b:2", "\"a:1 b:2\"", "another separator"),
            ("a:1\nb:2", "\"a:1\\nb:2\"", "another separator"),
            ("a:1|b:2", "\"a:1|b:2\"", "1 to 65535"),
            ("\"k:9092\"", "\"\\\"k:9092\\\"\"", "neither a name"),
            ("http://k:9092", "\"http://k:9092\"", "SASL_SSL"),
            ("INTERNAL://k:9092", "\"INTERNAL://k:9092\"", "PLAINTEXT"),
            ("://k:9092", "\"://k:9092\"", "scheme"),
            ("SSL://a:1,PLAINTEXT://b:2", "\"PLAINTEXT://b:2\"", "(SSL)"),
            ("SSL://SSL://a:1", "\"SSL://SSL://a:1\"", "1 to 65535"),
            ("::1:9092", "\"::1:9092\"", "brackets"),
            ("::1", "\"::1\"", "brackets"),
            ("2001:db8:0:0:0:0:0:1:9092", "\"2001:db8:0:0:0:0:0:1:9092\"", "brackets"),
            ("[::1]", "\"[::1]\"", "no port"),
            ("[::1]9092", "\"[::1]9092\"", "no port"),
            ("[::1", "\"[::1\"", "]"),
            ("[k]:9092", "\"[k]:9092\"", "IPv6"),
            ("256.0.0.1:9092", "\"256.0.0.1:9092\"", "IPv4"),
            ("käfka:9092", "\"käfka:9092\"", "neither a name"),
            ("a..b:9092", "\"a..b:9092\"", "neither a name"),
        ] {
            let error = BootstrapServers::parse(text).expect_err(text);
            assert!(
                error.contains(entry) && error.contains(reason) && error.contains("host:port"),
                "{text}: {error}"
            );
        }
        for text in ["", ",", "a:1,", ",a:1", "a:1,,b:2", " "] {
            let error = BootstrapServers::parse(text).expect_err(text);
            assert!(error.contains("empty entry") && error.contains("host:port"), "{text}: {error}");
        }
    }

    #[test]
    fn a_password_in_the_list_is_rejected_and_not_shown() {
        for text in ["u:hunter2@k:9092", "SASL_SSL://u:hunter2@k:9092", "a:1,u:hunter2@k:9092;b:2"] {
            let error = BootstrapServers::parse(text).expect_err(text);
            assert!(!error.contains("hunter2") && error.contains("k:9092"), "{error}");
        }
    }
}
